"""One run on one page: config -> seed -> distributed -> task -> data -> model -> runner.

    YAML -> config.compose -> engine.main -> builder.build(split) -> sampler picks index -> dataset[i] -> collate
         -> runner.train_step -> task.train_step -> model.forward -> loss -> backward/step -> tracking
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from lavis_lite import distributed
from lavis_lite.checkpoints import weights
from lavis_lite.config.compose import Composition, to_yaml
from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.datasets.features.cache import FeatureFolder
from lavis_lite.datasets.texts import look_through
from lavis_lite.errors import CheckpointError, DataError, LavisLiteError
from lavis_lite.evaluation.results import closing_lines
from lavis_lite.evaluation.resume import find_unfinished
from lavis_lite.io import atomic
from lavis_lite.models.base import BaseModel
from lavis_lite.models.provenance import refuse_untrained
from lavis_lite.process import exits
from lavis_lite.process.launch import Launch, launch_from_environment
from lavis_lite.registry import registry
from lavis_lite.runners import checkpointing
from lavis_lite.runners.device import pick_device
from lavis_lite.runners.runner import Runner
from lavis_lite.runs import EVALUATIONS, resume_evaluation
from lavis_lite.runs import folder as run_folder
from lavis_lite.tasks.base import BaseTask
from lavis_lite.tasks.long_texts import long_texts

T = TypeVar("T")


def main(composition: Composition, resume: str | None = None, start_over: bool = False) -> dict[str, Any]:
    """Train (or, with run.evaluate, score) what a composed run describes; returns its final scores by split.

    Args:
        composition: a run without errors.
        resume: None, "auto" (newest good checkpoint under run.output_dir, if any) or a checkpoint folder. An
            evaluation takes its weights and step number, a training all of it.
        start_over: with "auto": begin at step 0 if every checkpoint is damaged, which is an error otherwise.
    """
    composition = resume_evaluation(composition, resume)
    config = composition.config
    run = config.run
    device = pick_device(run.device, launch_from_environment().local_rank)
    with (distributed.group(device, run.dist_timeout_minutes, run.rendezvous_timeout_minutes) as launch,
          contextlib.ExitStack() as held):
        checkpoint = None if run.evaluate else on_main(lambda: find_checkpoint(run, resume, start_over))
        run_dir = on_main(lambda: open_run_folder(composition, checkpoint))
        held.enter_context(run_folder.removed_if_unused(run_dir))
        exits.report_to(run_dir)
        if not run.evaluate:
            on_main(lambda: lock_run_folder(run_dir, checkpoint, held))
            config = on_main(lambda: with_the_global_batch_of(checkpoint, config, launch.world_size))
        seed_everything(run.seed)
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
    check_evaluated(task, datasets, config)
    model = build_model(config)
    if config.run.evaluate and not config.run.allow_untrained:
        refuse_untrained(model, remedies(config.run))
    check_features(datasets, model)
    check_lengths(task, datasets, model, config.run)
    runner: Runner = registry.get_runner_class(config.run.runner)(config, task, model, datasets, run_dir, launch=launch,
                                                                  device=device)
    return runner


def remedies(run: RunConfig) -> str:
    """What to do if an evaluation names weights that nobody has trained."""
    if Path(run.output_dir).name == EVALUATIONS:  # a run's own checkpoint, in a model that has more parts
        return ("The run did not train these parts: leave out the --options that add them. "
                "run.allow_untrained=true evaluates the random weights.")
    return (f"To evaluate a training, name its run: --run {run.output_dir} takes the newest run there. To evaluate "
            "another checkpoint, set model.load_pretrained=true and model.pretrained=PATH. run.allow_untrained=true "
            "evaluates the random weights.")


def on_main(work: Callable[[], T]) -> T:
    """Rank 0's result on every rank; where it fails, every rank raises the same error instead of waiting."""
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
    """Print lines for people, on rank 0 only."""
    if distributed.is_main():
        print(text, flush=True)


