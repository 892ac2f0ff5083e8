"""projects/flamingo: what tokens look at, gates that start at 0, answers of batches, few shots."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.checkpoints.weights import build_model
from lavis_lite.config.schema import RunConfig
from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.errors import ConfigError, DataError
from projects.flamingo.model import Flamingo, FlamingoConfig, GatedLayer

SECTION: dict[str, Any] = {
    "arch": "flamingo", "vit_model": "mini", "image_size": 64, "vit_precision": "fp32", "llm_model": "mini/opt",
    "load_pretrained": False, "connector": {"type": "resampler", "queries": 4, "depth": 1, "heads": 2, "head_width": 8},
    "look_heads": 2, "look_head_width": 8, "look_ratio": 1, "template": {"user": "{} ", "assistant": "{}"}}


def build(gates: float = 0.5, **keys: Any) -> Flamingo:
    """A small model in float64; its frozen encoder computes in float32."""
    torch.manual_seed(0)
    model = build_model(FlamingoConfig(**{**SECTION, **keys}))
    assert isinstance(model, Flamingo)
    with torch.no_grad():
        for layer in model.gated:
            layer.gates.fill_(gates)
    model.double()
    model.language_model.model.double()
    return model


@pytest.fixture(scope="module")
def model() -> Flamingo:
    return build()


@pytest.fixture(scope="module")
def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 64, 64)


def talk(*parts: str | int, answer: str | None = "a red circle") -> Conversation:
    shown = tuple(Picture(part) if isinstance(part, int) else part for part in parts)
    turns = (Turn("user", shown), *([Turn("assistant", (answer,), True)] if answer else []))
    return Conversation(turns, sum(isinstance(part, int) for part in parts))


def chats(talks: list[Conversation], image: Tensor) -> dict[str, Any]:
    counts = [one.pictures for one in talks]
    return {"conversation": talks, "picture_counts": counts, **({"image": image} if sum(counts) else {})}


def test_the_first_loss_is_that_of_the_bare_language_model(image: Tensor) -> None:
    model = build(gates=0.0)
    samples = chats([talk(0, "a", 1, "b"), talk(0, "what is it?")], image)
    found = model(samples).loss
    with torch.no_grad():
        sequences = model.sequences(model.chat_batch(samples))
    bare = copy.deepcopy(model.language_model)
    for module in bare.modules():
        module._forward_pre_hooks.clear()
    assert bare.loss(sequences).item() == found.item()
    found.backward()
    assert all(layer.gates.grad.abs().min() > 0 for layer in model.gated)  # and they can leave it


def test_a_token_looks_at_the_last_picture_before_it_and_at_nothing_before_the_first(model: Flamingo,
                                                                                     image: Tensor) -> None:
    def loss(picture: Tensor, *parts: str | int) -> float:
        return float(model(chats([talk(*parts)], picture)).loss)

    changed = image.clone()
    changed[0] += 1.0
    assert loss(image[:2], 0, 1, "what is it?") != loss(image[:2].flip(0), 0, 1, "what is it?")
    words = len(model.language_model.tokenizer.loaded("what is it?", add_special_tokens=False).input_ids)
    loss(image[:2], "what is it?", 0, "what is it?", 1)
    rows, seen = model.view
    assert rows.tolist() == [[0, 1]] and sorted(set(seen[0].tolist())) == [0, 1, 2]
    assert seen[0].diff().min() >= 0 and int((seen == 1).sum()) == words + 1
    late = Conversation((Turn("user", ("hello ",)), Turn("assistant", ("a red circle",), True),
                         Turn("user", (Picture(0),))), 1)
    assert float(model(chats([late], image[:1])).loss) == pytest.approx(
        float(model(chats([late], changed[:1])).loss), abs=1e-12)


def test_a_layer_looks_at_one_picture() -> None:
    torch.manual_seed(0)
    layer = GatedLayer(8, 2, 4, 1).double()
    with torch.no_grad():
        layer.gates.fill_(1.0)
    text, pictures = torch.randn(1, 5, 8).double(), torch.randn(2, 3, 8).double()
    rows, seen = torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1, 2, 2]])
    before = layer(text, pictures, rows, seen)
    pictures[0] += 1.0
    changed = (layer(text, pictures, rows, seen) - before).abs().amax(-1)[0]
    assert (changed > 1e-6).tolist() == [False, True, True, False, False] and changed[[0, 3, 4]].max() == 0


def test_a_batch_of_mixed_rows_equals_its_rows_one_by_one(model: Flamingo, image: Tensor) -> None:
    talks = [talk(0, "what is it?"), talk("hello", answer="hi"), talk(0, "a", 1, "which one is it?", answer="blue")]
    counts, whole = [1, 0, 2], chats(talks, image)
    rows = [chats([one], some) for one, some in zip(talks, image.split(counts), strict=True)]
    tokens = [model.loss_terms(row)["loss"] for row in rows]
    mean = sum(model(row).loss * count for row, count in zip(rows, tokens, strict=True)) / sum(tokens)
    assert model(whole).loss.item() == pytest.approx(float(mean), abs=1e-6)  # the encoder computes in float32
    asked = [talk(0, "what is it?", answer=None), talk("hello", answer=None), talk(0, 1, "which?", answer=None)]
    for beams in (1, 3):
        options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 6}
        alone = [model.generate(chats([one], some), **options)[0]
                 for one, some in zip(asked, image.split(counts), strict=True)]
        assert model.generate(chats(asked, image), **options) == alone


def test_captions_with_a_cache_are_those_without(model: Flamingo, image: Tensor) -> None:
    """Greedy words one at a time, each from the whole text: what a row saw last is kept in its cache."""
    words = model.generate({"image": image[:1], "prompt": "a photo of"}, num_beams=1, max_new_tokens=5)[0]
    ids = model.language_model.tokenizer.loaded(words, add_special_tokens=False).input_ids
    candidates = [words, "a blue square"]
    scores = model.score_candidates({"image": image, "image_rows": torch.tensor([0, 0, 2]), "prompt": "a"}, candidates)
    torch.testing.assert_close(scores[0], scores[1], atol=1e-9, rtol=0)
    apart = [float(model.score_candidates({"image": one[None], "prompt": "a"}, candidates)[0, 0]) for one in image]
    assert ids and apart[0] == pytest.approx(float(scores[0, 0]), abs=1e-4)
    assert apart[2] == pytest.approx(float(scores[2, 0]), abs=1e-4) and abs(apart[0] - apart[2]) > 1e-4


def test_only_new_layers_train_and_every_one_gets_a_gradient(model: Flamingo, image: Tensor) -> None:
    model.zero_grad()
    model({"image": image, "text_input": ["a red circle", "a blue square", "a cross"]}).loss.backward()
    names = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert names == {"connector", "gated", "mark"} == {name.split(".")[0] for name in model.trainable_state()}
    model.zero_grad()
    model(chats([talk("hello", answer="hi")], image)).loss.backward()  # no picture: ranks wait for each other
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_layers_every_so_many_blocks_and_errors() -> None:
    assert len(build(look_every=2).gated) == 2
    found = FlamingoConfig(**{**SECTION, "look_every": 0, "look_ratio": -1}).errors(RunConfig())
    assert [key for key, _ in found] == ["look_every", "look_ratio"]
    with pytest.raises(ConfigError, match="decoder-only"):
        build(llm_model="mini/t5")


def test_a_conversation_that_is_lost_is_no_silent_swap(model: Flamingo, image: Tensor) -> None:
    long = talk(0, "what is it? " * 200)
    with pytest.raises(DataError, match="only 1 fit"):
        model(chats([long, talk(0, "a")], image[:2]))


def test_marks_are_found_under_autocast(image: Tensor) -> None:
    model = build().float()
    with torch.autocast("cpu", torch.bfloat16):
        model(chats([talk(0, "what is it?")], image[:1]))
    assert int(model.view[1].max()) == 1


def test_a_copy_looks_through_its_own_layers(model: Flamingo, image: Tensor) -> None:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer in twin.gated:
            layer.gates.zero_()
    samples = chats([talk(0, "what is it?")], image[:1])
    assert abs(float(model(samples).loss) - float(twin(samples).loss)) > 1e-6
