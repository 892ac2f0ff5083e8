"""8 and 4 bits: what transformers is asked for, what a quantised layer lets pass, and bitsandbytes itself if here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.checkpoints import load_state
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, ConfigError, MissingExtraError
from lavis_lite.models.base import freeze
from lavis_lite.models.blip2.config import Blip2OPTConfig
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.language import LanguageModel, build_language_model
from lavis_lite.models.language.adapters import add_adapters
from lavis_lite.models.language.build import load_pretrained, quantization_config, read_quantised
from lavis_lite.models.language.families import LMLoadOptions, Lora, Quantization, device_fault
from tests.models.language.tiny import IDS, SIZES, byte_tokenizer, soft_prompts, tiny
from tests.models.test_blip2_llm import CAPTIONS, images, model_of

CPU = torch.device("cpu")


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


class Rounded(nn.Module):
    """Stands for a quantised layer: whole numbers and a scale, and a state_dict that has more than parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("SCB", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight.to(hidden.dtype) * self.get_buffer("SCB"), self.bias)


def rounded(language_model: LanguageModel) -> LanguageModel:
    """With its blocks' linear layers in whole numbers, as after a quantised load."""
    for module in list(language_model.model.model.decoder.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Rounded(child))
    freeze(language_model.model)
    language_model.is_dispatched = True
    return language_model


def whole(**options: Any) -> Blip2LLM:
    model = model_of("opt")
    rounded(model.language_model)
    return model


def test_what_transformers_is_asked_for() -> None:
    eight, four = quantization_config("8bit", torch.float16), quantization_config("4bit", torch.bfloat16)
    assert eight.load_in_8bit and not eight.load_in_4bit
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "nf4" and four.bnb_4bit_use_double_quant
    assert four.bnb_4bit_compute_dtype == torch.bfloat16

    class Kind:
        @staticmethod
        def from_pretrained(folder: str, **given: Any) -> tuple[str, dict[str, Any]]:
            assert given["output_loading_info"]
            return folder, given

    folder, given = read_quantised(Kind, "folder", "4bit", torch.float16, torch.device("cuda", 3))
    assert folder == "folder" and given["device_map"] == {"": "cuda:3"} and given["dtype"] == torch.float16
    assert given["quantization_config"].load_in_4bit


def test_a_library_that_does_not_work_here_is_one_clear_error() -> None:
    class Kind:
        @staticmethod
        def from_pretrained(folder: str, **given: Any) -> None:
            raise RuntimeError("None of the available devices are supported\nmore")

    with pytest.raises(ConfigError, match="model.llm_quantization: 8bit does not work here: None of the available"):
        read_quantised(Kind, "folder", "8bit", torch.float16, CPU)


def test_gradients_pass_through_quantised_layers_to_what_trains() -> None:
    model = whole().train()
    exact = model_of("opt")
    samples = {"image": images(), "text_input": CAPTIONS}
    model(samples).loss.backward()
    exact(samples).loss.backward()
    for (name, value), (_, other) in zip(((key, value) for key, value in model.named_parameters()
                                          if value.requires_grad), ((key, value) for key, value in
                                                                    exact.named_parameters() if value.requires_grad),
                                         strict=True):
        assert value.grad is not None and other.grad is not None, name
    found, expected = model.query_tokens.grad, exact.query_tokens.grad
    assert found is not None and expected is not None
    assert float(F.cosine_similarity(found.flatten(), expected.flatten(), dim=0)) > 0.95
    assert not any(value.grad is not None for value in model.language_model.parameters())


@pytest.mark.skipif(not installed("peft"), reason="peft (extra lora) is not installed")
def test_quantised_weights_and_their_scales_are_in_no_checkpoint_with_adapters_neither() -> None:
    model = whole()
    assert any(name.endswith("SCB") for name in model.state_dict())
    assert not any(name.startswith("language_model.") for name in model.trainable_state())
    add_adapters(model.language_model, Lora(target_modules=["lm_head"]))
    kept = [name for name in model.trainable_state() if name.startswith("language_model.")]
    assert kept and all(".lora_" in name for name in kept)
    load_state(model, model.trainable_state(), "checkpoint")


def test_quantised_weights_stay_as_they_are_and_where_they_are() -> None:
    model = whole()
    before = {name: value.dtype for name, value in model.language_model.named_parameters()}
    model.to(torch.float64).to("meta")
    assert {value.device.type for value in model.language_model.parameters()} == {"cpu"}
    assert {name: value.dtype for name, value in model.language_model.named_parameters()} == before