def seed_everything(seed: int) -> None:
    """Seed what building the model draws from; each training step seeds itself again (see runners)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_datasets(config: Config) -> dict[str, dict[str, Any]]:
    """{data set: {split: dataset}} for every split that the run names.

    Raises:
        DataError: a split that the run names is in none of its data sets.
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
            raise DataError(f"split {split!r} is in none of the data sets {', '.join(built)}; "
                            "fix run.train_splits, run.valid_splits or run.test_splits.")
    return built


def check_words(datasets: dict[str, dict[str, Any]], run: RunConfig) -> None:
    """Say what the text processors leave of the texts, and stop while the model is not loaded yet if it is nothing.

    Raises:
        DataError: with run.on_bad_sample=raise, texts without words that a sample cannot do without.
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


def check_evaluated(task: BaseTask, datasets: dict[str, dict[str, Any]], config: Config) -> None:
    """Refuse splits that the task cannot evaluate, or not with the run's model, while the model is not loaded yet.

    Raises:
        DataError, ConfigError, ContractError: see the task's `before_evaluation` and `check_model`.
    """
    model = registry.get_model_class(config.model.arch)
    for split in dict.fromkeys([*config.run.valid_splits, *config.run.test_splits]):
        found = [splits[split] for splits in datasets.values() if split in splits]
        for dataset in [one for one in found if task.takes(one)] or found:
            task.before_evaluation(dataset, split)
            task.check_model(model)


def check_lengths(task: BaseTask, datasets: dict[str, dict[str, Any]], model: BaseModel, run: RunConfig) -> None:
    """Look for texts to evaluate that the language model has no room for, before the first step.

    Raises:
        DataError: there are some, and run.on_bad_sample is raise.
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
    """Refuse kept features that another vision encoder than the model's has made.

    Raises:
        ConfigError: see `FeatureFolder.check_encoder`.
    """
    folders = [dataset.folder for splits in datasets.values() for dataset in splits.values()
               if isinstance(getattr(dataset, "folder", None), FeatureFolder)]
    if folders:
        encoder = weights.encoder_identity(model)
        for folder in folders:
            folder.check_encoder(encoder)


def build_model(config: Config) -> BaseModel:
    """The model of the run with the weights its section names."""
    section = config.model
    if "lm_reduction" in section:
        section = section.replaced(lm_reduction=config.run.lm_reduction)
    return weights.build_model(section, log=print_on_main)


def find_checkpoint(run: RunConfig, resume: str | None, start_over: bool = False) -> Path | None:
    """The checkpoint folder to go on from, verified; None starts afresh.

    Raises:
        CheckpointError: the folder that was named is missing or damaged; or, with "auto", all that there are.
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
    """Keep other processes from training in the run folder, and clean up after killed runs beside it.

    Raises:
        RunBusyError: another process trains there.
        CheckpointError: it did until now, and has removed the checkpoint.
    """
    held.callback(run_folder.RunLock(run_dir).acquire().release)
    if checkpoint is not None and not checkpoint.exists():
        raise CheckpointError(f"{checkpoint} was removed by the run that wrote it, which was still going on; start "
                              "again with `--resume auto` to go on from its newest one.")
    run_folder.remove_leftovers(run_dir.parent)


def with_the_global_batch_of(checkpoint: Path | None, config: Config, ranks: int) -> Config:
    """The configuration of a run that goes on with the samples per step that it began with, on any number of ranks."""
    if checkpoint is None:
        return config
    accumulation = run_folder.accumulation_to_go_on(checkpoint, config.run, ranks)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, accum_grad_iters=accumulation))


def open_run_folder(composition: Composition, checkpoint: Path | None) -> Path:
    """<output_dir>/<time>/ with config.yaml; a resumed run, or an evaluation that was stopped, goes on in its own."""
    if checkpoint is not None and checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent
    config = composition.config
    parent = Path(config.run.output_dir)
    if config.run.evaluate and config.run.resume_evaluation:
        stopped, message = find_unfinished(parent, config)
        if message:
            print(message, flush=True)
        if stopped is not None:  # how answers are scored may be another way now
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
