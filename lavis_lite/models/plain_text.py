"""Text to ids that are never control tokens: "</s>" or "[SEP]" in a caption is text like any other.

transformers splits such text on request (`split_special_tokens`). Some tokenizers also have the control tokens among
the words of their model (T5's, for example), where the same text finds them again. These texts are encoded by a twin
of the tokenizer in which no text can spell these words.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lavis_lite.errors import ConfigError, did_you_mean, shown
from lavis_lite.processors.text import MARKED, OPEN, without_marks

Side = Literal["left", "right"]
PROBE = "A photo of 2 cats, isn't it?"
"""two tokenizers of one folder that split this alike are taken for one"""
_HALVES = re.compile("[\ud800-\udfff]")


def as_text(value: Any, what: str) -> str:
    """A text as a string; numbers are written out.

    Args:
        value: what a caller gave.
        what: its name, for the message.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{what}: a text must be a string, not {shown(value)}.")


@dataclass
class CutTexts:
    """How many texts were read and how many of them lost tokens to a limit, since the tokenizer was made.

    Attributes:
        read: texts that were read, again each time.
        cut: those that lost tokens.
        longest: tokens of the longest text, before it was cut.
    """

    read: int = 0
    cut: int = 0
    longest: int = 0

    def count(self, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], frame: int) -> None:
        """Count texts.

        Args:
            before: ids of whole texts.
            after: ids of the same as they are read.
            frame: special tokens around each in `after`.
        """
        self.read += len(before)
        self.cut += sum(len(kept) < len(row) + frame for row, kept in zip(before, after, strict=True))
        self.longest = max(self.longest, *(len(row) + frame for row in before), 0)

    def plus(self, other: CutTexts) -> CutTexts:
        """Both together, for the texts of several ranks."""
        return CutTexts(self.read + other.read, self.cut + other.cut, max(self.longest, other.longest))


@contextlib.contextmanager
def uncounted(*counts: CutTexts) -> Iterator[None]:
    """Within it texts may be read that will be read again: the counts are put back at its end."""
    before = [(one, one.read, one.cut, one.longest) for one in counts]
    try:
        yield
    finally:
        for one, read, cut, longest in before:
            one.read, one.cut, one.longest = read, cut, longest


