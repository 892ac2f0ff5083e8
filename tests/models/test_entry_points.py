"""Every public entry point with odd texts and batches: an answer, or one error that teaches; never a raw one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lavis_lite.errors import ConfigError, DataError, LavisLiteError, TextTooLongError
from lavis_lite.models.text_tokens import MINI_FOLDER
from lavis_lite.registry import registry
from tests.models.language.tiny import SIZES
from tests.models.test_blip2_llm import SIZES_OF_QFORMER

LONG = "blue " * 10_000
NO_LIMIT = "blue " * 300
"""for T5, which has no limit: more would only cost time and memory"""
TEXTS: dict[str, Any] = {
    "10,000 words": [LONG, "a dog"], "all long": [LONG, LONG], "empty": ["", "a dog"], "blank": ["   ", "\t"],
    "line breaks": ["\n\n", "a\r\nb"], "one string": "a dog", "one long string": LONG, "special": ["</s> [SEP]", "<s>"],
    "odd characters": ["\x00\u200b\ufdd0", "😀" * 10], "braces": ["{} {x} {", "}{"], "none": [], "too many": ["a"] * 3,
}
ARCHS = {"blip2_opt": "opt", "blip2_t5": "t5", "blip2_t5_instruct": "flan_t5", "blip2_vicuna_instruct": "llama"}
Call = Callable[[Any, dict[str, Any], Any], Any]
WRITE: dict[str, Call] = {
    "generate": lambda model, given, text: model.generate({**given, "prompt": text}, num_beams=2, max_new_tokens=2),
    "generate with OCR tokens": lambda model, given, text: model.generate(
        {**given, "prompt": "read {}:", "ocr_tokens": [[one] for one in text]}, num_beams=1, max_new_tokens=2),
    "predict_answers": lambda model, given, text: model.predict_answers(
        {**given, "text_input": text}, num_beams=1, max_len=3, prompt="Question: {} Answer:"),
    "predict_answers, rank": lambda model, given, text: model.predict_answers(
        {**given, "text_input": text}, inference_method="rank", answer_list=["yes", "no"]),
    "predict_class": lambda model, given, text: model.predict_class({**given, "prompt": text}, ["yes", "no"]),
    "dialogue": lambda model, given, text: model.predict_class(
        {**given, "prompt": "q?", "history": text}, ["yes", "no"]),
    "candidates": lambda model, given, text: model.score_candidates({**given, "prompt": "what?"}, text),
    "few-shot": lambda model, given, text: model.generate(
        {**given, "prompt": "q", "few_shot_samples": {"text_input": [text] if isinstance(text, str) else text}},
        num_beams=1, max_new_tokens=2),
    "forward": lambda model, given, text: model({**given, "text_input": text, "text_output": text}),
    "captions": lambda model, given, text: model({**given, "text_input": text}),
}
SEE: dict[str, Call] = {
    "forward": lambda model, given, text: model({**given, "text_input": text}),
    "match itm": lambda model, given, text: model.match({**given, "text_input": text}),
    "match itc": lambda model, given, text: model.match({**given, "text_input": text}, "itc"),
    "extract text": lambda model, given, text: model.extract_features({"text_input": text}, "text"),
    "extract both": lambda model, given, text: model.extract_features({**given, "text_input": text}),
    "forward_text": lambda model, given, text: model.forward_text(text),
    "compute_itm": lambda model, given, text: model.compute_itm(
        model.forward_image(given["image"])[1], model.tokenize(text, 10**6).ids, model.tokenize(text, 10**6).mask),
}


def build(arch: str) -> Any:
    torch.manual_seed(0)
    cls = registry.get_model_class(arch)
    more: dict[str, Any] = {}
    if arch in ARCHS:
        kind = "t5" if "t5" in arch else "opt"
        ids = {"vocab_size": 1068, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 0}
        more = {"llm_args": {**SIZES[ARCHS[arch]], **ids}, "llm_tokenizer": str(MINI_FOLDER.parent / kind)}
    sizes = {key: value for key, value in SIZES_OF_QFORMER.items() if arch in ARCHS or key != "llm_precision"}
    return cls.from_config(cls.config_class(arch=arch, max_txt_len=16, **sizes, **more)).eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {arch: build(arch) for arch in (*ARCHS, "blip2")}


def answers(call: Call, model: Any, text: Any, batch: int = 2) -> Any:
    """What a call gives, or its error; anything but the package's own errors fails the test."""
    with torch.no_grad():
        try:
            return call(model, {"image": torch.zeros(batch, 3, 32, 32)}, text)
        except LavisLiteError as fault:
            assert 20 < len(str(fault)) < 700, "one readable message, not the text itself"
            return fault


