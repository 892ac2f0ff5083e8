"""NaN and infinity are found in every file that weights come from, and never saved."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lavis_lite.checkpoints import load_vision_weights
from lavis_lite.checkpoints.assembly import Assembly
from lavis_lite.checkpoints.convert import convert
from lavis_lite.checkpoints.reading import check_folder
from lavis_lite.checkpoints.weights import assets, build_model
from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.finite import is_finite, non_finite, non_finite_fused
from lavis_lite.models.blip2.config import Blip2OPTConfig
from lavis_lite.models.language import build_language_model
from lavis_lite.models.language.build import load_pretrained
from lavis_lite.models.language.families import LMLoadOptions, Quantization
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.runners import checkpointing
from lavis_lite.runners.checkpointing import CheckpointStore
from lavis_lite.zoo import load_model
from tests.helpers.frozen_qformer import section
from tests.helpers.toy import Toy, ToyModel
from tests.models.language.tiny import tiny

BAD = [float("nan"), float("inf"), float("-inf")]


def with_one(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.randn(7, 11).to(dtype)
    tensor[3, 4] = value
    return tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [*BAD, 3.0])
def test_one_value_is_enough_in_any_dtype(value: float, dtype: torch.dtype) -> None:
    tensor, good = with_one(value, dtype), value == 3.0
    assert is_finite(tensor) == good
    if dtype != torch.float8_e5m2:
        assert (non_finite_fused({"x": tensor, "y": torch.ones(2)}) == ["x"]) != good


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    tensor = torch.full((50, 50), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(tensor) and non_finite_fused({"x": tensor}) == [] and non_finite({"x": tensor}) == []


def test_what_holds_no_real_numbers_is_left_alone() -> None:
    tensors = {"count": torch.tensor(3), "flag": torch.tensor([True]), "none": torch.empty(0),
               "meta": torch.empty(2, device="meta")}
    assert non_finite(tensors) == non_finite_fused(tensors) == []


# reading --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", BAD)
def test_an_encoders_file(value: float, tmp_path: Path) -> None:
    tensors = load_file(assets() / "vit.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = value
    save_file(tensors, tmp_path / "vit.safetensors")
    encoder = VisionEncoder("mini", 64)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"{name} \(1 of \d+ values\).*model\.allow_non_finite=true"):
        load_vision_weights(encoder, tmp_path / "vit.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    with pytest.raises(CheckpointError, match="hold NaN or infinity"):
        build_model(section(vit_weights=str(tmp_path / "vit.safetensors")))
    model = build_model(section(vit_weights=str(tmp_path / "vit.safetensors"), allow_non_finite=True))
    assert not is_finite(model.vision_encoder.vit.state_dict()[name])


def test_a_language_models_folder(tmp_path: Path) -> None:
    saved = tiny("opt")
    with torch.no_grad():
        saved.model.lm_head.weight[3, 3] = float("nan")
    saved.model.save_pretrained(tmp_path)
    model = build_language_model(str(tmp_path), tokenizer=saved.tokenizer.loaded)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight \(1 of 3108 values\)"):
        load_pretrained(model, str(tmp_path))
    load_pretrained(model, str(tmp_path), allow_non_finite=True)
    with pytest.raises(ConfigError, match="no weights of a language model"):
        load_pretrained(model, str(tmp_path / "nothing"))


FC1 = "model.decoder.layers.1.fc1"


def without_bias(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    del tensors[f"{FC1}.bias"]


def with_one_row_less(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors[f"{FC1}.weight"] = tensors[f"{FC1}.weight"][1:].clone()


def with_fewer_layers(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["num_hidden_layers"] = 1


def with_biases_denied(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["enable_bias"] = False


def with_an_adapter(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors[f"{FC1}.lora_A.weight"] = torch.zeros(2, 2)


def with_a_scale(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors[f"{FC1}.SCB"] = torch.zeros(2)


def with_nan(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors[f"{FC1}.weight"][0, 0] = float("nan")


Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


def damaged_folder(folder: Path, change: Change) -> Any:
    """A saved OPT whose tensors or config.json were changed; returns its tokenizer."""
    saved = tiny("opt")
    saved.model.save_pretrained(folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return saved.tokenizer.loaded


@pytest.mark.parametrize(("change", "words"), [
    (without_bias, r"in 1 of its tensors, such as model\.decoder\.layers\.1\.fc1\.bias: the files lack them"),
    (with_one_row_less, r"in 1 of its tensors, such as .*1\.fc1\.weight: they have other shapes in the files"),
    (with_fewer_layers, r"such as model\.decoder\.layers\.1\..*: the files have more layers than config\.json says"),
    (with_biases_denied, r"such as model\.decoder\.layers\.0\.fc1\.bias.*: the files have them, and the layers of"),
    (with_an_adapter, r"in 1 of its tensors, such as .*1\.fc1\.lora_A\.weight: the files have them"),
    (with_a_scale, r"in 1 of its tensors, such as .*1\.fc1\.SCB: the files have them")])
def test_a_language_models_folder_with_other_tensors_than_its_config(change: Change, words: str,
                                                                     tmp_path: Path) -> None:
    """transformers draws what is missing at random, leaves out what is too much, and goes on."""
    model = build_language_model(str(tmp_path), tokenizer=damaged_folder(tmp_path, change))
    with pytest.raises(CheckpointError, match=words):
        load_pretrained(model, str(tmp_path))


def with_integers(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors["model.decoder.position_ids"] = torch.arange(3)  # rightly integers
    tensors[f"{FC1}.weight"] = tensors[f"{FC1}.weight"].to(torch.int8)


@pytest.mark.parametrize(("change", "bits", "words"), [
    (with_integers, None, r"stores 1 weights as integers: .*1\.fc1\.weight \(int8\)\. They are quantised"),
    (with_nan, "4bit", r"model\.safetensors: 1 of 1 tensors hold NaN or infinity: .*1\.fc1\.weight \(1 of 3")])
def test_what_transformers_would_spoil_without_a_word(change: Change, bits: Quantization | None, words: str,
                                                      tmp_path: Path) -> None:
    """It casts integers to real numbers, and NaN becomes a number in 4 bits."""
    language_model = build_language_model(str(tmp_path), tokenizer=damaged_folder(tmp_path, change),
                                          setup=LMLoadOptions(quantization=bits))
    model: Any = SimpleNamespace(language_model=language_model)
    config = Blip2OPTConfig(opt_model=str(tmp_path), vit_weights="random")
    assembly = Assembly(model, config, {"llm_model": str(tmp_path)}, [], lambda source: None, print)
    with pytest.raises(CheckpointError, match=words):
        assembly.load_backbones()


def test_the_files_of_torch_are_looked_at_too(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2, 2, dtype=torch.uint8), "steps": torch.tensor(3)},
               tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"fc\.weight \(uint8\)"):
        check_folder(tmp_path, "--clip")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (extra quant) is missing")
@pytest.mark.parametrize(("bits", "change", "words"), [
    ("8bit", without_bias, r"1\.fc1\.bias: the files lack them"),
    ("8bit", with_one_row_less, r"1\.fc1\.weight: they have other shapes"),
    ("4bit", with_one_row_less, r"1\.fc1\.weight: they have other shapes"),
    ("8bit", with_nan, r"hold NaN or infinity: model\.decoder\.layers\.1\.fc1\.SCB")])
def test_the_same_of_weights_that_are_quantised_while_they_are_read(bits: Quantization, change: Change, words: str,
                                                                    tmp_path: Path) -> None:
    model = build_language_model(str(tmp_path), tokenizer=damaged_folder(tmp_path, change),
                                 setup=LMLoadOptions(quantization=bits))
    with pytest.raises(CheckpointError, match=words):
        load_pretrained(model, str(tmp_path))


def test_weights_that_are_quantised_already_are_not_taken_for_plain_ones(tmp_path: Path) -> None:
    tiny("opt").model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match=r"quantised already \(gptq\)"):
        build_language_model(str(tmp_path))


def test_a_conversion(tmp_path: Path) -> None:
    tensors = load_file(assets() / "checkpoints" / "stage1.safetensors")
    tensors["temp"].fill_(float("nan"))
    save_file(tensors, tmp_path / "x.safetensors")
    given: dict[str, Any] = {"model": "blip2", "model_type": "mini"}
    with pytest.raises(CheckpointError, match=r"temp \(1 of 1 values\)"):
        convert(tmp_path / "x.safetensors", "lavis", tmp_path / "out.pth", **given)
    assert not (tmp_path / "out.pth").exists()
    convert(tmp_path / "x.safetensors", "lavis", tmp_path / "out.pth", allow_non_finite=True, **given)


# saving and resuming --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", BAD)
def test_a_checkpoint_that_is_not_finite_is_never_written(value: float, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.prepare()
    model = ToyModel()
    good = store.save(1, model, {"step": 1, "best": None}, "run: {}\n")
    with torch.no_grad():
        model.out.weight[0, 0] = value
    with pytest.raises(CheckpointError, match=rf"step 2 was not saved: 1 of 7 tensors .* out\.weight \(1 of 6 values\)"
                                              rf".*last good checkpoint is {good}"):
        store.save(2, model, {"step": 2, "best": None}, "run: {}\n")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == [good.name]
    assert checkpointing.verify(good) == []


def test_a_run_that_diverged_stops_at_its_next_save(tmp_path: Path) -> None:
    runner = Toy(tmp_path, {"max_iters": 4, "save_every": 1}).build()
    with torch.no_grad():
        runner.model.scale.fill_(float("inf"))
        runner.model.tokens.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="step 1 was not saved: .*tokens.*Start again with a lower run.init_lr"):
        runner.step = 1
        runner._save()
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_a_checkpoint_of_an_earlier_version_that_is_not_finite_is_not_resumed_from(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.prepare()
    model = ToyModel()
    with torch.no_grad():
        model.out.weight[0, 0] = float("nan")
    monkeypatch.setattr(checkpointing, "non_finite_fused", lambda tensors: [])
    folder = store.save(1, model, {"step": 1, "best": None}, "run: {}\n")
    fresh = ToyModel(seed=3)
    with pytest.raises(CheckpointError, match=r"out\.weight \(1 of 6 values\).*Resume from an earlier checkpoint"):
        checkpointing.load(folder, fresh)
    assert torch.equal(fresh.out.weight, ToyModel(seed=3).out.weight)
    fresh.allow_non_finite = True
    assert checkpointing.load(folder, fresh)["step"] == 1


def test_models_in_python_load_them_where_that_is_asked_for(tmp_path: Path) -> None:
    weights = load_file(assets() / "checkpoints" / "stage1.safetensors")
    save_file({**weights, "temp": torch.full_like(weights["temp"], torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"temp .*allow_non_finite=True in Python"):
        load_model("blip2", "mini", checkpoint=tmp_path / "nan.safetensors")
    model: Any = load_model("blip2", "mini", checkpoint=tmp_path / "nan.safetensors", allow_non_finite=True)
    assert bool(model.temp.isnan())
