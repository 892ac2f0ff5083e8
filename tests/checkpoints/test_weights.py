"""Names of a model section become files: packaged, local, cached, or a sentence that says how to get them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from lavis_lite import load_model
from lavis_lite.checkpoints import weights
from lavis_lite.checkpoints.export import export_lite
from lavis_lite.checkpoints.weights import WeightFile, build_model, read_by_others, required_weights
from lavis_lite.config.compose import compose
from lavis_lite.errors import CheckpointError, DataError
from lavis_lite.models.blip2.config import Blip2AnyLLMConfig, Blip2Config, Blip2OPTConfig, Blip2QformerConfig
from lavis_lite.models.language.families import Lora
from lavis_lite.models.provenance import WeightRecord
from lavis_lite.preflight.run import missing_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, an empty cache, the repository as working folder."""
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    monkeypatch.chdir(ROOT)


def mini() -> Blip2QformerConfig:
    section = compose("projects/blip2/stage1.yaml").config.model
    assert isinstance(section, Blip2QformerConfig)
    return section


def test_mini_needs_only_what_is_packaged() -> None:
    needs = required_weights(mini())
    assert {need.key: need.value for need in needs} == {"vit_weights": "mini", "tokenizer": "mini"}
    assert all(need.is_local() for need in needs)
    assert sorted(need.fetch().name for need in needs) == ["tokenizer", "vit.safetensors"]


def test_built_mini_has_the_packaged_encoder() -> None:
    from safetensors.torch import load_file

    packaged = load_file(ROOT / "lavis_lite" / "assets" / "mini" / "vit.safetensors")
    built = build_model(mini()).vision_encoder.vit.state_dict()
    random = build_model(replace(mini(), vit_weights="random")).vision_encoder.vit.state_dict()
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(built[name], packaged[name].float())
    assert not torch.equal(random[name], packaged[name].float())


def test_paper_scale_needs_encoder_tokenizer_and_bert() -> None:
    needs = {need.key: need for need in required_weights(Blip2QformerConfig())}
    assert needs["vit_weights"].value.endswith("eva_vit_g.pth")
    assert set(needs) == {"vit_weights", "tokenizer", "qformer_weights"}
    assert "hf download bert-base-uncased" in needs["tokenizer"].describe_missing()
    assert not any(need.is_local() for need in needs.values())
    with pytest.raises(DataError, match="eva_vit_g.pth"):
        needs["vit_weights"].fetch()


def test_a_checkpoint_brings_what_trained() -> None:
    keys = [need.key for need in required_weights(Blip2QformerConfig(pretrained="x.pth"))]
    assert keys == ["vit_weights", "tokenizer", "pretrained"]
    keys = [need.key for need in required_weights(
        Blip2QformerConfig(freeze_vit=False, load_finetuned=True, finetuned="https://x.org/coco.pth"))]
    assert keys == ["tokenizer", "finetuned"]


def test_an_encoder_that_trains_starts_from_its_own_file_where_the_checkpoint_has_none(tmp_path: Path) -> None:
    remote = Blip2QformerConfig(freeze_vit=False, pretrained="https://x.org/blip2_pretrained.pth")
    assert [need.key for need in required_weights(remote)] == ["vit_weights", "tokenizer", "pretrained"]
    frozen, said = build_model(mini()), []
    start = save(frozen, tmp_path / "stage1.safetensors")
    trained = build_model(replace(mini(), pretrained=start, load_pretrained=True, freeze_vit=False), said.append)
    name = "vit.blocks.0.mlp.fc1.weight"
    weight = dict(trained.vision_encoder.named_parameters())[name]
    assert weight.requires_grad and torch.equal(weight, dict(frozen.vision_encoder.named_parameters())[name])
    assert "66 had from another file" in said[0] and "missing" not in said[0]
    whole = save(trained, tmp_path / "whole.safetensors")
    section = replace(mini(), pretrained=whole, load_pretrained=True, freeze_vit=False)
    assert [need.key for need in required_weights(section)] == ["tokenizer", "pretrained"]
    assert torch.equal(dict(build_model(section).vision_encoder.named_parameters())[name], weight)


def test_a_language_model_by_its_sizes_needs_a_tokenizer_to_run() -> None:
    section = Blip2AnyLLMConfig(vit_model="mini", llm_model="some/model", llm_args={"model_type": "gpt_neox"})
    assert read_by_others(section) == [WeightFile("llm_tokenizer", "some/model")]
    assert read_by_others(replace(section, llm_tokenizer="mini/opt")) == []
    assert any("model.llm_tokenizer: 'some/model' is not here" in line for line in missing_weights(section))


