"""Checkpoints: key maps both ways, every layout into a model, every misfit named, the real models' manifests."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lavis_lite.checkpoints import from_hf, from_lavis, load_checkpoint, load_state, to_hf, to_lavis
from lavis_lite.checkpoints.formats.key_maps import BLIP2_MAP, CLIP_MAP, EVA_MAP, INSTRUCT_MAP, KeyMap, Row
from lavis_lite.checkpoints.reading import read_tensors
from lavis_lite.checkpoints.report import likely_arch
from lavis_lite.errors import CheckpointError
from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.models.blip2.stage1 import Blip2Qformer

TINY_VIT = {"depth": 2, "width": 32, "heads": 4, "mlp_ratio": 2.0}
SIZES = {"qformer_hidden_size": 16, "qformer_layers": 3, "qformer_heads": 2, "qformer_intermediate_size": 24,
         "qformer_max_positions": 20, "num_query_token": 4, "embed_dim": 8, "max_txt_len": 16}


def tiny_model(vit: str = "eva_clip_g", image_size: int = 28, seed: int = 0, **more: Any) -> Blip2Qformer:
    torch.manual_seed(seed)
    options = {"vit_precision": "fp32", "qformer_weights": None, "vit_args": TINY_VIT, **SIZES, **more}
    model = Blip2Qformer.from_config(Blip2QformerConfig(vit_model=vit, image_size=image_size, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def plain(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# maps ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vit", ["eva_clip_g", "clip_L"])
def test_lavis_and_back_is_the_same(vit: str) -> None:
    state = plain(tiny_model(vit))
    lavis = to_lavis(state)
    assert not lavis.unknown
    assert lavis.tensors["Qformer.bert.embeddings.position_ids"].shape == (1, 20)
    back = from_lavis(lavis.tensors)
    assert not back.unknown and len(back.dropped) == 3
    assert same(back.tensors, state)


def test_hugging_face_and_back_is_the_same_but_for_what_it_has_no_place_for() -> None:
    state = plain(tiny_model())
    translated = to_hf(state)
    assert sorted({name.rsplit(".", 2)[0] for name in translated.unknown}) == ["qformer", "qformer.lm_head", "temp"]
    back = from_hf(translated.tensors)
    assert not back.unknown
    assert same(back.tensors, {name: value for name, value in state.items() if name not in translated.unknown})


def test_the_key_bias_of_hugging_face_is_zero_and_is_dropped() -> None:
    translated = to_hf(plain(tiny_model())).tensors
    name = "vision_model.encoder.layers.1.self_attn.qkv.bias"
    assert translated[name].shape == (96,) and not translated[name][32:64].any()
    changed = translated | {name: translated[name] + torch.cat([torch.zeros(32), torch.ones(32), torch.zeros(32)])}
    assert same(from_hf(changed).tensors, from_hf(translated).tensors)


def test_constants_of_lavis_llama_are_dropped() -> None:
    name = "llm_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    found = from_lavis({name: torch.ones(4), "llm_proj.weight": torch.ones(2, 2)})
    assert list(found.tensors) == ["language_projection.weight"] and list(found.dropped) == [name]


def test_a_copy_that_is_no_copy_is_not_dropped_silently() -> None:
    lavis = to_lavis(plain(tiny_model())).tensors
    name = "Qformer.cls.predictions.decoder.weight"
    assert from_lavis(lavis | {name: lavis[name] + 1}).unknown == [name]


@pytest.mark.parametrize("key_map", [EVA_MAP, CLIP_MAP, BLIP2_MAP, INSTRUCT_MAP])
def test_rows_have_the_same_placeholders_and_read_back(key_map: KeyMap) -> None:
    for row in key_map.rows:
        filled = {"i": "3", "p": "bias", "qkv": "key", "rest": "blocks.0.x"}
        name, tensor = row.theirs.format(**filled), torch.zeros(2)
        there = key_map.to_ours({name: tensor})
        assert list(there.tensors) == [row.ours.format(**filled)]
        assert list(key_map.to_theirs(there.tensors).tensors) == [name]


def test_leading_axes_are_added_and_taken_away() -> None:
    key_map = KeyMap([Row("a.{i}", "b.{i}", leading=2)])
    ours = key_map.to_ours({"a.7": torch.arange(3.0), "a.x": torch.zeros(1)})
    assert ours.tensors["b.7"].shape == (1, 1, 3) and ours.unknown == ["a.x"]
    assert key_map.to_theirs(ours.tensors).tensors["a.7"].shape == (3,)


# files --------------------------------------------------------------------------------------------------------------
def write_lavis(model: Blip2Qformer, path: Path, without: str = "no such prefix") -> Path:
    tensors = {name: value for name, value in to_lavis(plain(model)).tensors.items() if not name.startswith(without)}
    torch.save({"model": tensors, "config": {"run": {"seed": 42}}, "epoch": 3}, path)
    return path


def test_a_runs_checkpoint_folder(tmp_path: Path) -> None:
    source, target = tiny_model(), tiny_model(seed=1)
    frozen = {name: value for name, value in plain(target).items() if name.startswith("vision_encoder.")}
    save_file(source.trainable_state(), tmp_path / "model.safetensors")
    (tmp_path / "trainer.json").write_text("{}")
    report = load_checkpoint(target, tmp_path)
    assert report.layout == "lavis_lite" and report.frozen_missing == sorted(frozen, key=report.frozen_missing.index)
    assert same(plain(target), source.trainable_state() | frozen)
    assert f"{len(report.loaded)} tensors loaded, {len(frozen)} frozen and not in it" in str(report)


def test_a_bare_file_of_safetensors(tmp_path: Path) -> None:
    source, target = tiny_model(), tiny_model(seed=1)
    save_file(plain(source), tmp_path / "any_name.safetensors")
    assert not load_checkpoint(target, tmp_path / "any_name.safetensors").frozen_missing
    assert same(plain(target), plain(source))


@pytest.mark.parametrize("vit", ["eva_clip_g", "clip_L"])
def test_a_lavis_file_with_and_without_the_frozen_part(vit: str, tmp_path: Path) -> None:
    source, target = tiny_model(vit), tiny_model(vit, seed=1)
    report = load_checkpoint(target, write_lavis(source, tmp_path / "part.pth", without="visual_encoder."))
    assert report.layout == "LAVIS" and {name.split(".")[0] for name in report.frozen_missing} == {"vision_encoder"}
    assert not same(plain(target), plain(source))
    load_checkpoint(target, write_lavis(source, tmp_path / "whole.pth"))
    assert same(plain(target), plain(source))


def test_a_lavis_file_of_the_old_format_and_of_a_parallel_run(tmp_path: Path) -> None:
    source, target = tiny_model(), tiny_model(seed=1)
    tensors = {f"module.{name}": value for name, value in to_lavis(plain(source)).tensors.items()}
    torch.save({"model": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(target, tmp_path / "old.pth")
    assert same(plain(target), plain(source))


@pytest.mark.parametrize("shards", [1, 2])
def test_a_hugging_face_folder(shards: int, tmp_path: Path) -> None:
    source, target = tiny_model(), tiny_model(seed=1)
    before = plain(target)
    tensors = to_hf(plain(source)).tensors
    (tmp_path / "config.json").write_text('{"model_type": "blip-2"}')
    if shards == 1:
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        files = {name: f"model-0000{index % 2 + 1}-of-00002.safetensors" for index, name in enumerate(tensors)}
        for file in set(files.values()):
            save_file({name: tensors[name].contiguous() for name in files if files[name] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    report = load_checkpoint(target, tmp_path)
    assert report.layout == "Hugging Face" and {name.split(".")[-2:][0] for name in report.not_in_layout} <= {
        "temp", "lm_head", "transform", "norm"}
    kept = {name: before[name] for name in report.not_in_layout}
    assert "temp" in kept and same(plain(target), plain(source) | kept)


def test_a_tensor_comes_from_the_shard_that_the_index_names(tmp_path: Path) -> None:
    """An older shard beside it may still have the tensor."""
    for number in (1, 2):
        save_file({f"own{number}": torch.ones(1), "both": torch.full((1,), float(number))},
                  tmp_path / f"{number}.safetensors")
    names = {"own1": "1.safetensors", "own2": "2.safetensors", "both": "1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert read_tensors(tmp_path)["both"].item() == 1.0


def test_positions_of_another_resolution_are_interpolated(tmp_path: Path) -> None:
    source, target = tiny_model(), tiny_model(image_size=56, seed=1)
    report = load_checkpoint(target, write_lavis(source, tmp_path / "small.pth"))
    assert report.resized == ["vision_encoder.vit.pos_embed"]
    found, given = target.vision_encoder.vit.pos_embed, source.vision_encoder.vit.pos_embed
    assert found.shape == (1, 17, 32) and torch.equal(found[:, 0], given[:, 0])


# misfits ------------------------------------------------------------------------------------------------------------
def refuse(target: nn.Module, tensors: dict[str, Tensor], *words: str, **options: Any) -> None:
    """Loading fails with these words, and the model is as it was."""
    before = plain(target)
    with pytest.raises(CheckpointError) as caught:
        load_state(target, tensors, "FILE", **options)  # type: ignore[arg-type]
    for word in ("FILE", *words):
        assert word in str(caught.value)
    assert same(plain(target), before)


def test_unexplained_names_come_with_the_most_similar_ones() -> None:
    state = plain(tiny_model())
    refuse(tiny_model(seed=1), state | {"vision_prij.weight": torch.zeros(2)},
           "1 not in the model", "vision_prij.weight (most similar in the model: vision_proj.weight)")


def test_missing_trained_names_are_refused_unless_allowed() -> None:
    state = plain(tiny_model())
    del state["itm_head.bias"]
    refuse(tiny_model(seed=1), state, "1 of the model's not in the file: itm_head.bias")
    report = load_state(tiny_model(seed=1), state, "FILE", allowed_missing=[r"itm_head\..*"])
    assert report.allowed_missing == ["itm_head.bias"]


def test_names_that_the_model_dropped_are_refused_unless_allowed() -> None:
    state = plain(tiny_model()) | {"dropped.weight": torch.zeros(2)}
    refuse(tiny_model(), state, "dropped.weight")
    report = load_state(tiny_model(), state, "FILE", allowed_unexpected=[r"dropped\..*"])
    assert report.unused.keys() == {"dropped.weight"}


def test_every_fault_is_listed_with_both_shapes() -> None:
    state = plain(tiny_model())
    state["itm_head.weight"] = torch.zeros(3, 16)
    del state["temp"]
    refuse(tiny_model(seed=1), state | {"extra": torch.zeros(1)},
           "itm_head.weight is [3, 16] in the file, [2, 16] in the model", "temp", "extra")


def test_positions_that_are_no_square_are_a_shape_fault() -> None:
    state = plain(tiny_model())
    state["vision_encoder.vit.pos_embed"] = torch.zeros(1, 7, 32)
    refuse(tiny_model(), state, "vision_encoder.vit.pos_embed is [1, 7, 32] in the file, [1, 5, 32] in the model")


@pytest.mark.parametrize(("names", "words"), [
    (["opt_proj.weight", "opt_model.model.decoder.embed_tokens.weight"], "(arch blip2_opt)"),
    (["blocks.0.attn.qkv.weight", "cls_token"], "a vision encoder alone"),
    (["bert.encoder.layer.0.attention.self.query.weight"], "a BERT"),
    (["model.layers.0.self_attn.q_proj.weight"], "a language model"),
    (["first", "second"], "its first names: first, second"),
])
def test_a_file_that_shares_nothing_is_called_what_it_seems(names: list[str], words: str) -> None:
    refuse(tiny_model(), {name: torch.zeros(1) for name in names}, "shares no name", words)


@pytest.mark.parametrize(("names", "arch"), [
    (["opt_proj.weight", "query_tokens"], "blip2_opt"),
    (["t5_proj.weight", "Qformer.bert.embeddings.LayerNorm.weight"], "blip2_t5"),
    (["llm_proj.weight", "Qformer.bert.embeddings.word_embeddings.weight"], "blip2_vicuna_instruct"),
    (["language_projection.bias", "language_model.encoder.block.0.x", "qformer.embeddings.word_embeddings.weight"],
     "blip2_t5_instruct"),
    (["language_projection.bias", "language_model.model.layers.0.x", "qformer.layernorm.bias"], "blip2_vicuna"),
    (["language_projection.bias", "language_model.model.model.decoder.x", "qformer.layers.0.x"], "blip2_opt"),
    (["itm_head.weight", "temp"], "blip2"),
    (["first"], ""),
])
def test_the_arch_that_names_point_to(names: list[str], arch: str) -> None:
    assert likely_arch(names) == arch


def test_a_stage_two_file_is_called_by_its_name() -> None:
    lavis = to_lavis(plain(tiny_model())).tensors
    refuse(tiny_model(), {**lavis, "t5_proj.weight": torch.zeros(1)}, "language_projection.weight", "model on T5")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_files_are_refused_with_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model()

    def fails(source: str, words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(model, source)

    fails("absent/model.pth", "there is no folder .*absent")
    write_lavis(model, Path("there.pth"))
    fails("absent.pth", "looked at .*absent.pth; that folder has there.pth")
    fails("https://host/file.pth", "download it")
    Path("notes.txt").write_text("x")
    fails("notes.txt", "ends in .safetensors")
    Path("run/checkpoints/step_10").mkdir(parents=True)
    fails("run", "is no checkpoint")
    save_file({"a": torch.zeros(1)}, "run/checkpoints/step_10/model.safetensors")
    fails("run", "there are checkpoints in run/checkpoints/step_10")
    Path("torn.safetensors").write_bytes(b"\x10\x00\x00")
    fails("torn.safetensors", "damaged")
    Path("torn.pth").write_bytes(Path("there.pth").read_bytes()[:1000])
    fails("torn.pth", "torn.pth")
    torch.save({"optimizer": {"state": 1}}, "other.pth")
    fails("other.pth", "no state dict.*optimizer")
    Path("evil.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    fails("evil.pth", "evil.pth")
    torch.save({"model": Evil()}, "evil_zip.pth")
    fails("evil_zip.pth", "can run code")
    assert not Path("ran").exists()
    Path("hub").mkdir()
    Path("hub/model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    fails("hub", "lacks 1 of 1 shards: one.safetensors")
    Path("hub/model.safetensors.index.json").write_text("[]")
    fails("hub", "not an index")
