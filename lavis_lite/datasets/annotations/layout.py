"""How a data set writes its questions: names of columns, what several columns mean together, rows within rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lavis_lite.datasets.annotations.kinds import (
    MOST_CHARACTERS,
    choice_list,
    describe,
    file_name,
    file_names,
    flag,
    identifier,
    refuse_written_list,
    text,
    words,
)
from lavis_lite.datasets.annotations.rows import Field, Row, RowErrors
from lavis_lite.datasets.annotations.text_files import AUTO, FileFormat
from lavis_lite.datasets.files.image_paths import ImagePattern
from lavis_lite.errors import ConfigError, did_you_mean

COLUMNS = {"question": "question", "answers": "answers", "answer": "answer", "question_id": "question_id",
           "image_id": "image_id", "image": "image", "question_type": "question_type", "answer_type": "answer_type",
           "difficult": "difficult"}
"""what a row may have -> its usual name in a file"""


EXTRAS: dict[str, Callable[[Any], Any]] = {"choices": choice_list, "context": text, "caption": text,
                                           "ocr_tokens": words}
"""what a row has besides, if `columns` names a column for it -> its kind"""
LABELS = ("answers", "answer", "answer_index", "question_type", "answer_type", "difficult")
"""what the rows of a split without answers may lack"""
NOTHING: dict[str, Any] = {"choices": [], "context": "", "caption": "", "history": "", "ocr_tokens": []}
"""what a sample has if its row has no such thing"""


@dataclass(frozen=True)
class Layout:
    """How a data set writes its rows.

    Args:
        columns: key of COLUMNS, of EXTRAS, or answer_index -> name in the file; answers may be several columns.
            answer_index is the index of the right one among the choices, which makes it multiple choice.
        image_pattern: the image's path out of a row's columns and the file's own facts, see `ImagePattern`.
        key_column: files that are an object of rows by name: that name becomes this column.
        split: fills {split} of the pattern.
        keep: whether a raw row counts; the others are left out, unchecked.
        nested: column that is a list of objects, each a question; the columns around it count for all of them.
        parallel: columns that are lists of equal length: their n-th elements are the n-th question.
        required: columns without which (missing, null or empty) a row is left out.
        join_column: files whose rows have no question are about images; this column says which rows they belong to.
        answer_words: value of the answer column -> the word for it; these words are the choices.
        row_files: if the split's storage is a folder: its files, one row each.
        exists: see `ImagePattern`.
        form: how the files are written, if that is known.
        several: a row's image is a list of file names.
        guessed: keys of `columns` that nobody named; files may lack these columns.
        types: values of question_type; questions of other types are left out. Empty: all count.
    """

    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    image_pattern: str | Sequence[str] | None = None
    key_column: str | None = None
    split: str = ""
    keep: Callable[[Row], bool] | None = None
    nested: str | None = None
    parallel: Sequence[str] = ()
    required: Sequence[str] = ()
    join_column: str | None = None
    answer_words: Mapping[str, str] = field(default_factory=dict)
    row_files: str | None = None
    exists: Callable[[str], bool] | None = None
    form: FileFormat = AUTO
    guessed: Sequence[str] = ()
    several: bool = False
    types: Collection[str] = ()

    def __post_init__(self) -> None:
        known = [*COLUMNS, *EXTRAS, "answer_index"]
        for key in self.columns:
            if key not in known:
                raise ConfigError(f"columns.{key}: no such column; {did_you_mean(key, known)}")
            if not self.columns[key] or (key != "answers" and not isinstance(self.columns[key], str)):
                raise ConfigError(f"columns.{key} must be one name; only answers may be in several columns.")
        if "answer_index" in self.columns and "choices" not in self.columns:
            raise ConfigError("columns.answer_index needs columns.choices: it is the index of one of them.")
        _ = self.pattern  # a wrong one is an error now

    @cached_property
    def pattern(self) -> ImagePattern | None:
        """The image pattern."""
        return None if self.image_pattern is None else ImagePattern(self.image_pattern, self.exists)

    @property
    def fields(self) -> list[Field]:
        """What a row has besides answers and a required image."""
        optional = {"question_id": identifier, "image_id": identifier, "question_type": text, "answer_type": text,
                    "image": file_names if self.several else file_name, "difficult": flag}
        extras = {key: kind for key, kind in EXTRAS.items() if key in self.columns}
        return [Field("question", text, self.name("question")),
                *(Field(key, kind, self.name(key), required=False) for key, kind in {**optional, **extras}.items())]

    @property
    def extras(self) -> tuple[str, ...]:
        """Keys of samples besides the question."""
        named = tuple(key for key in EXTRAS if key in self.columns)
        return named if "choices" in named or not self.answer_words else ("choices", *named)

    @property
    def multiple_choice(self) -> bool:
        """Whether the answer is one of the choices."""
        return "answer_index" in self.columns or bool(self.answer_words)

    def name(self, key: str) -> str:
        """What a column is called in the file; the first of several."""
        named = self.columns.get(key, COLUMNS.get(key, key))
        return named if isinstance(named, str) else named[0]

    @property
    def named(self) -> dict[str, str | list[str]]:
        """Columns that the section names and that are not checked row by row."""
        return {key: name for key, name in self.columns.items() if key not in ("image", "question", *self.guessed)}

    def answer_names(self) -> list[str]:
        """Columns any of which shows that a split has answers."""
        keys = ("answer_index",) if "answer_index" in self.columns else ("answers", "answer")
        return [self.name(key) for key in keys]

    def answers_of(self, row: Row) -> tuple[str, Any] | None:
        """(column, value) of a row's answers, None where it has none; of several columns the filled ones as a list."""
        several = self.columns.get("answers")
        if isinstance(several, list):
            given = [row[column] for column in several if row.get(column) not in (None, "")]
            return (", ".join(several), given) if any(column in row for column in several) else None
        given = [(column, row[column]) for column in self.answer_names() if column in row]
        return next((pair for pair in given if pair[1] is not None), given[0] if given else None)

    def answer(self, value: Any, row: Row) -> Row:
        """{"answers", "counts"} of a row's raw answers; of multiple choice also "label", the index among the choices.

        Args:
            value: what `answers_of` found.
            row: the checked row, with its choices.

        Raises:
            ValueError: no answer; the message is a clause.
        """
        if self.answer_words:
            if str(value) not in self.answer_words:
                raise ValueError(f"is {value!r}, not one of {', '.join(map(repr, self.answer_words))}")
            word, choices = self.answer_words[str(value)], list(dict.fromkeys(self.answer_words.values()))
            return {"answers": [word], "counts": [1], "label": choices.index(word)}
        choices = row.get("choices", [])
        if "answer_index" not in self.columns:
            if choices and str(value).isdecimal() and str(value) not in choices:
                raise ValueError(f"is {value!r}, which is none of the {len(choices)} choices; if it is the index of "
                                 "one, from 0, name its column in columns.answer_index")
            return answer_texts(value)
        index = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
            raise ValueError(f"is {value!r}, not a place among the {len(choices)} choices")
        return {"answers": [choices[index]], "counts": [1], "label": index}

    def _is_about_an_image(self, raw: Row) -> bool:
        """Whether a row is not a question, but joined to questions."""
        return self.join_column is not None and self.name("question") not in raw and not self.parallel

    def takes(self, raw: Row, errors: RowErrors) -> bool:
        """Whether a row counts: it is of the split, and has what `required` names; else it is counted as left out."""
        if self._is_about_an_image(raw):
            return True
        if self.keep is not None and not self.keep(raw):
            return False
        lacking = any(raw.get(key) in (None, "", []) for key in self.required)
        errors.left_out += lacking
        return not lacking

    def expand(self, raw: Row) -> Iterator[Row]:
        """The questions of one raw row: itself, or those within it.

        Raises:
            ValueError: `nested` is not a list of objects, or `parallel` lists are of unequal length.
        """
        if self._is_about_an_image(raw) or not (self.nested is not None or self.parallel):
            yield raw
        elif self.nested is not None:
            inner = raw.get(self.nested)
            if not isinstance(inner, list) or not all(isinstance(row, dict) for row in inner):
                raise ValueError(f"field {self.nested!r} must be a list of objects")
            outer = {key: value for key, value in raw.items() if key != self.nested}
            yield from ({**outer, **row} for row in inner)
        else:
            lists = [raw.get(column) for column in self.parallel]
            sizes = {len(part) if isinstance(part, list) else -1 for part in lists}
            if len(sizes) > 1 or -1 in sizes:
                raise ValueError(f"fields {' and '.join(map(repr, self.parallel))} must be lists of equal length")
            for values in zip(*lists, strict=True):
                yield {**raw, **dict(zip(self.parallel, values, strict=True))}


