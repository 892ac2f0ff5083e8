"""The mini ViT: shapes, and the shipped weights are as good as their card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lavis_lite
from lavis_lite.models.vision.encoder import ConvStem, mini_vit
from tools import train_vit
from tools.patches import ATTRIBUTES, IGNORE, scene_batch
from tools.probe import fit_probe, probe_model, score_probe

ASSETS = Path(lavis_lite.__file__).parent / "assets" / "mini"
SEED = 11


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep each test on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped() -> torch.nn.Module:
    """The model with the weights of the package."""
    model = mini_vit()
    model.load_state_dict({name: value.float() for name, value in load_file(ASSETS / "vit.safetensors").items()})
    return model.eval()


@pytest.mark.parametrize("size", [64, 96])
def test_features_are_class_token_and_patches(size: int) -> None:
    features = mini_vit(size).forward_features(torch.randn(2, 3, size, size))
    assert features.shape == (2, 1 + (size // 8) ** 2, 128)
    assert torch.allclose(features.mean(-1), torch.zeros(1), atol=1e-5), "the final LayerNorm is part of the features"


def test_patches_come_in_reading_order() -> None:
    torch.manual_seed(0)
    stem = ConvStem()
    image = torch.randn(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 8:16, 24:32] = torch.randn(1, 3, 8, 8)  # row 1, column 3
    patches = (stem(changed) - stem(image)).norm(dim=-1)[0]
    assert patches.argmax() == 1 * 8 + 3


def test_a_wrong_picture_size_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        mini_vit(60)


def test_labels_are_those_of_the_scene() -> None:
    pixels, labels = scene_batch(SEED, "vit", range(6))
    assert pixels.shape == (6, 3, 64, 64) and labels.shape == (6, len(ATTRIBUTES), 64)
    backgrounds = torch.tensor([len(values) for values in ATTRIBUTES.values()])
    for row in labels:
        is_background = row == backgrounds[:, None]
        assert torch.equal(is_background.any(0), is_background.all(0))
        assert torch.equal((row == IGNORE).any(0), (row == IGNORE).all(0))


def test_shipped_weights_are_small_and_half_precision() -> None:
    weights = load_file(ASSETS / "vit.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert (ASSETS / "vit.safetensors").stat().st_size < 2_000_000


def test_shipped_weights_score_what_their_card_says(shipped: torch.nn.Module) -> None:
    card = (ASSETS / "VIT_CARD.md").read_text()
    scores = probe_model(shipped, SEED, fit=100, test=100, splits=("test", "ood"))
    for split, values in scores.items():
        row = re.search(rf"^\| {split} \| (.+) \|$", card, re.MULTILINE)
        assert row
        for name, told in zip(ATTRIBUTES, row[1].split(" | "), strict=True):
            assert values[name] > float(told) - 0.06, (split, name)
            assert values[name] > 0.8, (split, name)


def test_random_weights_do_not_pass_the_probe() -> None:
    torch.manual_seed(0)
    scores = probe_model(mini_vit(), SEED, fit=60, test=60, splits=("test",))["test"]
    assert scores["shape"] < 0.6


def test_the_probe_reads_a_planted_attribute() -> None:
    _, labels = scene_batch(SEED, "vit", range(40))
    planted = torch.nn.functional.one_hot(labels.clamp(min=0)[:, 0], 16).float()
    probes = fit_probe(planted, labels)
    scores = score_probe(probes, planted, labels)
    assert scores["color"] == 1.0 and scores["shape"] < 0.5


def test_training_lowers_the_loss_and_writes_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_vit, "probe_model", lambda *_, **__: {"test": dict.fromkeys(ATTRIBUTES, 0.5)})
    train_vit.main(["--out", str(tmp_path), "--images", "64"])
    trained = load_file(tmp_path / "vit.safetensors")
    torch.manual_seed(train_vit.SEED)
    untrained = mini_vit().state_dict()
    assert set(trained) == set(untrained)
    assert not torch.allclose(trained["pos_embed"].float(), untrained["pos_embed"], atol=1e-4)
    assert "--images 64 --seed" in (tmp_path / "VIT_CARD.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VIT_CARD.md", "vit.safetensors"]


def test_saving_replaces_whole_files_only(tmp_path: Path) -> None:
    target = tmp_path / "vit.safetensors"
    save_file({"a": torch.zeros(1)}, target)
    train_vit.save(torch.nn.Linear(2, 2), target)
    assert set(load_file(target)) == {"weight", "bias"}
    assert [path.name for path in tmp_path.iterdir()] == ["vit.safetensors"]
