"""The builder of dialogues about images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lavis_lite.config.schema import DatasetConfig, FileConfig
from lavis_lite.datasets.annotations.dialogues import TurnTable, read_dialogues, read_relevance
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.rows import RowTable
from lavis_lite.datasets.builders.base import DIALOGUES, IMAGES, QUESTIONS
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.files.locate import one_source
from lavis_lite.errors import ConfigError
from lavis_lite.processors.instruction import Instruction
from lavis_lite.registry import registry


@dataclass
class ImageDialogueConfig(ImageQAConfig):
    """Section of a data set of dialogues: VisDial v1.0's or AVSD's file, or lists of conversations as LLaVA's."""

    turn: str = "Q: {} A: {}"
    """an earlier question and its answer as they stand in the history, one per line"""
    asked: Literal["all", "last"] = "all"
    """evaluation: every turn is a question, or only the last one of a dialogue"""
    relevance: dict[str, FileConfig] = field(default_factory=dict)
    """by split: VisDial's dense annotations, [{image_id, round_id, gt_relevance}], for NDCG"""


@registry.register_builder("image_dialogue")
class ImageDialogueBuilder(ImageQABuilder):
    """Dialogues about images: every question with an answer is a sample, what was said before is its `history`.

    Samples as `image_qa`. What was said before stands in front of the question, unless the section's `instruction` puts
    it elsewhere. Evaluation of VisDial: every round with its 100 candidates, and label, the index of the right one.
    There the samples have history str and caption str ("" if there is none), and the task puts them in front.
    """

    config_class: ClassVar[type[DatasetConfig]] = ImageDialogueConfig
    ignored_keys: ClassVar[Mapping[str, str]] = {**IMAGES, **QUESTIONS, **DIALOGUES}
    cfg: ImageDialogueConfig

    def __init__(self, name: str, cfg: ImageDialogueConfig) -> None:
        super().__init__(name, cfg)
        if cfg.turn.count("{}") != 2:
            raise ConfigError(f"datasets.{name}.turn must have two {{}}, for a question and its answer.")
        for key in cfg.columns:
            if key != "image":
                raise ConfigError(f"datasets.{name}.columns.{key} has no effect: of dialogues only the column `image` "
                                  "can be named.")

    def default_instruction(self, training: bool, ranked: bool) -> Callable[..., Any] | None:
        """The history in front of the question: a turn makes no sense without it."""
        return None if ranked and not training else Instruction("chat", draw=False)

    def extras(self) -> Sequence[str]:
        """What was said before, and the image's caption."""
        return ("history", "caption")

    def multiple_choice(self, table: RowTable) -> bool:
        """Whether the rounds come with candidates."""
        return "candidates" in table[0]

    def read(self, paths: Sequence[Path], layout: Layout, training: bool) -> TurnTable:
        """The questions of a split's dialogues."""
        table = read_dialogues(paths, layout, training, self.cfg.turn, last=self.cfg.asked == "last" and not training)
        dense = None if training else self.cfg.relevance.get(layout.split)
        if dense is not None and (dense.storage or dense.url):
            source = one_source(f"datasets.{self.name}.relevance.{layout.split}", dense, self.root)
            table.relevance = read_relevance(source.fetch())
        return table
