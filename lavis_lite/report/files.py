"""The files of results/ that tell of single samples: their names, writing and reading them.

    <split>_step<N>_samples.json   scores, prediction, references of every sample; what `compare` reads
    <split>_report.html            the page of the split's latest evaluation
    report.html                    the page of the evaluation that came last

Where a split is in several data sets, `_<data set>` stands before the last word.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.io import atomic
from lavis_lite.report.sample import ReportSample, finite

PAGE = "report.html"


@dataclass(frozen=True)
class Evaluation:
    """One data set's split, evaluated.

    Attributes:
        scores: of the whole.
        samples: one per id.
    """

    scores: Mapping[str, float]
    samples: Sequence[ReportSample]


def write_samples(path: Path, split: str, step: int, dataset: str, evaluation: Evaluation) -> None:
    """Write everything about the samples but their pictures, one sample a line."""
    head = {"split": split, "step": step, "dataset": dataset,
            "metrics": {name: finite(value) for name, value in evaluation.scores.items()}}
    rows = ",\n".join(json.dumps(sample.row(), allow_nan=False) for sample in evaluation.samples)
    atomic.write_text(path, f'{json.dumps(head, allow_nan=False)[:-1]}, "samples": [\n{rows}\n]}}\n')


def read_samples(path: Path) -> dict[str, Any]:
    """What `write_samples` wrote."""
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def make_newest(page: Path) -> Path:
    """Let report.html beside a page be that page: one file under two names, or a copy where that cannot be."""
    newest = page.with_name(PAGE)
    temporary = page.with_name(f".tmp-{PAGE}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(page, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(page, temporary)
    os.replace(temporary, newest)
    return newest
