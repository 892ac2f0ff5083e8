"""The comparisons with recordings, run on kinds of models that were not recorded here.

Each folder stands in for one that LAVIS would have written, of a model with a name of its own, and is found by
LAVIS_LITE_PARITY as those are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import find_parity
from tests.parity import test_eva_vit as vision
from tests.parity.llm_cases import Recorded, case_folders
from tests.parity.llm_checks import checks_of
from tests.parity.stand_in_cases import record
from tests.parity.stand_in_clip import record_clip

KINDS = {"t5_captions": ("blip2_t5", False, "clip_L"), "vicuna": ("blip2_vicuna_instruct", True, "eva_clip_g"),
         "no_text_in_the_qformer": ("blip2_vicuna_instruct", False, "clip_L")}


@pytest.mark.parametrize("name", KINDS)
def test_every_comparison_holds(name: str, shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizers").symlink_to(shared_dir / "parity" / "tokenizers")
    record(tmp_path / name, *KINDS[name], tmp_path / "tokenizers")
    monkeypatch.setenv("LAVIS_LITE_PARITY", str(tmp_path))
    (folder,) = case_folders(find_parity())
    recorded = Recorded(folder)
    checks = checks_of(recorded)
    assert {case for case, _ in checks} == set(recorded.inputs)
    for case, check in checks:
        check(recorded, case)


def test_every_comparison_of_a_clip_vit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_clip(tmp_path / "a_clip")
    monkeypatch.setenv("LAVIS_LITE_PARITY", str(tmp_path))
    (folder,) = vision.recorded_folders()
    case = vision.Case(folder)
    vision.test_features_blocks_and_gradients(case, False)
    vision.test_layer_ids_for_layerwise_rates(case)
    vision.test_larger_images_interpolate_positions(case, 42)
    vision.test_larger_images_interpolate_positions(case, 56)
    vision.test_a_frozen_encoder_gives_the_same_features(case)
    vision.test_lavis_names_come_back_as_they_were(case)
