"""The comparisons with recordings, run on kinds of models that were not recorded here.

Each folder stands in for one that LAVIS would have written, of a model with a name of its own, and is found by
LAVIS_LITE_PARITY as those are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import find_parity
from tests.parity.all_recordings import recordings
from tests.parity.recordings import uncompared
from tests.parity.stand_in_cases import record
from tests.parity.stand_in_clip import record_clip

KINDS = {"t5_captions": ("blip2_t5", False, "clip_L"), "vicuna": ("blip2_vicuna_instruct", True, "eva_clip_g"),
         "no_text_in_the_qformer": ("blip2_vicuna_instruct", False, "clip_L")}


@pytest.mark.parametrize("name", KINDS)
def test_every_comparison_holds(name: str, shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizers").symlink_to(shared_dir / "parity" / "tokenizers")
    record(tmp_path / name, *KINDS[name], tmp_path / "tokenizers")
    monkeypatch.setenv("LAVIS_LITE_PARITY", str(tmp_path))
    (recorded, comparisons), = recordings(find_parity())
    assert {one.case for one in comparisons} == set(recorded.inputs) and uncompared(recorded, comparisons) == []
    for one in comparisons:
        one.run(recorded)


def test_every_comparison_of_a_clip_vit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_clip(tmp_path / "a_clip")
    monkeypatch.setenv("LAVIS_LITE_PARITY", str(tmp_path))
    (recorded, comparisons), = recordings(find_parity())
    assert uncompared(recorded, comparisons) == [] and len(comparisons) == 8
    for one in comparisons:
        one.run(recorded)
