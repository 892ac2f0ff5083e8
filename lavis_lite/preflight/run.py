"""Every error of a composed run at once, and its missing files, before anything is built, loaded or downloaded."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lavis_lite.checkpoints.weights import checkpoints_of, read_by_others, required_weights
from lavis_lite.config.compose import SCHEMA_LAYER, Composition
from lavis_lite.config.mixing import check_ratios, draws_by_set, factor_error, idle_factors, mixing_ratios
from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, RunConfig
from lavis_lite.config.typed import check_arguments, check_hooks, check_optimizer, run_errors
from lavis_lite.errors import ConfigError, DistributedError, RegistryError, did_you_mean, shown
from lavis_lite.io import files
from lavis_lite.io.files import why_not_writable
from lavis_lite.process.compiler import why_not
from lavis_lite.process.launch import launch_from_environment
from lavis_lite.redaction import mask
from lavis_lite.registry import registry

IDLE_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "lr_decay_rate": ("lr_sched", ("linear_warmup_cosine_lr", "constant_lr")), "min_lr": ("lr_sched", ("constant_lr",)),
    "warmup_lr": ("warmup_steps", (0,)), "length_penalty": ("num_beams", (1,)),
    "top_p": ("use_nucleus_sampling", (False,)), "temperature": ("use_nucleus_sampling", (False,))}
"""setting of the run section -> the setting that decides whether it counts, and values with which it does not"""
Report = Callable[[str, str], None]
"""takes (dotted key, sentence)"""


def check(composition: Composition) -> list[str]:
    """The errors of a composed run, one sentence each; empty if it may start.

    What the run will lack, such as a metric that needs Java, is added to its notes.
    """
    config = composition.config
    errors = list(composition.errors)

    def report(key: str, message: str) -> None:
        errors.append(f"{composition.where(key)}: {key}: {message}")

    for key, message in run_errors(config.run):
        report(f"run.{key}", message)
    check_optimizer(config.run, report)
    check_hooks(config, report)
    if config.run.compile != "none":
        _check_compile(config.run, report)
    for key, message in config.model.errors(config.run) if config.model_is_known else ():
        report(f"model.{key}", message)
    _check_start(composition, report)
    _check_packages(config.run, report)
    check_datasets(config, report)
    if not any(text.startswith("run.output_dir") for text in errors):
        _check_output(config.run, report)
    notes = [*_notes(config), *_idle_settings(composition)]
    config.notes += [note for note in notes if note not in config.notes]
    return [mask(text) for text in [*errors, *_launcher_errors()]]


def _check_start(composition: Composition, report: Report) -> None:
    """Refuse a checkpoint that is named above the switch that leaves it unread: the run would start from other weights.

    Checkpoints named below their switch are left out on purpose, as a recipe leaves out that of its model type.
    """
    model = composition.config.model
    read = dict(checkpoints_of(model))
    for key in ("pretrained", "finetuned"):
        switch = "load_finetuned" if "finetuned" in read else f"load_{key}"
        if model.get(key) and key not in read and _is_above(composition, f"model.{key}", f"model.{switch}"):
            remedy = f"model.load_{key}=true" + (" model.load_finetuned=false" if "finetuned" in read else "")
            report(f"model.{key}", f"would not be read, since model.{switch} is {str(model.get(switch)).lower()} "
                   f"({composition.where(f'model.{switch}')}). Add {remedy}, or leave it out.")


def _is_above(composition: Composition, key: str, switch: str) -> bool:
    """Whether a key was set by a later layer than the switch it depends on."""
    order = [SCHEMA_LAYER, *composition.order]
    layers = (composition.provenance.get(name, SCHEMA_LAYER) for name in (key, switch))
    return operator.gt(*(order.index(layer) if layer in order else 0 for layer in layers))


def _idle_settings(composition: Composition) -> list[str]:
    """A note on each setting that does nothing with the value of another one, which was set before it."""
    run = composition.config.run
    return [f"run.{key} has no effect, since run.{switch} is {str(getattr(run, switch)).lower()}."
            for key, (switch, values) in IDLE_WITH.items()
            if getattr(run, switch, None) in values and getattr(run, key, None) is not None
            and _is_above(composition, f"run.{key}", f"run.{switch}")]


def _check_packages(run: RunConfig, report: Report) -> None:
    """Optional packages that the run section needs."""
    for key, package, extra in (("wandb", "wandb", "track"), ("tensorboard", "tensorboard", "")):
        if getattr(run, key) and find_spec(package) is None:
            name = f"'lavis_lite[{extra}]'" if extra else package
            report(f"run.{key}", f"needs the package {package}: pip install {name}, or set run.{key}=false.")


def _check_compile(run: RunConfig, report: Report) -> None:
    if run.fsdp != "none":
        report("run.compile", f"{run.compile} cannot be combined with run.fsdp={run.fsdp}: sharded blocks gather their "
               "weights outside of what is compiled. Set one of the two to none.")
    elif not run.evaluate and (reason := why_not(run.device)):
        report("run.compile", reason)


def _notes(config: Config) -> list[str]:
    """Notes on what the run will lack."""
    notes = []
    if java := {"meteor", "spice"}.intersection(getattr(config.run, "caption_metrics", None) or ()):
        from lavis_lite.metrics.java_scores import why_no_java

        if reason := why_no_java(" and ".join(sorted(java)).upper()):
            notes.append(f"run.caption_metrics: {reason} The other metrics are computed.")
    if config.model.get("apply_lemmatizer"):
        from lavis_lite.processors.lemmatizer import SPACY_MODEL, has_spacy

        if not has_spacy():
            notes.append(f"model.apply_lemmatizer: spaCy's {SPACY_MODEL} is not installed, so the package's own rules "
                         "bring answers to their base form.")
    return notes + idle_factors(config)


def _check_output(run: RunConfig, report: Report) -> None:
    """Check that the output folder can be written, with a temporary file in its nearest existing parent."""
    if reason := why_not_writable(Path(run.output_dir), folder=True):
        report("run.output_dir", f"{shown(run.output_dir, 1000)} cannot be written ({reason}); choose another with "
               "--options run.output_dir=PATH")


def _launcher_errors() -> list[str]:
    """Errors of the launcher's environment variables."""
    try:
        launch_from_environment()
    except DistributedError as error:
        return [f"environment: {error}"]
    return []


