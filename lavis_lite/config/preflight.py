"""Every fault of a run at once, before anything is built, loaded or downloaded.

`check` returns what would stop the run; `missing` what it needs from outside (annotations, images, weights), each
with the command that gets it. The launcher's environment, ranges, names and processor parameters are checked too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lavis_lite.config.arguments import check_arguments, check_hooks, check_optimizer
from lavis_lite.config.compose import Composition
from lavis_lite.config.schema import Config, DatasetConfig, RunConfig
from lavis_lite.errors import ConfigError, DistributedError, RegistryError, did_you_mean, shown
from lavis_lite.io import files
from lavis_lite.process.launch import launch_from_environment
from lavis_lite.redaction import mask
from lavis_lite.registry import registry

POSITIVE = ("max_epoch", "max_iters", "iters_per_inner_epoch", "batch_size_train", "batch_size_eval",
            "accum_grad_iters", "shuffle_window", "log_freq", "save_freq", "save_every", "val_freq", "keep_checkpoints",
            "max_grad_norm", "dist_timeout_minutes")
NOT_NEGATIVE = ("init_lr", "min_lr", "warmup_steps", "weight_decay", "num_workers")
FRACTIONS = ("max_bad_fraction", "max_skipped_share", "lr_layer_decay")


def check(composition: Composition) -> list[str]:
    """What is wrong with a composed run, one finished sentence each; empty when it may start."""
    config = composition.config
    faults = list(composition.faults)

    def fault(key: str, message: str) -> None:
        faults.append(f"{composition.where(key)}: {key}: {message}")

    _check_numbers(config.run, fault)
    _check_length(config.run, fault)
    _check_device(config.run, fault)
    check_optimizer(config.run, fault)
    check_hooks(config, fault)
    for key, message in config.model.faults(config.run):
        fault(f"model.{key}", message)
    sharding = sharding_fault(config.run)
    if sharding:
        fault("run.fsdp", sharding)
    _check_precisions(config, fault)
    _check_datasets(config, fault)
    if not any(text.startswith("run.output_dir") for text in faults):
        _check_output(config.run, fault)
    return [mask(text) for text in faults + launcher_faults()]


def missing(config: Config) -> list[str]:
    """Files the run needs that are not here, each with where it was looked for and the command that gets it."""
    wanted: list[str] = []
    run = config.run
    splits = [*([] if run.evaluate else run.train_splits), *run.valid_splits, *run.test_splits]
    for name, section in config.datasets.items():
        try:
            builder = registry.get_builder_class(section.builder or name)
        except RegistryError:
            continue  # reported by check
        wanted += builder(name, section).missing_files(splits)
    return [mask(text) for text in wanted + missing_weights(config)]


def missing_weights(config: Config) -> list[str]:
    """Weights and tokenizers named in the model section that are neither on disk nor packaged."""
    from lavis_lite.checkpoints.weights import required_weights

    return [need.describe_missing() for need in required_weights(config.model) if not need.is_local()]


def _check_numbers(run: RunConfig, fault: Any) -> None:
    for key in POSITIVE:
        if getattr(run, key) is not None and not getattr(run, key) > 0:  # NaN is not above 0 either
            fault(f"run.{key}", f"must be above 0, not {getattr(run, key)}.")
    for key in NOT_NEGATIVE:
        if not getattr(run, key) >= 0:
            fault(f"run.{key}", f"must not be negative, but is {getattr(run, key)}.")
    for key in FRACTIONS:
        if not 0.0 <= getattr(run, key) <= 1.0:
            fault(f"run.{key}", f"must be between 0 and 1, not {getattr(run, key)}.")
    for key in ("beta1", "beta2"):
        if not 0.0 <= getattr(run, key) < 1.0:  # Adam divides by 1 - beta
            fault(f"run.{key}", f"must be at least 0 and below 1, not {getattr(run, key)}.")


def _check_length(run: RunConfig, fault: Any) -> None:
    if run.evaluate:
        return
    if run.runner == "runner_iter" and run.max_iters is None:
        fault("run.max_iters", "runner_iter counts optimizer steps and needs it, for example run.max_iters=1000.")
    elif run.max_iters is None and run.max_epoch is None:
        fault("run.max_epoch", "neither it nor run.max_iters says when to stop, for example run.max_epoch=10.")


def _check_device(run: RunConfig, fault: Any) -> None:
    kind = run.device.split(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        fault("run.device", f"unknown device {run.device!r}; {did_you_mean(kind, ('auto', 'cpu', 'cuda'))}")
    if kind == "cpu" and run.amp_dtype == "fp16":
        fault("run.amp_dtype", "fp16 does not train on a CPU; use bf16 or fp32.")


def sharding_fault(run: RunConfig) -> str | None:
    """Why a run cannot share out its language model among ranks, as a sentence; None where it can or need not.

    Ranks gather a block whenever one of them runs it, so all must run equally many: they do in training, but not when
    each answers on batches of its own.
    """
    if run.fsdp == "none" or not (run.evaluate or run.valid_splits or run.test_splits):
        return None
    return ("a language model that is shared out among ranks can train but not answer: set run.valid_splits=[] and "
            "run.test_splits=[], and evaluate checkpoints by evaluate.py with model.llm_device_map=auto or "
            "model.llm_quantization=8bit.")


def _check_precisions(config: Config, fault: Any) -> None:
    """Half-precision weights: none that train, and no fp16 language model on a CPU."""
    model, run = config.model, config.run
    if not model.get("freeze_vit", True) and model.get("vit_precision", "fp32") != "fp32":
        fault("model.vit_precision", f"{model['vit_precision']} weights cannot be trained (model.freeze_vit is false); "
              "use fp32. run.amp=true gives half-precision arithmetic.")
    if model.get("llm_precision") == "fp16" and (run.device == "cpu" or (run.device == "auto" and not _has_gpu())):
        fault("model.llm_precision", "fp16 arithmetic on a CPU is slow and incomplete; use auto, fp32 or bf16.")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_datasets(config: Config, fault: Any) -> None:
    if not config.datasets:
        fault("datasets", "no data set is named; add one, for example `datasets: {mini_world_caption: {}}`.")
    run = config.run
    if run.evaluate and not run.valid_splits and not run.test_splits:
        fault("run.test_splits", "nothing to evaluate: name a split, such as --options run.test_splits=[test].")
    if run.sampling not in (None, "ratios") and run.train_dataset_ratios is not None:
        fault("run.sampling", f"{run.sampling} and run.train_dataset_ratios exclude each other; set one to null.")
    for name in run.train_dataset_ratios or {}:
        if name not in config.datasets:
            hint = did_you_mean(name, config.datasets)
            fault(f"run.train_dataset_ratios.{name}", f"not among the run's data sets; {hint}")
    for name, section in config.datasets.items():
        for kind in ("vis_processor", "text_processor", "instruction"):
            for part in ("train", "eval"):
                spec = getattr(getattr(section, kind, None), part, None)
                _check_processor(spec, f"datasets.{name}.{kind}.{part}", fault)
                if kind == "instruction" and spec and "{}" in (getattr(run, "prompt", None) or ""):
                    fault("run.prompt", f"datasets.{name}.{kind} puts questions into a prompt already; set one of the "
                          "two to null.")
        _check_splits(config.run, name, _splits(name, section, fault), len(config.datasets), fault)


def _splits(name: str, section: DatasetConfig, fault: Any) -> list[str]:
    """The splits that a data set's builder can give; none where its section is at fault."""
    try:
        return list(registry.get_builder_class(section.builder or name)(name, section).splits())
    except RegistryError:
        return []  # reported by compose
    except ConfigError as problem:
        fault(f"datasets.{name}", str(problem))
        return []


