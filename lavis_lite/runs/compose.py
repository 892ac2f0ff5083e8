"""Configurations made from a run: the evaluation of one of its checkpoints, and the sections of its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lavis_lite.config.compose import Composition, compose_layers, overlaid
from lavis_lite.config.layers import OPTIONS, Layer, base_chain, parse_options
from lavis_lite.config.schema import ModelConfig, PreprocessConfig
from lavis_lite.errors import CheckpointError, ConfigError, ErrorList
from lavis_lite.runners import checkpointing
from lavis_lite.runs.find import RunCheckpoint, find_checkpoint, run_of

START_KEYS = ("load_pretrained", "pretrained", "load_finetuned", "finetuned", "pretrained_stage1")
"""keys of a model section that name the checkpoints it starts from"""
Log = Callable[[str], None]


def compose_evaluation(chosen: RunCheckpoint, options: Sequence[str] = (), recipe: str | None = None) -> Composition:
    """The evaluation of a run's checkpoint: the run's configuration, its model started from the checkpoint.

    Args:
        chosen: which checkpoint of which run.
        options: of the command line. If they choose another task, keys of the run's own task are left out.
        recipe: a YAML; its `datasets` and `run` replace the run's. The model and its processors stay.

    Raises:
        ConfigError: an option names other weights than the run's; a file cannot be read.
    """
    given = parse_options(options)
    if clash := [key for key in START_KEYS if key in (given.content.get("model") or {})]:
        raise ConfigError(f"--options model.{clash[0]}: --run takes its weights from {chosen.folder}; leave one out.")
    own = chosen.config_layer()
    if recipe is None:
        layers = [own]
    else:
        layers = _with_recipe(own, base_chain(Path(recipe)))
    composition = compose_layers([*layers, given], Path(own.name))
    asked = "output_dir" in (given.content.get("run") or {})
    return start_from(chosen, composition, None if asked else chosen.evaluations())


def resume_evaluation(composition: Composition, resume: str | None, log: Log = print) -> Composition:
    """A composed run; if it evaluates and resumes, it starts from the weights of that checkpoint.

    Args:
        composition: of any run.
        resume: "auto" (newest good checkpoint under run.output_dir) or a checkpoint folder; None: the value of
            `run.resume_ckpt_path`.
        log: receives the line that names the checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    run = composition.config.run
    resume = resume or run.resume_ckpt_path
    if not run.evaluate or resume is None or composition.errors:
        return composition
    if resume == "auto":
        folder = checkpointing.newest_good(Path(run.output_dir), log)
        if folder is None:
            raise CheckpointError(f"there is no good checkpoint under {run.output_dir} to evaluate. Train first, name "
                                  "a run with --run, or leave --resume out to evaluate what the recipe names.")
        chosen = RunCheckpoint(run_of(folder), folder, f"the newest under {run.output_dir}")
    else:
        chosen = find_checkpoint(resume)
    log(f"evaluating {chosen.describe()}")
    asked = resume != "auto" and composition.where("run.output_dir") == OPTIONS  # auto searches it
    return start_from(chosen, composition, None if asked else chosen.evaluations())


def start_from(chosen: RunCheckpoint, composition: Composition, output_dir: Path | None = None) -> Composition:
    """An evaluation with the weights of a checkpoint.

    Args:
        chosen: the checkpoint.
        composition: what to evaluate it on.
        output_dir: parent of the evaluation's folder; by default that of the composition.
    """
    chosen = dataclasses.replace(chosen, weights=composition.config.run.weights or "")
    run: dict[str, Any] = {"evaluate": True, "resume_ckpt_path": None, "fsdp": "none"}
    if output_dir is not None:
        run["output_dir"] = str(output_dir)
    return overlaid(composition, Layer("--run", {"model": chosen.start_keys(composition.config.model), "run": run}))


def model_sections(chosen: RunCheckpoint) -> tuple[ModelConfig, PreprocessConfig]:
    """The sections that build a run's model with the weights of a checkpoint, and its processors.

    The processors are those of the run's data sets if these agree, else those of its `preprocess` section.

    Raises:
        ErrorList: the run's configuration does not fit this version.
    """
    own = chosen.config_layer()
    composition = compose_layers([own], Path(own.name))
    if composition.errors:
        raise ErrorList(f"{own.name} cannot be loaded:", composition.errors)
    config = composition.config
    model = dataclasses.replace(config.model, **chosen.start_keys(config.model))
    preprocess = dataclasses.replace(config.preprocess)
    for kind in ("vis_processor", "text_processor"):
        pairs = [getattr(section, kind) for section in config.datasets.values()]
        if pairs and all(pair == pairs[0] for pair in pairs):
            setattr(preprocess, kind, pairs[0])
    return model, preprocess


def _with_recipe(own: Layer, recipe: Sequence[Layer]) -> list[Layer]:
    """The model of a run, the data sets and the `run` section of a recipe, and the plugins of both."""
    plugins = [name for layer in (own, *recipe) for name in layer.content.get("imports") or []]
    return [_only(own, "model", "preprocess"), *(_only(layer, "datasets", "run") for layer in recipe),
            Layer("imports of both", {"imports": list(dict.fromkeys(plugins))})]


def _only(layer: Layer, *sections: str) -> Layer:
    return Layer(layer.name, {key: value for key, value in layer.content.items() if key in sections})
