"""Every tensor has a named source, and a checkpoint is followed to what its own run kept frozen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lavis_lite.checkpoints.weights import assets, build_model
from lavis_lite.config.compose import model_sections
from lavis_lite.errors import CheckpointError
from lavis_lite.io import atomic
from lavis_lite.models.base import BaseModel, freeze
from lavis_lite.models.provenance import WeightRecord, WeightSource, mark_loaded, record_of, sources_of
from lavis_lite.runners import checkpointing
from tests.helpers.frozen_qformer import TRAINED, FrozenQFormer, save, section, train

STAGE1 = assets() / "checkpoints" / "stage1.safetensors"


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def trained() -> Any:
    model = build_model(section())
    train(model)
    return model


@pytest.fixture()
def checkpoint(trained: Any, tmp_path: Path) -> Path:
    return save(trained, tmp_path / "run")


# following ------------------------------------------------------------------------------------------------------------
def test_a_checkpoint_with_a_frozen_qformer_brings_the_true_one(trained: Any, checkpoint: Path) -> None:
    assert set(load_file(checkpoint / "model.safetensors")) == TRAINED
    said: list[str] = []
    first = build_model(section(pretrained=str(checkpoint)), said.append)
    second = build_model(section(pretrained=str(checkpoint)))
    assert same(state(first), state(trained)) and same(state(first), state(second))
    assert torch.equal(first.query_tokens, load_file(STAGE1)["query_tokens"].float())
    assert any("mini/stage1" in line and "89 tensors" in line for line in said), said
    assert first.weight_record.untrained == []
    parts = {source.part: source.name for source in first.weight_record.sources}
    assert parts == {"vision_encoder": "mini", "language_model": "mini/opt", "qformer": "mini/stage1",
                     "query_tokens": "mini/stage1", "ln_vision": "mini/stage1", "language_projection": str(checkpoint)}


def test_a_run_folder_stands_for_its_checkpoint_and_a_run_of_a_run_is_followed(trained: Any, checkpoint: Path,
                                                                              tmp_path: Path) -> None:
    second = build_model(section(pretrained=str(checkpoint.parents[1])))
    train(second, 0.5)
    again = save(second, tmp_path / "second", step=7)
    third = build_model(section(pretrained=str(again)))
    assert same(state(third), state(second))
    line = third.weight_record.describe(3)
    assert second.weight_record.sources[-1].name == str(checkpoint), "a run's folder may stand for another one later"
    assert line.startswith(f"mini/stage1 + {again} ") and "(step 7, sha256 " in line
    assert line.endswith("then 3 steps here")


def test_a_part_that_a_later_run_trains_is_followed_too(checkpoint: Path, trained: Any) -> None:
    plain, _ = model_sections("blip2_opt", "mini")
    unfrozen = build_model(replace(plain, pretrained=str(checkpoint)))
    assert unfrozen.query_tokens.requires_grad and torch.equal(unfrozen.query_tokens, trained.query_tokens)


def test_checkpoints_of_earlier_versions_are_followed_by_their_configuration(trained: Any, checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["weights"]
    (checkpoint / "manifest.json").write_text(atomic.seal(manifest))
    recorded = "model: {arch: frozen_qformer, pretrained: mini/stage1, qformer_heads: 4}\n"
    (checkpoint / "config.yaml").write_text(recorded)
    assert same(state(build_model(section(pretrained=str(checkpoint)))), state(trained))


def test_a_frozen_tensor_that_nothing_brings_is_named(checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copy(checkpoint / "model.safetensors", bare)
    with pytest.raises(CheckpointError, match=r"89 frozen tensors of the model are not in it.*qformer \(86 tensors\)"
                                              r".*model\.pretrained_stage1=PATH"):
        build_model(section(pretrained=str(bare)))
    model = build_model(section(pretrained=str(bare), pretrained_stage1="mini/stage1"))
    assert torch.equal(model.query_tokens, load_file(STAGE1)["query_tokens"].float())


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_source_that_moved_or_changed_is_an_error(change: str, tmp_path: Path) -> None:
    start = tmp_path / "stage1.safetensors"
    shutil.copy(STAGE1, start)
    model = build_model(section(pretrained=str(start)))
    found = save(model, tmp_path / "run")
    start.unlink()
    if change == "other":
        save_file({name: tensor + 1 for name, tensor in load_file(STAGE1).items()}, start)
    words = "not there any more" if change == "gone" else "has changed since"
    with pytest.raises(CheckpointError, match=f"lacks 89 tensors of ln_vision, qformer, query_tokens.*{words}"):
        build_model(section(pretrained=str(found)))
    whole = build_model(section(pretrained=str(found), pretrained_stage1="mini/stage1"))
    assert torch.equal(whole.query_tokens, model.query_tokens)


def test_frozen_weights_that_no_file_has_are_in_the_checkpoint(tmp_path: Path) -> None:
    model = build_model(section(load_pretrained=False))
    said: list[str] = []
    assert {"query_tokens", "qformer.layers.0.query_ffn.up.weight"} <= set(model.weight_record.untrained)
    found = save(model, tmp_path / "run")
    again = build_model(section(pretrained=str(found)), said.append)
    assert same(state(again), state(model)) and again.weight_record.untrained == []


def test_another_backbone_than_the_checkpoint_was_trained_with_is_noted(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "vit.safetensors"
    save_file({name: tensor + 0.5 for name, tensor in load_file(assets() / "vit.safetensors").items()}, other)
    said: list[str] = []
    build_model(section(pretrained=str(checkpoint), vit_weights=str(other)), said.append)
    assert any(f"note: {checkpoint} was trained with the encoder mini; here it is {other}" in line for line in said)


def test_a_run_is_not_resumed_with_other_frozen_weights(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "stage1.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(STAGE1).items()}, other)
    assert checkpointing.load(checkpoint, build_model(section()))["step"] == 150
    with pytest.raises(CheckpointError, match=r"was trained with the checkpoint mini/stage1; here it is .*stage1\.saf"):
        checkpointing.load(checkpoint, build_model(section(pretrained=str(other))))


def test_a_checkpoint_with_another_byte_is_not_started_from(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="differs from the manifest's, so it was altered or damaged"):
        build_model(section(pretrained=str(checkpoint)))


# hooks and unfreezing -------------------------------------------------------------------------------------------------
class Watched(FrozenQFormer):
    """Hooks and unfreezes in from_config, and adds a layer when the weights are there."""

    seen: int = 0

    @classmethod
    def from_config(cls, cfg: Any) -> Watched:
        model = super().from_config(cfg)
        block = model.language_model.model.model.decoder.layers[-1]
        block.fc1.weight.requires_grad_(True)
        block.register_forward_hook(model._count)  # type: ignore[attr-defined]
        block.fc2.register_forward_pre_hook(model._count)  # type: ignore[attr-defined]
        model.kept = block  # type: ignore[attr-defined]
        return model  # type: ignore[return-value]

    def _count(self, *_: Any) -> None:
        self.seen += 1

    def on_weights_loaded(self) -> None:
        """The projection starts a gate of its own size."""
        assert not any(value.is_meta for value in self.parameters())
        assert torch.equal(self.query_tokens.detach(), load_file(STAGE1)["query_tokens"].float())
        self.gate = nn.Parameter(torch.zeros(self.language_projection.out_features))


def test_hooks_fire_and_unfreezing_survives_and_late_parts_take_their_values(monkeypatch: pytest.MonkeyPatch,
                                                                            tmp_path: Path) -> None:
    from lavis_lite.registry import registry

    monkeypatch.setattr(registry, "get_model_class", lambda name: Watched)
    model: Any = build_model(section())
    inner = model.language_model.model
    assert model.kept is inner.model.decoder.layers[-1]
    model({"image": torch.zeros(1, 3, 64, 64), "text_input": ["a cube"]}).loss.backward()
    assert model.seen == 2 and inner.model.decoder.layers[-1].fc1.weight.grad is not None
    assert [name for name in model.trainable_state() if name.startswith("language_model.")] == [
        "language_model.model.model.decoder.layers.3.fc1.weight"]
    train(model, 0.75)
    found = save(model, tmp_path / "run")
    again = build_model(section(pretrained=str(found)))
    assert torch.equal(again.gate, model.gate) and float(again.gate.detach().mean()) == 0.75
    assert same(state(again), state(model)) and again.weight_record.untrained == []


def test_a_name_that_no_part_takes_is_refused_although_parts_may_come_late(monkeypatch: pytest.MonkeyPatch,
                                                                          tmp_path: Path) -> None:
    from lavis_lite.registry import registry

    monkeypatch.setattr(registry, "get_model_class", lambda name: Watched)
    tensors = load_file(STAGE1) | {"stranger.weight": torch.zeros(2)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"stranger\.weight"):
        build_model(section(pretrained=str(tmp_path / "odd.safetensors")))


# the record -----------------------------------------------------------------------------------------------------------
class Two(BaseModel):
    """Two layers, one tied to another name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.third = nn.Module()
        self.third.weight = self.first.weight


