"""Single samples in reports of retrieval: pictures, references, the best candidates."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lavis_lite.metrics.retrieval import KS, MISSED, ranks_from_candidates
from lavis_lite.report import sample as report
from lavis_lite.report.sample import Candidate, ReportSample
from lavis_lite.tasks.retrieval_parts import BothWays, Candidates, Gallery
from lavis_lite.tasks.writing import pictures_of

STRIP = 5
"""candidates of each query that a report shows"""


def retrieval_samples(gallery: Gallery, found: BothWays, dataset: object, prefix: str = "") -> list[ReportSample]:
    """Every image as a query for texts, then every text as a query for images.

    Args:
        gallery: what was searched.
        found: candidates both ways, best first.
        dataset: the split.
        prefix: of the recalls' names among the metrics.
    """
    picture = pictures_of(dataset)
    shown = [picture(index) for index in gallery.images]
    ranks = _ranks(found.texts_of_image, gallery.img2txt), _ranks(found.images_of_text, gallery.txt2img)
    right_texts = [set(texts) for texts in gallery.img2txt]
    by_image = [ReportSample(
        f"image {gallery.images[image]}", scores=_hits(f"{prefix}txt", rank), right=rank == 1, rank=rank,
        picture=shown[image], references=[gallery.texts[text] for text in gallery.img2txt[image]],
        group="image to text", candidates=[
            Candidate(gallery.texts[text], value, right=text in right_texts[image]) for text, value in best])
        for image, (rank, best) in enumerate(zip(ranks[0], _best(found.texts_of_image), strict=True))]
    by_text = [ReportSample(
        f"text {text}", prompt=gallery.texts[text], scores=_hits(f"{prefix}img", rank), right=rank == 1, rank=rank,
        group="text to image", candidates=[
            Candidate(f"image {gallery.images[image]}", value, right=image in gallery.txt2img[text],
                      picture=shown[image]) for image, value in best])
        for text, (rank, best) in enumerate(zip(ranks[1], _best(found.images_of_text), strict=True))]
    return by_image + by_text


def _ranks(found: Candidates, positives: Sequence[Sequence[int]]) -> list[int]:
    """From 1, or report.MISSED."""
    ranks: Tensor = ranks_from_candidates(found.index, positives)
    return [report.MISSED if rank == MISSED else rank + 1 for rank in ranks.tolist()]


def _best(found: Candidates) -> list[list[tuple[int, float]]]:
    rows = zip(found.index[:, :STRIP].tolist(), found.score[:, :STRIP].tolist(), strict=True)
    return [list(zip(index, score, strict=True)) for index, score in rows]


def _hits(name: str, rank: int) -> dict[str, float]:
    return {f"{name}_r{k}": float(rank != report.MISSED and rank <= k) for k in KS}
