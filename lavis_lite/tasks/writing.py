"""The base of tasks that predict one text per sample: rows, controls, reports, and texts that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.controls import AblatedImages
from lavis_lite.datasets.loading.loader import collate
from lavis_lite.datasets.media.images import BadSample, decode_rgb
from lavis_lite.datasets.protocols import LongestFirst, MapDataset, NamedImages
from lavis_lite.errors import ConfigError, DataError, TextTooLongError, did_you_mean
from lavis_lite.models.attention import shown
from lavis_lite.models.blip2.prompts import question_prompts
from lavis_lite.models.protocols import Looker, TextMeasurer
from lavis_lite.registry import lacking, need
from lavis_lite.report.overlay import Map, as_seen, overlay
from lavis_lite.report.sample import Candidate, Picture, ReportSample
from lavis_lite.tasks.base import BaseTask, D, M, Row
from lavis_lite.tasks.config import Server, Submission, WritingRunConfig

if TYPE_CHECKING:
    from lavis_lite.metrics.caption_report import CaptionReport

PICTURES = ("image", "video", "image_rows")
"""keys of a batch with pictures"""
CONTROLS = {"none": "", "wrong_image": " with other samples' images", "blind": " with blank images"}


class WritingTask(BaseTask[M, D]):
    """Predicts one text per sample; a row is {id, index, <text>}."""

    gathers_rows: ClassVar[bool] = True
    config_class: ClassVar[type[RunConfig]] = WritingRunConfig
    servers: ClassVar[tuple[Server, ...]] = ("plain",)
    """servers for which predictions can be written; the first is the default"""
    cfg: WritingRunConfig

    def __init__(self, cfg: WritingRunConfig) -> None:
        super().__init__(cfg)
        if cfg.submission is not None and cfg.submission not in self.servers:
            raise ConfigError(f"run.submission={cfg.submission}: the task {cfg.task} cannot write this format; "
                              f"{did_you_mean(cfg.submission, self.servers)}")
        self._split = self._format_hint = ""
        self._why = "the run names no metric, or the split has no labels"

    @property
    def server(self) -> Server:
        """The server for which predictions on a split without labels are written."""
        return self.cfg.submission or self.servers[0]

    def submitted(self, content: Sequence[Row] | Mapping[str, Any], name: str = "") -> Submission:
        """Predictions on a split without labels; the summary names their format."""
        found = Submission(self.server, content, name)
        self._format_hint = found.format_hint()
        return found

    def evaluated(self, dataset: D) -> Any:
        """The data set, with the images that `run.control` chooses."""
        return dataset if self.cfg.control == "none" else AblatedImages(
            need(dataset, MapDataset, "run.control"), self.cfg.control)

    def options(self) -> dict[str, Any]:
        """Generation settings that the run or its task sets; the model decides the others."""
        given = {"length_penalty": self.cfg.length_penalty, "repetition_penalty": self.cfg.repetition_penalty,
                 "penalise_prompt": self.cfg.penalise_prompt or None}
        return {name: value for name, value in given.items() if value is not None}

    def asked(self, samples: dict[str, Any]) -> dict[str, Any]:
        """What the model is given of a batch to write its texts, as `generate` takes it."""
        return {key: samples[key] for key in PICTURES if key in samples}

    def model_needs(self, model: object) -> Sequence[type]:
        """Needs of the task, and of a page that shows where the model looks."""
        return [*super().model_needs(model), *([Looker] if self.cfg.report_attention else [])]

    def illustrated(self, model: M, rows: list[Row], dataset: D,
                    samples: Sequence[ReportSample]) -> Sequence[ReportSample]:
        """The samples, the first `run.report_attention` with where the model looks for each word."""
        first = self.cfg.report_attention
        return [*with_attention(self.asked, model, rows, self.evaluated(dataset), samples[:first]), *samples[first:]]

    def unscored(self, rows: Sequence[Row], labelled: bool = False) -> dict[str, float]:
        """Metrics of a split that is not scored.

        Args:
            rows: its rows.
            labelled: whether it has labels.
        """
        why = "the run names no metric" if labelled else "the split has no labels"
        self._why = why if rows else "no sample was predicted"
        self._format_hint = "" if labelled else self._format_hint
        return {"predictions": float(len(rows))}

    def summary(self, scores: dict[str, float]) -> str:
        """Scores, one line for each of several data sets; or why nothing was scored, and the format of the file."""
        if any("/" in name for name in scores):  # of several data sets
            return by_dataset(scores) + CONTROLS[self.cfg.control]
        if "predictions" in scores:
            return (f"{scores['predictions']:.0f} predictions written, not scored ({self._why})"
                    f"{CONTROLS[self.cfg.control]}{self._format_hint}")
        return super().summary(scores)

    def line(self, scores: dict[str, float]) -> str:
        """The summary of one data set that was scored."""
        return super().line(scores) + CONTROLS[self.cfg.control]


def by_dataset(scores: Mapping[str, float]) -> str:
    """Scores `<data set>/<name>` -> one line per data set, below their mean if there is one."""
    lines: dict[str, list[str]] = {}
    for key, value in scores.items():
        dataset, _, name = key.rpartition("/")
        if dataset and name != "agg_metrics":
            lines.setdefault(dataset, []).append(
                f"{name} {value:.4g}" if name != "predictions" else f"{value:.0f} predictions written, not scored")
    mean = f"mean {scores['agg_metrics']:.4g}" if "agg_metrics" in scores else f"{len(lines)} data sets"
    return mean + "".join(f"\n  {dataset}: {', '.join(parts)}" for dataset, parts in lines.items())


def caption_scores(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], names: Sequence[str],
                   domains: Mapping[Any, str] | None = None) -> CaptionReport:
    """`caption_report` only by rank 0: one Java program, not one per rank. Raises DataError on all ranks."""
    from lavis_lite.metrics.caption_report import caption_report  # its tokenizer takes a while to import

    found: CaptionReport | None = None
    failure: Exception | None = None
    if distributed.is_main():
        try:
            found = caption_report(captions, references, names, domains)
        except (DataError, OSError) as error:
            failure = error
    found, failure = distributed.broadcast_object((found, failure))
    if failure is not None or found is None:
        raise failure or DataError("rank 0 sent no scores.")
    return found


def plain(values: Tensor | Sequence[Any]) -> list[Any]:
    """A column of a batch as Python values; a tensor leaves the device in one copy."""
    return list(values.tolist() if isinstance(values, Tensor) else values)


def in_prompt(samples: dict[str, Any], prompt: str | None) -> dict[str, Any]:
    """Training samples with their questions in a template's `{}`; unchanged without a template."""
    if not prompt:
        return samples
    return {**samples, "text_input": question_prompts(samples, prompt, len(samples["text_input"]))}