@pytest.mark.parametrize("call", WRITE)
@pytest.mark.parametrize("arch", ARCHS)
def test_models_that_write(arch: str, call: str, models: dict[str, Any]) -> None:
    relative = "t5" in arch  # their positions are relative: nothing is too long
    for kind, text in TEXTS.items():
        if relative:
            text = NO_LIMIT if text == LONG else [NO_LIMIT if one == LONG else one for one in text] if (
                isinstance(text, list)) else text
        found = answers(WRITE[call], models[arch], text)
        if "long" in kind and "string" not in kind and call in ("generate", "predict_class", "predict_answers"):
            assert isinstance(found, TextTooLongError) is not relative, (kind, found)
        if kind in ("empty", "blank", "special", "odd characters", "braces") and call != "candidates":
            assert not isinstance(found, LavisLiteError), (kind, found)


@pytest.mark.parametrize("call", SEE)
def test_models_that_compare(call: str, models: dict[str, Any]) -> None:
    for kind, text in TEXTS.items():
        found = answers(SEE[call], models["blip2"], text)
        if kind not in ("none", "too many", "10,000 words", "all long", "one long string"):
            assert not isinstance(found, LavisLiteError), (kind, found)


ODD: list[Any] = [None, 3, 2.5, True, b"x", [None, "a"], [3, 4], [[], []], [["a"], None], {}, ("a", "b"),
                  ["half \ud800", "a"]]
"""what is no list of texts"""


@pytest.mark.parametrize("arch", [*ARCHS, "blip2"])
def test_values_that_are_no_texts(arch: str, models: dict[str, Any]) -> None:
    """No raw error, whatever comes; numbers and half characters are read."""
    for name, call in (WRITE if arch in ARCHS else SEE).items():
        for value in ODD:
            if name == "generate with OCR tokens" and not isinstance(value, (list, tuple)):
                continue  # the call itself makes a list of it
            answers(call, models[arch], value)
        assert not isinstance(answers(call, models[arch], ["half \ud800", "a"]), LavisLiteError), name
    if arch in ARCHS:
        image = {"image": torch.zeros(2, 3, 32, 32)}
        for samples, words in (({"prompt": [None, "a"]}, "prompt: a text must be a string, not None"),
                               ({"prompt": "{}", "ocr_tokens": ["a", "b"]}, "each image has a list of texts, not 'a'"),
                               ({"prompt": 3}, "must be one string for all images, or a list"),
                               ({"few_shot_samples": ["a", "b"]}, "an entry is {text_input")):
            with pytest.raises(ConfigError, match=words):
                models[arch].generate({**image, **samples}, num_beams=1, max_new_tokens=1)
        assert models[arch].predict_class({**image, "prompt": "how many?"}, [1, 2, 3]).shape == (2, 3)


