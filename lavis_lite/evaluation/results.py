"""What an evaluation writes: scores, predictions, samples, and the page to look through. Rank 0 only.

- `results/<split>_step<N>.json`: scores.
- `results/<split>_step<N>_predictions.json`: predictions, if the task has any. Some servers prescribe another name.
- `results/<split>_step<N>_samples.json`: scores, prediction and references of every sample, which `compare` reads.
- `results/<split>_report.html`: the page of the split's latest evaluation.
- `results/report.html`: the page of the latest evaluation of all.

If a split is in several data sets, `_<data set>` is inserted before the last word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.config.schema import Config
from lavis_lite.io import atomic, disk
from lavis_lite.report.sample import ReportSample, finite
from lavis_lite.tasks.base import Row
from lavis_lite.tasks.config import Submission, lines
from lavis_lite.tracking.tracker import panels, read

Predictions = Mapping[str, list[Row] | Submission]
"""data set -> predictions of the split"""


@dataclass(frozen=True)
class Evaluation:
    """One data set's split, evaluated.

    Attributes:
        scores: of the whole split, by name.
        samples: one per id.
    """

    scores: Mapping[str, float]
    samples: Sequence[ReportSample]


def write_result(run_dir: Path, split: str, step: int, scores: Mapping[str, float], weights: str = "") -> Path:
    """Write the scores of a split and return the file's path.

    Args:
        run_dir: folder of the run.
        split: that was evaluated.
        step: of the weights.
        scores: by name.
        weights: the source of the weights, in one line; "": unknown.
    """
    path = Path(run_dir) / "results" / f"{split}_step{step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"weights": weights} if weights else {}
    content = {"split": split, "step": step, **known, "metrics": dict(scores)}
    atomic.write_text(path, json.dumps(content, indent=2) + "\n")
    return path


def write_predictions(run_dir: Path, split: str, step: int, predictions: Predictions) -> list[Path]:
    """Write one file of predictions per data set and return their paths.

    A file for a server has that server's format and, if the server prescribes one, its name.
    """
    paths: list[Path] = []
    written: dict[Path, str] = {}
    for name, rows in predictions.items():
        middle = f"_{name}" if len(predictions) > 1 else ""
        if isinstance(rows, Submission):
            file, suffix, text = rows.name, rows.suffix, rows.text()
        else:
            file, suffix, text = "", ".json", lines(rows)
        usual = f"{split}_step{step}{middle}_predictions{suffix}"
        path = Path(run_dir) / "results" / (file or usual)
        if written.get(path, text) != text:  # another data set has taken the name that the server prescribes
            path = path.with_name(usual)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)
        written[path] = text
        paths.append(path)
    return paths


def where_unscored(scores: Mapping[str, float], predictions: Predictions, paths: Sequence[Path]) -> str:
    """The files of predictions that were not scored, for the line about a split; "" if all were scored."""
    several = len(predictions) > 1
    found: dict[Path, str] = {}
    for (name, rows), path in zip(predictions.items(), paths, strict=True):
        if (f"{name}/predictions" if several else "predictions") in scores:
            found[path] = rows.format_hint() if several and isinstance(rows, Submission) else ""
    return "".join(f" ({path}{hint})" for path, hint in found.items())


def write_samples(path: Path, split: str, step: int, dataset: str, evaluation: Evaluation) -> None:
    """Write all facts of the samples except their pictures, one sample a line."""
    head = {"split": split, "step": step, "dataset": dataset,
            "metrics": {name: finite(value) for name, value in evaluation.scores.items()}}
    rows = ",\n".join(json.dumps(sample_row(sample), allow_nan=False) for sample in evaluation.samples)
    atomic.write_text(path, f'{json.dumps(head, allow_nan=False)[:-1]}, "samples": [\n{rows}\n]}}\n')


def sample_row(sample: ReportSample) -> dict[str, Any]:
    """A sample's entry in the samples file: everything but candidates, and of a picture its name."""
    row: dict[str, Any] = {"id": sample.id, "scores": {name: finite(value) for name, value in sample.scores.items()}}
    prediction = sample.prediction if sample.prediction or sample.rank is None else None
    named = {"picture": sample.picture and sample.picture.name, "right": sample.right, "rank": sample.rank,
             "group": sample.group or None, "context": sample.context or None, "prompt": sample.prompt or None,
             "prediction": prediction, "references": list(sample.references) or None}
    return row | {key: value for key, value in named.items() if value is not None}


def write_reports(cfg: Config, run_dir: Path, split: str, step: int, reports: Mapping[str, Evaluation], weights: str,
                  log: Callable[[str], None]) -> list[Path]:
    """Write the samples of each data set and, if `run.report` is true, its page; return the pages.

    A page that cannot be written is reported and stops nothing: scores and predictions are on the disk already.
    """
    from lavis_lite.report.page import make_newest, write_report

    folder, training, pages = Path(run_dir) / "results", Path(run_dir) / "log.jsonl", []
    for name, evaluation in reports.items():
        middle = f"_{name}" if len(reports) > 1 else ""
        others = {other: f"{split}_{other}_report.html" for other in reports if other != name}
        try:
            write_samples(folder / f"{split}_step{step}{middle}_samples.json", split, step, name, evaluation)
            if not cfg.run.report:
                continue
            page = write_report(folder / f"{split}{middle}_report.html", f"{name} · {split}", evaluation.scores,
                                evaluation.samples, curves=panels(read(training)) if training.exists() else {},
                                facts=page_facts(cfg, Path(run_dir), step, weights), others=others,
                                most=cfg.run.report_samples)
            pages.append(page)
            make_newest(page)
        except OSError as error:
            log(disk.cannot_write(folder, error, what=f"the report of {split}"))
    return pages


def page_facts(cfg: Config, run_dir: Path, step: int, weights: str) -> dict[str, str]:
    """The facts under a page's heading."""
    run = cfg.run
    prompt = run.get("prompt") or (cfg.model.get("prompt") if run.task == "captioning" else None)
    control = {"blind": "blank images", "wrong_image": "other samples' images"}.get(run.get("control", "none"))
    facts = {"task": run.task, "model": f"{cfg.model.arch} {cfg.model.model_type}", "step": f"{step:,}",
             "run": run_dir.name, "weights": weights, "prompt": prompt, "control": control}
    return {name: value for name, value in facts.items() if value}
