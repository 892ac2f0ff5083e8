"""Image-text retrieval: fine-tuning by the stage-1 objectives, scored by ITC and re-ranking by ITM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.protocols import CaptionedImages
from lavis_lite.metrics.retrieval import mean_chance
from lavis_lite.models.protocols import Matcher, Retriever
from lavis_lite.registry import registry
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.base import BaseTask, Row
from lavis_lite.tasks.config import RetrievalRunConfig
from lavis_lite.tasks.reporting import retrieval_samples
from lavis_lite.tasks.retrieval_parts import BothWays, Gallery, Sizes, check_captions
from lavis_lite.tasks.retrieval_scoring import image_rows, picture_key, recalls_of, retrieve

IN_LINE = ("itc_", "itm_", "txt_", "img_", "r_mean", "chance_r1", "agg_metrics", "loss")
"""how names of the scores begin that the tasks with recall report by `recall_line`, or leave out of the summary"""


@registry.register_task("retrieval")
class RetrievalTask(BaseTask[Retriever, CaptionedImages]):
    """Trains on samples {image, text_input, image_id}; evaluates a split with one sample per image.

    An evaluation sample has `image` float[B,3,H,W] (or `video` float[B,3,T,H,W]) and `index` (in the data set).
    The data set has `text`, `img2txt` and `txt2img`.

    Scores (fractions): txt_r1, txt_r5, txt_r10, txt_r_mean (texts found by an image), img_* (images found by a text),
    r_mean and chance_r1. They are computed after re-ranking if `k_test` > 0; those before it have the prefix itc_.
    agg_metrics = r_mean.
    """

    config_class: ClassVar[type[RunConfig]] = RetrievalRunConfig
    needs_model = Retriever
    needs_data = CaptionedImages
    in_line = IN_LINE
    cfg: RetrievalRunConfig

    def __init__(self, cfg: RetrievalRunConfig) -> None:
        super().__init__(cfg)
        self._found: tuple[Gallery, BothWays] | None = None

    def before_evaluation(self, dataset: CaptionedImages, split: str) -> None:
        """Refuse a split that cannot be searched before anything is computed."""
        super().before_evaluation(dataset, split)
        check_captions(dataset, split)

    def model_needs(self, model: object) -> list[type]:
        """A retriever; also a matcher (ITM) if candidates are re-ranked."""
        return [Retriever, *([Matcher] if self.cfg.k_test > 0 else [])]

    def predict(self, model: Retriever, samples: dict[str, Any]) -> list[Row]:
        """One row per image with its features."""
        if not self.has_samples(samples, picture_key(samples), "index"):
            return []
        return image_rows(model, samples, keep_embeds=self.cfg.k_test > 0)

    def score(self, model: Retriever, rows: list[Row], dataset: CaptionedImages, split: str) -> dict[str, float]:
        """Recall of the whole split, equal on all ranks."""
        gallery = gallery_of(rows, dataset, self.cfg.captions_per_image)
        itc, itm = retrieve(model, rows, gallery, self.cfg.k_test, sizes_of(self.cfg), self.progress)
        scores = prefixed("itc_", itc, gallery)
        final = itm if itm is not None else itc
        self._found = gallery, final
        scores |= prefixed("", final, gallery)
        return scores | {"chance_r1": chance_r1(gallery), "agg_metrics": scores["r_mean"]}

    def report(self, rows: list[Row], dataset: CaptionedImages, split: str) -> list[ReportSample] | None:
        """Every query with its best candidates, both ways."""
        found, self._found = self._found, None
        return None if found is None else retrieval_samples(*found, dataset)

    def line(self, scores: dict[str, float]) -> str:
        """R@1 both ways beside chance."""
        return recall_line(scores, {"itc_": "ITC", "": "ITC + ITM" if self.cfg.k_test > 0 else ""})


def gallery_of(rows: Sequence[Row], dataset: CaptionedImages, captions_per_image: int | None) -> Gallery:
    """The gallery of all ranks' rows. Collective."""
    own: list[int] = [row["id"] for row in rows]
    parts = distributed.all_gather_object(own)
    return Gallery.of(dataset, [index for part in parts for index in part], captions_per_image)


def sizes_of(cfg: RetrievalRunConfig) -> Sizes:
    """The block sizes of a run: blocks of images are the evaluation's batches."""
    return Sizes(cfg.batch_size_eval, cfg.pair_batch_size, cfg.pair_batch_size)


def prefixed(prefix: str, found: BothWays, gallery: Gallery) -> dict[str, float]:
    """Recalls of candidates, every key with `prefix`."""
    return {prefix + name: value for name, value in recalls_of(found, gallery).items()}


def chance_r1(gallery: Gallery) -> float:
    """R@1 of a random order, the mean of both directions (1 / N if all images have equally many captions)."""
    texts, images = len(gallery.texts), len(gallery.images)
    return (mean_chance(1, texts, gallery.img2txt) + mean_chance(1, images, gallery.txt2img)) / 2


def recall_line(scores: dict[str, float], ways: dict[str, str]) -> str:
    """R@1 by each way of scoring that `scores` has: key prefix -> its name; an empty name is left out."""
    parts: list[str] = []
    for prefix, name in ways.items():
        if name and f"{prefix}txt_r1" in scores:
            chance = f" (chance {scores['chance_r1']:.3g})" if not parts else ""
            parts.append(f"text R@1 {scores[f'{prefix}txt_r1']:.3f}, image R@1 {scores[f'{prefix}img_r1']:.3f}"
                         f"{chance} by {name}")
    return "; ".join(parts)