@pytest.mark.parametrize("arch", [*ARCHS, "blip2"])
def test_an_empty_batch(arch: str, models: dict[str, Any]) -> None:
    model, calls = models[arch], WRITE if arch in ARCHS else SEE
    assert model.generate({"image": torch.zeros(0, 3, 32, 32)}) == []
    for call in calls.values():
        answers(call, model, [], batch=0)
    if arch in ARCHS:
        assert model.predict_answers({"image": torch.zeros(0, 3, 32, 32), "text_input": []}) == []
        assert model.score_candidates({"image": torch.zeros(0, 3, 32, 32), "prompt": []}, ["a", "b"]).shape == (0, 2)
    for call in (WRITE if arch in ARCHS else SEE)["forward"],:
        assert isinstance(answers(call, model, [], batch=0), DataError)


@pytest.mark.parametrize("arch", [*ARCHS, "blip2"])
@pytest.mark.parametrize("batch", [{}, {"image": "x.jpg"}, {"image": None}, {"image": [torch.zeros(3, 32, 32)]}])
def test_samples_without_a_tensor_of_pictures(arch: str, batch: dict[str, Any], models: dict[str, Any]) -> None:
    model = models[arch]
    with pytest.raises(DataError, match="need a tensor under 'image'"):
        model.generate(batch)
    with pytest.raises(DataError, match="need a tensor under 'image'"):
        model({**batch, "text_input": ["a"]})


