"""The gate of the configuration: what a YAML file or an option gives is plain values, or a clear error.

Plain are null, true and false, numbers of 64 bits, text, lists, and sections with text as keys. Everything behind this
gate may rely on that: no dates, bytes, paths or sets from typed YAML tags, no text that no file name, terminal or file
can hold, no interpolation that cannot be parsed, no nesting without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_lite.errors import ConfigError, shown

DEEPEST = 40
"""sections within sections"""


def plain(value: Any, where: str, key: str = "", depth: int = 0, resolved: bool = False) -> Any:
    """The same value, with text as keys.

    Args:
        value: as a YAML reader gives it.
        where: file or option that it comes from, for messages.
        key: its dotted key.
        depth: of sections around it.
        resolved: whether interpolations are filled in, so that "${" is text like any other.

    Raises:
        ConfigError: a value that is not plain; names where it is.
    """
    if depth > DEEPEST:
        raise _refused(where, key[:80], f"is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {_key(name, where, key): plain(inner, where, f"{key}.{name}".lstrip("."), depth + 1, resolved)
                for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, where, f"{key}.{position}", depth + 1, resolved) for position, inner in enumerate(value)]
    problem = _problem(value, resolved)
    if problem:
        raise _refused(where, key, problem)
    return value


def _key(name: Any, where: str, parent: str) -> str:
    if not isinstance(name, str | int | float | None):  # YAML reads `1:`, `on:` and `null:` as other than text
        raise _refused(where, parent, f"has the key {shown(name)}, which is not text")
    text = str(name)
    problem = _text_problem(text)
    if problem or "${" in text:
        raise _refused(where, parent, f"has the key {shown(text)}, which {problem or 'has an interpolation in it'}")
    return text


def _problem(value: Any, resolved: bool) -> str:
    """What is wrong with a single value, as the end of a sentence; "" when nothing is."""
    if isinstance(value, str):
        return _text_problem(value) or ("" if resolved else _interpolation_problem(value))
    if isinstance(value, int) and not -2**63 <= value < 2**63:
        return f"is a number of more than 64 bits ({shown(value)})"
    if value is None or type(value) in (bool, int, float):
        return ""
    return f"is a {type(value).__name__}, not a plain value; put it in quotes to make it text"


def _text_problem(text: str) -> str:
    if "\0" in text:
        return "has a null character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "has half of a surrogate pair, which is not a character"
    return ""


def _interpolation_problem(text: str) -> str:
    if "${" not in text:
        return ""
    try:
        OmegaConf.create({"value": text})
    except (OmegaConfBaseException, RecursionError) as error:
        reason = str(error).splitlines()[0][:100]
        return f"is not an interpolation ({reason}): {shown(text)}; write \\${{ for a dollar sign and a brace"
    return ""


def _refused(where: str, key: str, problem: str) -> ConfigError:
    position = f"{where}: {key[:200]}" if key else where
    return ConfigError(f"{position} {problem}.")
