"""`data check FILE --write-yaml`: the recipe that trains on a file, over the packaged mini models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.io import atomic

Goal = Literal["captioning", "pretrain", "vqa"]
MakeBuilder = Callable[[DatasetConfig], BaseDatasetBuilder]
FRACTIONS = (0.1, 0.2, 0.3, 0.5)
"""shares of the images that are held out, the first that leaves some for both splits"""
HELD_OUT = ("val", "test")
MODELS: dict[Goal, dict[str, Any]] = {
    "captioning": {"arch": "blip2_opt", "model_type": "mini"},
    "pretrain": {"arch": "blip2", "model_type": "mini"},
    "vqa": {"arch": "blip2_opt", "model_type": "mini_instruct"},
}
RUNS: dict[Goal, dict[str, Any]] = {
    "captioning": {"task": "captioning", "num_beams": 1, "max_len": 40,
                   "caption_metrics": ["bleu", "rouge_l", "cider"]},
    "pretrain": {"task": "image_text_pretrain"},
    "vqa": {"task": "vqa", "prompt": "question: {} short answer:", "num_beams": 1},
}
LOOP = {"runner": "runner_iter", "max_iters": 200, "batch_size_train": 16, "batch_size_eval": 32, "num_workers": 1,
        "init_lr": 1e-4, "min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_steps": 20, "lr_sched": "linear_warmup_cosine_lr",
        "log_freq": 10, "save_every": 100, "train_splits": ["train"]}
HEADING = """\
# Written by `data check {source}`: {what}.
# The packaged mini model knows the words and shapes of a generated world. For real pictures choose another
# model.model_type, for example {released}; `python -m lavis_lite zoo` lists them all.
#   python train.py --cfg-path {recipe}
"""
RELEASED: dict[Goal, str] = {"captioning": "caption_coco_opt2.7b", "pretrain": "pretrain", "vqa": "vqa_opt2.7b"}


def write_recipe(recipe: Path, source: str, name: str, section: DatasetConfig, make: MakeBuilder,
                 goal: Goal | None = None) -> str:
    """Write the recipe that trains on what `data check` has read; returns a line that says what it does.

    Args:
        recipe: the file to write; it must not exist.
        source: what was checked, as the user named it.
        name: the data set's name in the recipe.
        section: what reads it, with the split `train`.
        make: a section -> its builder.
        goal: what to learn; None: captioning for captions, vqa for questions and dialogues.

    Raises:
        ConfigError: the recipe exists, or the goal does not fit the data.
        DataError: the rows cannot be read.
    """
    if recipe.exists():
        raise ConfigError(f"--write-yaml {recipe}: there is such a file already; choose another name.")
    asks = section.builder in ("image_qa", "image_dialogue")
    goal = goal or ("vqa" if asks else "captioning")
    if asks != (goal == "vqa"):
        raise ConfigError(f"--goal {goal}: {source} has {'questions' if asks else 'captions'}; choose "
                          f"{'vqa' if asks else 'captioning or pretrain'}.")
    held_out = _hold_out(section, make)
    run = {**RUNS[goal], **LOOP, "test_splits": held_out, "output_dir": f"output/{name}"}
    model = dict(MODELS[goal])
    if section.builder == "image_dialogue":
        run |= {"prompt": None, "max_len": 40}
        model["max_txt_len"] = 64  # the history is part of the prompt
    tree = {"model": model, "datasets": {name: _as_yaml(section)}, "run": run}
    what = f"{goal} on its {'questions' if asks else 'captions'}, " + (
        f"scored on {', '.join(held_out)}" if held_out else "without a held-out split: the images are too few")
    heading = HEADING.format(source=source, what=what, released=RELEASED[goal], recipe=recipe)
    text = heading + "\n" + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
    recipe.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(recipe, text)
    return f"{recipe}: {what}. Train with: python train.py --cfg-path {recipe}"


def _hold_out(section: DatasetConfig, make: MakeBuilder) -> list[str]:
    """Give the section splits to score on; returns their names.

    A column that says which split a row belongs to is used; else a share of the images is held out.
    """
    if getattr(section, "split_column", None):
        return [split for split in HELD_OUT if split in make(section).splits()]
    for fraction in FRACTIONS if "val_fraction" in section else ():
        section.val_fraction = fraction  # type: ignore[attr-defined]
        try:
            builder = make(section)
            if builder.build("val", training=False) and builder.build("train", training=True):
                return ["val"]
        except DataError:  # no rows in one of the two: too few images for this share
            section.val_fraction = 0.0  # type: ignore[attr-defined]
    return []


def _as_yaml(section: DatasetConfig) -> dict[str, Any]:
    """What the section sets, without what a section has anyway; processors are left to the model."""
    default = type(section)()
    plain = dataclasses.asdict(section)
    usual = dataclasses.asdict(default)
    kept = {key: value for key, value in plain.items()
            if value != usual[key] and key not in ("vis_processor", "text_processor")}
    return {key: _pruned(value) for key, value in kept.items()}


def _pruned(value: Any) -> Any:
    """A mapping without its empty members, in depth."""
    if not isinstance(value, dict):
        return value
    inner = {key: _pruned(member) for key, member in value.items()}
    return {key: member for key, member in inner.items() if member not in (None, {}, [], "")}
