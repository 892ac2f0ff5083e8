"""One data set through all checks, split by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.doctor.media import check_media
from lavis_lite.datasets.doctor.report import Problem, Report, SplitReport
from lavis_lite.datasets.doctor.rows import TokenCounter, scan
from lavis_lite.datasets.doctor.sheet import Card, cards, draw_sheet
from lavis_lite.datasets.protocols import ImageTable
from lavis_lite.errors import ConfigError, DataError


@dataclass(frozen=True)
class Thoroughness:
    """How much is looked at.

    Attributes:
        images: files of a split that are decoded; all rows are read whatever it is.
        count_tokens: the Q-Former's tokenizer. max_tokens: what the Q-Former reads of a text.
        sheet: where a contact sheet goes. samples: of each split on it.
    """

    count_tokens: TokenCounter
    tokenizer: str = "mini"
    max_tokens: int = 32
    images: int = 1000
    sheet: Path | None = None
    samples: int = 12


def examine(name: str, builder: BaseDatasetBuilder, how: Thoroughness, splits: Sequence[str] | None = None,
            notes: Sequence[str] = (), training: Sequence[str] | None = None) -> Report:
    """Look through the splits of a data set.

    Args:
        name: what the report calls it.
        builder: of the data set; faulty annotations are reported in the words in which it raises them.
        how: see `Thoroughness`.
        splits: those to look at; by default all.
        notes: what the report shall say besides.
        training: splits that are looked at as training sees them; by default those whose names begin with "train".

    Raises:
        ConfigError: there is no such split, or the section itself is wrong.
        OSError: the sheet could not be written.
    """
    report = Report(name, getattr(builder, "media", "images"), how.tokenizer, how.max_tokens, list(notes))
    known = builder.splits()
    for split in splits or known:
        if split not in known:
            raise ConfigError(f"{name} has no split {split!r}; it has {', '.join(known) or 'none'}.")
    shown: list[Card] = []
    for split in splits or known:
        found = SplitReport(split)
        report.splits.append(found)
        trained = split.startswith("train") if training is None else split in training
        shown += _examine_split(builder, found, how, trained)
        found.tidy()
    if how.sheet is not None:
        how.sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(shown).save(how.sheet)
    return report


def _examine_split(builder: BaseDatasetBuilder, report: SplitReport, how: Thoroughness, training: bool) -> list[Card]:
    missing = builder.missing_files([report.split])
    if missing:
        report.problems += [Problem(sentence, 1) for sentence in missing]
        return []
    try:
        dataset = builder.build(report.split, training)
    except DataError as fault:
        report.problems.append(Problem(str(fault), 1))
        return []
    if not isinstance(dataset, ImageTable):
        raise ConfigError(f"data sets of {type(builder).__name__} have no table of rows and folder of files, so that "
                          "they cannot be looked through.")
    names = scan(dataset, report, how.count_tokens, how.max_tokens)
    check_media(dataset, names, report, how.images)
    return cards(dataset, names, report.split, how.samples) if how.sheet is not None else []
