"""One run on one page: config -> seed -> distributed -> task -> data -> model -> runner.

    `YAML -> config.compose -> engine.main -> builder.build(split) -> sampler picks index -> dataset[i] -> collate
         -> runner.train_step -> task.train_step -> model.forward -> loss -> backward/step -> tracking`
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from lavis_lite import distributed
from lavis_lite.checkpoints import manifest, weights
from lavis_lite.config.compose import Composition, to_yaml
from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.datasets.base import learned_pictures, look_through
from lavis_lite.datasets.features.cache import FeatureFolder
from lavis_lite.device import pick_device, set_tf32
from lavis_lite.errors import CheckpointError, DataError, LavisLiteError
from lavis_lite.io import atomic
from lavis_lite.models.base import BaseModel
from lavis_lite.models.provenance import refuse_untrained
from lavis_lite.models.vision.config import timm_notes
from lavis_lite.process import exits
from lavis_lite.process.launch import Launch, launch_from_environment
from lavis_lite.processors.image import ImageProcessor
from lavis_lite.registry import registry
from lavis_lite.runners import checkpointing
from lavis_lite.runners.runner import Runner
from lavis_lite.runs import EVALUATIONS, find_unfinished, resume_evaluation
from lavis_lite.runs import folder as run_folder
from lavis_lite.tasks.base import BaseTask
from lavis_lite.tasks.writing import long_texts

T = TypeVar("T")


def main(composition: Composition, resume: str | None = None, start_over: bool = False) -> dict[str, Any]:
    """Train a composed run or, with run.evaluate, score it; returns the final scores by split.

    Args:
        composition: a run without errors.
        resume: None, "auto" (newest good checkpoint under run.output_dir, if any) or a checkpoint folder. An evaluation
            loads its weights and step number, a training its whole state.
        start_over: with "auto": begin at step 0 if every checkpoint is damaged, which is an error otherwise.
    """
    if composition.config.run.evaluate:
        composition = resume_evaluation(composition, resume)
    config = composition.config
    run = config.run
    device = pick_device(run.device, launch_from_environment().local_rank)
    with (distributed.group(device, run.dist_timeout_minutes, run.rendezvous_timeout_minutes) as launch,
          contextlib.ExitStack() as held):
        checkpoint = None if run.evaluate else on_main(lambda: find_checkpoint(run, resume, start_over))
        run_dir = on_main(lambda: open_run_folder(composition, checkpoint))
        held.enter_context(removed_if_unused(run_dir))
        exits.report_to(run_dir)
        if not run.evaluate:
            on_main(lambda: lock_run_folder(run_dir, checkpoint, held))
            config = on_main(lambda: keep_global_batch(checkpoint, config, launch.world_size))
        seed_everything(run.seed)
        set_tf32(run, device)
        runner = assemble(config, device, run_dir, launch)
        if checkpoint is not None:
            runner.resume(checkpoint)
        print_on_main(f"weights: {runner.weights(runner.step)}")
        scores = runner.execute()
        print_on_main("\n".join(closing_lines(runner)))
        return scores


def assemble(config: Config, device: torch.device, run_dir: Path, launch: Launch) -> Runner:
    """Task, data, model and runner of a checked config."""
    task = registry.get_task_class(config.run.task).from_config(config)
    datasets = build_datasets(config)
    on_main(lambda: check_words(datasets, config.run))
    if not config.run.evaluate:
        on_main(lambda: note_learned(datasets, config.run))
    check_evaluated(task, datasets, config)
    model = task.prepared(build_model(config))
    if config.run.evaluate and not config.run.allow_untrained:
        refuse_untrained(model, remedies(config.run))
    check_features(datasets, model)
    note_encoder(config, datasets)
    check_lengths(task, datasets, model, config.run)
    runner: Runner = registry.get_runner_class(config.run.runner)(config, task, model, datasets, run_dir, launch=launch,
                                                                  device=device)
    return runner


def remedies(run: RunConfig) -> str:
    """Advice for an evaluation of untrained weights."""
    if Path(run.output_dir).name == EVALUATIONS:  # a run's own checkpoint, in a model that has more parts
        return ("The run did not train these parts: leave out the --options that add them. "
                "run.allow_untrained=true evaluates the random weights.")
    return (f"To evaluate a training, name its run: --run {run.output_dir} takes the newest run there. To evaluate "
            "another checkpoint, set model.load_pretrained=true and model.pretrained=PATH. run.allow_untrained=true "
            "evaluates the random weights.")


def on_main(work: Callable[[], T]) -> T:
    """Rank 0's result on every rank. If rank 0 fails, every rank raises the same error instead of waiting."""
    outcome: tuple[Any, LavisLiteError | None] = (None, None)
    if distributed.is_main():
        try:
            outcome = (work(), None)
        except LavisLiteError as error:
            outcome = (None, error)
    result, failure = distributed.broadcast_object(outcome)
    if failure is not None:
        raise failure
    return cast(T, result)


