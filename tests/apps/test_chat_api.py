"""Requests of OpenAI's kind: what is read of them, and what is refused with a message that helps."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from lavis_lite.apps.chat_api import ChatAnswer, Limits, chunk, completion, parsed, refusal
from lavis_lite.conversation import Picture
from lavis_lite.errors import DataError


def address(size: int = 4, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def body(*content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content) or "hello"}], **more}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_a_conversation_with_pictures() -> None:
    request = parsed({"model": "m", "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image(address()), text("what?"), image(address(8, "JPEG"))]},
        {"role": "assistant", "content": "red"}, {"role": "user", "content": "sure?"}],
        "max_tokens": 7, "stop": "\n", "stream": True, "logit_bias": {}, "n": None,
        "user": "u", "presence_penalty": 0.0, "response_format": {"type": "text"}}, Limits())
    assert [turn.role for turn in request.conversation.turns] == ["system", "user", "assistant", "user"]
    assert request.conversation.turns[1].parts == (Picture(0), "what?", Picture(1))
    assert [one.size for one in request.pictures] == [(4, 4), (8, 8)] and request.conversation.pictures == 2
    assert (request.model, request.streams) == ("m", True)
    assert (request.options.max_new_tokens, request.options.stop, request.options.sample) == (7, ("\n",), False)


def test_how_an_answer_is_drawn() -> None:
    drawn = parsed(body(temperature=0.7, top_p=0.5, seed=3, max_completion_tokens=2), Limits()).options
    assert (drawn.sample, drawn.temperature, drawn.top_p) == (True, 0.7, 0.5)
    assert (drawn.seeds, drawn.max_new_tokens) == ((3,), 2)
    assert parsed(body(temperature=1), Limits()).options.seeds != parsed(body(temperature=1), Limits()).options.seeds
    assert not parsed(body(temperature=0, top_p=0.5), Limits(tokens=9)).options.sample
    assert parsed(body(), Limits(tokens=9)).options.max_new_tokens == 9


@pytest.mark.parametrize("given, words", [
    ([], "messages: a request has a list"), ({"messages": []}, "at least one message"),
    (body(n=2), "n: one answer for each request, not 2"),
    ({"messages": [{"role": "usr", "content": "x"}]}, r"messages\[0\].role: 'usr'; did you mean 'user'"),
    ({"messages": ["x"]}, r"messages\[0\].role: 'x'"),
    ({"messages": [{"role": "user", "content": 3}]},
     r"messages\[0\].content: must be a text or a list of parts, not 3"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
     "the last one must be the user's"),
    (body({"type": "audio"}), r"messages\[0\].content\[0\]: a part is .type: text"),
    (body(image("https://example.com/a.png")), "the server fetches nothing; send the picture itself"),
    (body(image("file:///etc/passwd")), "fetches nothing"), (body(image(None)), "a part is"),
    (body(image("data:image/png;base64,@@@@")), "not base64"),
    (body(image("data:image/png;base64,aGVsbG8=")), r"content\[0\]: "),
    (body(image(address(200))), "pixels"), (body(*[image(address())] * 3), "at most 2 pictures"),
    (body(text("x" * 30)), "30 characters of text; at most 20"), (body(model=3), "model: must be a name"),
    (body(max_tokens=0), "max_tokens: a whole number from 1 to 9, not 0"), (body(max_tokens=10), "not 10"),
    (body(max_tokens=True), "not True"), (body(temperature=3), "temperature: a number from 0 to 2, not 3"),
    (body(temperature="hot"), "not 'hot'"), (body(top_p=True), "top_p: a number"),
    (body(stop=[""]), "stop: up to four"), (body(stop=3), "stop: up to four texts"),
    (body(seed="7"), "seed: a whole number of at most 64 bits, not '7'"), (body(seed=2**63), "at most 64 bits"),
    (body(frequency_penalty=1.5), "frequency_penalty: 1.5 would change the answer, and is not offered"),
    (body(logprobs=True), "logprobs: True"), (body(response_format={"type": "json_object"}), "response_format: "),
])
def test_what_is_refused(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parsed(given, Limits(tokens=9, pictures=2, pixels=1000, characters=20))


def test_bodies_of_answers() -> None:
    found = completion("m", ChatAnswer("red", "length", 5, 2))
    assert found["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "red"},
                                 "finish_reason": "length"}]
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert found["object"] == "chat.completion" and found["id"] != completion("m", ChatAnswer("", "stop", 1, 0))["id"]
    piece = chunk("m", "id1", {"content": "r"})
    assert (piece["id"], piece["object"]) == ("id1", "chat.completion.chunk")
    assert piece["choices"] == [{"index": 0, "delta": {"content": "r"}, "finish_reason": None}]
    assert refusal("no")["error"]["message"] == "no"
