"""The results of runs, read from their folders, and the configuration of each.

    <run>/results/                       the training's own evaluations
    <run>/evaluations/<time>/results/    later evaluations of its checkpoints, each with its own config.yaml
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lavis_lite.config.layers import flatten
from lavis_lite.errors import ConfigError, DataError, did_you_mean

RESULTS, EVALUATIONS, CONFIG = "results", "evaluations", "config.yaml"
STARTS = ("model.load_pretrained", "model.pretrained", "model.load_finetuned", "model.finetuned",
          "model.pretrained_stage1", "run.evaluate", "run.fsdp")
"""keys that an evaluation sets to load the run's checkpoint; for them, the run's own values are compared"""
DEPTH = 4
"""levels of folders above a run that may be given instead of it"""
_METRICS = re.compile(r"(?P<split>.+)_step(?P<step>\d+)\.json")


@dataclass(frozen=True)
class Results:
    """The results of one split, at its latest step.

    Attributes:
        metrics: of the split.
        samples: data set -> rows of the samples file, in its order; empty without such a file.
        weights: the source of the weights, in one line; "": unknown.
    """

    folder: Path
    split: str
    step: int
    metrics: Mapping[str, float | None]
    samples: Mapping[str, list[dict[str, Any]]]
    weights: str = ""


def find_run(path: Path) -> tuple[Path, str]:
    """(the run folder or results folder for a path, a note if it was chosen among several or "").

    Raises:
        ConfigError: it is missing, or neither it nor any folder below has results.
    """
    path = path.expanduser()
    if path.is_file():
        raise ConfigError(f"{path} is a file; give the run folder, or its results/.")
    if not path.is_dir():
        near = did_you_mean(path.name, [other.name for other in path.parent.iterdir() if other.is_dir()]) \
            if path.parent.is_dir() else ""
        raise ConfigError(f"there is no folder {path}; give a run folder or its results/. {near}".rstrip())
    if any(_results_files(folder) for folder in _folders(path)):
        return path, ""
    if runs := runs_below(path):
        newest = max(runs, key=_written_at)
        return newest, f"of the {len(runs)} runs in {path}, {newest} has the newest results" if len(runs) > 1 else ""
    first = f": `python -m lavis_lite evaluate --run {path}`" if (path / CONFIG).is_file() else ""
    raise ConfigError(f"{path} holds no results (results/<split>_step<N>.json); evaluate the run first{first}.")


def runs_below(folder: Path) -> list[Path]:
    """The run folders with results below a folder; an evaluation of a run counts as that run."""
    found = {path.parent: None for depth in range(1, DEPTH + 1) for path in sorted(folder.glob("*/" * depth + RESULTS))
             if path.parent.parent.name != EVALUATIONS and _results_files(path)}
    evaluated = {path.parents[2]: None for depth in range(1, DEPTH + 1)
                 for path in sorted(folder.glob("*/" * depth + f"{EVALUATIONS}/*/{RESULTS}")) if _results_files(path)}
    return list(found | evaluated)


def _folders(path: Path) -> list[Path]:
    """The results folders of a path: those of the training first, then evaluations by time."""
    return [path / RESULTS, path, *sorted(path.glob(f"{EVALUATIONS}/*/{RESULTS}"))]


def _results_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if _METRICS.fullmatch(path.name)]


def _written_at(run: Path) -> float:
    return max(path.stat().st_mtime for folder in _folders(run) for path in _results_files(folder))


def results_of(path: Path) -> dict[str, Results]:
    """Split -> results at its latest step; if that step was evaluated several times, those of the last time.

    Raises:
        DataError: a file is damaged.
    """
    found: dict[str, tuple[int, Path]] = {}
    for folder in _folders(path):
        for split, step, file in _files(folder):
            if split not in found or found[split][0] <= step:
                found[split] = step, file
    return {split: _read(file.parent, split, step, file) for split, (step, file) in found.items()}


def _files(folder: Path) -> Iterator[tuple[str, int, Path]]:
    for path in _results_files(folder):
        match = _METRICS.fullmatch(path.name)
        assert match is not None
        yield match["split"], int(match["step"]), path


def _read(folder: Path, split: str, step: int, path: Path) -> Results:
    stem = f"{split}_step{step}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics, weights = content["metrics"], str(content.get("weights", ""))
        files = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"{stem}_*samples.json"))]
        samples = {file["dataset"]: file["samples"] for file in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the results of {split!r} in {folder} are damaged ({type(error).__name__}: {error}); evaluate "
                        "the run again.") from error
    return Results(folder, split, step, metrics, samples, weights)


def config_of(results: Path) -> dict[str, Any] | None:
    """Dotted key -> value of the configuration of a results folder; None if there is no config.yaml.

    For an evaluation of a run, the keys in `STARTS` have the values of the run itself. The `weights` of its results
    name the checkpoint that was loaded.
    """
    home = results.absolute().parent
    path = next((folder / CONFIG for folder in (home, results) if (folder / CONFIG).is_file()), None)
    if path is None:
        return None
    config = dict(flatten(_yaml(path)))
    trained = home.parent.parent / CONFIG
    if home.parent.name == EVALUATIONS and trained.is_file():
        own = dict(flatten(_yaml(trained)))
        config = {key: value for key, value in config.items() if key not in STARTS}
        config |= {key: own[key] for key in STARTS if key in own}
    return config


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