# the message ----------------------------------------------------------------------------------------------------------
def test_the_message_has_rows_tokens_and_room_and_comes_before_the_picture(models: dict[str, Any],
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    model = models["blip2_opt"]  # 256 positions, 4 queries; a begin token and a token per word
    monkeypatch.setattr(model, "encode_image", lambda image: pytest.fail("the picture was looked at"))
    room = 256 - 4 - 20
    samples = {"image": torch.zeros(3, 3, 32, 32), "prompt": ["a", "blue " * room, "red " * (room - 1)]}
    with pytest.raises(TextTooLongError, match=rf"1 of 3 prompts is too long .*row 1 has {room + 1} tokens, and there "
                       rf"is room for {room} \(256 positions - 4 vectors .* - 20 for the answer\)") as caught:
        model.generate(samples, max_new_tokens=20)
    assert caught.value.rows == {1: room + 1}
    with pytest.raises(TextTooLongError, match="2 of 3 prompts are too long"):
        model.score_candidates(samples, ["no", "red " * 30])
    with pytest.raises(TextTooLongError, match="3 of 3 rows have candidates too long .* one of row 0 has 30[01] "
                       "tokens, and there are 256 positions. Shorten the candidate") as caught:
        model.score_candidates({**samples, "prompt": "a"}, ["no", "red " * 300])
    assert set(caught.value.rows) == {0, 1, 2}
    with pytest.raises(ConfigError, match="max_new_tokens is 300, and this language model has 256 positions"):
        model.generate({**samples, "prompt": "a"}, max_new_tokens=300)
    with pytest.raises(DataError, match="too long"):
        model.predict_answers({**samples, "text_input": "red " * 250}, prompt="Question: {} Answer:")


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_vicuna_instruct"])
def test_a_prompt_that_fills_its_room_is_answered(arch: str, models: dict[str, Any]) -> None:
    model, frames = models[arch], 2
    for image, vectors in ((torch.zeros(1, 3, 32, 32), 4), (torch.zeros(1, 3, frames, 32, 32), 4 * frames)):
        words = "blue " * (256 - vectors - 5 - 1)
        assert len(model.generate({"image": image, "prompt": words}, num_beams=2, max_new_tokens=5,
                                  min_new_tokens=5)) == 1
        with pytest.raises(TextTooLongError):
            model.generate({"image": image, "prompt": words + "red"}, num_beams=2, max_new_tokens=5)


def test_the_archs_default_length_leaves_room_for_a_prompt(models: dict[str, Any]) -> None:
    model = models["blip2_vicuna_instruct"]  # 256 new tokens by default, and 256 positions
    assert len(model.generate({"image": torch.zeros(1, 3, 32, 32), "prompt": "blue " * 15}, num_beams=1)) == 1


# options --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", [*ARCHS, "blip2"])
@pytest.mark.parametrize(("wrong", "near"), [
    ("num_beam", "num_beams"), ("max_new_token", "max_new_tokens"), ("min_lenght", "min_length"),
    ("repetition_penalti", "repetition_penalty")])
def test_unknown_options_are_told_with_the_nearest(arch: str, wrong: str, near: str, models: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"generate has no option '{wrong}'; did you mean '{near}'"):
        models[arch].generate({"image": torch.zeros(1, 3, 32, 32)}, **{wrong: 1})


def test_unknown_options_of_the_other_methods(models: dict[str, Any]) -> None:
    writer, seer, image = models["blip2_opt"], models["blip2"], {"image": torch.zeros(1, 3, 32, 32)}
    for call, words in (
            (lambda: writer.generate(image, streamer=None), "generate has no option 'streamer'"),
            (lambda: writer.predict_answers({**image, "text_input": "q"}, num_beans=2), "'num_beans'; did you mean"),
            (lambda: writer.predict_class({**image, "prompt": "q"}, ["a", "b"], n_segment=2), "mean 'n_segments'"),
            (lambda: seer.extract_features(image, modes="image"), "did you mean 'mode'"),
            (lambda: seer.match({**image, "text_input": "a"}, head="itc"), "match has no option 'head'")):
        with pytest.raises(ConfigError, match=words):
            call()


def test_blip2_takes_the_order_of_lavis(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import lavis_lite.models.blip2.scoring as module

    seen: list[Any] = []
    monkeypatch.setattr(module, "decode", lambda *given: seen.append(given[3]) or [[]])
    image = {"image": torch.zeros(1, 3, 32, 32)}
    models["blip2"].generate(image, False, 4, 20, 6, 0.8, 1.7)
    models["blip2"].generate(image)
    models["blip2"].generate(image, True, max_new_tokens=4)
    told = [(one.num_beams, one.max_new_tokens, one.min_new_tokens, one.top_p, one.repetition_penalty, one.temperature)
            for one in seen]
    assert told == [(4, 19, 5, 0.8, 1.7, 1.0), (3, 29, 9, 0.9, 1.0, 1.0), (1, 4, 4, 0.9, 1.0, 1.0)]


# one text with many images, many texts with one image -----------------------------------------------------------------
@pytest.mark.parametrize("head", ["itm", "itc"])
def test_matching_heads_broadcast_alike(head: str, models: dict[str, Any]) -> None:
    model = models["blip2"]
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = ["a red dog", "two", "a long way home"]
    pairs = torch.stack([model.match({"image": pictures[i:i + 1], "text_input": [texts[t]]}, head)[0]
                         for i in range(3) for t in range(3)]).reshape(3, 3, -1)
    torch.testing.assert_close(model.match({"image": pictures, "text_input": texts}, head),
                               pairs[range(3), range(3)], rtol=1e-4, atol=1e-5)
    for one in ("two", ["two"]):
        torch.testing.assert_close(model.match({"image": pictures, "text_input": one}, head), pairs[:, 1], rtol=1e-4,
                                   atol=1e-5)
    torch.testing.assert_close(model.match({"image": pictures[2:], "text_input": texts}, head), pairs[2], rtol=1e-4,
                               atol=1e-5)
    with pytest.raises(ConfigError, match="3 images came with 2 texts to match"):
        model.match({"image": pictures, "text_input": texts[:2]}, head)


def test_compute_itm_broadcasts(models: dict[str, Any]) -> None:
    model = models["blip2"]
    _, features = model.forward_image(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    tokens = model.tokenize(["a red dog", "two", "a long way home"])
    whole = model.compute_itm(features, tokens.ids, tokens.mask)
    one_text = model.compute_itm(features, tokens.ids[1:2], tokens.mask[1:2])
    one_image = model.compute_itm(features[1:2], tokens.ids, tokens.mask)
    assert one_text.shape == one_image.shape == (3,)
    for found in (one_text[1], one_image[1]):
        torch.testing.assert_close(found, whole[1], rtol=1e-4, atol=1e-5)