def print_on_main(text: str) -> None:
    """Print lines on rank 0 only."""
    if distributed.is_main():
        print(text, flush=True)


def seed_everything(seed: int) -> None:
    """Seed the random numbers of the model's construction; each training step seeds itself again (see runners)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_datasets(config: Config) -> dict[str, dict[str, Any]]:
    """{data set: {split: dataset}} for every split of the run.

    Raises:
        DataError: no data set has one of the run's splits.
    """
    run = config.run
    training = [] if run.evaluate else run.train_splits
    built: dict[str, dict[str, Any]] = {}
    for name, section in config.datasets.items():
        builder = registry.get_builder_class(section.builder or name)(name, section)
        splits = {split: builder.build(split, training=split in training) for split in
                  dict.fromkeys([*training, *run.valid_splits, *run.test_splits])}
        built[name] = {split: dataset for split, dataset in splits.items() if dataset is not None}
    for split in [*training, *run.valid_splits, *run.test_splits]:
        if not any(split in splits for splits in built.values()):
            raise DataError(f"no data set has the split {split!r} (data sets: {', '.join(built)}); "
                            "fix run.train_splits, run.valid_splits or run.test_splits.")
    return built


def check_words(datasets: dict[str, dict[str, Any]], run: RunConfig) -> None:
    """Report what the text processors remove from texts; stop before the model is loaded if a needed text is empty.

    Raises:
        DataError: with run.on_bad_sample=raise, a sample needs a text that has no words.
    """
    for name, splits in datasets.items():
        for split, dataset in splits.items():
            report = look_through(dataset)
            if str(report):
                print(f"{name}, {split}: {report}", flush=True)
            if report.empty and run.on_bad_sample == "raise" and getattr(dataset, "needs_words", False):
                count = "1 text has" if report.empty == 1 else f"{report.empty} texts have"
                raise DataError(f"{name}, {split}: {count} {report.reason}:\n  "
                                + "\n  ".join(report.shown) + "\nFix them, or set run.on_bad_sample=skip to leave "
                                "these samples out (they are counted and listed).")


def note_learned(datasets: dict[str, dict[str, Any]], run: RunConfig) -> None:
    """Report the pictures of evaluation splits that the run trains on."""
    held_out = {f"{name}, {split}": dataset for name, splits in datasets.items() for split, dataset in splits.items()
                if split not in run.train_splits}
    training = [dataset for splits in datasets.values() for split, dataset in splits.items()
                if split in run.train_splits]
    for (name, dataset), count in zip(held_out.items(), learned_pictures(training, list(held_out.values())),
                                      strict=True):
        if count:
            print(f"note: {name}: {count} of its pictures are trained on, too, so its scores are no test of new ones. "
                  f"It has {len(dataset)} samples.", flush=True)


def check_evaluated(task: BaseTask, datasets: dict[str, dict[str, Any]], config: Config) -> None:
    """Refuse splits that the task cannot evaluate with the run's model, before the model is loaded.

    Raises:
        DataError, ConfigError, ContractError: see the task's `before_evaluation` and `check_model`.
    """
    model = registry.get_model_class(config.model.arch)
    for split in dict.fromkeys([*config.run.valid_splits, *config.run.test_splits]):
        found = [splits[split] for splits in datasets.values() if split in splits]
        for dataset in [one for one in found if task.takes(one)] or found:
            part = task.part_for(dataset)
            part.before_evaluation(dataset, split)
            part.check_model(model)


def check_lengths(task: BaseTask, datasets: dict[str, dict[str, Any]], model: BaseModel, run: RunConfig) -> None:
    """Find evaluation texts that are too long for the language model, before the first step.

    Raises:
        DataError: a text is too long, and run.on_bad_sample is raise.
    """
    for split in dict.fromkeys([*run.valid_splits, *run.test_splits]):
        found = [splits[split] for splits in datasets.values() if split in splits]
        for dataset in [one for one in found if task.takes(one)]:
            long = long_texts(task, model, dataset, split)
            if long is not None and run.on_bad_sample == "raise":
                raise DataError(f"{long} Or set run.on_bad_sample=skip to leave such samples out (they are counted).")
            if long is not None and distributed.is_main():
                print(f"note: {long} They will be left out and listed in bad_samples.jsonl.", flush=True)


def check_features(datasets: dict[str, dict[str, Any]], model: BaseModel) -> None:
    """Refuse saved features of another vision encoder.

    Raises:
        ConfigError: see `FeatureFolder.check_encoder`.
    """
    folders = [dataset.folder for splits in datasets.values() for dataset in splits.values()
               if isinstance(getattr(dataset, "folder", None), FeatureFolder)]
    if folders:
        encoder = weights.encoder_identity(model)
        for folder in folders:
            folder.check_encoder(encoder)


def note_encoder(config: Config, datasets: dict[str, dict[str, Any]]) -> None:
    """Tell if an encoder of timm gets pictures, or an activation, that its weights were not trained with."""
    if config.model.get("vit_weights") in (None, "random"):
        return
    found = {}
    for name, splits in datasets.items():
        for processor in (getattr(dataset, "vis_processor", None) for dataset in splits.values()):
            if isinstance(processor, ImageProcessor):
                found[f"datasets.{name}.vis_processor"] = processor.normalisation
    for line in timm_notes(config.model["vit_model"], found):
        print_on_main(f"note: {line}")


def build_model(config: Config) -> BaseModel:
    """The model of the run with the weights its section names."""
    section = config.model
    if "lm_reduction" in section:
        section = section.replaced(lm_reduction=config.run.lm_reduction)
    return weights.build_model(section, log=print_on_main)


def find_checkpoint(run: RunConfig, resume: str | None, start_over: bool = False) -> Path | None:
    """The verified checkpoint folder to continue from; None: start at step 0.

    Raises:
        CheckpointError: the named folder is missing or damaged; or, with "auto", all checkpoints are damaged.
    """
    resume = resume or run.resume_ckpt_path
    if resume is None:
        return None
    if resume == "auto":
        found = run_folder.newest_to_resume(Path(run.output_dir), start_over)
        nothing = f"nothing to resume under {run.output_dir}; starting afresh"
        print(f"resuming from {found}" if found else nothing, flush=True)
        return found
    folder = Path(resume)
    errors = checkpointing.verify(folder)
    if errors:
        raise CheckpointError(f"{folder} cannot be resumed from: {'; '.join(errors)}")
    return folder


def lock_run_folder(run_dir: Path, checkpoint: Path | None, held: contextlib.ExitStack) -> None:
    """Lock the run folder against other processes, and clean up after killed runs beside it.

    Raises:
        RunBusyError: another process trains there.
        CheckpointError: another process trained there until now and has removed the checkpoint.
    """
    held.callback(run_folder.RunLock(run_dir).acquire().release)
    if checkpoint is not None and not checkpoint.exists():
        raise CheckpointError(f"{checkpoint} was removed by its run, which was still active. Start again with "
                              "`--resume auto` to continue from its newest checkpoint.")
    run_folder.remove_leftovers(run_dir.parent)


def keep_global_batch(checkpoint: Path | None, config: Config, ranks: int) -> Config:
    """The configuration of a resumed run, with its former number of samples per step on any number of ranks."""
    if checkpoint is None:
        return config
    accumulation = run_folder.accumulation_for_global_batch(checkpoint, config.run, ranks)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, accum_grad_iters=accumulation))


def open_run_folder(composition: Composition, checkpoint: Path | None) -> Path:
    """<output_dir>/<time>/ with config.yaml; a resumed run, or a stopped evaluation, continues in its own folder."""
    if checkpoint is not None and checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent
    config = composition.config
    parent = Path(config.run.output_dir)
    if config.run.evaluate and config.run.resume_evaluation:
        stopped, message = find_unfinished(parent, config)
        if message:
            print(message, flush=True)
        if stopped is not None:  # the scoring settings may differ now
            atomic.write_text(stopped / "config.yaml", to_yaml(composition))
            return stopped
    return _new_run_folder(parent, to_yaml(composition))


def _new_run_folder(parent: Path, config_yaml: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        folder = parent / f"{stamp}{suffix}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue
    atomic.write_text(folder / "config.yaml", config_yaml)
    return folder


@contextlib.contextmanager
def removed_if_unused(run_dir: Path) -> Iterator[None]:
    """Context manager: if a `LavisLiteError` ends the run, remove its folder if only its configuration was written.

    Other errors keep the folder, because their traceback is written there.
    """
    try:
        yield
    except LavisLiteError:
        written = [path for path in run_dir.rglob("*") if not path.is_dir()]
        if distributed.is_main() and written == [run_dir / manifest.CONFIG]:
            shutil.rmtree(run_dir)
        raise


def closing_lines(runner: Runner) -> list[str]:
    """The paths of a finished run's results and, after a training, its best checkpoint and how to evaluate it."""
    run_dir = runner.run_dir
    paths = {"report": run_dir / "results/report.html", "curves": run_dir / "curves.png"}
    found = [f"{name}: {path}" for name, path in paths.items() if path.exists()]
    if runner.run.evaluate:
        return [*found, f"results: {run_dir / 'results'}", f"weights: {runner.weights(runner.step)}"]
    if not runner.saved_step:
        return [*found, f"no checkpoint was kept (run.save_last=false); log: {run_dir / 'log.jsonl'}"]
    best = runner.best
    step, why = (best["step"], f"best, {best['split']} {best['metric']:.4g}") if best else (runner.saved_step, "last")
    return [*found, f"checkpoint: {runner.store.path(step)} ({why})", f"weights: {runner.weights(step)}",
            f"evaluate it: python -m lavis_lite evaluate --run {shlex.quote(str(run_dir))}"]