# --- texts too long for the model -------------------------------------------------------------------------------------
AT_ONCE = 64
"""rows that are measured together; the longest come first, and the search ends at the first batch that fits"""


@dataclass(frozen=True)
class LongTexts:
    """Rows of a data set with texts that are too long for the model.

    Attributes:
        split: its name.
        rows: their indices.
        where: file and row of the first one.
        reason: the model's message for the first batch that has any.
        total: rows of the data set.
    """

    split: str
    rows: list[int]
    where: str
    reason: str
    total: int

    def __str__(self) -> str:
        return (f"split {self.split!r}: {len(self.rows)} of {self.total} samples have texts that are too long for the "
                f"language model, the first at {self.where}. {self.reason}")


def long_texts(task: BaseTask[Any, Any], model: object, dataset: object, split: str) -> LongTexts | None:
    """Measure the longest texts of a data set without looking at pictures.

    Args:
        task: builds the prompts.
        model: a `TextMeasurer`; other models are not checked.
        dataset: `LongestFirst`; other data sets are not checked.
        split: its name.

    Returns:
        The rows that are too long; None: no such row is known.
    """
    if not isinstance(model, TextMeasurer) or lacking(dataset, LongestFirst, attributes=False):
        return None
    dataset = need(dataset, LongestFirst, f"split {split!r}")
    task = task.part_for(dataset)
    task.before_evaluation(dataset, split)
    order, rows, reason = dataset.longest_first(), list[int](), ""
    picture = _no_picture(dataset)
    with torch.no_grad(), model.measuring():
        for start in range(0, len(order), AT_ONCE):
            samples = {row: sample for row in order[start:start + AT_ONCE]
                       if (sample := _sample(dataset, row, picture)) is not None}
            some = list(samples)
            try:
                task.predict(model, _batch(list(samples.values()), dataset))
            except TextTooLongError as error:
                rows += [some[row] for row in error.rows]
                reason = reason or str(error)
            else:
                break
    return LongTexts(split, rows, dataset.location(rows[0]), reason, len(dataset)) if rows else None


def _sample(dataset: LongestFirst, row: int, picture: torch.Tensor) -> dict[str, Any] | None:
    """A row's texts; None for an unusable row, which the evaluation itself reports."""
    try:
        return dataset.sample(row, None, picture)
    except BadSample:
        return None


def _batch(samples: list[dict[str, Any]], dataset: object) -> dict[str, Any]:
    batch = getattr(dataset, "collater", collate)(samples)
    assert isinstance(batch, dict), batch  # no file was read, so none failed
    return batch


