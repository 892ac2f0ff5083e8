"""Hashes of files, and JSON files that carry a hash of their own content, so that an altered one is never believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_lite import redaction

SEAL = "seal"


def seal(facts: Mapping[str, Any]) -> str:
    """JSON text in one fixed form, with the sha256 of the other facts under "seal"."""
    body = redaction.mask_all({key: value for key, value in facts.items() if key != SEAL})
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, SEAL: digest}, sort_keys=True, indent=1) + "\n"


def read(path: Path) -> dict[str, Any]:
    """The facts of a sealed file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, is not sealed, or was altered.
    """
    content = path.read_bytes()
    try:
        facts = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(facts, dict):
        raise ValueError("it is not a JSON object")
    if SEAL not in facts:
        raise ValueError("it has no seal: an earlier version of this package, or another program, wrote it")
    if seal(facts).encode() != content:
        raise ValueError("its content does not match its seal, so it was altered or damaged")
    return facts


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
