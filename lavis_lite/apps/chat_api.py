"""OpenAI's chat completions as plain values: bodies of requests in, bodies of answers out. Needs no web server."""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.datasets.media.images import BadSample, decode_rgb
from lavis_lite.errors import DataError, did_you_mean, shown
from lavis_lite.models.decoding import Decoding

Finish = Literal["stop", "length"]
ROLES = ("system", "user", "assistant")
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "logit_bias": ({},), "top_k": (0, -1), "min_p": (0,), "min_tokens": (0,), "use_beam_search": (False,),
    "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "response_format": ({"type": "text"},),
    "tools": ([],), "functions": ([],)}
"""keys of OpenAI and vLLM that ask for another answer -> values that ask for nothing"""
SEEDS = 2**63
"""a seed is below it, and not below its negative"""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        tokens: new tokens of an answer; also what an answer has if the request does not say.
        pictures: of all messages.
        pixels: of one picture.
        body: bytes of a request.
        characters: of all texts.
    """

    tokens: int = 512
    pictures: int = 8
    pixels: int = 40_000_000
    body: int = 20 * 2**20
    characters: int = 50_000


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer.

    Attributes:
        model: its name; "": the first one.
        conversation: ends with a user's turn.
        pictures: in the order of the conversation.
        options: how the answer is written.
        stream: receives its pieces; None: the answer comes as a whole.
        cancelled: whether the client has stopped waiting for it.
    """

    model: str
    conversation: Conversation
    pictures: Sequence[Image.Image]
    options: Decoding
    streams: bool = False
    stream: Callable[[str], None] | None = field(default=None, compare=False)
    cancelled: Callable[[], bool] = field(default=lambda: False, compare=False)


@dataclass(frozen=True)
class ChatAnswer:
    """What a model says.

    Attributes:
        text: the answer.
        finish: "length" if it ended for want of tokens.
        read: tokens and vectors of pictures that the language model read.
        written: tokens of the answer.
    """

    text: str
    finish: Finish
    read: int
    written: int


# requests -------------------------------------------------------------------------------------------------------------
def parsed(body: Any, limits: Limits) -> ChatRequest:
    """A request from the JSON of its body. Keys that would not change the answer are ignored.

    Raises:
        DataError: it is not such a request, or asks for more than the limits allow.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise DataError("messages: a request has a list of at least one message.")
    if body.get("n") not in (None, 1):
        raise DataError(f"n: one answer for each request, not {shown(body['n'])}.")
    for key, neutral in NOT_OFFERED.items():
        if body.get(key) not in (None, *neutral):
            raise DataError(f"{key}: {shown(body[key])} would change the answer, and is not offered; leave it out.")
    pictures: list[Image.Image] = []
    turns = tuple(_turn(message, f"messages[{number}]", pictures, limits)
                  for number, message in enumerate(body["messages"]))
    if turns[-1].role != "user":
        raise DataError(f"messages: the last one must be the user's, not the {turns[-1].role}'s.")
    size = sum(len(part) for turn in turns for part in turn.parts if isinstance(part, str))
    if size > limits.characters:
        raise DataError(f"messages: {size} characters of text; at most {limits.characters} are read.")
    model = body.get("model") or ""
    if not isinstance(model, str):
        raise DataError(f"model: must be a name, not {shown(model)}.")
    return ChatRequest(model, Conversation(turns, len(pictures)), pictures, _options(body, limits),
                       bool(body.get("stream")))


def _turn(message: Any, where: str, pictures: list[Image.Image], limits: Limits) -> Turn:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise DataError(f"{where}.role: {shown(role)}; {did_you_mean(str(role), ROLES)}")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise DataError(f"{where}.content: must be a text or a list of parts, not {shown(content)}.")
    return Turn(message["role"], tuple(_part(part, f"{where}.content[{number}]", pictures, limits)
                                       for number, part in enumerate(parts)))


def _part(part: Any, where: str, pictures: list[Image.Image], limits: Limits) -> str | Picture:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    address = part.get("image_url") if kind == "image_url" else None
    address = address.get("url") if isinstance(address, Mapping) else address
    if not isinstance(address, str):
        raise DataError(f"{where}: a part is {{type: text, text}} or {{type: image_url, image_url: {{url}}}}, not "
                        f"{shown(part)}.")
    if len(pictures) >= limits.pictures:
        raise DataError(f"{where}: at most {limits.pictures} pictures in a request.")
    pictures.append(_picture(address, where, limits))
    return Picture(len(pictures) - 1)


def _picture(address: str, where: str, limits: Limits) -> Image.Image:
    head, comma, data = address.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        raise DataError(f"{where}: the server fetches nothing; send the picture itself, as "
                        f"data:image/jpeg;base64,..., not {shown(address, 60)}.")
    try:
        return decode_rgb(base64.b64decode(data, validate=True), where, limits.pixels)
    except binascii.Error as error:
        raise DataError(f"{where}: not base64: {error}.") from error
    except BadSample as error:
        raise DataError(f"{where}: {error.reason}.") from error


def _options(body: Mapping[str, Any], limits: Limits) -> Decoding:
    tokens = body.get("max_completion_tokens", body.get("max_tokens"))
    tokens = limits.tokens if tokens is None else tokens
    if type(tokens) is not int or not 1 <= tokens <= limits.tokens:
        raise DataError(f"max_tokens: a whole number from 1 to {limits.tokens}, not {shown(tokens)}.")
    temperature, top_p = (_number(body, "temperature", 0.0, 2.0, 0.0), _number(body, "top_p", 0.0, 1.0, 1.0))
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(one, str) and one for one in stop) or len(stop) > 4:
        raise DataError(f"stop: up to four texts, not {shown(stop)}.")
    seed = body.get("seed")
    if seed is not None and not (type(seed) is int and -SEEDS <= seed < SEEDS):
        raise DataError(f"seed: a whole number of at most 64 bits, not {shown(seed)}.")
    if temperature == 0.0:
        return Decoding(max_new_tokens=tokens, stop=tuple(stop))
    return Decoding(max_new_tokens=tokens, stop=tuple(stop), sample=True, temperature=temperature,
                    top_p=max(top_p, 1e-6), seeds=(secrets.randbits(31) if seed is None else seed,))


def _number(body: Mapping[str, Any], key: str, low: float, high: float, default: float) -> float:
    value = body.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise DataError(f"{key}: a number from {low:g} to {high:g}, not {shown(value)}.")
    return float(value)


# answers --------------------------------------------------------------------------------------------------------------
def new_id() -> str:
    """Of one answer."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def completion(model: str, answer: ChatAnswer) -> dict[str, Any]:
    """The body of an answer as a whole."""
    choice = {"index": 0, "message": {"role": "assistant", "content": answer.text}, "finish_reason": answer.finish}
    usage = {"prompt_tokens": answer.read, "completion_tokens": answer.written,
             "total_tokens": answer.read + answer.written}
    return {"id": new_id(), "object": "chat.completion", "created": int(time.time()), "model": model,
            "choices": [choice], "usage": usage}


def chunk(model: str, name: str, delta: Mapping[str, str], finish: Finish | None = None) -> dict[str, Any]:
    """A piece of an answer with the id `name`."""
    return {"id": name, "object": "chat.completion.chunk", "created": int(time.time()), "model": model,
            "choices": [{"index": 0, "delta": dict(delta), "finish_reason": finish}]}


def refusal(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
