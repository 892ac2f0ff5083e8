"""A task that states what it needs: models that write, data sets of captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lavis_lite import BaseTask
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.protocols import Captions
from lavis_lite.models.protocols import Captioner
from lavis_lite.registry import registry


@dataclass
class WordCountConfig(RunConfig):
    """The task's keys of the `run:` section."""

    longest: int = 8


@registry.register_task("typed_word_count")
class WordCount(BaseTask[Captioner, Captions]):
    """How many words captions have, beside those of the references."""

    config_class: ClassVar[type[RunConfig]] = WordCountConfig
    needs_model = Captioner
    needs_data = Captions
    gathers_rows = True
    cfg: WordCountConfig

    def predict(self, model: Captioner, samples: dict[str, Any]) -> list[dict[str, Any]]:
        """One row per picture."""
        captions = model.generate(samples, num_beams=1, max_length=self.cfg.longest)
        return [{"id": int(index), "words": len(caption.split())}
                for index, caption in zip(samples["index"], captions, strict=True)]

    def score(self, model: Captioner, rows: list[dict[str, Any]], dataset: Captions, split: str) -> dict[str, float]:
        """Mean words of captions and of references."""
        given = [len(text.split()) for row in rows for text in dataset.references(row["id"])]
        words = sum(row["words"] for row in rows) / len(rows)
        return {"words": words, "words_of_references": sum(given) / len(given), "agg_metrics": words}