class PlainEncoder:
    """A transformers tokenizer that reads text as text.

    Args:
        tokenizer: of transformers; its special tokens are complete.

    Attributes:
        control_ids: ids of its special tokens, which no text becomes (but for the unknown token, which stands for
            characters that the tokenizer lacks).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.control_tokens = control_tokens(tokenizer)
        self.control_ids = frozenset(self.control_tokens.values())

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, with nothing before and after; marks of control tokens mean nothing here."""
        texts = [_readable(without_marks(text)) for text in texts]
        if not texts:
            return []
        rows = [list(row) for row in self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True,
                                                    verbose=False)["input_ids"]]
        return [row if self.control_ids.isdisjoint(row) else self._again(text, row)
                for text, row in zip(texts, rows, strict=True)]

    def template(self, texts: Sequence[str]) -> list[list[int]]:
        """As a call, but marked control tokens are the tokenizer's own.

        Raises:
            ConfigError: a mark names no control token of this tokenizer.
        """
        return [self._with_marks(text) if OPEN in text else row
                for text, row in zip(texts, self(texts), strict=True)]

    def _with_marks(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(MARKED.split(text)):  # texts and, at odd places, names
            ids += [self._named(part)] if number % 2 else self([part])[0]
        return ids

    def _named(self, name: str) -> int:
        if name not in self.control_tokens:
            raise ConfigError(f"a template marks the control token {name!r}, which the tokenizer does not have; "
                              f"{did_you_mean(name, self.control_tokens)}")
        return self.control_tokens[name]

    def _again(self, text: str, row: list[int]) -> list[int]:
        """A text in which the tokenizer's model found control tokens by itself."""
        if self._twin is not None:
            return list(self._twin.encode(text, add_special_tokens=False).ids)
        pieces = [piece for piece in self._inside.split(text) if piece]
        if len(pieces) < 2:  # only the unknown token
            return row
        rows = self.tokenizer(pieces, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [id_ for piece in rows for id_ in piece]

    @cached_property
    def _twin(self) -> Any:
        """The fast tokenizer without control tokens; None for a tokenizer in Python."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps(_unspellable(json.loads(backend.to_str()), self.control_tokens)))

    @cached_property
    def _inside(self) -> re.Pattern[str]:
        """Places after the first character of a control token."""
        parts = [f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in self.control_tokens if len(name) > 1]
        return re.compile("|".join(parts))


def _readable(text: str) -> str:
    """Halves of surrogate pairs, which no tokenizer takes, become the character for what cannot be read."""
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Special tokens of a transformers tokenizer by what they are written as."""
    named = {str(token): int(id_) for token, id_ in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids,
                                                        strict=True)}
    added = {str(token): int(id_) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**added, **named}


def _unspellable(description: dict[str, Any], control: Iterable[str]) -> dict[str, Any]:
    """A fast tokenizer's JSON in which no text spells a control token; every id stays."""
    renamed = {name: f"{OPEN}{number}" for number, name in enumerate(control)}
    model = description["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(name, name): id_ for name, id_ in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(name, name), score] for name, score in model["vocab"]]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if _is_free(pair, renamed)]
    added = [token for token in description["added_tokens"] if token["content"] not in renamed]
    return {**description, "added_tokens": added, "truncation": None, "padding": None, "post_processor": None}


def _is_free(pair: Any, renamed: dict[str, str]) -> bool:
    """Whether a merge has to do with no renamed word."""
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return renamed.keys().isdisjoint((left, right, left + right))


def check_files(tokenizer: Any, source: str, key: str) -> None:
    """Refuse a tokenizer that transformers makes of a folder without its vocabulary, or under a class that it guesses.

    The first knows only special tokens. The second, made for want of tokenizer_config.json, may split texts in
    another way than the folder's tokenizer.json.

    Args:
        tokenizer: of transformers.
        source: what it was made of; only a folder is checked.
        key: that named it, for the message.

    Raises:
        ConfigError: it is one of these.
    """
    names, here = getattr(tokenizer, "vocab_files_names", {}), set(os.listdir(source) if os.path.isdir(source) else ())
    parts = {name for part, name in names.items() if part in ("vocab_file", "merges_file")}
    stored = "tokenizer.json" in here
    if os.path.isdir(source) and names and not (
            stored or (parts and parts <= here) or any(name.endswith(".model") for name in here)):
        raise ConfigError(f"{key}: {source} has no vocabulary ({' and '.join(sorted(parts)) or 'tokenizer.json'}), so "
                          "that every word would be unknown. Download the tokenizer again.")
    if not stored or "tokenizer_config.json" in here:
        return
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(os.path.join(source, "tokenizer.json")).encode(PROBE, add_special_tokens=False).ids
    if own != tokenizer(PROBE, add_special_tokens=False)["input_ids"]:
        raise ConfigError(f"{key}: {source} has no tokenizer_config.json, and transformers takes its tokenizer for a "
                          f"{type(tokenizer).__name__}, which splits texts in another way. Put that file beside "
                          "tokenizer.json.")


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the special tokens that a tokenizer puts before and after a text."""
    plain = list(tokenizer("a", add_special_tokens=False, split_special_tokens=True)["input_ids"])
    full = list(tokenizer("a", split_special_tokens=True)["input_ids"])
    before = next((at for at in range(len(full) - len(plain) + 1) if full[at:at + len(plain)] == plain), 0)
    return full[:before], full[before + len(plain):]


def framed(row: Sequence[int], before: Sequence[int], after: Sequence[int], limit: int | None, side: Side) -> list[int]:
    """A text's ids between special tokens, at most `limit` in all; the text loses ids at `side`, the frame none."""
    room = len(row) if limit is None else max(limit - len(before) - len(after), 0)
    kept = row if len(row) <= room else row[len(row) - room:] if side == "left" else row[:room]
    return [*before, *kept, *after]