def _check_splits(run: RunConfig, name: str, splits: list[str], sets: int, fault: Any) -> None:
    """With one data set every split that the run names must be there; with several each is optional per set."""
    if sets > 1 or not splits:
        return
    wanted = [("train_splits", split) for split in ([] if run.evaluate else run.train_splits)]
    wanted += [(key, split) for key in ("valid_splits", "test_splits") for split in getattr(run, key)]
    for key, split in wanted:
        if split not in splits:
            fault(f"run.{key}", f"data set {name} has no split {split!r}; {did_you_mean(split, splits)}")


def _check_processor(spec: dict[str, Any] | None, path: str, fault: Any) -> None:
    if spec is None:
        return
    if "name" not in spec:
        fault(path, "a processor needs a name; " + did_you_mean("", registry.list_processors()))
        return
    try:
        cls = registry.get_processor_class(spec["name"])
    except RegistryError as problem:
        fault(f"{path}.name", str(problem))
        return
    check_arguments(cls, {key: value for key, value in spec.items() if key != "name"}, path, fault)


def _check_output(run: RunConfig, fault: Any) -> None:
    """Whether the output folder can be written: tried with a temporary file in its nearest existing parent."""
    try:
        folder = Path(run.output_dir).absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        reason = problem.strerror or problem
        fault("run.output_dir", f"{shown(run.output_dir, 1000)} cannot be written ({reason}); choose another with "
              "--options run.output_dir=PATH")


def launcher_faults() -> list[str]:
    """What is wrong with the launcher's environment variables."""
    try:
        launch_from_environment()
    except DistributedError as problem:
        return [f"environment: {problem}"]
    return []


def fetch_hint(cfg_path: str) -> str:
    """The command that fetches what can be fetched."""
    return f"python -m lavis_lite fetch --cfg-path {cfg_path}   (cache: {files.cache_root()})"
