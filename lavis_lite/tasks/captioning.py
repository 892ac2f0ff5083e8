"""Captioning: one caption per image, scored by the metrics that the run names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import location_of
from lavis_lite.datasets.protocols import Captions, Domains, Identities
from lavis_lite.errors import DataError
from lavis_lite.metrics.caption_report import EMPTY, CaptionReport
from lavis_lite.metrics.scenes import image_scores, scene_scores
from lavis_lite.models.protocols import Captioner
from lavis_lite.registry import registry
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.base import BaseTask, Row
from lavis_lite.tasks.config import CaptioningRunConfig, Server, Submission
from lavis_lite.tasks.writing import CONTROLS, WritingTask, caption_scores, pictures_of, plain

SCENE = "scene"
SCENE_SCORES = ("attribute_f1", "attribute_precision", "attribute_recall", "exact", "agg_metrics", EMPTY)
"""what the summary shows in its own way or not at all, if captions are scored by the mini world's scenes"""
BY_IMAGE = {"CIDEr": "CIDEr", "ROUGE_L": "ROUGE_L", "SPICE": "SPICE", "METEOR": "image_METEOR",
            "Bleu_4": "image_Bleu_4"}
"""scores of single images -> their names in a report; the METEOR and BLEU of a split are not means of these"""
ALGORITHM = "lavis-lite"
"""the part of a results file's name that COCO's server reads as the author"""


