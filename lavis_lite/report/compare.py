"""Two runs side by side, from the files of their run folders: configuration, scores, samples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.report.bootstrap import Paired, paired
from lavis_lite.report.files import read_samples

_METRICS = re.compile(r"(?P<split>.+)_step(?P<step>\d+)\.json")
UNINTERESTING = ("run.output_dir",)
"""keys that differ in all runs"""


@dataclass(frozen=True)
class Results:
    """What a folder knows of one split, at its latest step.

    Attributes:
        metrics: of the split.
        samples: data set -> rows of the samples file, in its order; empty where there is none.
    """

    folder: Path
    split: str
    step: int
    metrics: Mapping[str, float | None]
    samples: Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Flip:
    """A sample that one run gets right and the other does not; of another score where nothing is right or wrong."""

    dataset: str
    a: dict[str, Any]
    b: dict[str, Any]

    @property
    def change(self) -> float:
        """b's main score - a's."""
        return (main_score(self.b) or 0.0) - (main_score(self.a) or 0.0)


@dataclass(frozen=True)
class SplitComparison:
    """One split in both runs.

    Attributes:
        metrics: name -> (a's, b's); None where a run does not have it.
        intervals: name -> of those that are means over samples.
        gained, lost: samples that b gets right and a does not, and the other way round; largest change first.
        note: why there are no intervals, where there are none.
        samples: of all data sets together.
    """

    split: str
    steps: tuple[int, int]
    metrics: Mapping[str, tuple[float | None, float | None]]
    intervals: Mapping[str, Paired]
    gained: Sequence[Flip]
    lost: Sequence[Flip]
    note: str = ""
    samples: int = 0


@dataclass(frozen=True)
class Comparison:
    """All that differs between two runs.

    Attributes:
        config: dotted key -> (a's, b's); None where a run has no such key, or no config.yaml.
        splits: those that both have.
        notes: what could not be compared.
    """

    a: Path
    b: Path
    config: Mapping[str, tuple[Any, Any]]
    splits: Sequence[SplitComparison]
    notes: Sequence[str] = ()


def compare(a: Path, b: Path, split: str | None = None) -> Comparison:
    """Compare two run folders, or results folders.

    Args:
        a, b: each holds results/, or is it.
        split: only this one.

    Raises:
        ConfigError: a folder is missing or holds no results; no split is in both.
        DataError: the samples of a split are not the same in both, or a file is damaged.
    """
    found = [latest(_results_folder(Path(folder))) for folder in (a, b)]
    common = [name for name in found[0] if name in found[1]]
    chosen = common if split is None else [name for name in common if name == split]
    if not chosen:
        asked = f"the split {split!r} is not" if split is not None else "no split is"
        raise ConfigError(f"{asked} in both: {a} has results of {_listed(found[0])}, {b} of {_listed(found[1])}. "
                          "Evaluate both on the same split: `python evaluate.py --cfg-path <run>/config.yaml`.")
    alone = [f"only in {folder}: {_listed(extra)}" for folder, one, other in ((a, found[0], found[1]),
                                                                              (b, found[1], found[0]))
             if split is None and (extra := [name for name in one if name not in other])]
    config, note = _config_differences(Path(a), Path(b))
    same = ["A and B are the same folder"] if found[0][chosen[0]].folder.samefile(found[1][chosen[0]].folder) else []
    return Comparison(Path(a), Path(b), config, [_split(found[0][name], found[1][name]) for name in chosen],
                      [*same, *alone, *note])


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


def _results_folder(folder: Path) -> Path:
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; give the run folder, or its results/: {folder.parent}")
    if not folder.is_dir():
        near = did_you_mean(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()]) \
            if folder.parent.is_dir() else ""
        raise ConfigError(f"there is no folder {folder}; give a run folder or its results/. {near}".rstrip())
    for candidate in (folder / "results", folder):
        if any(_METRICS.fullmatch(path.name) for path in candidate.glob("*.json")):
            return candidate
    if runs := _runs_below(folder):
        raise ConfigError(f"{folder} is no run but holds some; give one of them, such as {', '.join(map(str, runs))}.")
    first = f": `python evaluate.py --cfg-path {folder}/config.yaml`" if (folder / "config.yaml").is_file() else ""
    raise ConfigError(f"{folder} holds no results (results/<split>_step<N>.json); evaluate the run first{first}.")


def _runs_below(folder: Path) -> list[Path]:
    """The newest run folders in an output_dir, at most three; they are named by time."""
    found = {path.parent.parent for depth in ("*", "*/*", "*/*/*", "*/*/*/*")
             for path in folder.glob(f"{depth}/results/*.json") if _METRICS.fullmatch(path.name)}
    return sorted(found, key=lambda path: path.name, reverse=True)[:3]


def latest(folder: Path) -> dict[str, Results]:
    """Split -> results at its latest step."""
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        match = _METRICS.fullmatch(path.name)
        if match and found.get(match["split"], (-1, path))[0] < int(match["step"]):
            found[match["split"]] = int(match["step"]), path
    return {split: _read(folder, split, step, path) for split, (step, path) in found.items()}


def _read(folder: Path, split: str, step: int, path: Path) -> Results:
    stem = f"{split}_step{step}"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        files = [read_samples(file) for file in sorted(folder.glob(f"{stem}_*samples.json"))]
        samples = {file["dataset"]: file["samples"] for file in files}
    except (ValueError, KeyError, TypeError) as fault:
        raise DataError(f"the results of {split!r} in {folder} are damaged ({type(fault).__name__}: {fault}); evaluate "
                        "the run again.") from fault
    return Results(folder, split, step, metrics, samples)


def main_score(row: Mapping[str, Any]) -> float | None:
    """The first of a sample's scores."""
    return next(iter(row["scores"].values()), None)