def answer_texts(value: Any) -> dict[str, Any]:
    """One answer, a list of them, or official objects {answer: ...} -> {"answers": distinct, "counts": how often}.

    In order of frequency, then of appearance. An annotator may have left an answer empty, but not all of them. Objects
    with `answer_confidence` and without answer_id (VizWiz) also give "confidences", one for each annotator: those of
    the first answer, then those of the second, and so on.
    """
    refuse_written_list(value)
    items = value if isinstance(value, list) else [value]
    given = [item.get("answer") if isinstance(item, dict) else item for item in items]
    for index, answer in enumerate(given):
        where = f"[{index}] " if isinstance(value, list) else ""
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(f"{where}must be text, not {describe(answer)}")
        if isinstance(answer, float) and not math.isfinite(answer):
            raise ValueError(f"{where}is {answer}, which is not a number")
        if len(str(answer)) > MOST_CHARACTERS:
            raise ValueError(f"{where}has {len(str(answer))} characters; at most {MOST_CHARACTERS} are taken")
    cleaned = [str(answer).strip() for answer in given]
    counts = Counter(cleaned)
    if not any(counts):
        raise ValueError("has no answer: it is empty")
    for answer in filter(None, counts):
        text(answer)
    ordered = counts.most_common()
    found: dict[str, Any] = {"answers": [answer for answer, _ in ordered], "counts": [count for _, count in ordered]}
    if confidences := confidences_of(items):
        of_answer = list(zip(cleaned, confidences, strict=True))
        found["confidences"] = [own for answer in found["answers"] for other, own in of_answer if other == answer]
    return found


def confidences_of(records: Sequence[Any]) -> list[str]:
    """`answer_confidence` of each annotator's record; [] if no record has it, or answer_id tells the records apart.

    VizWiz' evaluation compares whole records, so it needs these. VQA's records have both fields, and there the
    confidence changes nothing.
    """
    objects = [record for record in records if isinstance(record, dict)]
    has_ids = any("answer_id" in record for record in objects)
    if has_ids or not any("answer_confidence" in record for record in objects):
        return []
    return [str(record.get("answer_confidence", "")) if isinstance(record, dict) else "" for record in records]
