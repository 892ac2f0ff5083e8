"""LoRA: what trains, what is stored, and that nothing changes at first."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_lite.checkpoints import load_state
from lavis_lite.errors import CheckpointError, ConfigError, MissingExtraError
from lavis_lite.models.blip2.llm import OPT, T5, Blip2LLM
from lavis_lite.models.language import LanguageModel, build_language_model
from lavis_lite.models.language.adapters import adapter_state, add_adapters, save_adapters
from lavis_lite.models.language.build import load_pretrained
from lavis_lite.models.language.families import FAMILIES, GENERAL, LMLoadOptions, Lora
from tests.models.language.tiny import SIZES, soft_prompts, tiny, usually
from tests.models.test_blip2_llm import CAPTIONS, images, model_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft (extra lora) is not installed")

LORA = Lora(r=2, alpha=4, dropout=0.5)


def adapted(name: str = "opt", lora: Lora = LORA, **options: Any) -> LanguageModel:
    model = tiny(name, **options)
    torch.manual_seed(5)
    add_adapters(model, lora)
    return model


def taught(model: LanguageModel, seed: int = 7) -> LanguageModel:
    """With adapters that say something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in adapter_state(model).items():
            if ".lora_B." in name:
                value.copy_(0.5 * torch.randn(value.shape, generator=generator))
    return model


def loss_of(model: LanguageModel) -> torch.Tensor:
    return model.loss(soft_prompts(model).detach(), ["what?", "", "a"], ["b", "cd", "e"])


def whole(name: str = "opt", lora: Lora | None = LORA) -> Blip2LLM:
    model = model_of(name, OPT if name == "opt" else T5)
    if lora is not None:
        torch.manual_seed(5)
        add_adapters(model.language_model, lora)
    return model


@pytest.mark.parametrize("name", usually(sorted(SIZES)))
def test_at_first_nothing_changes_and_then_the_adapters_learn(name: str) -> None:
    plain, model = loss_of(tiny(name)), adapted(name)
    assert torch.equal(loss_of(model), plain)
    loss_of(model).backward()
    grads = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert grads and all(".lora_" in key for key in grads)
    assert any(float(grad.abs().max()) > 0 for key, grad in grads.items() if ".lora_B." in key)
    targets = GENERAL.lora_targets if name not in FAMILIES else FAMILIES[SIZES[name]["model_type"]].lora_targets
    if targets != "all-linear":
        assert {key.split(".lora_")[0].split(".")[-1] for key in grads} == set(targets)


def test_every_row_names_layers_that_exist() -> None:
    for family in (*FAMILIES.values(), GENERAL):
        kind = {"mt5": "t5", "vicuna": "llama", "general": "qwen2"}.get(family.name, family.name)
        model = tiny(kind, family=family.name)
        add_adapters(model, Lora(r=1))
        trains = [name for name, value in model.named_parameters() if value.requires_grad]
        assert trains and all("lora_" in name for name in trains), family.name


def test_the_base_stays_in_eval_mode_and_the_adapters_dropout_follows() -> None:
    model = taught(adapted())
    whole_model = nn.ModuleDict({"inner": model})
    dropped = {name for name, module in model.named_modules() if ".lora_dropout." in name}
    for mode in (True, False):
        whole_model.train(mode)
        for name, module in model.model.named_modules():
            assert module.training == (mode and (f"model.{name}" in dropped or name.endswith(".lora_dropout"))), name
    assert torch.equal(loss_of(model), loss_of(model))
    whole_model.train()
    assert not torch.equal(loss_of(model), loss_of(model))


