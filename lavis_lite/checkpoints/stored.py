"""What a checkpoint on disk says of itself: its step, its hash, and where its model's weights had come from."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lavis_lite.checkpoints.manifest import is_of_a_run, read_manifest
from lavis_lite.checkpoints.reading import INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS
from lavis_lite.errors import CheckpointError
from lavis_lite.models.provenance import Kind, WeightRecord, WeightSource

RECORD = "weights"
"""key of the record in a manifest, and in the metadata of a .safetensors file"""
MOST_HASHED = 4 * 2**30
"""bytes; files that are larger together keep no hash, so that a start does not wait for one"""


def weight_files(path: Path) -> list[Path]:
    """The files that hold the tensors of a checkpoint or of a model's folder; empty where there is none."""
    if path.is_file():
        return [path]
    for name in (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX):
        if (path / name).is_file():
            return sorted(_shards(path / name)) if name in (INDEX, TORCH_INDEX) else [path / name]
    return []


def _shards(index: Path) -> set[Path]:
    content = json.loads(index.read_text(encoding="utf-8"))
    return {index.parent / str(name) for name in content["weight_map"].values()}


def hash_of(path: str | Path) -> str:
    """sha256 of the weights at a path: of the file, or of its shards' hashes; "" for more than `MOST_HASHED` bytes."""
    found = [file for file in weight_files(Path(path)) if file.is_file()]
    facts = [file.stat() for file in found]
    if not found or sum(fact.st_size for fact in facts) > MOST_HASHED:
        return ""
    hashes = [_hash_file(str(file), fact.st_size, fact.st_mtime_ns) for file, fact in zip(found, facts, strict=True)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@lru_cache(maxsize=64)
def _hash_file(path: str, size: int, changed: int) -> str:
    """Of one file; size and time of its last change tell whether the hash of before still holds."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def stored_record(path: str | Path) -> WeightRecord | None:
    """What a checkpoint tells of the weights that its model had before its run; None: it tells nothing.

    Raises:
        CheckpointError: it tells something that is no record.
    """
    content = _stored(Path(path)).get(RECORD)
    return None if content is None else WeightRecord.from_dict(content, f"{path}: {RECORD}")


def stored_step(path: str | Path) -> int | None:
    """Optimizer steps that a run's checkpoint had done; None: it does not tell."""
    step = _stored(Path(path)).get("step")
    return step if isinstance(step, int) else None


def source_of(kind: Kind, name: str, path: str | Path) -> WeightSource:
    """The source that a file or folder is, for `mark_loaded`.

    Args:
        kind: what it is read as.
        name: as a YAML names it; a run's checkpoint is called by its path, as a run's folder stands for another one
            later.
        path: where it is.
    """
    if kind != "checkpoint":
        return WeightSource("", kind, name, str(path), sha256=hash_of(path))
    record, step = stored_record(path), stored_step(path)
    return WeightSource("", kind, name if step is None else str(path), str(path), step, hash_of(path),
                        origin=record.describe(with_origin=False) if record is not None else "")


def _stored(path: Path) -> dict[str, Any]:
    """What stands beside a checkpoint's tensors: its manifest, or the metadata of its file."""
    if is_of_a_run(path):
        manifest = read_manifest(path if path.is_dir() else path.parent)
        return {**manifest.extra, "step": manifest.step}
    file = path / WEIGHTS if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    try:
        with safe_open(file, "pt") as content:
            told = (content.metadata() or {}).get(RECORD)
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{file} cannot be read as safetensors ({fault}); it is damaged.") from fault
    return {} if told is None else {RECORD: _as_json(file, told.encode())}


def _as_json(where: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as fault:
        raise CheckpointError(f"{where}: not JSON ({fault}); it was altered or damaged.") from fault
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: not a JSON object; it was altered or damaged.")
    return content
