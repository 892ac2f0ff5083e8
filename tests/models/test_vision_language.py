"""vision_language: captions, conversations, marks in prompts, rows without pictures, stages from each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.checkpoints.export import export_lite
from lavis_lite.checkpoints.weights import build_model
from lavis_lite.config.schema import RunConfig
from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.errors import ConfigError, ContractError, DataError
from lavis_lite.models.blip2.writing import TextWriter
from lavis_lite.models.protocols import Answerer, Captioner, FeatureExtractor, Ranker, Retriever
from lavis_lite.models.vision_language.config import VisionLanguageConfig
from lavis_lite.models.vision_language.model import VisionLanguage
from lavis_lite.zoo import load_model

QFORMER = {"type": "qformer", "queries": 12, "sizes": {
    "hidden_size": 128, "num_layers": 4, "num_heads": 4, "intermediate_size": 256, "dropout": 0.0}}
MINI: dict[str, Any] = {"vit_model": "mini", "vit_layer": -1, "image_size": 64, "vit_precision": "fp32",
                        "llm_model": "mini/opt", "load_pretrained": False, "arch": "vision_language"}


def build(connector: Any = None, **keys: Any) -> VisionLanguage:
    torch.manual_seed(0)
    model = build_model(VisionLanguageConfig(**{**MINI, "connector": connector or {"type": "mlp"}, **keys}))
    assert isinstance(model, VisionLanguage)
    return model


@pytest.fixture(scope="module")
def model() -> VisionLanguage:
    return build()


@pytest.fixture(scope="module")
def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 64, 64)


def talk(pictures: int, question: str, answer: str | None = "a dog") -> Conversation:
    asked = Turn("user", (*(Picture(number) for number in range(pictures)), question))
    return Conversation((asked, *([Turn("assistant", (answer,), True)] if answer else [])), pictures)


def double(model: VisionLanguage) -> VisionLanguage:
    model.double()
    model.language_model.model.double()
    return model


@pytest.mark.parametrize("kind", ["mini", "mini_linear", "mini_mlp", "mini_resampler", "mini_abstractor"])
def test_the_types_train_and_write(kind: str, image: Tensor) -> None:
    model = load_model("vision_language", kind, device="cpu")
    assert isinstance(model, VisionLanguage) and isinstance(model, Captioner) and isinstance(model, Answerer)
    assert isinstance(model, Ranker) and isinstance(model, FeatureExtractor) and not isinstance(model, Retriever)
    samples = {"image": image, "text_input": ["a red circle", "a blue square", "a cross"]}
    model(samples).loss.backward()
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert trained == {"connector"} == {name.split(".")[0] for name in model.trainable_state()}
    assert len(model.generate(samples, max_length=5)) == 3
    assert len(model.predict_answers(samples, prompt="question: {} answer:", max_len=3)) == 3
    assert model.score_candidates({"image": image, "prompt": "a"}, ["circle", "blue square"]).shape == (3, 2)
    width = model.language_model.hidden_size
    assert model.extract_features(samples).image_embeds.shape == (3, model.connector.tokens, width)


@pytest.mark.parametrize(("tokens", "width"), [(3, 128), (4, 7)])
def test_vectors_of_another_shape_than_a_connector_announces_name_the_connector(
        model: VisionLanguage, image: Tensor, monkeypatch: pytest.MonkeyPatch, tokens: int, width: int) -> None:
    monkeypatch.setattr(model.connector, "tokens", 4)
    monkeypatch.setattr(type(model.connector), "forward", lambda self, *_: torch.zeros(3, tokens, width))
    with pytest.raises(ContractError, match=rf"connector \w+ must return .*\(3, 4, 128\).* \(3, {tokens}, {width}\)"):
        model.embed_image(image)


def test_conversations_one_by_one_equal_the_batch(image: Tensor) -> None:
    model = double(build(freeze_vit=False))  # a frozen encoder computes in its own precision
    talks = [talk(1, "what is it?"), talk(0, "hello", "hi there"), talk(2, "both?", "a cat and a cow")]
    counts = [1, 0, 2]
    pictures = image.double()
    whole: dict[str, Any] = {"conversation": talks, "picture_counts": counts, "image": pictures}
    rows: list[dict[str, Any]] = [
        {"conversation": [own], "picture_counts": [count], **({"image": some} if count else {})}
        for own, count, some in zip(talks, counts, pictures.split(counts), strict=True)]
    tokens = [model.loss_terms(row)["loss"] for row in rows]
    assert model.loss_terms(whole) == {"loss": sum(tokens)}
    mean = sum(model(row).loss * count for row, count in zip(rows, tokens, strict=True)) / sum(tokens)
    torch.testing.assert_close(model(whole).loss, mean, atol=1e-12, rtol=0)


def test_answers_to_conversations(model: VisionLanguage, image: Tensor) -> None:
    talks = [talk(1, "what is it?", None), talk(0, "hello", None), talk(2, "both?", None)]
    given = model.generate({"conversation": talks, "picture_counts": [1, 0, 2], "image": image}, max_length=6)
    alone = [model.generate({"conversation": [own], "picture_counts": [len(some)], "image": some}, max_length=6)[0]
             for own, some in zip(talks, image.split([1, 0, 2]), strict=True)]
    assert given == alone


def test_rows_without_pictures_reach_the_connector_with_zeros(model: VisionLanguage) -> None:
    """So that ranks with pictures and ranks without wait for the same gradients."""
    model.zero_grad()
    model({"conversation": [talk(0, "hello")]}).loss.backward()
    gradients = [value.grad for value in model.connector.parameters()]
    assert all(grad is not None and not grad.any() for grad in gradients)


def test_a_mark_says_where_the_picture_stands(model: VisionLanguage, image: Tensor) -> None:
    texts = {"text_input": ["What is it?"] * 3, "text_output": ["red", "a blue square", "no"], "image": image}
    front = {**texts, "text_input": ["<image>What is it?"] * 3}
    torch.testing.assert_close(model(front).loss, model(texts).loss, atol=1e-5, rtol=1e-5)
    middle = {**texts, "text_input": ["USER: <image>What is it?"] * 3}
    assert not torch.allclose(model(middle).loss, model(texts).loss, atol=1e-3)
    assert model.loss_terms(middle) == model.loss_terms(texts)
    asked = {"image": image, "prompt": ["USER: <image> hm"] * 3}
    assert model.generate(asked, max_length=5) == [
        model.generate({"image": one[None], "prompt": "USER: <image> hm"}, max_length=5)[0] for one in image]
    bare = model.score_candidates({"image": image, "prompt": "which?"}, ["red", "blue"])
    marked = model.score_candidates({"image": image, "prompt": "<image>which?"}, ["red", "blue"])
    torch.testing.assert_close(marked, bare, atol=1e-4, rtol=1e-4)


def test_samples_that_share_pictures(model: VisionLanguage, image: Tensor) -> None:
    rows = torch.tensor([0, 0, 2])
    for prompt in ("which?", "see <image> which?"):
        shared = model.generate({"image": image, "image_rows": rows, "prompt": prompt}, max_length=5)
        assert shared == model.generate({"image": image[rows], "prompt": prompt}, max_length=5)


@pytest.mark.parametrize(("samples", "words"), [
    ({"conversation": [talk(1, "x")], "picture_counts": [2]}, "add up to the pictures"),
    ({"conversation": [talk(1, "x")], "picture_counts": [1, 0]}, "one for each conversation"),
    ({"text_input": ["<image> and <image>"] * 3, "text_output": ["x"] * 3}, "row 0: its prompt has 2 marks")])
def test_pictures_that_do_not_fit(model: VisionLanguage, image: Tensor, samples: dict[str, Any], words: str) -> None:
    count = 1 if "conversation" in samples else 3
    with pytest.raises(DataError, match=words):
        model({**samples, "image": image[:count]})


@pytest.mark.parametrize(("changes", "trained"), [
    ({"connector_train": False, "llm_train": "lora"}, {"language_model"}),
    ({"llm_train": "full"}, {"connector", "language_model"}),
    ({"vit_train": "last_1"}, {"connector", "vision_encoder"}),
    ({"vit_train": "lora", "connector": {"type": "linear"}}, {"connector", "vision_encoder"})])
def test_each_part_trains_by_its_key(changes: dict[str, Any], trained: set[str], image: Tensor) -> None:
    model = build(changes.pop("connector", None), **changes)
    model({"image": image[:1], "text_input": ["a red circle"]}).loss.backward()
    found = {name for name, value in model.named_parameters() if value.grad is not None}
    assert {name.split(".")[0] for name in found} == trained
    assert found == {name for name, value in model.named_parameters() if value.requires_grad}


def test_blip2s_qformer_as_a_connector_computes_the_same(image: Tensor) -> None:
    """A checkpoint of BLIP-2's stage 2 fills it, so that both give the same loss and texts."""
    blip2 = load_model("blip2_opt", "mini", device="cpu")
    assert isinstance(blip2, TextWriter)
    model = build({**QFORMER, "frozen": True}, load_pretrained=True, pretrained="mini/stage2_opt", vit_cls="keep",
                  prompt=blip2.prompt)
    texts = ["a red circle", "a blue square", "a cross"]
    samples = {"image": image, "text_input": texts, "text_output": texts}
    torch.testing.assert_close(model(samples).loss, blip2(samples).loss, atol=1e-4, rtol=1e-5)
    texts, wanted = (one.generate({"image": image}, max_new_tokens=8) for one in (model, blip2))
    assert texts == wanted
    projection = "connector.language_projection"
    assert set(model.trainable_state()) == {f"{projection}.weight", f"{projection}.bias"}


