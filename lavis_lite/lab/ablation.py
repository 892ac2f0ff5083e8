"""An ablation as a YAML file: steps that are recipes, variants that change their options, scores, and expectations.

```
title: one line
paper: what the paper reports
steps:                      # in this order; each is one run of a recipe
  stage1: {recipe: projects/blip2/stage1.yaml, options: {run.max_iters: 200}, features: true}
  answers: {of: stage1, recipe: projects/blip2/eval/mini_retrieval.yaml, every: 100}
  captions: {command: data capfilt --ranker blip2:mini, recipe: projects/blip2/stage1.yaml}
variants:                   # step -> options that differ; null: without that step
  with ITG: {}
  without ITG: {stage1: {model.itg_weight: 0}}
scores: {text R@1: answers.test.txt_r1}     # step.split.metric
expected: [{better: with ITG, than: without ITG, score: text R@1}]
```

The text `{stage1}` or `{stage1}/file` in an option names the folder of that step. Equal steps of several variants, or
of several ablations in one output folder, are one run.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lavis_lite.config.layers import base_chain
from lavis_lite.config.typed import Checker
from lavis_lite.errors import ConfigError, ErrorList, did_you_mean

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "lab"


@dataclass
class Step:
    """One run of a recipe."""

    recipe: str = ""
    """YAML of the run, of the evaluation if `of` is given, or of the command's data set"""
    options: dict[str, Any] = field(default_factory=dict)
    """dotted key -> value, over the recipe's"""
    of: str | None = None
    """evaluate the run of this step with the recipe's data and task; absent: train"""
    every: int | None = None
    """evaluate the checkpoints of every so many optimizer steps as well as the last; `of` must save them"""
    features: bool = False
    """train on saved features of the frozen vision encoder"""
    command: str = ""
    """run this command, such as `data capfilt`, on the recipe's data set. Its `--out` is the step's folder; all seeds
    share it. Absent: train or evaluate"""


@dataclass
class Expectation:
    """The direction that a paper reports: one variant has a higher score than another."""

    better: str = ""
    """variant"""
    than: str = ""
    """variant"""
    score: str = ""
    """name in `scores`"""


@dataclass
class Axis:
    """Variants as points of lines in the figure."""

    label: str = ""
    """what the numbers are"""
    at: dict[str, float] = field(default_factory=dict)
    """variant -> its number"""
    lines: dict[str, str] = field(default_factory=dict)
    """variant -> the line that it belongs to; absent: one line"""


@dataclass
class Ablation:
    """Variants of an experiment, and what a paper says about them."""

    name: str = ""
    """file name without .yaml"""
    title: str = ""
    """one line"""
    paper: str = ""
    """which result of which paper, and its numbers"""
    note: str = ""
    """how the mini experiment differs from the paper's, or a limit of it"""
    steps: dict[str, Step] = field(default_factory=dict)
    """name -> run, in order"""
    variants: dict[str, dict[str, dict[str, Any] | None]] = field(default_factory=dict)
    """name -> step -> options that differ, `recipe` and `features` among them; null: without that step"""
    scores: dict[str, str] = field(default_factory=dict)
    """name -> step.split.metric; metric+metric is their mean"""
    expected: list[Expectation] = field(default_factory=list)
    """the paper's directions"""
    axis: Axis | None = None
    """numbers of the variants, if the figure has lines over them"""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """values of run.seed"""

    def steps_of(self, variant: str) -> dict[str, Step]:
        """The steps of a variant, with its options."""
        changes = self.variants[variant]
        return {name: changed(step, changes.get(name) or {}) for name, step in self.steps.items()
                if changes.get(name, {}) is not None}


def changed(step: Step, changes: dict[str, Any]) -> Step:
    """A step with the options of a variant."""
    own = {key: value for key, value in changes.items() if key not in ("recipe", "features")}
    return replace(step, recipe=changes.get("recipe", step.recipe), features=changes.get("features", step.features),
                   options={**step.options, **own})


def as_option(key: str, value: Any, folders: dict[str, Path]) -> str:
    """`key=value` for the command line, with the folders of steps in place of a leading `{step}`.

    Raises:
        ConfigError: the value names a step that the variant does not have.
    """
    if isinstance(value, str) and (found := re.fullmatch(r"\{(\w+)\}((?:/.*)?)", value)):
        name, inside = found.groups()
        if name not in folders:
            raise ConfigError(f"{key}: {value}: no earlier step {name!r}; {did_you_mean(name, folders)}")
        return f"{key}={folders[name]}{inside}"
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


# files ----------------------------------------------------------------------------------------------------------------
def names() -> list[str]:
    """The package's ablations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str) -> Ablation:
    """An ablation of the package by name, or one of your own by the path of its YAML.

    Raises:
        ConfigError: there is no such ablation.
        ErrorList: the YAML is not one; every error at once.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no ablation {name!r}; {did_you_mean(name, names())} Your own is named by its file, "
                          "MY.yaml.")
    checker = Checker(lambda key: str(path))
    content = functools.reduce(merged, (layer.content for layer in base_chain(path)))
    found = checker.section(Ablation, {**content, "name": path.stem}, "")
    for key, message in errors(found) if not checker.errors else []:
        checker.error(key, message)
    if checker.errors:
        raise ErrorList(f"{path}:", checker.errors)
    return found


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The sections of a file over those that its `base:` has."""
    return {**below, **{key: merged(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict)
                        else value for key, value in above.items()}}


def errors(ablation: Ablation) -> list[tuple[str, str]]:
    """(key, sentence) for everything that is missing, and every name that refers to nothing."""
    wrong = [(key, "is missing or empty.") for key in ("title", "steps", "variants", "scores", "seeds")
             if not getattr(ablation, key)]
    wrong += [(key, f"no {name!r}; {did_you_mean(name, known)}") for key, name, known in _references(ablation)
              if name not in known]
    wrong += [(f"scores.{name}", f"{score!r} must be step.split.metric.") for name, score in ablation.scores.items()
              if score.count(".") != 2]
    return wrong + [(f"steps.{name}.recipe", "is missing.") for name, step in ablation.steps.items() if not step.recipe]


def _references(ablation: Ablation) -> Iterator[tuple[str, str, list[str]]]:
    """(key, name, the names that exist) of everything that refers to a step, a variant or a score."""
    steps, variants, scores = list(ablation.steps), list(ablation.variants), list(ablation.scores)
    for name, changes in ablation.variants.items():
        yield from ((f"variants.{name}", step, steps) for step in changes)
    for name, step in ablation.steps.items():
        if step.of is not None:
            yield f"steps.{name}.of", step.of, steps[:steps.index(name)]
    for name, score in ablation.scores.items():
        yield f"scores.{name}", score.split(".")[0], steps
    for index, one in enumerate(ablation.expected):
        yield from ((f"expected.{index}", variant, variants) for variant in (one.better, one.than))
        yield f"expected.{index}.score", one.score, scores
    if ablation.axis is not None:
        yield from (("axis.at", variant, variants) for variant in ablation.axis.at)
