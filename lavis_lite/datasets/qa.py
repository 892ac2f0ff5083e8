"""Question-answering data sets over images or videos: one sample per question.

Samples of videos have `video` float32[3, T, H, W], those of images `image` float32[3, H, W].
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar, Literal

from lavis_lite.datasets.annotations.layout import NOTHING
from lavis_lite.datasets.annotations.rows import Row, RowTable
from lavis_lite.datasets.base import Sample, TableDataset, image_number, processed
from lavis_lite.datasets.media.images import ImageFolder

Processor = Callable[..., Any]
"""(item, rng) -> item"""
Learn = Literal["answer", "question"]


def draw(answers: list[str], weights: list[float], rng: random.Random | None) -> str:
    """One answer by its weight; without `rng` the heaviest, the first of equals. Empty answers are never drawn."""
    pairs = [(answer, weight) for answer, weight in zip(answers, weights, strict=True) if answer]
    if rng is None:
        return max(pairs, key=lambda pair: pair[1])[0]
    sums = list(accumulate(weight for _, weight in pairs))
    drawn = rng.random() * sums[-1]
    return next((answer for (answer, _), total in zip(pairs, sums, strict=True) if drawn < total), pairs[-1][0])


def instructed(instruction: Processor | None, text: str, rng: random.Random | None, extras: Row) -> tuple[str, Row]:
    """(the text in its instruction, the extras that are not in it already)."""
    if instruction is None:
        return text, extras
    placeholders: Collection[str] = getattr(instruction, "placeholders", ())
    if not placeholders:
        return instruction(text, rng), extras
    return instruction(text, rng, extras), {key: value for key, value in extras.items() if key not in placeholders}


def extras_of(row: Row, extras: Sequence[str]) -> Row:
    """A row's extras; missing ones are empty."""
    return {key: row.get(key, NOTHING[key]) for key in extras}


def left_of(extras: Sequence[str], instruction: Processor | None) -> list[str]:
    """Extras that no instruction holds."""
    return [key for key in extras if key not in getattr(instruction, "placeholders", ())]


class QADataset(TableDataset):
    """Training: one sample per question.

    Samples: image float32[3, H, W]; text_input str, what the model reads (the processed question in its instruction);
    text_output str, what it learns (one answer, drawn by weight); answers list[str] and weights list[float], all
    distinct answers and the share of annotators who gave each; question_id int or str; image_id int; instance_id str.
    If the data set has them, and they are not in text_input already: choices and ocr_tokens list[str], context, caption
    and history str.

    Args:
        table: rows as `annotations.questions.read_questions` gives them, with answers.
        folder: the images, or the videos.
        vis_processor, text_processor: applied to the image and to the question.
        instruction: puts a text into a prompt; None: it stays as it is.
        space: the image folder as the configuration names it.
        learn: question: the drawn answer is read in its instruction and the question is learned.
        extras: those of choices, context, caption, history, ocr_tokens that the rows have.
    """

    sample_keys: tuple[str, ...] = ("image", "text_input", "text_output", "answers", "weights", "question_id",
                                    "image_id", "instance_id")

    def __init__(self, table: RowTable, folder: ImageFolder, vis_processor: Processor, text_processor: Processor,
                 instruction: Processor | None = None, space: str = "", learn: Learn = "answer",
                 extras: Sequence[str] = ()) -> None:
        self.table, self.folder, self.space, self.learn, self.extras = table, folder, space, learn, tuple(extras)
        self.vis_processor, self.text_processor, self.instruction = vis_processor, text_processor, instruction
        self.sample_keys = (folder.key, *self.sample_keys[1:], *left_of(extras, instruction))

    def sample(self, index: int, rng: random.Random | None = None) -> Sample:
        """One question with one of its answers."""
        row = self.table[index]
        view = self.folder.view(row["image"], self.vis_processor, rng)
        weights = [count / sum(row["counts"]) for count in row["counts"]]
        question = processed(self.text_processor, row["question"], rng, "question")
        answer = draw(row["answers"], weights, rng)
        read, learned = (question, answer) if self.learn == "answer" else (answer, question)
        prompt, extras = instructed(self.instruction, read, rng, extras_of(row, self.extras))
        return {
            self.folder.key: view, **extras, "text_input": prompt, "text_output": learned,
            "answers": row["answers"], "weights": weights, "question_id": row["question_id"],
            "image_id": image_number(self.space, row["image"]), "instance_id": str(index),
        }