# --- data sets --------------------------------------------------------------------------------------------------------
PROCESSORS = ("vis_processor", "text_processor", "instruction")


def check_datasets(config: Config, report: Report) -> None:
    """Report every error of the data sets, and of the keys of `run` about them."""
    if not config.datasets:
        report("datasets", "no data set is named; add one, for example `datasets: {mini_world_caption: {}}`.")
    splits = {name: _check_dataset(name, section, config, report) for name, section in config.datasets.items()}
    _check_mixing(config, splits, report)
    _check_splits(config.run, splits, report)


def _check_dataset(name: str, section: DatasetConfig, config: Config, report: Report) -> list[str] | None:
    """Report the errors of one data set; returns the splits of its builder, None if unknown."""
    wrong = [error for kind in PROCESSORS for mode in ("train", "eval")
             for error in _processor_errors(getattr(getattr(section, kind, None), mode, None),
                                            f"datasets.{name}.{kind}.{mode}")]
    for key, message in wrong:
        report(key, message)
    _check_instruction(name, section, config.run, report)
    _check_streams(name, section, config, report)
    try:
        builder = registry.get_builder_class(section.builder or name)(name, section)
        splits = list(builder.splits())
        for message in builder.missing_packages():
            report(f"datasets.{name}", message)
        if not wrong and config.model_is_known:
            for training in _modes(config.run, splits):
                _check_processors(builder, section, training, config, report)
    except RegistryError:
        return None  # reported by composing
    except ConfigError as error:
        report(f"datasets.{name}", str(error).removeprefix(f"datasets.{name}: "))
        return None
    return splits


def _check_streams(name: str, section: DatasetConfig, config: Config, report: Report) -> None:
    """The encoder knows the features of a stream only by their position."""
    wanted = (config.model.get("vit_args") or {}).get("streams")
    given = {key: stream.tokens for key, stream in (getattr(section, "arrays", None) or {}).items()}
    if isinstance(wanted, Mapping) and given and (list(wanted) != list(given) or any(
            tokens not in (None, wanted[key]) for key, tokens in given.items())):
        report(f"datasets.{name}.arrays", f"has the streams {given}, with their tokens, and model.vit_args.streams "
               f"{dict(wanted)}; give both the same names, tokens and order.")


def _check_instruction(name: str, section: DatasetConfig, run: RunConfig, report: Report) -> None:
    pair = getattr(section, "instruction", None)
    has_one = pair is not None and (pair.train or pair.eval)
    if has_one and "{}" in (getattr(run, "prompt", None) or ""):
        report("run.prompt", f"datasets.{name}.instruction puts questions into a prompt already; set one of the two to "
               "null.")


def _modes(run: RunConfig, splits: list[str]) -> Iterator[bool]:
    """True if a split of a data set is for training, False if one is for evaluation."""
    if not run.evaluate and set(run.train_splits).intersection(splits):
        yield True
    if {*run.valid_splits, *run.test_splits}.intersection(splits):
        yield False


def _check_processors(builder: Any, section: DatasetConfig, training: bool, config: Config, report: Report) -> None:
    """Build the processors of a mode, which checks their parameters, and check their image size."""
    mode = "train" if training else "eval"
    outside = registry.builder.is_own(section.builder or builder.name)
    for kind in ("vis_processor", "text_processor"):
        if outside and getattr(getattr(section, kind), mode) is None:
            continue  # a builder from outside may read its data without
        try:
            made = builder.processor(kind, training)
        except ConfigError as error:
            key = f"datasets.{builder.name}.{kind}.{mode}"
            report(key, str(error).removeprefix(f"{key}: "))
            continue
        if "model.model_type" not in config.provenance:
            continue  # a part of a recipe: the pictures are for the model of the recipe
        size, wanted = getattr(made, "size", None), config.model.get("image_size")
        if kind == "vis_processor" and isinstance(wanted, int) and isinstance(size, tuple) and size != (wanted, wanted):
            report(f"datasets.{builder.name}.{kind}.{mode}.image_size", f"gives pictures of {size[0]} x {size[1]} "
                   f"pixels, but the vision encoder takes {wanted} x {wanted} (model.image_size).")
    try:
        builder.instruction(training)
    except ConfigError as error:
        report(f"datasets.{builder.name}.instruction", str(error).partition(": ")[2] or str(error))


