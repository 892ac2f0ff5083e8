"""Where a model looked for each word that it wrote, for single samples of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from lavis_lite.datasets.loading.loader import collate
from lavis_lite.datasets.media.images import decode_rgb
from lavis_lite.errors import TextTooLongError
from lavis_lite.models.attention import shown
from lavis_lite.report.overlay import Map, as_seen, overlay
from lavis_lite.report.sample import Candidate, Picture, ReportSample
from lavis_lite.tasks.base import Row


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
    content = picture.load()
    image = decode_rgb(content, picture.name) if isinstance(content, bytes) else content
    return overlay(as_seen(processor, image), values)