def _split(a: Results, b: Results) -> SplitComparison:
    names = [*a.metrics, *(name for name in b.metrics if name not in a.metrics)]
    metrics = {name: (a.metrics.get(name), b.metrics.get(name)) for name in names}
    missing = [str(one.folder) for one in (a, b) if not one.samples]
    if missing:
        return SplitComparison(a.split, (a.step, b.step), metrics, {}, [], [],
                               f"no intervals: {' and '.join(missing)} has no {a.split}_step<N>_samples.json; "
                               "evaluate again to get it")
    rows = _paired_rows(a, b)
    flips = [Flip(dataset, *pair) for dataset, pairs in rows.items() for pair in pairs if _flipped(*pair)]
    gained = sorted((flip for flip in flips if _gained(flip)), key=lambda flip: -flip.change)
    lost = sorted((flip for flip in flips if not _gained(flip)), key=lambda flip: flip.change)
    return SplitComparison(a.split, (a.step, b.step), metrics, _intervals(rows), gained, lost,
                           samples=sum(map(len, rows.values())))


Rows = dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]
"""data set -> (a's, b's) of each sample"""


def _paired_rows(a: Results, b: Results) -> Rows:
    if a.samples.keys() != b.samples.keys():
        raise DataError(f"the split {a.split!r} is of different data sets: {_listed(a.samples)} in {a.folder}, "
                        f"{_listed(b.samples)} in {b.folder}.")
    rows: Rows = {}
    for dataset, own in a.samples.items():
        others = {row["id"]: row for row in b.samples[dataset]}
        known = {row["id"] for row in own}
        lacking = [[row["id"] for row in own if row["id"] not in others], [key for key in others if key not in known]]
        if any(lacking):
            told = "; ".join(f"{len(ids)} only in {one.folder}, the first {ids[0]!r}"
                             for ids, one in zip(lacking, (a, b), strict=True) if ids)
            raise DataError(f"{dataset} {a.split!r} does not have the same samples in both runs: {told}. Evaluate both "
                            "on the same annotation files.")
        rows[dataset] = [(row, others[row["id"]]) for row in own]
    return rows


def _flipped(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if "right" in a and "right" in b:
        return bool(a["right"] != b["right"])
    return main_score(a) != main_score(b)


def _gained(flip: Flip) -> bool:
    return bool(flip.b["right"]) if "right" in flip.b and "right" in flip.a else flip.change > 0


def _intervals(rows: Rows) -> dict[str, Paired]:
    """By score, in the order of first appearance; with several data sets as `<data set>/<score>`."""
    values: dict[str, tuple[list[float], list[float]]] = {}
    for dataset, pairs in rows.items():
        for a, b in pairs:
            for name, value in a["scores"].items():
                other = b["scores"].get(name)
                if value is not None and other is not None:
                    key = f"{dataset}/{name}" if len(rows) > 1 else name
                    one, two = values.setdefault(key, ([], []))
                    one.append(value)
                    two.append(other)
    return {name: paired(*both) for name, both in values.items()}


def _config_differences(a: Path, b: Path) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    configs, missing = [], []
    for folder in (a, b):
        files = [place / "config.yaml" for place in (folder, folder.parent) if (place / "config.yaml").is_file()]
        missing += [] if files else [f"{folder} has no config.yaml, so configurations are not compared"]
        configs.append(_flat(_yaml(files[0])) if files else {})
    if missing:
        return {}, missing
    keys = [*configs[0], *(key for key in configs[1] if key not in configs[0])]
    return {key: (configs[0].get(key), configs[1].get(key)) for key in keys
            if configs[0].get(key) != configs[1].get(key) and key not in UNINTERESTING}, []


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as fault:
        raise ConfigError(f"{path} is no YAML: {fault}") from fault


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings under dotted keys; lists stay whole."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node} if prefix else {}
    return {key: value for name, child in node.items()
            for key, value in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()}
