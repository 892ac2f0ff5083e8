"""Tasks that evaluate each data set by the task that fits it; instruction tuning is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.protocols import MapDataset
from lavis_lite.errors import ContractError, UndefinedMethodError
from lavis_lite.models.base import BaseModel
from lavis_lite.registry import registry
from lavis_lite.tasks.base import BaseTask
from lavis_lite.tasks.captioning import CaptioningTask
from lavis_lite.tasks.config import (
    CaptioningRunConfig,
    InstructionTuningRunConfig,
    Server,
    WritingRunConfig,
)
from lavis_lite.tasks.ranking import DialogueTask, RankingTask
from lavis_lite.tasks.vqa import VQATask
from lavis_lite.tasks.writing import WritingTask, in_prompt


class MultipleChoiceTask(RankingTask):
    """Ranking of questions with candidates of their own."""

    model_methods: ClassVar[tuple[str, ...]] = ("predict_answers",)  # a model that is tuned by instructions

    def takes(self, dataset: object) -> bool:
        """Whether the questions have candidates; a class is assumed to have them."""
        return super().takes(dataset) and bool(getattr(dataset, "multiple_choice", True))


class VisDialTask(DialogueTask):
    """Ranking of dialogues with candidates."""

    model_methods: ClassVar[tuple[str, ...]] = ("predict_answers",)

    def takes(self, dataset: object) -> bool:
        """Whether the questions are rounds of dialogues; a class is assumed to have them."""
        return (super().takes(dataset) and bool(getattr(dataset, "multiple_choice", True))
                and "history" in getattr(dataset, "extras", ("history",)))


OF_PARTS = ("before_evaluation", "evaluated", "predict", "score", "predictions", "report", "illustrated", "options",
            "asked", "submitted", "unscored")
"""methods that an evaluation calls on the part that takes a data set, and not on the router"""


class TaskRouter(WritingTask[BaseModel, MapDataset]):
    """Hands the evaluation of a data set to the first of its parts that takes it.

    Raises:
        ContractError: a subclass overrides what only its parts are called for.
    """

    def __init__(self, cfg: WritingRunConfig) -> None:
        super().__init__(cfg)
        cls = type(self)
        unused = [name for name in OF_PARTS if getattr(cls, name) is not getattr(TaskRouter, name)]
        if unused and cls.part_for is TaskRouter.part_for:
            raise ContractError(f"run.task={cfg.task}: {cls.__name__} overrides {', '.join(unused)}, which an "
                                "evaluation calls on the parts of the task alone. Override them in a subclass of the "
                                "part (such as VQATask), and let `parts` return it.")
        self._parts = self.parts()

    def parts(self) -> list[WritingTask[Any, Any]]:
        """The tasks, the most specific first."""
        raise UndefinedMethodError.of(self, "parts")

    def evaluators(self) -> Sequence[BaseTask[Any, Any]]:
        """The parts."""
        return self._parts

    def training_samples(self, samples: dict[str, Any]) -> dict[str, Any]:
        """Questions in the prompt of the evaluation; the answers are learned after it."""
        return in_prompt(samples, self.cfg.prompt) if "text_input" in samples else samples

    def takes(self, dataset: object) -> bool:
        """Whether any of the parts does."""
        return any(part.takes(dataset) for part in self._parts)

    def part_for(self, dataset: MapDataset) -> BaseTask[Any, Any]:
        """The first part that takes the data set; if no part does, the router: its `before_evaluation` refuses it."""
        return next((part for part in self._parts if part.takes(dataset)), self)


PENALTIES = ("length_penalty", "repetition_penalty")
"""settings with different defaults for captions and for answers"""


@registry.register_task("instruction_tuning")
class InstructionTuningTask(TaskRouter):
    """Trains on any mixture of *_instruct data sets, samples {image or video, text_input, text_output}.

    The kind of each data set chooses its evaluation: captions (captioning), dialogues with candidates (dialogue),
        options (ranking), other questions (vqa).
    """

    config_class: ClassVar[type[RunConfig]] = InstructionTuningRunConfig
    servers: ClassVar[tuple[Server, ...]] = tuple(
        server for part in (VQATask, CaptioningTask, VisDialTask, MultipleChoiceTask) for server in part.servers)
    cfg: InstructionTuningRunConfig

    def parts(self) -> list[WritingTask[Any, Any]]:
        """Captions, rounds of dialogues, options, other questions."""
        captions = replace(self.cfg, max_len=self.cfg.max_caption_len, **{
            name: getattr(CaptioningRunConfig(), name) for name in PENALTIES if getattr(self.cfg, name) is None})
        return [cls(cfg if cfg.submission in cls.servers else replace(cfg, submission=None)) for cls, cfg in (
            (CaptioningTask, captions), (VisDialTask, self.cfg), (MultipleChoiceTask, self.cfg), (VQATask, self.cfg))]
