"""`--dry-run`: build everything, run one step, report its cost; on the meta device if files are missing."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from lavis_lite import distributed, engine
from lavis_lite.checkpoints.weights import WeightFile
from lavis_lite.config.compose import Composition
from lavis_lite.config.schema import Config, ModelConfig, NamesLanguageModel
from lavis_lite.contracts import need
from lavis_lite.device import pick_device, to_device
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.language.released import RELEASED
from lavis_lite.models.protocols import ExampleSamples
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.process.launch import Launch, launch_from_environment
from lavis_lite.registry import registry
from lavis_lite.runners.runner import Runner
from lavis_lite.runners.train_state import published_mixing

GIB = 2**30


def dry_run(composition: Composition, needs: list[str], hint: str) -> None:
    """One step with the real data or, if `needs` lists missing files, forward and backward on the meta device."""
    config = composition.config
    for note in config.notes:
        print(f"note: {note}")
    if not needs:
        return _one_real_step(config)
    print_mixing(published_mixing(config))  # first: the step may lack the language model's configuration
    _one_meta_step(config)
    print(f"\n{len(needs)} missing; the run would stop before it starts:")
    print("\n".join(f"  {number}. {need}" for number, need in enumerate(needs, 1)))
    print(f"fetch what can be fetched with: {hint}")
    return None


def _one_real_step(config: Config) -> None:
    """The run's first step, or the first batch of every split that it evaluates; no file is written."""
    run = dataclasses.replace(config.run, tensorboard=False, wandb=False)
    short = dataclasses.replace(config, run=run)
    launch = Launch(local_rank=launch_from_environment().local_rank)  # a single process: it joins no group
    device = pick_device(run.device, launch.local_rank)
    with tempfile.TemporaryDirectory() as folder:
        engine.seed_everything(run.seed)
        start = time.perf_counter()
        runner = engine.assemble(short, device, Path(folder), launch)
        did = _first_batches(runner) if run.evaluate else _first_step(runner)
    print(f"weights: {runner.weights(0)}")
    print_parts(runner.model)
    print_mixing([] if run.evaluate else runner.train_state.mixing)
    seconds = time.perf_counter() - start
    print(f"dry run: built everything and {did} in {seconds:.1f} s; nothing was kept.")


def _first_step(runner: Runner) -> str:
    losses = runner.one_step()
    return f"ran one step ({', '.join(f'{name} {value:.4f}' for name, value in losses.items())})"


@torch.no_grad()
def _first_batches(runner: Runner) -> str:
    """Predict one batch of every evaluated split of every data set that the task takes."""
    predicted, evaluator, task = [], runner.evaluator, runner.task
    runner.model.eval()
    for split in dict.fromkeys([*runner.run.valid_splits, *runner.run.test_splits]):
        for name, splits in runner.datasets.items():
            if split not in splits or not task.takes(splits[split]):
                continue
            task.before_evaluation(splits[split], split)
            with closing(iter(evaluator.loader(task.evaluated(splits[split]), runner.run, 0, 1))) as batches:
                batch = next(batches)
            with distributed.local(), evaluator.precision.autocast():
                rows = task.predict(runner.model, to_device(batch, runner.device))
            predicted.append(f"{len(rows)} of {name} {split!r}")
    return f"predicted one batch ({', '.join(predicted)})"


def print_parts(model: BaseModel) -> None:
    """Trainable and frozen parameters of every part."""
    for part, (trains, stays) in model.count_parameters().items():
        print(f"  {part:16} {trains:>14,} trainable {stays:>14,} frozen")


def print_mixing(lines: list[str]) -> None:
    """Probabilities of the data sets, if there are several."""
    if len(lines) > 1:
        print("training data:")
        print("\n".join(f"  {line}" for line in lines))


def _one_meta_step(config: Config) -> None:
    model = meta_model(config.model)
    batch = config.run.batch_size_train
    samples = need(model, ExampleSamples, "a dry run without the files").example_samples(batch, torch.device("meta"))
    loss, how_far = _meta_loss(model, samples)
    loss.backward()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    print_parts(model)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in samples.items() if torch.is_tensor(value))
    print(f"dry run on the meta device: forward and backward of {batch} samples per rank fit together{how_far} "
          f"({shapes}).")
    memory = trainable * 16 / GIB + frozen * 2 / GIB
    print(f"{trainable:,} parameters train, {frozen:,} are frozen; weights, gradients and AdamW state take about "
          f"{memory:.1f} GiB per rank, activations besides.")


def meta_model(section: ModelConfig) -> BaseModel:
    """The model of a section on the meta device: real shapes, no memory, no files.

    A missing language model has the sizes of its published configuration. If the Q-Former's tokenizer is missing, every
    word is one token.
    """
    cls = registry.get_model_class(section.arch)
    try:
        with torch.device("meta"):
            model = cls.from_config(_with_sizes(section))
    except RuntimeError as error:
        raise ConfigError(f"model.arch={section.arch}: {cls.__name__} cannot be built on the meta device, as a dry run "
                          f"without the files does ({str(error).splitlines()[0]}). Get the missing files first, or let "
                          "its from_config read no weights.") from error
    if isinstance(model, Blip2Base) and not WeightFile("tokenizer", str(section.get("tokenizer"))).is_local():
        model.tokenizer = OneIdPerWord(model.tokenizer)  # type: ignore[assignment]
    return model


def _with_sizes(section: ModelConfig) -> ModelConfig:
    """The section with a language model that can be built here: its folder if present, else its sizes.

    timm downloads nothing: the shapes of an encoder need no weights.
    """
    if section.get("vit_weights") == "timm":
        section = section.replaced(vit_weights="random")
    if not isinstance(section, NamesLanguageModel) or section.llm_args is not None:
        return section
    name = section.language_model_name()
    here = WeightFile("llm_model", name).local()
    if here is not None:
        return section.replaced(llm_model=str(here))
    return section.replaced(llm_args=RELEASED[name], llm_precision="bf16") if name in RELEASED else section


class OneIdPerWord:
    """Replaces a `TextTokenizer` without files: one id per word, all of them equal.

    Args:
        real: the tokenizer without its files; it has limits and special ids.
    """

    def __init__(self, real: TextTokenizer) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __call__(self, texts: Sequence[str], max_length: int | None = None) -> TextTokens:
        """As `TextTokenizer`."""
        most = max_length or self.real.max_length
        return TextTokens.from_lists([[1] * min(len(text.split()) + 2, most) for text in texts], 0)


def _meta_loss(model: BaseModel, samples: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """A scalar for backward, and how far the forward pass goes: the loss, or the soft prompt of a language model.

    The masks of transformers read values, which tensors on the meta device do not have.
    """
    if isinstance(model, Blip2LLM):
        return model.embed_image(samples["image"], samples["text_input"]).sum(), " up to the language model"
    return model(samples).loss, ""