def test_marks_are_counted_by_part_and_the_last_one_wins() -> None:
    model = Two()
    a, b = WeightSource("", "encoder", "a"), WeightSource("", "checkpoint", "b", step=4, sha256="0123456789")
    mark_loaded(model.first, a)
    mark_loaded(model, b, ["first.bias"])
    found = {name: source.name for name, source in sources_of(model).items()}
    assert found == {"first.weight": "a", "third.weight": "a", "first.bias": "b", "second.weight": "",
                     "second.bias": ""}
    record = record_of(model, without_use=["second.bias"])
    assert {(row.part, row.name, row.tensors) for row in record.sources} == {
        ("first", "a", 1), ("third", "a", 1), ("first", "b", 1), ("second", "", 2)}
    assert record.untrained == ["second.weight"]
    assert record.describe(3) == "b (step 4, sha256 01234567) (second from a random start), then 3 steps here"
    assert WeightRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_the_line_of_a_random_start_and_of_a_packaged_checkpoint() -> None:
    assert WeightRecord().describe(400) == "random start, 400 steps here"
    assert WeightRecord().describe() == "random start"
    words = WeightSource("language_model", "language model", "mini/opt")
    assert WeightRecord([words], ["connector.0.bias"]).describe(2) == (
        "mini/opt (connector from a random start), then 2 steps here")
    row = WeightSource("qformer", "checkpoint", "mini/stage2_opt", sha256="ab" * 32)
    assert WeightRecord([words, row]).describe() == "mini/stage2_opt"
    assert WeightRecord([row]).describe(1) == "mini/stage2_opt, then 1 step here"
    adapters = ["language_model.model.layers.0.q.lora_A.default.weight", "qformer.x"]
    assert WeightRecord([row], adapters).describe() == ("mini/stage2_opt (LoRA adapters, qformer from a random start)")


@pytest.mark.parametrize("content", [None, [], {"sources": 3}, {"sources": [3]}, {"sources": [{"part": "a"}]},
                                     {"sources": [{"part": "a", "kind": "x"}]}, {"sources": [], "untrained": [1]},
                                     {"sources": [{"part": "a", "kind": "bert", "step": "9"}]}])
def test_what_is_no_record_is_refused(content: Any) -> None:
    with pytest.raises(CheckpointError, match="x.json"):
        WeightRecord.from_dict(content, "x.json")


def test_models_made_by_hand_keep_what_trains_alone() -> None:
    model = Two()
    freeze(model.second)
    assert set(model.checkpoint_state()) == {"first.weight", "first.bias", "third.weight"}