def test_a_second_stage_starts_from_the_first(tmp_path: Path, image: Tensor) -> None:
    first = build()
    with torch.no_grad():
        for value in first.connector.parameters():
            value.add_(1.0)
    export_lite(first, tmp_path / "stage1.safetensors")
    second = build(llm_train="lora", load_pretrained=True, pretrained=str(tmp_path / "stage1.safetensors"))
    samples = {"image": image, "text_input": ["a red circle"] * 3}
    torch.testing.assert_close(second(samples).loss, first(samples).loss, atol=1e-5, rtol=1e-5)


def test_errors_of_the_section() -> None:
    section = VisionLanguageConfig(**{**MINI, "vit_layer": 9, "connector": {"type": "mlp", "dept": 2},
                                      "template": "vicuna", "connector_lr_scale": 0.0, "vit_train": "some"})
    assert {key for key, _ in section.errors(RunConfig())} == {
        "vit_layer", "connector.dept", "template", "connector_lr_scale", "vit_train"}
    with pytest.raises(ConfigError, match="there is no connector 'qfomer'; did you mean 'qformer'"):
        build({"type": "qfomer"})


def test_learning_rates_by_part() -> None:
    model = build(llm_train="lora", llm_lr_scale=0.1, connector_lr_scale=0.01)
    scales = {name.split(".")[0]: group["lr_scale"] for group in model.optimizer_groups(RunConfig())
              for name in group["names"]}
    assert scales == {"language_model": 0.1, "connector": 0.01}


def test_a_row_limit_cuts_conversations_at_their_end(image: Tensor) -> None:
    short: dict[str, Any] = {"template": {"user": "{} ", "assistant": "{}</s>"}}
    cut = build(**short, max_row_len=72)
    samples = {"conversation": [talk(1, "what is it?", "a red dog and a blue cat")], "picture_counts": [1],
               "image": image[:1]}
    assert 0 < cut.loss_terms(samples)["loss"] < build(**short).loss_terms(samples)["loss"]
    cut(samples)
    assert cut.cut_texts()["sequences were cut at their end (model.max_row_len, or the language model's positions)"].cut
    assert ("max_row_len", "must be at least 2, not 1.") in VisionLanguageConfig(**MINI, max_row_len=1).errors(
        RunConfig())
