"""What is compared with LAVIS' compute_sim_matrix: retrieval scores of every image with every text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.tasks.retrieval_parts import Gallery, Sizes
from lavis_lite.tasks.retrieval_scoring import image_rows, retrieve
from tests.helpers.processes import run_processes
from tests.parity.blip2_cases import Recorded, build
from tests.parity.recordings import Comparison

UNSCORED = -100.0
CASE = "compute_sim_matrix_k"
OF_RANKS = "world_size_2"
SCORES = ("score_i2t", "score_t2i")


class Texts:
    """What a gallery reads of a data set; LAVIS recorded scores only, so who is right does not matter."""

    def __init__(self, texts: Sequence[str], images: int) -> None:
        self.text = texts
        self.img2txt = {image: [image] for image in range(images - 1)}
        self.img2txt[images - 1] = list(range(images - 1, len(texts)))


def comparisons_of(recorded: Recorded) -> list[Comparison]:
    """Every recorded matrix, and the first of them in two processes against what each rank wrote."""
    cases = sorted(case for case in recorded.expected if case.startswith(CASE))
    found = [Comparison(case, scores, frozenset(recorded.keys(f"{case}/", SCORES))) for case in cases]
    of_ranks = frozenset(key for key in recorded.keys(f"{OF_RANKS}/") if key.rpartition("/")[2] in SCORES)
    if cases:
        found.append(Comparison(cases[0], scores_in_two_processes, recorded.keys(f"{cases[0]}/", SCORES) | of_ranks))
    return found


def sim_matrices(folder: Path, case: str) -> list[Tensor]:
    """(score_i2t, score_t2i) as LAVIS lays them out, by the ranks that take part."""
    recorded = Recorded(folder)
    given, model, images = recorded.inputs[case], build(recorded), recorded.images
    own = torch.arange(len(images)).split(2)[distributed.rank()::distributed.world_size()]
    with torch.no_grad():
        rows = [row for index in own for row in image_rows(model, {"image": images[index], "index": index}, True)]
    gallery = Gallery.of(Texts(given["texts"], len(images)), range(len(images)))
    _, found = retrieve(model, rows, gallery, given["k_test"], Sizes(image_block=2))
    return [_matrix(side, given["k_test"], columns) for side, columns in
            ((found.texts_of_image, len(given["texts"])), (found.images_of_text, len(images)))]


@functools.cache
def of_two_ranks(folder: Path, case: str) -> list[list[Any]]:
    """The matrices of two processes, which are started once."""
    return run_processes(sim_matrices, 2, folder, case)


def _matrix(found: Any, scored: int, columns: int) -> Tensor:
    index, score = found.index[:, :scored], found.score[:, :scored]
    return torch.full((len(index), columns), UNSCORED).scatter(1, index, score)


def scores(recorded: Recorded, case: str) -> None:
    """Of one process."""
    check(recorded, f"{case}/", sim_matrices(recorded.folder, case))


def scores_in_two_processes(recorded: Recorded, case: str) -> None:
    """Of every rank, against those of one process and against those of LAVIS' ranks."""
    found = of_two_ranks(recorded.folder, case)
    for matrices in found:
        check(recorded, f"{case}/", matrices)
    for start in {key.rpartition("/")[0] for key in recorded.keys(f"{OF_RANKS}/") if key.endswith(SCORES)}:
        # LAVIS adds up the ranks' matrices, each of which has UNSCORED wherever another rank scored
        rank, others = int(start.split("/")[1].removeprefix("rank")), len(found) - 1
        check(recorded, f"{start}/", [torch.as_tensor(matrix) + others * UNSCORED for matrix in found[rank]],
              UNSCORED * len(found))


def check(recorded: Recorded, start: str, found: Sequence[Any], unscored: float = UNSCORED) -> None:
    """The same pairs are scored, with the same scores."""
    for name, matrix in zip(SCORES, found, strict=True):
        matrix, key = torch.as_tensor(matrix), f"{start}{name}"
        scored = matrix != unscored
        if key in recorded.tensors:
            assert torch.equal(recorded.tensors[key] == unscored, ~scored), "other pairs were scored"
            recorded.check(key, matrix[scored], lambda whole: whole[scored])  # noqa: B023 - called at once