def test_adapters_have_float32_weights_beside_16_bits() -> None:
    model = adapted(precision="bf16")
    assert {value.dtype for value in adapter_state(model).values()} == {torch.float32}
    loss_of(model).backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in adapter_state(model).values())
    assert {value.dtype for value in model.to(torch.float64).parameters()} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_a_checkpoint_has_the_adapters_and_no_base(name: str) -> None:
    model = whole(name)
    taught(model.language_model)
    state = {key: value.clone() for key, value in model.trainable_state().items()}
    inner = [key for key in state if key.startswith("language_model.")]
    assert inner and all(".lora_" in key for key in inner)
    other = whole(name)
    report = load_state(other, state, "checkpoint")
    assert {key.split(".")[0] for key in report.frozen_missing} == {"vision_encoder", "language_model"}
    samples = {"image": images(), "text_input": CAPTIONS, "text_output": ["x", "y", "z"]}
    assert torch.equal(other.eval()(samples).loss, model.eval()(samples).loss)


def test_a_checkpoint_without_adapters_starts_a_run_with_them_but_not_the_reverse() -> None:
    plain, model = whole(lora=None), whole()
    report = load_state(model, plain.trainable_state(), "checkpoint")
    assert report.allowed_missing and all(".lora_" in name for name in report.allowed_missing)
    with pytest.raises(CheckpointError, match="lora_A"):
        load_state(plain, model.trainable_state(), "checkpoint")


def test_a_checkpoint_with_a_whole_language_model_reaches_the_layers_behind_adapters() -> None:
    plain, model = whole(lora=None), whole()
    full = {name: value.clone() for name, value in plain.state_dict().items()}
    name = "language_model.model.model.decoder.layers.0.self_attn.q_proj"
    full[f"{name}.weight"] = torch.full_like(full[f"{name}.weight"], 0.25)
    load_state(model, full, "checkpoint")
    assert torch.equal(model.state_dict()[f"{name}.base_layer.weight"], full[f"{name}.weight"])


def test_adapters_come_back_onto_weights_of_a_folder(tmp_path: Path) -> None:
    saved = tiny("opt")
    saved.model.save_pretrained(tmp_path)
    saved.tokenizer.loaded.save_pretrained(tmp_path)
    model = build_language_model(str(tmp_path), limits=saved.limits, setup=LMLoadOptions(lora=LORA))
    assert {value.device.type for value in model.parameters()} == {"meta"}
    before = set(dict(model.named_parameters()))
    load_pretrained(model, str(tmp_path))
    assert set(dict(model.named_parameters())) == before
    assert {value.device.type for value in model.parameters()} == {"cpu"}
    assert torch.equal(loss_of(model), loss_of(saved))
    assert model.train().training is False and not model.model.training


@pytest.mark.parametrize("name", ["opt", "gpt2", "t5"])
def test_saved_adapters_load_in_plain_peft(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = taught(adapted(name)).eval()
    save_adapters(model, tmp_path, base="some/model")
    bare = tiny(name)
    expected = loss_of(model)
    assert not torch.equal(loss_of(bare), expected)
    loaded = PeftModel.from_pretrained(bare.model, str(tmp_path))
    assert loaded.peft_config["default"].base_model_name_or_path == "some/model"
    bare.model = loaded.merge_and_unload()
    torch.testing.assert_close(loss_of(bare), expected, rtol=1e-5, atol=1e-5)


def test_without_adapters_there_is_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapters"):
        save_adapters(tiny("opt"), tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    ({"r": 0}, "lora.r"), ({"alpha": 0}, "lora.alpha"), ({"dropout": 1.0}, "lora.dropout"),
    ({"target_modules": [3]}, "lora.target_modules"), ({"target_modules": []}, "lora.target_modules")])
def test_values_out_of_range(change: dict[str, Any], words: str) -> None:
    faults = list(LMLoadOptions(lora=replace(LORA, **change)).faults())
    assert [key for key, _ in faults] == [words]
    with pytest.raises(ConfigError, match=f"model.{words}"):
        build_language_model("", sizes=SIZES["opt"], setup=LMLoadOptions(lora=replace(LORA, **change)))


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"target_modules: \['query'\] names no layer.*k_proj.*q_proj"):
        adapted(lora=Lora(target_modules=["q_proj", "query"]))


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"model.lora: needs peft: pip install 'lavis_lite\[lora\]'"):
        build_language_model("", sizes=SIZES["opt"], setup=LMLoadOptions(lora=LORA))
