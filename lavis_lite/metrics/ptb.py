"""Tokens of captions as the Penn Treebank tokenizer of the official COCO evaluation gives them, without Java.

That tokenizer is a generated scanner: at every position the longest match of all its rules counts, and of equally long
ones the first. The rules of ptb_rules.py are ours; they were fitted to its behaviour (the tests hold recorded outputs).
Most words take a short way: text between two blanks is scanned once and remembered if its tokens do not depend
on what follows.

The official code joins all captions by line breaks before it tokenizes them. The text after a line break decides
whether "plan B." or "see fig." ends with an abbreviation. So the tokens of such a caption depend on the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import chain
from string import ascii_letters, digits

from lavis_lite.metrics.ptb_characters import CAPITAL, DIGIT, MARK, SMALL, shadow
from lavis_lite.metrics.ptb_rules import ABBREVIATED, COUNTED, SPLIT, Rule, rules

PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--",
                         "...", ";"])
"""tokens that the official code removes; brackets are in lower case there and so stay"""
_BREAKS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029\0]|\\|\\|\\|")
"""what ends a line anywhere on the way of a caption, and what parts its references"""
_WHITE = frozenset(" \t\u00a0\u3000\n" + "".join(map(chr, range(0x2000, 0x200b))))
_LETTERS = frozenset(ascii_letters + SMALL + CAPITAL + MARK)
_DIGITS = frozenset(digits + DIGIT)
_BEFORE_BLANK = re.compile("([A-Za-z]+) ")
_ALONE = re.compile(r"[A-Za-z,;?!'/-]+\.?")
"""a chunk between blanks with tokens that depend on nothing else, if it does not end with an abbreviation"""
_MOST_CHUNKS = 1 << 16


def tokenize(text: str, following: str = "") -> list[str]:
    """Tokens of a caption in lower case, punctuation left out.

    Args:
        text: a caption; line breaks of any kind are blanks.
        following: the next caption of the stream, "" after the last. It matters only where the caption ends with
            an abbreviation, see above.
    """
    line = one_line(text)
    try:
        return _by_chunk(line)
    except _HangsOnMoreError:
        return _whole(line, f"\n{one_line(following)}" if following else "")


def tokenize_all(texts: Iterable[str]) -> list[list[str]]:
    """Tokens of captions in the official order, which official scores of single images need.

    Args:
        texts: as the official code writes them into one file: the references of all images one after the other, or
            all predictions.
    """
    lines, found = [one_line(text) for text in texts], []
    for position, line in enumerate(lines):
        try:
            found.append(_by_chunk(line))
        except _HangsOnMoreError:
            following = lines[position + 1:position + 2]
            end = "\n" if position + 2 < len(lines) else ""
            found.append(_whole(line, f"\n{following[0]}{end}" if following else ""))
    return found


def forget() -> None:
    """Clear the cache of chunks."""
    _CHUNKS.clear()
    _CHUNKS.others.clear()


def one_line(text: str) -> str:
    """The text with blanks for all characters that would end a line or separate references."""
    return text if text.isprintable() and "|" not in text else _BREAKS.sub(" ", text)


def _by_chunk(line: str) -> list[str]:
    """Tokens of one line from what is remembered of its chunks; raises _HangsOnMoreError."""
    return list(chain.from_iterable(map(_CHUNKS.__getitem__, line.split(" "))))


def _whole(line: str, rest: str) -> list[str]:
    """Tokens of one line; `rest` is what follows it: "" or a line break and the next line."""
    return [token for token in scan(line, rest) if token not in PUNCTUATION]


class _HangsOnMoreError(Exception):
    """The tokens of a chunk may depend on the text around it."""


class _Chunks(dict[str, tuple[str, ...]]):
    """Tokens of the text between two blanks, computed on first use; raises _HangsOnMoreError."""

    def __init__(self) -> None:
        super().__init__()
        self.others: set[str] = set()

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        found = None if chunk in self.others else _chunk(chunk)
        if len(self) + len(self.others) >= _MOST_CHUNKS:
            self.clear()
            self.others.clear()
        if found is None:
            self.others.add(chunk)
            raise _HangsOnMoreError(chunk)
        self[chunk] = found
        return found


def _chunk(chunk: str) -> tuple[str, ...] | None:
    """Tokens of a chunk, None where they may hang on more than the chunk."""
    if not chunk:
        return ()
    word = chunk.lower()
    if not word.isalpha():
        word = word[:-1] if chunk[-1] == "," or chunk[-1] == "." and not ABBREVIATED.fullmatch(chunk) else ""
    if word.isalpha() and word.isascii() and word not in SPLIT:
        return (word,)
    if not _ALONE.fullmatch(chunk) or COUNTED.fullmatch(chunk):
        return None
    return tuple(token for token in scan(chunk, "\n") if token not in PUNCTUATION)


_CHUNKS = _Chunks()


def scan(line: str, rest: str) -> list[str]:
    """All tokens of a line, punctuation among them; `rest` as in `_whole`."""
    text, position, tokens = line + rest, 0, []
    shape, end = shadow(text), len(line)
    while position < end:
        plain = _BEFORE_BLANK.match(shape, position)
        if shape[position] in _WHITE:
            position += 1
        elif plain is not None and plain[1].lower() not in SPLIT:  # no rule takes more of it, or less
            tokens.append(plain[1].lower())
            position = plain.end()
        else:
            token, position = _longest(text, shape, position)
            tokens += [token.lower()] if token else []
    return tokens


def _longest(text: str, shape: str, position: int) -> tuple[str, int]:
    """The token that begins at a position, and the position after it; "" if the character is dropped."""
    reach, best = position, None
    for rule in _rules_for(shape[position]):
        match = rule.pattern.match(shape, position)
        if match is not None and match.end() > reach:
            reach, best = match.end(), (rule, match)
    if best is None:
        return "", position + 1
    rule, match = best
    first, end = match.span(1 if rule.pattern.groups else 0)
    return rule.token(text[first:end]), end - rule.again


@cache
def _rules_for(character: str) -> tuple[Rule, ...]:
    """The rules a token with this first character of its shadow can be of."""
    kind = "a" if character in _LETTERS else "0" if character in _DIGITS else character
    return tuple(rule for rule in rules() if kind in rule.first or rule.first == "*")
