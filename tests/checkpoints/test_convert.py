"""`python -m lavis_lite convert`: every direction, what it tells, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lavis_lite.checkpoints import load_checkpoint, to_lavis
from lavis_lite.checkpoints.convert import convert, metadata_of, typed_section
from lavis_lite.checkpoints.export import CheckpointMetadata, export_hf, export_lite
from lavis_lite.checkpoints.weights import build_model
from lavis_lite.cli.main import main
from lavis_lite.errors import CheckpointError
from lavis_lite.registry import registry
from tests.checkpoints.export_helpers import build, same, section_of_arch


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and a folder of its own."""
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def run(*words: Any) -> int:
    return main(["convert", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The one message of a refusal."""
    before = sorted(Path().iterdir())
    assert run(*words) == 2
    assert sorted(Path().iterdir()) == before
    return capsys.readouterr().err


def test_a_runs_checkpoint_to_lavis_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    section = {key: value for key, value in section_of_arch("blip2", Path()).items() if key != "load_pretrained"}
    model = build({**section, "vit_model": "mini", "image_size": 32, "vit_args": {}})
    Path("step_00000010").mkdir()
    save_file(model.trainable_state(), "step_00000010/model.safetensors")
    run_config = {"model": {**section, "vit_model": "mini", "image_size": 32, "vit_args": {}, "pretrained": "gone.pth"},
                  "run": {"max_iters": 10}}
    Path("step_00000010/config.yaml").write_text(yaml.safe_dump(run_config))
    assert run("--to", "lavis", "--checkpoint", "step_00000010", "--out", "lavis.pth") == 0
    told = capsys.readouterr().out
    assert "tensors loaded" in told and "frozen and not in it" in told and "wrote lavis.pth (LAVIS)" in told
    assert "Qformer.bert.embeddings.position_ids" in torch.load("lavis.pth", weights_only=True)["model"]
    assert run("--to", "lite", "--checkpoint", "lavis.pth", "--out", "back") == 0
    assert same(load_file("back/model.safetensors"), model.trainable_state())
    assert yaml.safe_load(Path("back/config.yaml").read_text())["model"]["pretrained"] is None


@pytest.mark.parametrize("arch", ["blip2", "blip2_vicuna_instruct"])
def test_to_transformers_and_back(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen parts that a checkpoint lacks come from what its section names."""
    section = section_of_arch(arch, Path())
    model = build(section)
    export_lite(model, "trained", origin=CheckpointMetadata(section))
    assert run("--to", "hf", "--checkpoint", "trained", "--out", "hf") == 0
    assert "tensors from the files that the model's section names" in capsys.readouterr().out
    converted = convert("hf", "lite", "back", whole=True)
    assert converted.filled == 0 and not converted.read.not_in_layout
    found = load_file("back/model.safetensors")
    trained = model.trainable_state()
    assert same({name: found[name] for name in trained}, trained) and any("vit" in name for name in found)
    assert metadata_of(Path("back")).model == {**section, **metadata_of(Path("back")).model}


def test_a_folder_of_transformers_alone_is_enough() -> None:
    """No section of ours beside it: the model follows from config.json and the tokenizer there."""
    model = build(section_of_arch("blip2_opt", Path(), ln_vision_eps=1e-6))
    export_hf(model, "hf")
    Path("hf/lavis_lite_extra.safetensors").unlink()
    convert("hf", "lite", "lite", whole=True)
    section = typed_section(metadata_of(Path("lite")).model)
    assert type(section) is registry.get_model_class("blip2_opt").config_class and section.ln_vision_eps == 1e-6
    again = build_model(section)
    load_checkpoint(again, "lite")
    assert same(again.state_dict(), model.state_dict())
    given = {"image": torch.randn(1, 3, 28, 28), "prompt": "what?"}
    assert again.eval().generate(given, max_new_tokens=4) == model.generate(given, max_new_tokens=4)


def test_what_transformers_has_no_place_for_begins_anew() -> None:
    model = build(section_of_arch("blip2", Path()))
    export_hf(model, "hf")
    Path("hf/lavis_lite_extra.safetensors").unlink()
    converted = convert("hf", "lite", "lite")
    assert "temp" in converted.read.not_in_layout
    found = load_file("lite/model.safetensors")
    assert float(found["temp"]) == pytest.approx(0.07) and found.keys() == model.trainable_state().keys()
    assert 0.01 < float(found["qformer.lm_head.transform.weight"].std()) < 0.03


def test_a_model_type_and_a_dtype() -> None:
    model = build(section_of_arch("blip2_opt", Path()))
    save_file(model.trainable_state(), "bare.safetensors")
    section = metadata_of(Path("bare.safetensors"), "blip2_opt", "pretrain_opt2.7b").model
    assert section["opt_model"] == "facebook/opt-2.7b" and section["pretrained"] is None
    export_lite(model, "lite", origin=CheckpointMetadata(section_of_arch("blip2_opt", Path())))
    convert("lite", "lavis", "half.pth", dtype="fp16")
    tensors = torch.load("half.pth", weights_only=True)["model"]
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float16}


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    section = section_of_arch("blip2_t5_instruct", Path())
    model = build(section)
    save_file(model.trainable_state(), "bare.safetensors")
    export_lite(model, "lite", origin=CheckpointMetadata(section))
    source = ("--checkpoint", "lite", "--out")
    assert "unknown format 'lavi'; did you mean 'lavis'" in refused(capsys, "--to", "lavi", *source, "x.pth")
    assert "--dtype: 'fp8'; did you mean 'fp" in refused(capsys, "--to", "lite", *source, "x", "--dtype", "fp8")
    assert "is a folder); choose another path" in refused(capsys, "--to", "lite", *source, "tokenizer")
    assert "try x.pth" in refused(capsys, "--to", "lavis", *source, "x")
    absent = refused(capsys, "--to", "lite", "--checkpoint", "no/such.pth", "--out", "x")
    assert "--checkpoint: 'no/such.pth' is not here (looked " in absent
    bare = refused(capsys, "--to", "lite", "--checkpoint", "bare.safetensors", "--out", "x")
    assert "--model ARCH --type TYPE" in bare and "(arch blip2_t5_instruct or blip2_vicuna_instruct)" in bare
    wrong = ("--to", "lite", "--checkpoint", "bare.safetensors", "--out", "x", "--model")
    assert "did you mean 'blip2_opt'" in refused(capsys, *wrong, "blip2_op", "--type", "x")
    assert "--type: blip2 has the types coco, mini" in refused(capsys, *wrong, "blip2")
    assert "did you mean 'mini'" in refused(capsys, *wrong, "blip2", "--type", "min")
    other = refused(capsys, *wrong, "blip2", "--type", "mini")
    assert "does not fit the model, nothing was loaded" in other and "blip2_t5_instruct" in other
    Path("lite/model.safetensors").write_bytes(b"\x10\x00")
    assert "damaged" in refused(capsys, "--to", "lite", *source, "x")


def test_a_checkpoint_of_another_language_model_names_its_arch() -> None:
    """Whether or not the shapes would fit."""
    model = build(section_of_arch("blip2_vicuna", Path()))
    torch.save({"model": to_lavis(model.trainable_state(), "opt").tensors}, "opt.pth")
    with pytest.raises(CheckpointError, match=r"\(arch blip2_opt\), and this model's language model is of another"):
        load_checkpoint(model, "opt.pth")
