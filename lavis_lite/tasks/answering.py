"""Question answering by the rules of benchmarks: GQA, OCR-based questions, videos, A-OKVQA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.protocols import Choices, Questions
from lavis_lite.errors import DataError
from lavis_lite.registry import registry
from lavis_lite.tasks.base import Row
from lavis_lite.tasks.by_dataset import MultipleChoiceTask, TaskRouter
from lavis_lite.tasks.config import (
    AOKVQARunConfig,
    GQARunConfig,
    ReadingRunConfig,
    Server,
    Submission,
    VideoQARunConfig,
)
from lavis_lite.tasks.vqa import VQATask
from lavis_lite.tasks.writing import WritingTask


@registry.register_task("gqa")
class GQATask(VQATask):
    """One answer per question: right where both are equal after the official VQA cleaning."""

    config_class: ClassVar[type[RunConfig]] = GQARunConfig
    servers: ClassVar[tuple[Server, ...]] = ("gqa",)


@registry.register_task("vqa_reading_comprehension")
class ReadingTask(VQATask):
    """Questions with the picture's OCR tokens in their prompt: by the data set's instruction, or `prompt`'s first `{}`.

    With neither, and tokens in the data set, the prompt is "OCR tokens: {}. Question: {} Short answer:". Scores are
    those of vqa and anls.
    """

    config_class: ClassVar[type[RunConfig]] = ReadingRunConfig
    servers: ClassVar[tuple[Server, ...]] = ("textvqa", "vqa")
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "anls")
    default_prompt: ClassVar[str] = "OCR tokens: {}. Question: {} Short answer:"

    def before_evaluation(self, dataset: Questions, split: str) -> None:
        """Refuse a data set without OCR tokens."""
        super().before_evaluation(dataset, split)
        if "ocr_tokens" not in getattr(dataset, "extras", ()):
            raise DataError(f"split {split!r} has no OCR tokens. Name their column in columns.ocr_tokens of the data "
                            "set (textvqa has them), or set run.task=vqa to answer without them.")

    def prompt_of(self, samples: dict[str, Any]) -> str:
        """The run's prompt; else the default one, unless the question's instruction has the tokens already."""
        return self.cfg.prompt or (self.default_prompt if "ocr_tokens" in samples else "")


@registry.register_task("video_qa")
class VideoQATask(VQATask):
    """As vqa, over samples with `video`; every answer of the list is a candidate with run.inference_method=rank."""

    config_class: ClassVar[type[RunConfig]] = VideoQARunConfig


@registry.register_task("aok_vqa")
class AOKVQATask(TaskRouter):
    """Multiple choice by likelihood where a data set has options (aok_vqa_mc), else written answers (aok_vqa).

    Scores of written answers: min(1, annotators who wrote exactly this / 3), the benchmark's own rule, over the
    questions that are not `difficult`. Without labels both parts' predictions are put into one file,
    predictions_<split>.json.
    """

    config_class: ClassVar[type[RunConfig]] = AOKVQARunConfig
    servers: ClassVar[tuple[Server, ...]] = ("aokvqa",)
    cfg: AOKVQARunConfig

    def parts(self) -> list[WritingTask[Any, Any]]:
        """Ranking, and answers."""
        cfg = replace(self.cfg, submission="aokvqa")
        choices, answers = _AOKChoices(cfg), _AOKAnswers(cfg)
        answers.files = choices.files = {}
        return [choices, answers]


class _AOKChoices(MultipleChoiceTask):
    """Options by likelihood."""

    files: dict[str, dict[str, Row]]
    """name of a predictions file -> its rows by name, of both parts"""

    def predictions(self, rows: list[Row], dataset: Choices) -> list[Row] | Submission:
        """The predictions; on a split without labels, merged with those of the other part."""
        return merged(super().predictions(rows, dataset), self.files)


class _AOKAnswers(VQATask):
    """Written answers."""

    files: dict[str, dict[str, Row]]
    """as in `_AOKChoices`"""

    def predictions(self, rows: list[Row], dataset: Questions) -> list[Row] | Submission:
        """As in `_AOKChoices`."""
        return merged(super().predictions(rows, dataset), self.files)


def merged(found: list[Row] | Submission, files: dict[str, dict[str, Row]]) -> list[Row] | Submission:
    """Predictions; those of a file of several parts together with what the other parts predicted."""
    if not isinstance(found, Submission) or not isinstance(found.content, Mapping):
        return found
    both = files.setdefault(found.name, {})
    for part in {part for answer in found.content.values() for part in answer}:
        for row in both.values():
            row.pop(part, None)  # from an earlier evaluation
    for name, answer in found.content.items():
        both.setdefault(name, {}).update(answer)
    return replace(found, content=both)