@registry.register_task("captioning")
class CaptioningTask(WritingTask[Captioner, Captions]):
    """Trains on captions (`CaptionDataset`); evaluates a data set with one sample per image (`CaptionEvalDataset`).

    The prompt is `run.prompt`, else the sample's own (*_instruct data sets), else the model's. The sum of the metrics'
    main scores is agg_metrics.
    """

    config_class: ClassVar[type[RunConfig]] = CaptioningRunConfig
    needs_model = Captioner
    needs_data = Captions
    servers: ClassVar[tuple[Server, ...]] = ("coco", "nocaps")
    cfg: CaptioningRunConfig

    def __init__(self, cfg: CaptioningRunConfig) -> None:
        super().__init__(cfg)
        self.metrics = ["coco"] if cfg.caption_metrics is None else cfg.caption_metrics
        self._found = CaptionReport({}, [], {})
        self._wanted = None if cfg.img_ids is None else {str(name) for name in cfg.img_ids}  # LAVIS has both kinds
        self._dataset: Captions | None = None

    def before_evaluation(self, dataset: Captions, split: str) -> None:
        """Refuse a data set that is not a list of images, or has captions for only some of its images."""
        super().before_evaluation(dataset, split)
        bare = getattr(dataset, "bare", ())
        if bare and len(bare) < len(dataset) and self.metrics and self.cfg.report_metric:
            raise DataError(f"split {split!r}: {len(bare)} of {len(dataset)} images have no reference caption; the "
                            f"first is {location_of(dataset, bare[0])}. Add them, or set run.report_metric=false.")
        self._split, self._found, self._dataset = split, CaptionReport({}, [], {}), dataset
        self._check_img_ids(dataset, split)

    def _check_img_ids(self, dataset: Captions, split: str) -> None:
        """Check that `run.img_ids` names images of the split.

        Raises:
            DataError: it names none.
        """
        known = [ids_of(dataset, index) for index in range(len(dataset))] if isinstance(dataset, Identities) else []
        if self._wanted is not None and known and self._wanted.isdisjoint(map(str, chain.from_iterable(known))):
            some = ", ".join(str(ids[0]) for ids in known[:3])
            raise DataError(f"split {split!r}: run.img_ids names {len(self._wanted)} images, but none of the "
                            f"{len(known)} of this split. Its first ids: {some}. Name ids of this split, or set "
                            "run.img_ids=null.")

    def _counts(self, index: int, name: Any) -> bool:
        """Whether an image is one of `run.img_ids`."""
        return self._wanted is None or not self._wanted.isdisjoint(map(str, ids_of(self._dataset, index, name)))

    def predict(self, model: Captioner, samples: dict[str, Any]) -> list[Row]:
        """One row per image: {id, index, caption}."""
        if not self.has_samples(samples, "image_id", "index"):
            return []
        asked = self.asked(samples)
        options: dict[str, Any] = self.options()
        if self.cfg.use_nucleus_sampling:
            options |= {"use_nucleus_sampling": True, "top_p": self.cfg.top_p, "temperature": self.cfg.temperature}
        captions = model.generate(asked, num_beams=self.cfg.num_beams, max_length=self.cfg.max_len,
                                  min_length=self.cfg.min_len, **options)
        key = self.cfg.sample_id_key if self.cfg.sample_id_key in samples else "image_id"
        names, indices = plain(samples[key]), plain(samples["index"])
        return [{"id": name, "index": index, "caption": caption.strip()}
                for name, index, caption in zip(names, indices, captions, strict=True)
                if self._counts(index, name)]

    def asked(self, samples: dict[str, Any]) -> dict[str, Any]:
        """The pictures, and the prompt of the run or of the samples."""
        prompt = self.cfg.prompt if self.cfg.prompt is not None else samples.get("prompt")
        return super().asked(samples) | ({} if prompt is None else {"prompt": prompt})

    def score(self, model: Captioner, rows: list[Row], dataset: Captions, split: str) -> dict[str, float]:
        """The metrics that the run names, over all ranks' rows in the data set's order, as in the official code."""
        if not (self.metrics and rows and self.cfg.report_metric and dataset.has_text):
            return self.unscored(rows, dataset.has_text)
        rows = sorted(rows, key=lambda row: row["index"])
        captions = {row["id"]: row["caption"] for row in rows}
        scores: dict[str, float] = {}
        if names := [name for name in self.metrics if name != SCENE]:
            scores |= self._reported(names, captions, rows, dataset)
        if SCENE in self.metrics:
            found = scene_scores(captions, {row["id"]: dataset.captions[row["index"]] for row in rows})
            scores |= {**found, "agg_metrics": scores.get("agg_metrics", 0.0) + found["attribute_f1"]}
        return scores

    def _reported(self, names: list[str], captions: dict[Any, str], rows: list[Row],
                  dataset: Captions) -> dict[str, float]:
        """Scores against the references."""
        references = {row["id"]: dataset.references(row["index"]) for row in rows}
        self._found = caption_scores(captions, references, names,
                                     {row["id"]: domain_of(dataset, row["index"]) for row in rows})
        return dict(self._found.scores)

    def predictions(self, rows: list[Row], dataset: Captions) -> list[Row] | Submission:
        """The official results format, image_id and caption; the file's name is the one that COCO's server requires."""
        key = self.cfg.sample_id_key
        written = [{key: ids_of(dataset, row["index"], row["id"])[0] if key == "image_id" else row["id"],
                    self.cfg.caption_key: row["caption"]} for row in rows]
        if dataset.has_text:
            return written
        return self.submitted(written, f"captions_{self._split}_{ALGORITHM}_results.json" if self.server == "coco"
                              else "")

    def report(self, rows: list[Row], dataset: Captions, split: str) -> list[ReportSample]:
        """Caption, references and the scores that single images have."""
        picture, prompt = pictures_of(self.evaluated(dataset)), self.cfg.prompt or ""
        scores = self._by_image(rows, dataset) if dataset.has_text and self.cfg.report_metric else {}
        samples = []
        for row in rows:
            found, index = scores.get(row["id"], {}), row["index"]
            references = dataset.references(index) if dataset.has_text else ()
            samples.append(ReportSample(row["id"], row["caption"], prompt, references, found,
                                        bool(found["exact"]) if "exact" in found else None, picture(index),
                                        group=domain_of(dataset, index)))
        return samples

    def _by_image(self, rows: list[Row], dataset: Captions) -> dict[Any, dict[str, float]]:
        """image id -> its scores: those of `score`, and those of the mini world."""
        scores: dict[Any, dict[str, float]] = {row["id"]: {} for row in rows}
        for name in [name for name in BY_IMAGE if name in self._found.per_image]:
            for key, value in zip(self._found.ids, self._found.per_image[name].tolist(), strict=True):
                scores[key][BY_IMAGE[name]] = value
        if SCENE in self.metrics:
            for row in rows:
                scores[row["id"]] |= image_scores(row["caption"], dataset.captions[row["index"]])
        return scores

    def line(self, scores: dict[str, float]) -> str:
        """Attribute F1 and exact scenes if measured, else the scores and the number of empty captions."""
        if "attribute_f1" not in scores:
            empty = int(scores.get(EMPTY, 0))
            shown = {name: value for name, value in scores.items() if name != EMPTY}
            lost = " and ".join(self._found.missing)
            return (super().line(shown) + (f"; {empty} captions were empty and score 0" if empty else "")
                    + (f"; {lost} left out, the warning above says why" if lost else ""))
        exact = ", ".join(f"{key.removeprefix('exact_')} objects {value:.2f}" for key, value in sorted(scores.items())
                          if key.startswith("exact_"))
        others = {name: value for name, value in scores.items()
                  if name not in SCENE_SCORES and not name.startswith("exact_")}
        return (f"attribute F1 {scores['attribute_f1']:.3f}, exact scenes {scores['exact']:.3f} ({exact})"
                + (f", {BaseTask.summary(self, others)}" if others else "") + CONTROLS[self.cfg.control])


def ids_of(dataset: Captions | None, index: int, name: int | str = "") -> Sequence[int | str]:
    """Ids of an image, the one of result files first; of a data set that does not tell, `name`."""
    return dataset.ids(index) if isinstance(dataset, Identities) else (name,)


def domain_of(dataset: Captions, index: int) -> str:
    """The group of an image, which gets separate scores; "": no group."""
    return dataset.domain(index) if isinstance(dataset, Domains) else ""