# what is wrong is said before anything is built -------------------------------------------------------------------
def section(**changes: Any) -> Blip2OPTConfig:
    return Blip2OPTConfig(**{"llm_quantization": "8bit", **changes})


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = "needs bitsandbytes and accelerate: pip install 'lavis_lite[quant]'."
    assert section().errors(RunConfig()) == [("llm_quantization", wanted)]
    with pytest.raises(MissingExtraError, match="model.llm_quantization: needs bitsandbytes"):
        build_language_model("/nowhere", setup=LMLoadOptions(quantization="8bit"))


def test_without_a_gpu_where_the_package_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        supported_torch_devices = {"cuda", "xpu"}

    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", Old)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in str(device_fault()) and "cuda, xpu only" in str(device_fault())
    Old.supported_torch_devices = {"cuda", "cpu"}
    assert device_fault() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    Old.supported_torch_devices = {"cuda"}
    assert device_fault() is None


@pytest.mark.parametrize(("changes", "run", "key", "words"), [
    ({"llm_args": {"model_type": "opt"}}, {}, "llm_quantization", "random weights"),
    ({"llm_device_map": "auto"}, {"evaluate": True}, "llm_device_map", "one device"),
    ({}, {"fsdp": "llm"}, "llm_quantization", "run.fsdp=none"),
    ({"llm_quantization": None, "llm_device_map": "auto"}, {}, "llm_device_map", "is for answering"),
    ({"llm_quantization": None, "llm_device_map": 3}, {"evaluate": True}, "llm_device_map", "must be")])
def test_what_does_not_go_together(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], run: dict[str, Any],
                                   key: str, words: str) -> None:
    monkeypatch.setattr("lavis_lite.models.language.families._lacking", lambda keys: iter(list(keys)[:0]))
    monkeypatch.setattr("lavis_lite.models.language.families.device_fault", lambda: None)
    faults = section(**changes).errors(RunConfig(**run))
    assert [name for name, _ in faults] == [key] and words in faults[0][1]


# the real thing -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not installed("bitsandbytes", "accelerate"), reason="bitsandbytes (extra quant) is not installed")
@pytest.mark.parametrize(("bits", "name"), [("8bit", "opt"), ("4bit", "opt"), ("8bit", "t5"), ("4bit", "llama")])
def test_bitsandbytes_loads_computes_and_trains_adapters(bits: Quantization, name: str, tmp_path: Path) -> None:
    wide = {"opt": {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64}, "t5": {"d_model": 64, "d_ff": 128},
            "llama": {"hidden_size": 64, "intermediate_size": 128}}[name]
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    saved = build_language_model("", sizes={**IDS, **SIZES[name], **wide}, tokenizer=tokenizer)
    saved.model.save_pretrained(tmp_path)
    lora = Lora(r=2, dropout=0.0) if installed("peft") else None
    model = build_language_model(str(tmp_path), tokenizer=tokenizer, setup=LMLoadOptions(quantization=bits, lora=lora))
    load_pretrained(model, str(tmp_path))
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    soft, other = soft_prompts(saved), soft_prompts(saved)
    loss, exact = (one.loss(given, ["a"] * 3, ["b", "cd", "e"]) for one, given in ((model, soft), (saved, other)))
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    loss.backward()
    exact.backward()
    assert soft.grad is not None and other.grad is not None
    assert float(F.cosine_similarity(soft.grad.flatten(), other.grad.flatten(), dim=0)) > 0.8
    trained = [key for key, value in model.named_parameters() if value.requires_grad]
    assert all(".lora_" in key for key in trained) and bool(trained) is (lora is not None)
    assert model.to("meta") is model and model.embed(torch.tensor([1])).device == CPU


@pytest.mark.skipif(not installed("bitsandbytes", "accelerate"), reason="bitsandbytes (extra quant) is not installed")
def test_a_folder_that_lacks_a_tensor_is_refused_in_4_bits_too(tmp_path: Path) -> None:
    saved = tiny("llama")
    whole, lost = saved.model.state_dict(), "model.layers.0.mlp.up_proj.weight"
    saved.model.save_pretrained(tmp_path, state_dict={name: value for name, value in whole.items() if name != lost})
    model = build_language_model(str(tmp_path), tokenizer=saved.tokenizer.loaded,
                                 setup=LMLoadOptions(quantization="4bit"))
    with pytest.raises(CheckpointError, match=rf"in 1 of its tensors, such as {lost}: the files lack them"):
        load_pretrained(model, str(tmp_path))


def test_tiny_is_plain() -> None:
    assert tiny("opt").load_options == LMLoadOptions() and not tiny("opt").is_dispatched
