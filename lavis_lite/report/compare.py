"""Two runs side by side, from the files of their run folders: configuration, scores, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.report.bootstrap import Paired, paired
from lavis_lite.report.results import RESULTS, Results, config_of, find_run, results_of

UNINTERESTING = ("run.output_dir", "run.resume_ckpt_path")
"""keys that differ between any two runs"""


@dataclass(frozen=True)
class Flip:
    """A sample that only one run gets right or, if samples are not right or wrong, with different scores."""

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
        steps, weights: of the evaluated models, a's and b's; weights "": unknown.
        metrics: name -> (a's, b's); None: a run does not have it.
        intervals: name -> interval, for metrics that are means over samples.
        gained, lost: samples that only b gets right, and samples that only a gets right; largest change first.
        note: why there are no intervals; "": there are some.
        samples: number of samples, over all data sets.
    """

    split: str
    steps: tuple[int, int]
    metrics: Mapping[str, tuple[float | None, float | None]]
    intervals: Mapping[str, Paired]
    gained: Sequence[Flip]
    lost: Sequence[Flip]
    note: str = ""
    samples: int = 0
    weights: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs.

    Attributes:
        config: dotted key -> (a's, b's); None: a run has no such key.
        splits: those that both runs have.
        notes: what could not be compared.
    """

    a: Path
    b: Path
    config: Mapping[str, tuple[Any, Any]]
    splits: Sequence[SplitComparison]
    notes: Sequence[str] = ()


def compare(a: Path, b: Path, split: str | None = None) -> Comparison:
    """Compare two runs.

    Args:
        a, b: run folders or results folders. A run folder has its own results and those of its evaluations. Of a folder
            above runs, the run with the newest results is taken.
        split: only this one.

    Raises:
        ConfigError: a folder is missing or holds no results; no split is in both.
        DataError: the samples of a split are not the same in both, or a file is damaged.
    """
    paths, chosen_runs = zip(*map(find_run, (Path(a), Path(b))), strict=True)
    found = [results_of(path) for path in paths]
    common = [name for name in found[0] if name in found[1]]
    chosen = common if split is None else [name for name in common if name == split]
    if not chosen:
        asked = f"the split {split!r} is not" if split is not None else "no split is"
        raise ConfigError(f"{asked} in both: {a} has results of {_listed(found[0])}, {b} of {_listed(found[1])}. "
                          "Evaluate both on the same split: `python -m lavis_lite evaluate --run RUN --options "
                          "run.test_splits=[SPLIT]`.")
    pairs = [(found[0][name], found[1][name]) for name in chosen]
    config, missing = _config_differences(*pairs[0])
    same = ["A and B are the same folder"] if pairs[0][0].folder.samefile(pairs[0][1].folder) else []
    alone = [] if split is not None else _only_in_one(paths, found)
    splits = [_split(*pair) for pair in pairs]
    notes = [*same, *filter(None, chosen_runs), *_from_evaluations(paths, pairs), *alone, *missing,
             *(note for pair in pairs for note in _other_answers(*pair))]
    return Comparison(paths[0], paths[1], config, splits, notes)


def _only_in_one(paths: Sequence[Path], found: Sequence[Mapping[str, Results]]) -> list[str]:
    return [f"only in {path}: {_listed(extra)}" for path, one, other in zip(paths, found, reversed(found), strict=True)
            if (extra := [name for name in one if name not in other])]


def _from_evaluations(paths: Sequence[Path], pairs: Sequence[tuple[Results, Results]]) -> list[str]:
    """Notes on splits that were scored by an evaluation after the training."""
    notes = []
    for letter, path, own in zip("AB", paths, zip(*pairs, strict=True), strict=True):
        for folder in dict.fromkeys(one.folder for one in own):
            if folder not in (path, path / RESULTS):
                names = [one.split for one in own if one.folder == folder]
                notes.append(f"{letter}'s results of {_listed(names)} are those of {folder}")
    return notes


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


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
                               "evaluate again to get it", weights=(a.weights, b.weights))
    rows = _paired_rows(a, b)
    flips = [Flip(dataset, *pair) for dataset, pairs in rows.items() for pair in pairs if _flipped(*pair)]
    gained = sorted((flip for flip in flips if _gained(flip)), key=lambda flip: -flip.change)
    lost = sorted((flip for flip in flips if not _gained(flip)), key=lambda flip: flip.change)
    return SplitComparison(a.split, (a.step, b.step), metrics, _intervals(rows), gained, lost,
                           samples=sum(map(len, rows.values())), weights=(a.weights, b.weights))


Rows = dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]
"""data set -> (a's, b's) of each sample"""


def _paired_rows(a: Results, b: Results) -> Rows:
    if a.samples.keys() != b.samples.keys():
        raise DataError(f"the split {a.split!r} is of different data sets: {_listed(a.samples)} in {a.folder}, "
                        f"{_listed(b.samples)} in {b.folder}. To compare other evaluations, give results folders.")
    rows: Rows = {}
    for dataset, own in a.samples.items():
        others = {row["id"]: row for row in b.samples[dataset]}
        known = {row["id"] for row in own}
        missing = [[row["id"] for row in own if row["id"] not in others],
                   [key for key in others if key not in known]]
        if any(missing):
            extra = "; ".join(f"{len(ids)} only in {one.folder}, the first {ids[0]!r}"
                              for ids, one in zip(missing, (a, b), strict=True) if ids)
            raise DataError(f"{dataset} {a.split!r} does not have the same samples in both runs: {extra}. Evaluate "
                            "both on the same annotation files.")
        rows[dataset] = [(row, others[row["id"]]) for row in own]
    return rows


def _other_answers(a: Results, b: Results) -> list[str]:
    """Notes on samples of one id with other right answers: ids that are row numbers fit any other file too."""
    notes = []
    for dataset, pairs in _paired_rows(a, b).items() if a.samples and b.samples else ():
        ids = [one["id"] for one, other in pairs if one.get("references") != other.get("references")]
        if ids:
            notes.append(f"{len(ids)} of {len(pairs)} samples of {dataset} {a.split!r} have other right answers in B, "
                         f"the first {ids[0]!r}. Were both evaluated on the same annotation files?")
    return notes


def _flipped(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if "right" in a and "right" in b:
        return bool(a["right"] != b["right"])
    return main_score(a) != main_score(b)


def _gained(flip: Flip) -> bool:
    return bool(flip.b["right"]) if "right" in flip.b and "right" in flip.a else flip.change > 0


def _intervals(rows: Rows) -> dict[str, Paired]:
    """Intervals by score, in the order of first appearance; for several data sets by `<data set>/<score>`."""
    values: dict[str, list[tuple[float, float, tuple[str, Any]]]] = {}
    for dataset, pairs in rows.items():
        for a, b in pairs:
            picture = (dataset, a.get("picture", a["id"]))
            for name, value in a["scores"].items():
                other = b["scores"].get(name)
                if value is not None and other is not None:
                    key = f"{dataset}/{name}" if len(rows) > 1 else name
                    values.setdefault(key, []).append((value, other, picture))
    return {name: paired([a for a, _, _ in found], [b for _, b, _ in found], [picture for _, _, picture in found])
            for name, found in values.items()}


def _config_differences(a: Results, b: Results) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    configs = [config_of(one.folder) for one in (a, b)]
    missing = [f"{one.folder.parent} has no config.yaml, so configurations are not compared"
               for one, config in zip((a, b), configs, strict=True) if config is None]
    if missing:
        return {}, missing
    one, two = (config or {} for config in configs)
    keys = [*one, *(key for key in two if key not in one)]
    return {key: (one.get(key), two.get(key)) for key in keys
            if one.get(key) != two.get(key) and key not in UNINTERESTING}, []
