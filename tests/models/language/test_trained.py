"""Language models that train: the step of transformers' own training, masters in float32, and learning-rate scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.blip2.config import Blip2AnyLLMConfig
from lavis_lite.models.language.families import LMLoadOptions, Lora
from tests.models.language.tiny import SEQ2SEQ, soft_prompts, tiny

PROMPTS, TARGETS = ["what is it?", "a", ""], ["a red square", "two", "it is a long answer"]


def exact(name: str) -> Any:
    model = tiny(name, setup=LMLoadOptions(trains=True))
    model.model.double()
    return model


def by_transformers(model: Any, soft: Tensor) -> Tensor:
    """The loss that transformers computes from inputs_embeds and labels."""
    before, after = model.training_rows(PROMPTS, TARGETS, soft.shape[1])
    embed, total, count = model.model.get_input_embeddings(), 0.0, 0
    for row, (read, learned) in enumerate(zip(before, after, strict=True)):
        prefix = torch.cat([soft[row:row + 1], embed(torch.tensor([read], dtype=torch.long))], 1)
        if model.model.config.is_encoder_decoder:
            loss = model.model(inputs_embeds=prefix, labels=torch.tensor([learned])).loss
        else:
            inputs = torch.cat([prefix, embed(torch.tensor([learned]))], 1)
            logits = model.model(inputs_embeds=inputs).logits[0]  # its own loss of decoders rounds to float32
            loss = torch.nn.functional.cross_entropy(logits[prefix.shape[1] - 1:-1], torch.tensor(learned))
        total, count = total + loss * len(learned), count + len(learned)
    return total / count


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "t5", "flan_t5"])
def test_loss_and_gradients_are_those_of_transformers(name):
    model, soft = exact(name), None
    found = []
    for loss_of in (lambda soft: model.loss(soft, PROMPTS, TARGETS), lambda soft: by_transformers(model, soft)):
        soft = soft_prompts(model).detach().double().requires_grad_()
        model.zero_grad()
        loss = loss_of(soft)
        loss.backward()
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        found.append((loss.detach(), soft.grad, gradients))
    (ours, ours_soft, ours_gradients), (theirs, theirs_soft, theirs_gradients) = found
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours_soft, theirs_soft, rtol=0, atol=1e-10)
    assert ours_gradients.keys() == theirs_gradients.keys() == dict(model.named_parameters()).keys()
    for key, gradient in theirs_gradients.items():
        torch.testing.assert_close(ours_gradients[key], gradient, rtol=0, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", ["opt", *SEQ2SEQ[:1]])
def test_under_autocast_the_masters_stay_float32(name):
    model = tiny(name, setup=LMLoadOptions(trains=True), precision="bf16")
    model.train()
    assert not any(module.training for module in model.model.modules())  # no dropout
    soft = soft_prompts(model)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.loss(soft, PROMPTS, TARGETS)
    mixed.backward()
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in model.parameters())
    plain = model.loss(soft, PROMPTS, TARGETS)
    assert mixed.item() != plain.item() and abs(mixed.item() / plain.item() - 1) < 0.02


def test_the_optimizer_scales_rates_by_part():
    class Model(BaseModel):
        lr_scales = {"language_model.": 0.1}

        def __init__(self) -> None:
            super().__init__()
            self.language_model = tiny("opt", setup=LMLoadOptions(trains=True))
            self.projection = torch.nn.Linear(2, 2)

    groups = Model().optimizer_groups(RunConfig())
    scales = {name.split(".")[0]: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales == {"language_model": 0.1, "projection": 1.0}
    assert not any(group["weight_decay"] and name.endswith(".bias") for group in groups for name in group["names"])


@pytest.mark.parametrize(("keys", "run", "words"), [
    ({"llm_train": "full", "lora": Lora()}, {}, "adapters (model.lora) do not go with it"),
    ({"llm_train": "full", "llm_precision": "bf16"}, {}, "bf16 weights cannot be trained"),
    ({"llm_train": "frozen", "lora": Lora()}, {}, "frozen leaves no adapters"),
    ({"llm_lr_scale": 0.0}, {}, "must be above 0, not 0.0"),
])
def test_what_does_not_go_together_is_refused(keys, run, words):
    section = Blip2AnyLLMConfig(arch="blip2_llm", llm_model="mini/opt", vit_precision="fp32", vit_model="mini",
                                image_size=64, **keys)
    errors = section.errors(RunConfig(**run))
    assert any(words in sentence for _, sentence in errors), errors


def test_lora_by_the_switch_takes_the_defaults():
    assert Blip2AnyLLMConfig(llm_train="lora").setup().lora == Lora()
    assert Blip2AnyLLMConfig().setup().lora is None and not Blip2AnyLLMConfig().setup().trains
    with pytest.raises(ConfigError, match="model.llm_train: full trains every weight; quantised weights"):
        raise ConfigError("model.{}: {}".format(*next(iter(
            fault for fault in LMLoadOptions(quantization="8bit", trains=True).faults() if fault[0] == "llm_train"))))