class QAEvalDataset(TableDataset):
    """Evaluation: one sample per question; the answers stay in the data set.

    Samples: image float32[3, H, W], text_input str (the question in its instruction), question_id int or str,
    image_id int or str (the annotations' own, else a number made of the image's name), index int, instance_id str;
    extras as in training. Multiple choice: candidates list[str], and label int, the index of the right one, if the
    split has answers.

    Args:
        table, folder, vis_processor, text_processor, instruction, space, learn, extras: as in training; the table may
            lack answers. With learn=question the model reads the commonest answer, and the question is the reference.
        training: returns the training rows, for the commonest answers; None if there are none.
        candidates: answers to choose among, the likeliest first; None: those of the training rows.
        multiple_choice: each row has its own answers to choose among.
    """

    sample_keys: tuple[str, ...] = ("image", "text_input", "question_id", "image_id", "index", "instance_id")
    whole_list: ClassVar[bool] = False
    """whether ranking always tries the whole answer_list"""

    def __init__(self, table: RowTable, folder: ImageFolder, vis_processor: Processor, text_processor: Processor,
                 instruction: Processor | None = None, space: str = "",
                 training: Callable[[], RowTable | None] = lambda: None, candidates: list[str] | None = None,
                 learn: Learn = "answer", extras: Sequence[str] = (), multiple_choice: bool = False) -> None:
        self.table, self.folder, self.space, self.learn, self.extras = table, folder, space, learn, tuple(extras)
        self.vis_processor, self.text_processor, self.instruction = vis_processor, text_processor, instruction
        self.has_answers, self.multiple_choice = "answers" in table[0], multiple_choice
        labelled = ("label",) if self.has_answers else ()
        self.sample_keys = (folder.key, *self.sample_keys[1:], *left_of(extras, instruction),
                            *(("candidates", *labelled) if multiple_choice else ()))
        self._training, self._candidates = training, candidates
        self._last: tuple[int, Row] = -1, {}

    @property
    def shares_pictures(self) -> bool:
        """Whether questions about one image have the same picture: nothing random happens to it."""
        return not getattr(self.vis_processor, "is_random", True)

    def evaluation_order(self) -> Sequence[int]:
        """Questions about one image side by side; the images with the longest questions first.

        So a batch has few pictures and little padding, and a batch too large for the memory is met at the start.
        """
        rows_of: dict[str, list[int]] = {}
        longest: Counter[str] = Counter()
        for index, row in enumerate(self.table.skim()):
            name = row["image"]
            rows_of.setdefault(name, []).append(index)
            longest[name] = max(longest[name], self._length(row))
        names = sorted(rows_of, key=lambda name: -longest[name])  # stable: ties stay in the files' order
        return [index for name in names for index in rows_of[name]]

    def longest_first(self) -> list[int]:
        """All rows, those whose texts have most characters first."""
        lengths = [self._length(row) for row in self.table.skim()]
        return sorted(range(len(lengths)), key=lambda index: -lengths[index])

    def _length(self, row: Row) -> int:
        """Characters that the model reads, the template aside."""
        read = row["question"] if self.learn == "answer" else self._commonest(row)
        extras = extras_of(row, self.extras)
        return len(read) + sum(len("".join(value)) for value in extras.values())  # texts and lists of texts

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """One question; `picture`: the result of `picture` for it, or another one instead."""
        row = self._row(index)
        read = self._commonest(row) if self.learn == "question" else processed(
            self.text_processor, row["question"], rng, "question")
        prompt, extras = instructed(self.instruction, read, rng, extras_of(row, self.extras))
        shown = self.picture(index, rng) if picture is None else picture
        return {
            self.folder.key: shown, **extras, **self._ranked(row), "text_input": prompt,
            "question_id": row["question_id"],
            "image_id": row.get("image_id", image_number(self.space, row["image"])),
            "index": index, "instance_id": str(index),
        }

    def _ranked(self, row: Row) -> Row:
        if not self.multiple_choice:
            return {}
        candidates = {"candidates": row.get("candidates") or row.get("choices", [])}
        return {**candidates, "label": row["label"]} if self.has_answers else candidates

    def _commonest(self, row: Row) -> str:
        return draw(row["answers"], row["counts"], None)

    def picture(self, index: int, rng: random.Random | None = None) -> Any:
        """The processed image or clip of a question."""
        return self.folder.view(self.image_name(index), self.vis_processor, rng)

    def image_name(self, index: int) -> str:
        """File name of a question's image."""
        name: str = self._row(index)["image"]
        return name

    def _row(self, index: int) -> Row:
        """The last row is kept: its picture and its texts are read one after the other."""
        if self._last[0] != index:
            self._last = index, self.table[index]
        return self._last[1]

    def question(self, index: int) -> dict[str, Any]:
        """The row: question, question_id, answers (one per annotator, empty without annotations) and its types.

        Also confidences, one for each answer, if the annotations have them. With learn=question the question and the
        answer change places.
        """
        row = self.table[index]
        if self.learn == "question":
            others = {key: value for key, value in row.items() if key != "confidences"}
            return {**others, "question": self._commonest(row), "answers": [row["question"]]}
        pairs = zip(row.get("answers", []), row.get("counts", []), strict=True)
        return {**row, "answers": [answer for answer, count in pairs for _ in range(count)]}

    def majority_pairs(self) -> Iterator[tuple[str, str]]:
        """(question, its commonest answer) of the training rows, if there are any."""
        table = self._training()
        for row in table.skim() if table is not None else ():
            yield row["question"], draw(row["answers"], row["counts"], None)

    @cached_property
    def answer_list(self) -> list[str]:
        """Answers to choose among: the data set's own list, else the training answers by frequency."""
        if self._candidates is not None:
            return self._candidates
        return [answer for answer, _ in Counter(answer for _, answer in self.majority_pairs()).most_common()]