def _processor_errors(spec: Mapping[str, Any] | None, key: str) -> Iterator[tuple[str, str]]:
    """(key, sentence) of a processor's unknown name, and of unknown or wrongly typed parameters."""
    if spec is None:
        return
    if "name" not in spec:
        yield key, "a processor needs a name; " + did_you_mean("", registry.list_processors())
        return
    try:
        cls = registry.get_processor_class(spec["name"])
    except RegistryError as error:
        yield f"{key}.name", str(error)
        return
    found: list[tuple[str, str]] = []
    given = {name: value for name, value in spec.items() if name != "name"}
    check_arguments(cls, given, key, lambda *error: found.append(error))
    yield from found


def _check_mixing(config: Config, splits: Mapping[str, list[str] | None], report: Report) -> None:
    run, ratios = config.run, config.run.train_dataset_ratios
    if run.sampling not in (None, "ratios") and ratios is not None:
        report("run.sampling", f"{run.sampling} and run.train_dataset_ratios exclude each other; set one to null.")
    if run.sampling == "ratios" and ratios is None:
        report("run.sampling", "ratios needs run.train_dataset_ratios.")
    for name in ratios or {}:
        if name not in splits:
            report(f"run.train_dataset_ratios.{name}", f"not among the run's data sets; {did_you_mean(name, splits)}")
    trained = [name for name, own in splits.items() if own and set(own).intersection(run.train_splits)]
    if ratios is not None and not run.evaluate and (lacking := [name for name in trained if name not in ratios]):
        report("run.train_dataset_ratios", f"lacks {', '.join(lacking)}; give every training data set one.")
    elif not run.evaluate and trained:
        _check_factors(config, trained, report)


def _check_factors(config: Config, trained: Sequence[str], report: Report) -> None:
    """Check the steps of each `sampling_factor`, and that some data set may be drawn at every step."""
    wrong = {name: error for name in trained if (error := factor_error(config.datasets[name].sampling_factor))}
    for name, error in wrong.items():
        report(f"datasets.{name}.sampling_factor", error)
    if wrong or not draws_by_set(config.run) or config.run.sampling == "ratios" and not config.run.train_dataset_ratios:
        return
    try:
        check_ratios(mixing_ratios(config, trained, [1] * len(trained)) or ())
    except ConfigError as error:
        report("run.train_dataset_ratios" if config.run.train_dataset_ratios else "run.sampling", str(error))


def _check_splits(run: RunConfig, splits: Mapping[str, list[str] | None], report: Report) -> None:
    """Every split of the run must be in the only data set, or in at least one of several, and serve one purpose."""
    trained = [] if run.evaluate else run.train_splits
    for split in dict.fromkeys(trained):
        if split in run.valid_splits or split in run.test_splits:
            report("run.train_splits", f"{split!r} is evaluated, too, and would be read there as for training. Take it "
                   f"out of one list. Later: evaluate --run RUN --options run.test_splits=[{split}]")
        if trained.count(split) > 1:
            report("run.train_splits", f"names {split!r} twice, so its samples would count twice.")
    if not splits or not all(splits.values()):
        return
    present = list(dict.fromkeys(split for own in splits.values() for split in own or ()))
    for key in ("train_splits", "valid_splits", "test_splits"):
        for split in trained if key == "train_splits" else getattr(run, key):
            if split not in present:
                who = f"data set {next(iter(splits))} has" if len(splits) == 1 else "none of the data sets has"
                no = "no" if len(splits) == 1 else "a"
                report(f"run.{key}", f"{who} {no} split {split!r}; {did_you_mean(split, present)}")


# --- missing files ----------------------------------------------------------------------------------------------------
def missing(config: Config) -> list[str]:
    """Missing annotations, images, weights and tokenizers, with the searched paths and the command to fetch them."""
    run = config.run
    splits = [*([] if run.evaluate else run.train_splits), *run.valid_splits, *run.test_splits]
    wanted: list[str] = []
    for name, section in config.datasets.items():
        try:
            builder = registry.get_builder_class(section.builder or name)
        except RegistryError:
            continue  # reported by `check`
        wanted += builder(name, section).missing_files(splits)
    return [mask(text) for text in wanted + (missing_weights(config.model) if config.model_is_known else [])]


def missing_weights(section: ModelConfig) -> list[str]:
    """Weights and tokenizers of a model section that are neither on disk nor packaged."""
    needs = [*required_weights(section), *read_by_others(section)]
    return [need.describe_missing() for need in needs if not need.is_local()]


def fetch_hint(cfg_path: str) -> str:
    """The command that fetches missing files."""
    return f"python -m lavis_lite fetch --cfg-path {cfg_path}   (cache: {files.cache_root()})"
