"""Blocks, recomputation in the backward pass, and several devices."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.errors import ConfigError
from lavis_lite.models.base import blocks_of
from lavis_lite.models.language import GenerationConfig, LanguageModel, build_language_model
from lavis_lite.models.language.build import load_pretrained, recompute_blocks, spread
from lavis_lite.models.language.families import LMLoadOptions
from lavis_lite.models.qformer.model import QFormer
from tests.models.language.tiny import SEQ2SEQ, SIZES, soft_prompts, tiny
from tests.models.stage1_helpers import TINY

TEXTS = (["what?", "", "a"], ["b", "cd", "e"])


def gradient(model: LanguageModel) -> tuple[Tensor, Tensor, int]:
    """Loss, gradient of the soft prompt, and bytes kept for the backward pass."""
    soft, kept = soft_prompts(model), [0]

    def pack(tensor: Tensor) -> Tensor:
        kept[0] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(soft, *TEXTS)
    return loss.detach(), torch.autograd.grad(loss, soft)[0], kept[0]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_blocks_are_found_and_recomputing_them_changes_no_bit(name: str) -> None:
    model = tiny(name)
    assert len(blocks_of(model.model)) == (4 if name in SEQ2SEQ else 2)
    loss, grad, kept = gradient(model)
    answers = model.generate(soft_prompts(model).detach(), TEXTS[0], GenerationConfig(max_new_tokens=4))
    recompute_blocks(model.model)
    again, same, less = gradient(model)
    assert torch.equal(again, loss) and torch.equal(same, grad)
    assert less < 0.8 * kept
    assert model.generate(soft_prompts(model).detach(), TEXTS[0], GenerationConfig(max_new_tokens=4)) == answers


def test_a_switch_of_the_section_turns_it_on(tmp_path: Path) -> None:
    tiny("opt").model.save_pretrained(tmp_path)
    sized = build_language_model("", sizes=SIZES["opt"], setup=LMLoadOptions(grad_checkpoint=True))
    read = build_language_model(str(tmp_path), setup=LMLoadOptions(grad_checkpoint=True))
    load_pretrained(read, str(tmp_path))
    for model in (sized, read):
        assert all("forward" in vars(block) for block in blocks_of(model.model))


def test_the_qformer_recomputes_its_layers_with_the_same_gradients_and_dropout() -> None:
    torch.manual_seed(0)
    model = QFormer(TINY).train()
    queries = torch.randn(2, TINY.num_queries, TINY.hidden_size)
    image = torch.randn(2, 5, TINY.vision_width, requires_grad=True)
    ids = torch.randint(3, TINY.vocab_size, (2, 4))
    found: list[list[Tensor]] = []
    for recompute in (False, True):
        model.grad_checkpoint = recompute
        model.zero_grad()
        torch.manual_seed(1)
        output = model(queries, ids, None, image)
        assert output.query is not None and output.text is not None
        loss = output.query.square().sum() + output.text.square().sum()
        (grad,) = torch.autograd.grad(loss, image, retain_graph=True)
        loss.backward()
        found.append([loss.detach(), grad, *(value.grad.clone() for value in model.parameters()
                                             if value.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# several devices ----------------------------------------------------------------------------------------------------
needs_accelerate = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None,
                                      reason="accelerate (extra devices) is not installed")


@needs_accelerate
@pytest.mark.parametrize(("name", "device_map"), [
    ("opt", "auto"), ("flan_t5", "auto"),
    ("opt", {"model.decoder.embed_tokens": "cpu", "model.decoder.embed_positions": "cpu",
             "model.decoder.project_in": "cpu", "model.decoder.project_out": "cpu",
             "model.decoder.final_layer_norm": "cpu", "model.decoder.layers.0": "cpu",
             "model.decoder.layers.1": "cpu", "lm_head": "cpu"})])
def test_a_model_that_is_spread_answers_as_before(name: str, device_map: Any, tmp_path: Path) -> None:
    saved = tiny(name)
    saved.model.save_pretrained(tmp_path)
    model = build_language_model(str(tmp_path), tokenizer=saved.tokenizer.loaded, limits=saved.limits,
                                 setup=LMLoadOptions(device_map=device_map))
    load_pretrained(model, str(tmp_path))
    assert any(hasattr(module, "_hf_hook") for module in model.model.modules())
    soft, options = soft_prompts(saved).detach(), GenerationConfig(max_new_tokens=5, num_beams=2)
    assert model.generate(soft, TEXTS[0], options) == saved.generate(soft, TEXTS[0], options)
    torch.testing.assert_close(model.score(soft, TEXTS[0], ["x", "yz"]), saved.score(soft, TEXTS[0], ["x", "yz"]))
    assert {value.device.type for value in model.to("meta").parameters()} == {"cpu"}, "it stays where it lies"


@needs_accelerate
@pytest.mark.parametrize(("device_map", "words"), [({"lm_head": "cpu"}, "llm_device_map"), ({"": "disk"}, "disk")])
def test_a_map_that_does_not_work(device_map: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        spread(tiny("opt").model, device_map)
