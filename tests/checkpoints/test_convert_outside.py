"""Conversion of what LAVIS and transformers have no place for: adapters, models of other projects, frozen Q-Formers."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from lavis_lite.checkpoints.convert import convert, typed_section
from lavis_lite.checkpoints.weights import build_model
from lavis_lite.errors import CheckpointError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.language.adapters import adapter_state
from lavis_lite.registry import registry
from tests.checkpoints.export_helpers import section_of_arch
from tests.helpers.frozen_qformer import TRAINED, save, section, train


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and a folder of its own."""
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def with_adapters(arch: str, **lora: Any) -> tuple[dict[str, Any], Any]:
    """A section with LoRA over a language model's folder, and its model after a training."""
    plain = section_of_arch(arch, Path(), ln_vision_eps=1e-6)
    sizes = plain.pop("llm_args")
    kind = {"blip2_opt": "opt", "blip2_t5": "t5", "blip2_vicuna_instruct": "llama"}[arch]
    language_model = build_model(typed_section({**plain, "llm_args": sizes})).language_model.model
    language_model.save_pretrained(kind)
    given = {**plain, "llm_model": kind, "lora": {"r": 2, "alpha": 8, "dropout": 0.0, **lora}}
    torch.manual_seed(3)
    model = build_model(typed_section(given))
    with torch.no_grad():
        for value in adapter_state(model.language_model).values():
            value.copy_(torch.randn_like(value))
    return given, model.eval()


def logits(model: Any) -> Tensor:
    """Of a picture and a text, over the whole of the model."""
    image = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    inner = model.language_model.model
    ids = torch.tensor([[9, 40, 41, 42]])
    with torch.no_grad():
        soft = model.embed_image(image, ["what?"])
        embedded = torch.cat([soft, inner.get_input_embeddings()(ids)], 1)
        decoder = {"decoder_input_ids": ids} if inner.config.is_encoder_decoder else {}
        found: Tensor = inner(inputs_embeds=embedded, **decoder).logits
    return found


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_t5", "blip2_vicuna_instruct"])
def test_adapters_become_part_of_the_weights_in_every_format(arch: str) -> None:
    given, model = with_adapters(arch)
    found = save(model, Path("run"), config=yaml.safe_dump({"model": given}))
    wanted = logits(model)
    bare = copy.deepcopy(model)
    with torch.no_grad():
        for value in adapter_state(bare.language_model).values():
            value.zero_()
    assert float((logits(bare) - wanted).abs().max()) > 1e-2, "the adapters must matter"
    plain = {key: value for key, value in given.items() if key != "lora"}
    for to, out, more in (("lite", "merged", {"merge_lora": True}), ("lite", "whole.safetensors",
                          {"merge_lora": True, "whole": True}), ("lavis", "merged.pth", {})):
        assert "adapters added to" in str(convert(found, to, out, **more))
        again = build_model(typed_section({**plain, "load_pretrained": True, "pretrained": out})).eval()
        torch.testing.assert_close(logits(again), wanted, rtol=1e-5, atol=1e-5)
        assert not any("lora" in name for name in again.state_dict())
    apart = convert(found, "lite", "apart")
    again = build_model(typed_section({**given, "load_pretrained": True, "pretrained": "apart"})).eval()
    assert apart.filled == 0 and torch.equal(logits(again), wanted)
    convert("merged.pth", "lite", "twice")  # layers of the language model that a file has stay in it
    again = build_model(typed_section({**plain, "load_pretrained": True, "pretrained": "twice"})).eval()
    torch.testing.assert_close(logits(again), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_vicuna_instruct"])
def test_adapters_become_part_of_the_weights_in_transformers(arch: str) -> None:
    given, model = with_adapters(arch)
    found = save(model, Path("run"), config=yaml.safe_dump({"model": given}))
    convert(found, "hf", "hf")
    instruct = "instruct" in arch
    name = "InstructBlipForConditionalGeneration" if instruct else "Blip2ForConditionalGeneration"
    twin = getattr(transformers, name).from_pretrained("hf").eval()
    image = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    ids = torch.tensor([[twin.config.image_token_id] * 3 + [9, 40, 41, 42]])
    texts = model.tokenize(["what?"])
    asked = {"qformer_input_ids": texts.ids, "qformer_attention_mask": texts.mask.long()} if instruct else {}
    with torch.no_grad():
        theirs = twin(pixel_values=image, input_ids=ids, attention_mask=torch.ones_like(ids), **asked).logits
    wanted = logits(model)
    torch.testing.assert_close(theirs[..., :wanted.shape[-1]], wanted, rtol=1e-5, atol=1e-5)


def test_adapters_that_cannot_be_added_are_refused_with_a_reason() -> None:
    given, model = with_adapters("blip2_opt", target_modules=["lm_head"])
    found = save(model, Path("tied"), config=yaml.safe_dump({"model": given}))
    with pytest.raises(CheckpointError, match=r"lm_head: its weights are also those of .*embed_tokens.*target_modules"):
        convert(found, "lavis", "x.pth")
    quantised = save(model, Path("quantised"), config=yaml.safe_dump({"model": {**given, "llm_quantization": "8bit"}}))
    with pytest.raises(CheckpointError, match=r"trained over 8bit weights.*--to lite"):
        convert(quantised, "hf", "x")
    assert not Path("x.pth").exists() and not Path("x").exists()


# other projects -------------------------------------------------------------------------------------------------------
class Linear(BaseModel):
    """A project that is no BLIP-2 at all."""

    def __init__(self) -> None:
        super().__init__()
        self.language_model, self.layer = nn.Linear(2, 2), nn.Linear(2, 2)
        self.language_model.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: Any) -> Linear:
        return cls()


def test_a_model_of_another_project_converts_to_lite_and_has_no_class_elsewhere(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "get_model_class", lambda name: Linear)
    model = Linear()
    found = save(model, Path("run"), config=yaml.safe_dump({"model": {"arch": "linear"}}))
    convert(found, "lite", "out")
    assert load_file("out/model.safetensors").keys() == {"layer.weight", "layer.bias"}
    for to, out in (("hf", "x"), ("lavis", "x.pth")):
        with pytest.raises(CheckpointError, match=r"no such class as Linear.*--to lite"):
            convert(found, to, out)


def test_a_frozen_qformer_is_found_again_after_a_conversion() -> None:
    model = build_model(section())
    train(model)
    given = {key: value for key, value in asdict(section()).items() if value is not None}
    found = save(model, Path("run"), config=yaml.safe_dump({"model": given}))
    convert(found, "lite", "out")
    assert load_file("out/model.safetensors").keys() == TRAINED
    convert(found, "lite", "whole.safetensors", whole=True)
    for name in ("out", "whole.safetensors"):
        again = build_model(section(pretrained=name))
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    convert(found, "lavis", "out.pth")  # LAVIS has the backbones, and a Q-Former only if the file has it
    names = torch.load("out.pth", weights_only=True)["model"].keys()
    assert {name.partition(".")[0] for name in names} == {"Qformer", "query_tokens", "ln_vision", "opt_proj"}
