"""Stage-1 and stage-2 pre-training, with losses and retrieval recall on held-out images."""

from __future__ import annotations

from math import fsum
from typing import Any, ClassVar

import torch

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.protocols import CaptionedImages
from lavis_lite.errors import DataError
from lavis_lite.finite import check_finite
from lavis_lite.metrics.retrieval import as_lists
from lavis_lite.models.base import BaseModel
from lavis_lite.models.outputs import split_losses
from lavis_lite.models.protocols import Matcher, Retriever
from lavis_lite.registry import lacking, registry
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.base import BaseTask, Row
from lavis_lite.tasks.config import PretrainRunConfig
from lavis_lite.tasks.reporting import retrieval_samples
from lavis_lite.tasks.retrieval import IN_LINE, chance_r1, gallery_of, prefixed, recall_line, sizes_of
from lavis_lite.tasks.retrieval_parts import BothWays, Gallery, check_captions
from lavis_lite.tasks.retrieval_scoring import image_rows, indices, picture_key, retrieve


@registry.register_task("image_text_pretrain")
class ImageTextPretrainTask(BaseTask[BaseModel, CaptionedImages]):
    """Trains on samples {image, text_input}; evaluates a split with one sample per image.

    An evaluation sample has `image` (or `video`) and `index` (in the data set); captions come from the data set's
    `text` and `img2txt`. Losses are computed on whole evaluation batches, each on one rank, and averaged over images.
    Every image is paired with its first caption. Scores: loss, loss_*; itc_txt_r1 ... itc_r_mean by ITC; itm_* after
    re-ranking; r_mean, of itm_* if present, else of itc_*; chance_r1. agg_metrics = r_mean, or -loss for a model
    without an ITC space.
    """

    config_class: ClassVar[type[RunConfig]] = PretrainRunConfig
    needs_data = CaptionedImages
    in_line = IN_LINE
    cfg: PretrainRunConfig

    def __init__(self, cfg: PretrainRunConfig) -> None:
        super().__init__(cfg)
        self._split = ""
        self._captions: list[str] = []
        self._found: tuple[Gallery, BothWays, str] | None = None

    def before_evaluation(self, dataset: CaptionedImages, split: str) -> None:
        """Refuse a split without captions; remember what `predict` needs of it."""
        super().before_evaluation(dataset, split)
        check_captions(dataset, split)
        self._split = split
        self._captions = [dataset.text[found[0]] for found in as_lists(dataset.img2txt)]

    def model_needs(self, model: object) -> list[type]:
        """A matcher (ITM) if the run measures recall after re-ranking."""
        splits = [*self.cfg.valid_splits, *self.cfg.test_splits]
        reranks = self.cfg.valid_recall and any(self.k_test(split) > 0 for split in splits)
        return [Matcher] if reranks and not lacking(model, Retriever) else []

    def k_test(self, split: str) -> int:
        """Candidates that ITM re-ranks on a split."""
        return self.cfg.k_test if self.cfg.valid_itm or split in self.cfg.test_splits else 0

    def predict(self, model: BaseModel, samples: dict[str, Any]) -> list[Row]:
        """One row per image: the losses of its batch and its features for retrieval."""
        if not self.has_samples(samples, picture_key(samples), "index"):
            return []
        captions = [self._captions[index] for index in indices(samples)]
        losses = validation_losses(model, samples, captions)
        if self.cfg.valid_recall and isinstance(model, Retriever):
            rows = image_rows(model, samples, keep_embeds=self.k_test(self._split) > 0)
        else:
            rows = [{"id": index} for index in indices(samples)]
        return [row | {"losses": losses} for row in rows]

    def score(self, model: BaseModel, rows: list[Row], dataset: CaptionedImages, split: str) -> dict[str, float]:
        """Mean losses and recall of the whole split, equal on all ranks."""
        scores = mean_losses(rows)
        if not (self.cfg.valid_recall and isinstance(model, Retriever)):
            return scores | {"agg_metrics": -scores["loss"]}
        gallery = gallery_of(rows, dataset, self.cfg.captions_per_image)
        itc, itm = retrieve(model, rows, gallery, self.k_test(split), sizes_of(self.cfg), self.progress)
        scores |= prefixed("itc_", itc, gallery)
        r_mean = scores["itc_r_mean"]
        self._found = (gallery, itc, "itc_") if itm is None else (gallery, itm, "itm_")
        if itm is not None:
            scores |= prefixed("itm_", itm, gallery)
            r_mean = scores["itm_r_mean"]
        return scores | {"r_mean": r_mean, "chance_r1": chance_r1(gallery), "agg_metrics": r_mean}

    def report(self, rows: list[Row], dataset: CaptionedImages, split: str) -> list[ReportSample] | None:
        """Every query with its best candidates, both ways, if recall was measured."""
        if self._found is None:
            return None
        (gallery, found, prefix), self._found = self._found, None
        return retrieval_samples(gallery, found, dataset, prefix)

    def line(self, scores: dict[str, float]) -> str:
        """R@1 both ways beside chance, or the losses."""
        return recall_line(scores, {"itc_": "ITC", "itm_": "ITC + ITM"}) or super().line(scores)


@torch.no_grad()
def validation_losses(model: BaseModel, samples: dict[str, Any], captions: list[str]) -> dict[str, float]:
    """Losses of one evaluation batch with a caption for each image. Not collective.

    The random numbers for hard negatives depend only on the batch's images, so every validation of a run draws the
    same.

    Raises:
        CheckpointError: a loss is NaN or infinite.
    """
    first, key = indices(samples)[0], picture_key(samples)
    generator = torch.Generator().manual_seed(first)
    uniform = torch.rand(len(captions), 2, dtype=torch.float64, generator=generator)
    losses = split_losses(model({key: samples[key], "text_input": captions, "uniform": uniform}))[1]
    check_finite(torch.stack([value.float() for value in losses.values()])[None],
                 lambda _: f"validation: the losses of the batch that begins with image {first} are NaN or infinite.")
    return {name: float(value) for name, value in losses.items()}


def mean_losses(rows: list[Row]) -> dict[str, float]:
    """Mean over all ranks' images, the same to the last bit for any number of ranks. Collective."""
    own: list[dict[str, float]] = [row["losses"] for row in rows]
    parts = distributed.all_gather_object(own)
    losses = [one for part in parts for one in part]
    if not losses:
        raise DataError("the evaluation split gave no image; check its annotation file and run.on_bad_sample.")
    return {name: fsum(one[name] for one in losses) / len(losses) for name in losses[0]}
