"""Keeps secrets out of all output: files of a run, logs, messages.

There are two kinds of secrets. The value of `${oc.env:NAME}` in a configuration is shown as `${oc.env:NAME}`. In URLs,
user names and passwords and the values of parameters such as `token` or `X-Amz-Signature` are shown as `***`.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

HIDDEN = "***"
SHORTEST = 6
"""characters; a shorter value (`1`, `cuda`, `train`) is not a secret, and hiding it would garble other text"""
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^/\s?#\"'<>]*)@")
_SECRET_NAME = (r"[\w.-]*(?:token|secret|signature|password|passwd|pwd|credential|api[_-]?key|access[_-]?key|"
                r"accesskeyid|auth(?!or))[\w.-]*|sig|key")
_PARAMETER = re.compile(rf"(?P<name>(?:[?&;]|&amp;|\\u0026)(?:{_SECRET_NAME})=)(?P<value>[^&;\s#\"'<>)\\]+)", re.I)
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*(['\"]?)(?P<name>[^,}'\"]+?)\1\s*(?:,[^}]*)?\}")


class _Known:
    """The secrets of this process: spelling of a secret -> the text to show instead."""

    shown: dict[str, str] = {}
    pattern: re.Pattern[str] | None = None


def remember(value: str, shown: str) -> None:
    """From now on, show `shown` instead of a value, however it is quoted or escaped.

    Values of fewer than six characters, and plain numbers, are not hidden.
    """
    if len(value.strip()) < SHORTEST or _is_number(value):
        return
    for spelling in _spellings(value):
        _Known.shown.setdefault(spelling, shown)
    longest_first = sorted(_Known.shown, key=len, reverse=True)
    _Known.pattern = re.compile("|".join(map(re.escape, longest_first)))


def remember_environment(tree: Any) -> None:
    """Remember every `${oc.env:NAME}` in a configuration's texts."""
    if isinstance(tree, str):
        for found in _FROM_ENVIRONMENT.finditer(tree):
            value = os.environ.get(found["name"].strip())
            if value:
                remember(value, f"${{oc.env:{found['name'].strip()}}}")
    elif isinstance(tree, Mapping):
        for inner in tree.values():
            remember_environment(inner)
    elif isinstance(tree, list | tuple):
        for inner in tree:
            remember_environment(inner)


def forget() -> None:
    """Forget all secrets; those in URLs stay hidden."""
    _Known.shown, _Known.pattern = {}, None


def mask(text: str) -> str:
    """A text without secrets."""
    if _Known.pattern is not None:
        text = _Known.pattern.sub(lambda found: _Known.shown[found[0]], text)
    if "://" in text:
        text = _USER.sub(_without_user, text)
        text = _PARAMETER.sub(lambda found: f"{found['name']}{HIDDEN}", text)
    return text


def _without_user(found: re.Match[str]) -> str:
    user = found["user"]
    return found[0] if user.startswith("${") and user.endswith("}") else f"{found['scheme']}{HIDDEN}@"


def reveal(text: str) -> str:
    """A masked text, with every `${oc.env:NAME}` replaced by its value in the environment."""
    return _FROM_ENVIRONMENT.sub(lambda found: os.environ.get(found["name"].strip(), found[0]), text)


def mask_all(value: Any) -> Any:
    """Plain containers with every text masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {mask(key) if isinstance(key, str) else key: mask_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask_all(inner) for inner in value]
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _spellings(value: str) -> set[str]:
    """The spellings of a value in plain text, JSON, HTML, a URL, and Python's quotes."""
    escaped = json.dumps(value)[1:-1]
    page = escaped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    spellings = {value, value.strip(), escaped, json.dumps(value, ensure_ascii=False)[1:-1], page, repr(value)[1:-1],
                 html.escape(value), quote(value), quote(value, safe=""), quote_plus(value)}
    return {one for one in spellings if len(one) >= SHORTEST}


class MaskedStream:
    """A wrapper of a text stream that masks all text written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without its secrets; returns the length of the original."""
        self._stream.write(mask(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def masked_output() -> Iterator[None]:
    """Mask standard output and standard error, including tracebacks and warnings, while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = MaskedStream(before[0]), MaskedStream(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
