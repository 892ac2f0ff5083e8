"""`python -m lavis_lite chat`: a conversation about pictures with a model of the zoo or of a run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_lite.cli.console import command_parser, seed
from lavis_lite.cli.generate import QUIET, add_model, add_placement, model_source
from lavis_lite.errors import ConfigError, LavisLiteError, TextTooLongError
from lavis_lite.models.protocols import ChatModel
from lavis_lite.registry import lacking, registry

if TYPE_CHECKING:
    from lavis_lite.models.decoding import Decoding
    from lavis_lite.models.language.chat import Chat

HELP = "/image PATH adds a picture to your next words, /reset starts over, /quit or the end of the input leaves"


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser("chat", "Talk about pictures with a model of the zoo (--model) or a run (--run).", [
        "--model blip2_opt --image photo.jpg", "--run output/chat --image photo.jpg --message 'What is this?'"])
    add_model(arguments, "vision_language")
    arguments.add_argument("--image", nargs="+", default=[], metavar="PATH", help="pictures of your first turn")
    arguments.add_argument("--message", action="append", metavar="TEXT",
                           help="one of your turns, or several; without it they are read from the terminal")
    arguments.add_argument("--template", help="how turns become text (default: the model's own); see "
                                              "docs/guide/conversations.md")
    arguments.add_argument("--system", help="the system turn (default: the template's)")
    arguments.add_argument("--max-new-tokens", type=int, default=128, help="most tokens of an answer")
    arguments.add_argument("--temperature", type=float, default=0.0, help="sample; 0 (default): the likeliest tokens")
    arguments.add_argument("--top-p", type=float, help="with --temperature: share of the probability (default: 0.9)")
    arguments.add_argument("--seed", type=seed, default=42, help="of --temperature")
    add_placement(arguments)
    return arguments


def main(argv: Sequence[str]) -> int:
    """Answer every turn, piece by piece.

    Raises:
        LavisLiteError: impossible settings, before the model is built; with --message also an error of one turn.
    """
    chosen = parser().parse_args(list(argv))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from lavis_lite.models.decoding import Decoding
    from lavis_lite.processors.chat_templates import find_template

    source = model_source(chosen)
    if lacking(registry.get_model_class(source.arch), ChatModel):
        raise ConfigError(f"{source.arch}: this model holds no conversations; try vision_language or blip2_opt.")
    for path in chosen.image:
        if not Path(path).is_file():
            raise ConfigError(f"--image: there is no file {path}.")
    if chosen.top_p is not None and not chosen.temperature:
        raise ConfigError("--top-p belongs to sampling: add --temperature, or leave it out.")
    find_template(chosen.template or "plain")
    drawn = {} if not chosen.temperature else {
        "sample": True, "temperature": chosen.temperature, "top_p": 0.9 if chosen.top_p is None else chosen.top_p}
    chat, view = _open(chosen, source.arguments, Decoding(max_new_tokens=chosen.max_new_tokens, **drawn))
    images = [view(path) for path in chosen.image]
    for text in chosen.message or ():
        _answer(chat, text, images)
        images = []
    if not chosen.message:
        _talk(chat, view, images)
    return 0


def _open(chosen: argparse.Namespace, arguments: dict[str, Any], options: Decoding) -> tuple[Chat, Any]:
    """The conversation, and the function from a path to a picture for it."""
    import torch

    from lavis_lite.datasets.media.images import load_rgb
    from lavis_lite.zoo import load_model_and_preprocess

    model, images, _ = load_model_and_preprocess(
        **arguments, is_eval=True, device=chosen.device, dtype=chosen.dtype, quantization=chosen.quantization,
        allow_untrained=chosen.allow_untrained)
    torch.manual_seed(chosen.seed)
    chat: Chat = model.chat(chosen.template, options, chosen.system)
    return chat, lambda path: images["eval"](load_rgb(path))


def _answer(chat: Chat, text: str, images: Sequence[Any]) -> None:
    for piece in chat.stream(text, images):
        print(piece, end="", flush=True)
    print(flush=True)


def _talk(chat: Chat, view: Any, images: list[Any]) -> None:
    """Turns from the terminal. An error of one turn is printed and does not end the conversation."""
    print(HELP, file=sys.stderr)
    for line in _lines():
        command, _, rest = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/reset":
                chat.reset()
                images.clear()
            elif command == "/image":
                images.append(view(rest.strip()))
            elif line:
                _answer(chat, line, images)
                images.clear()
        except LavisLiteError as error:
            hint = " (/reset begins a new conversation)" if isinstance(error, TextTooLongError) else ""
            print(f"error: {error}{hint}", file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