def _no_picture(dataset: LongestFirst) -> torch.Tensor:
    """A placeholder for a picture; a video has as many frames as its processor takes."""
    frames = getattr(dataset.vis_processor, "n_frms", None)
    return torch.zeros(3, 1, 1) if frames is None else torch.zeros(3, frames, 1, 1)


def without_rows(batch: Mapping[str, Any], rows: Mapping[int, Any]) -> dict[str, Any]:
    """A batch without some of its samples; shared pictures stay.

    Args:
        batch: as `collate` makes it.
        rows: indices of the samples to leave out.
    """
    size = len(batch["index"])
    kept = [row for row in range(size) if row not in rows]
    if not kept:
        return {}
    shared = ("image", "video") if "image_rows" in batch or "picture_counts" in batch else ()
    left = {key: value if key in shared else _chosen(value, kept, size) for key, value in batch.items()}
    if "picture_counts" in batch and "image" in batch:
        starts = [0, *accumulate(batch["picture_counts"])]
        left["image"] = batch["image"][[number for row in kept for number in range(starts[row], starts[row + 1])]]
    return left


def _chosen(values: Any, kept: list[int], size: int) -> Any:
    if isinstance(values, torch.Tensor):
        return values[kept]
    return [values[row] for row in kept] if isinstance(values, list) and len(values) == size else values


# --- samples of reports -----------------------------------------------------------------------------------------------
def pictures_of(dataset: object) -> Callable[[int], Picture | None]:
    """Row -> the picture that the model saw; None for features and blank images.

    Args:
        dataset: has `folder` and `image_name(index)`, or wraps such a data set for a control.
    """
    others: dict[str, int] = {}
    if isinstance(dataset, AblatedImages):
        if dataset.control == "blind":
            return lambda index: None
        others, dataset = dataset.others, dataset.dataset
    folder: Any = getattr(dataset, "folder", None)
    if not getattr(folder, "has_previews", False) or not isinstance(dataset, NamedImages):
        return lambda index: None
    named: NamedImages = dataset

    def picture(index: int) -> Picture:
        name = named.image_name(index)
        shown = named.image_name(others[name]) if others else name
        return Picture(shown, partial(folder.preview, shown))

    return picture


def counted(answers: Sequence[str]) -> list[str]:
    """Different answers of several annotators with their counts, the most frequent first."""
    return [answer if count == 1 else f"{answer} ×{count}" for answer, count in Counter(answers).most_common()]


def context_of(asked: Mapping[str, Any]) -> str:
    """The context of a question, one kind per line: a caption, a hint, the dialogue so far, OCR tokens."""
    known = {"caption": asked.get("caption"), "context": asked.get("context"), "history": asked.get("history"),
            "OCR tokens": ", ".join(asked.get("ocr_tokens") or [])}
    return "\n".join(f"{name}: {text}" if name != "history" else str(text) for name, text in known.items() if text)


# --- attention --------------------------------------------------------------------------------------------------------
def with_attention(asked: Callable[[dict[str, Any]], dict[str, Any]], model: Any, rows: Sequence[Row], dataset: Any,
                   samples: Sequence[ReportSample]) -> Iterator[ReportSample]:
    """Samples with a picture for each word; without, if the data set has no pictures to show.

    Args:
        asked: a batch -> what the model is given of it to write its texts.
        model: a `Looker`.
        rows: of the samples, and perhaps others.
        dataset: as it was evaluated.
        samples: of the report.
    """
    index = {row["id"]: row["index"] for row in rows}
    for sample in samples:
        if sample.picture is None or not sample.prediction:
            yield sample
            continue
        batch = collate([dataset.sample(index[sample.id])])
        assert isinstance(batch, dict), batch  # the sample was predicted, so its file can be read
        given = asked(batch) | {"text_output": [sample.prediction]}
        try:
            [found] = shown(model, given | {"image": given["image"].to(model.device)})
        except TextTooLongError:  # the answer took all positions, and its end has none
            yield sample
            continue
        processor = getattr(dataset, "dataset", dataset).vis_processor
        yield replace(sample, attention=list(_pictures(sample, processor, found.words, found.maps())))


def _pictures(sample: ReportSample, processor: Any, words: Sequence[str], maps: Map) -> Iterator[Candidate]:
    """Made when the page is written."""
    assert sample.picture is not None
    for number, (word, values) in enumerate(zip(words, maps, strict=True)):
        yield Candidate(word, picture=Picture(f"{sample.id} word {number}",
                                              partial(_drawn, sample.picture, processor, values)))


def _drawn(picture: Picture, processor: Any, values: Map) -> Image.Image:
    return overlay(as_seen(processor, decoded(picture)), values)


def decoded(picture: Picture) -> Image.Image:
    """The image of a picture; a BadSample if its file cannot be read."""
    content = picture.load()
    return decode_rgb(content, picture.name) if isinstance(content, bytes) else content
