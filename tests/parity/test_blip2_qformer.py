"""Stage 1 against LAVIS' recorded outputs: losses, gradients, features, matching, generation; one and two processes.

Every folder of cases is compared in all that its keys offer: see `blip2_checks`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import find_parity
from tests.parity.all_recordings import stage1_comparisons
from tests.parity.blip2_cases import Recorded, build, case_folders
from tests.parity.recordings import NOT_HERE, Comparison, uncompared

FOLDERS = [Recorded(folder) for folder in case_folders(find_parity())]
NONE = [pytest.param(None, None, marks=pytest.mark.skip(NOT_HERE), id="none")]
EQUAL_IDS = "retrieval_b2_equal_ids"


def comparisons() -> list[Any]:
    """Every comparison; one that skips where nothing is recorded."""
    return [pytest.param(recorded, one, id=f"{recorded.folder.name}-{one.name}")
            for recorded in FOLDERS for one in stage1_comparisons(recorded)] or NONE


@pytest.mark.parametrize(("recorded", "comparison"), comparisons())
def test_as_recorded(recorded: Recorded, comparison: Comparison) -> None:
    comparison.run(recorded)


@pytest.mark.parametrize("recorded", FOLDERS, ids=lambda recorded: recorded.folder.name)
def test_every_recorded_tensor_is_compared(recorded: Recorded) -> None:
    assert uncompared(recorded, stage1_comparisons(recorded)) == []


@pytest.mark.parametrize("recorded", FOLDERS, ids=lambda recorded: recorded.folder.name)
def test_a_pair_without_a_negative_adds_no_term_where_lavis_draws_the_positive(recorded: Recorded) -> None:
    if EQUAL_IDS not in recorded.training:
        pytest.skip(f"{recorded.folder.name}: {EQUAL_IDS} is not recorded")
    model, samples = build(recorded), recorded.samples(EQUAL_IDS)
    contrast = model.contrast(model.encode(samples), samples["image_id"])
    drawn = model.draw_negatives(contrast, None)
    assert not drawn.image_valid.any() and not drawn.text_valid.any()
    output = model(samples)
    assert float(output.loss_itm.detach()) != pytest.approx(recorded.expected[EQUAL_IDS]["loss_itm"], rel=1e-3)
