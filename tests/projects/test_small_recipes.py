"""The recipes of a small real model: composed, built on the meta device with the published sizes, and costs stated."""

from __future__ import annotations

import pytest

from lavis_lite.checkpoints.weights import read_by_others
from lavis_lite.cli.main import main
from lavis_lite.config.compose import compose
from lavis_lite.config.recipes import Recipe, recipes

PUBLISHED = {"opt": 125_239_296, "flant5": 76_961_152, "smollm2": 134_515_008}
"""parameters of OPT-125M, FlanT5-small and SmolLM2-135M"""
EVERY_PART = ("blip2/small_stage1", "blip2/small_stage2_opt", "instructblip/small_flant5", "instructblip/small_smollm2")
"""every stage and every language model once; the other pairs are composed below, and counted with --long"""
SMALL = [recipe.name for recipe in recipes() if recipe.name.rpartition("/")[2].startswith("small_")]


def test_there_is_one_of_every_stage() -> None:
    assert SMALL == ["blip2/small_stage1", *(f"blip2/small_stage2_{name}" for name in ("flant5", "opt", "smollm2")),
                     *(f"instructblip/small_{name}" for name in ("flant5", "opt", "smollm2"))]


@pytest.mark.parametrize("name", [name if name in EVERY_PART else pytest.param(name, marks=pytest.mark.long)
                                  for name in SMALL])
def test_it_fits_on_the_meta_device(name: str, capsys: pytest.CaptureFixture[str],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a network: timm's weights are listed as missing, not fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", name, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    llm = name.rpartition("_")[2]
    assert "forward and backward pass fit together" in shown
    assert "vision_encoder                0 trainable     78,710,016" in shown
    assert llm not in PUBLISHED or f"language_model                0 trainable {PUBLISHED[llm]:>14,} frozen" in shown
    assert "model.vit_weights: 'timm/vit_base_patch16_clip_224.openai' is not here" in shown
    header = " ".join(Recipe(name).header())
    assert Recipe(name).cost().startswith("about ") and "estimated" in header and "Not run on the real thing" in header


def test_each_stage_starts_from_the_one_before() -> None:
    for llm in PUBLISHED:
        stage2, tuned = (compose(Recipe(name).path).config
                         for name in (f"blip2/small_stage2_{llm}", f"instructblip/small_{llm}"))
        assert stage2.model.pretrained == compose(Recipe("blip2/small_stage1").path).config.run.output_dir
        assert tuned.model.pretrained == stage2.run.output_dir and tuned.model["qformer_text_input"]
        assert tuned.model["pretrained_stage1"] == stage2.model.pretrained and stage2.model.load_pretrained
        assert "quickgelu" in tuned.model["vit_model"]  # the activation that these weights were trained with
        assert [need.value for need in read_by_others(tuned.model)] == ["timm/vit_base_patch16_clip_224.openai"]