def test_a_fetched_url_is_found_where_it_was_put(tmp_path: Path) -> None:
    from lavis_lite.io import files

    url = "https://example.org/vit.pth"
    assert not WeightFile("vit_weights", url).is_local()
    files.target_of(url).parent.mkdir(parents=True)
    files.target_of(url).write_bytes(b"x")
    assert WeightFile("vit_weights", url).local() == files.target_of(url)


def test_a_path_that_is_not_there_says_where_it_looked(tmp_path: Path) -> None:
    need = WeightFile("pretrained", "runs/best.pth")
    assert not need.is_local()
    assert str(tmp_path / "runs" / "best.pth") in need.describe_missing()
    with pytest.raises(DataError, match=r"runs/best\.pth"):
        need.fetch()


def test_report_of_a_checkpoint_is_said(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = build_model(mini())
    save_file({name: value.clone() for name, value in model.trainable_state().items()}, tmp_path / "model.safetensors")
    said: list[str] = []
    again = weights.build_model(replace(mini(), load_pretrained=True, pretrained=str(tmp_path / "model.safetensors")),
                                said.append)
    assert "tensors loaded" in said[0]
    assert torch.equal(again.query_tokens, model.query_tokens)


def writer(**changes: object) -> Blip2OPTConfig:
    """A stage-2 section of the mini's sizes over a tiny random language model."""
    section = mini()
    shared = {field.name: getattr(section, field.name) for field in fields(Blip2Config)}
    sizes = {"model_type": "opt", "vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16,
             "num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 16}
    section = Blip2OPTConfig(**shared | {"arch": "blip2_opt", "load_pretrained": True},
                             llm_args=sizes)
    return replace(section, **changes)


def save(model: torch.nn.Module, path: Path) -> str:
    from safetensors.torch import save_file

    save_file({name: value.clone() for name, value in model.trainable_state().items()}, path)
    return str(path)


def test_a_projection_for_an_unknown_language_model_is_noted(tmp_path: Path) -> None:
    """Any language model of the same width takes it."""
    said: list[str] = []
    named = writer(llm_args=None, opt_model="mini/opt")
    model = build_model(named, said.append)
    path = save(model, tmp_path / "bare.safetensors")
    export_lite(model, tmp_path / "whole")
    build_model(replace(named, pretrained=path), said.append)
    assert "trained for is not recorded; here it is mini/opt" in said.pop()
    build_model(replace(named, pretrained=str(tmp_path / "whole")), said.append)
    assert not any("not recorded" in line for line in said)


def test_a_stage_1_checkpoint_starts_stage_2_and_instruction_tuning(tmp_path: Path) -> None:
    stage1 = build_model(mini())
    path = save(stage1, tmp_path / "stage1.safetensors")
    said: list[str] = []
    stage2 = build_model(writer(pretrained=path), said.append)
    assert torch.equal(stage2.query_tokens, stage1.query_tokens)
    assert "2 missing, left as initialised" in said[0]  # the projection
    assert "of its own not needed" in said[0]
    instruct = build_model(writer(pretrained=path, qformer_text_input=True))
    assert torch.equal(instruct.qformer.layers[0].text_ffn.up.weight, stage1.qformer.layers[0].text_ffn.up.weight)


def test_instruction_tuning_takes_its_text_half_from_stage_1_and_the_rest_from_stage_2(tmp_path: Path) -> None:
    stage1, stage2 = build_model(mini()), build_model(writer())
    one, two = save(stage1, tmp_path / "one.safetensors"), save(stage2, tmp_path / "two.safetensors")
    model = build_model(writer(pretrained_stage1=one, pretrained=two, qformer_text_input=True))
    assert torch.equal(model.qformer.layers[0].text_ffn.up.weight, stage1.qformer.layers[0].text_ffn.up.weight)
    assert torch.equal(model.query_tokens, stage2.query_tokens)
    assert torch.equal(model.language_projection.weight, stage2.language_projection.weight)
    with pytest.raises(CheckpointError, match="text_ffn"):
        build_model(writer(pretrained=two, qformer_text_input=True))


@pytest.mark.parametrize(("arch", "checkpoint"), [("blip2_t5", "stage2_opt"), ("blip2_opt", "stage2_t5")])
def test_a_projection_to_another_kind_of_language_model_is_refused_although_it_fits(arch: str, checkpoint: str) -> None:
    with pytest.raises(CheckpointError, match="over a language model of another kind"):
        load_model(arch, "mini", checkpoint=f"mini/{checkpoint}")


def test_settings_that_no_shape_shows_are_compared_with_those_that_a_checkpoint_records(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = build_model(writer())
    record = {"model": {"arch": "blip2_opt", "qformer_heads": model.qformer.cfg.num_heads // 2,
                        "qformer_layer_norm_eps": 1e-12}}
    save_file({name: value.clone() for name, value in model.trainable_state().items()}, tmp_path / "a.safetensors",
              {"lavis_lite": json.dumps(record)})
    with pytest.raises(CheckpointError, match=r"model.qformer_heads was 2 \(here 4\); model.qformer_layer_norm_eps"):
        build_model(writer(pretrained=str(tmp_path / "a.safetensors"), qformer_layer_norm_eps=1e-5))
    build_model(writer(pretrained=str(tmp_path / "a.safetensors"), qformer_heads=2))
    with pytest.raises(CheckpointError, match=r"qformer_heads was 4 \(here 2\)"):  # a type's
        build_model(writer(pretrained="mini/stage2_opt", qformer_heads=2))
    (tmp_path / "run").mkdir()
    save(model, tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "config.yaml").write_text("model: {arch: blip2_opt}")
    with pytest.raises(CheckpointError, match=r"qformer_heads was 12 \(here 4\)"):  # a default, which runs leave out
        build_model(writer(pretrained=str(tmp_path / "run")))
    record["model"] |= {"llm_train": "lora", "qformer_heads": 4, "vit_model": "mini", "vit_layer": -2,
                        "vit_cls": "drop"}
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors", {"lavis_lite": json.dumps(record)})
    with pytest.raises(CheckpointError, match=r"vit_layer was \[\d\] \(here \[\d\]\); model.vit_cls was 'drop'"):
        build_model(writer(pretrained=str(tmp_path / "b.safetensors")))
    record["model"] |= {"vit_layer": None, "vit_cls": "keep"}
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors", {"lavis_lite": json.dumps(record)})
    with pytest.raises(CheckpointError, match=r"model.lora.alpha was 32 \(here 8\)"):
        build_model(writer(pretrained=str(tmp_path / "b.safetensors"), llm_train="lora", lora=Lora(alpha=8)))


def test_another_encoder_than_that_of_the_training_is_said_even_without_logging(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model("blip2_opt", "mini")
    sources = [replace(one, sha256="0" * 64) if one.kind == "encoder" else one for one in model.weight_record.sources]
    export_lite(model, tmp_path / "other", record=WeightRecord(sources))
    load_model("blip2_opt", "mini", checkpoint=tmp_path / "other")
    [note] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "was trained with the encoder" in note


def test_a_stage_2_checkpoint_without_its_projection_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {name: value.clone() for name, value in build_model(writer()).trainable_state().items()
             if not name.startswith("language_projection.")}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="language_projection"):
        build_model(writer(pretrained=str(tmp_path / "x.safetensors")))


def test_a_packaged_name_that_is_not_there_names_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "stage1.safetensors").write_bytes(b"")
    monkeypatch.setattr(weights, "assets", lambda: tmp_path)
    assert WeightFile("llm_model", "mini/opt").local() == tmp_path / "opt"
    assert WeightFile("pretrained", "mini/stage1").local() == tmp_path / "checkpoints" / "stage1.safetensors"
    need = WeightFile("pretrained", "mini/stage3")
    assert not need.is_local() and "mini/stage1" in need.describe_missing()
    with pytest.raises(DataError, match="mini/stage1"):
        need.fetch()


def test_what_cannot_be_fetched_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name)
    tried: list[str] = []

    def fails(need: WeightFile) -> Path:
        tried.append(need.value)
        raise DataError(f"{need.value} gave nothing")

    monkeypatch.setattr(WeightFile, "fetch", fails)
    lost = [WeightFile("pretrained", "https://x.org/a.pth"), WeightFile("vit_weights", "https://x.org/b.pth")]
    with pytest.raises(DataError, match=r"fetched: 2 errors:\n  1. https://x.org/a.pth gave nothing\n  2. "):
        weights.fetch_all(lost, "blip2/x")
    with pytest.raises(DataError, match="files that are not here: 1 error:\n  1. model.llm_model: './here/' is not"):
        weights.fetch_all([*lost, WeightFile("llm_model", "./here/")], "blip2/x")
    assert len(tried) == 2, "nothing is downloaded while something cannot be had at all"
