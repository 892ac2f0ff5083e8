"""What a checkpoint on disk says of itself: its manifest, its hash, and where its model's weights had come from.

A run's checkpoint is found by its folder too: `checkpoint_of_run`. A manifest is

    {"format", "step", "saved_at", "files": {name: {"size", "sha256"}}, "frozen", "tied", ..., "seal"}

One that was altered, comes from elsewhere, or has other types than these is a CheckpointError and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lavis_lite.errors import CheckpointError
from lavis_lite.io import atomic
from lavis_lite.models.provenance import Kind, WeightRecord, WeightSource

FORMAT = 1
WEIGHTS, STATE, CONFIG, MANIFEST = "model.safetensors", "training_state.pt", "config.yaml", "manifest.json"
INDEX, TORCH_WEIGHTS, TORCH_INDEX = f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
_MOST = 2**63
RECORD = "weights"
"""key of the record in a manifest, and in the metadata of a .safetensors file"""
MOST_HASHED = 4 * 2**30
"""bytes; files that are larger together keep no hash, so that a start does not wait for one"""


@dataclass(frozen=True)
class FileFacts:
    """What was written of one file.

    size: bytes. sha256: in hex.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint folder says of itself.

    Attributes:
        step: optimizer steps done.
        saved_at: ISO time with its offset from UTC.
        files: by name, the folder's other files.
        frozen: names of parameters that are in no file.
        tied: second names of tensors -> the names they are stored under.
        extra: all other facts.
    """

    step: int
    saved_at: str
    files: Mapping[str, FileFacts]
    frozen: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder, proved by its own seal.

    Raises:
        CheckpointError: missing, unreadable, altered, of a later format, or not a manifest of this package.
    """
    path = Path(folder) / MANIFEST
    try:
        facts = atomic.read_sealed(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: unreadable ({error.strerror}); is this a checkpoint folder?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable ({error}); is this a checkpoint folder?") from error
    form = facts.pop("format", None)
    if _is_count(form) and form > FORMAT:
        raise CheckpointError(f"{path}: format {form} is newer than this package reads ({FORMAT}); update lavis_lite.")
    try:
        return _checked(form, {key: value for key, value in facts.items() if key != atomic.SEAL})
    except ValueError as error:
        raise CheckpointError(f"{path}: not a manifest of this package ({error}).") from error


def file_fault(path: Path, facts: FileFacts) -> str:
    """What is wrong with a file of a checkpoint, as a clause; "" when it is as it was written."""
    try:
        if not path.is_file():
            return "missing"
        if path.stat().st_size != facts.size:
            return f"{path.stat().st_size} bytes, but {facts.size} were written"
        same = atomic.file_sha256(path) == facts.sha256
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return "" if same else "its sha256 differs from the manifest's, so it was altered or damaged"


def is_of_a_run(path: Path) -> bool:
    """Whether a folder, or the weights in it, is a run's checkpoint, which has a manifest to prove it by."""
    if not (path.is_dir() or path.name == WEIGHTS or _is_of_a_hook(path)):
        return False
    folder = path if path.is_dir() else path.parent
    file = folder / MANIFEST  # that of another program has no seal
    return (folder / STATE).is_file() or (file.is_file() and f'"{atomic.SEAL}"'.encode() in file.read_bytes())


def _is_of_a_hook(path: Path) -> bool:
    """Whether a file is a second set of weights in a run's checkpoint, such as ema.safetensors."""
    file = path.parent / MANIFEST
    return path.suffix == ".safetensors" and file.is_file() and f'"{path.name}"'.encode() in file.read_bytes()


def prove(path: Path) -> None:
    """Check the weights of a run's checkpoint against the manifest beside them; other files have none.

    Raises:
        CheckpointError: the file or the manifest is damaged.
    """
    if path.is_dir() or not is_of_a_run(path):
        return
    error = file_fault(path, read_manifest(path.parent).files[path.name])
    if error:
        raise CheckpointError(f"{path}: {error}. Take another checkpoint of the run.")


def _checked(form: Any, facts: dict[str, Any]) -> Manifest:
    _require(form == FORMAT and _is_count(form), "format", "this package's format")
    step, saved_at = facts.pop("step", None), facts.pop("saved_at", None)
    frozen, tied = facts.pop("frozen", []), facts.pop("tied", {})
    _require(_is_count(step), "step", "a count of steps")
    _require(_is_time(saved_at), "saved_at", "a time with its offset from UTC")
    _require(isinstance(frozen, list) and all(isinstance(name, str) for name in frozen), "frozen", "a list of names")
    _require(isinstance(tied, dict) and all(isinstance(name, str) for name in tied.values()), "tied",
             "names of tensors by name")
    return Manifest(step, saved_at, _files(facts.pop("files", None)), tuple(frozen), tied, facts)


def _files(given: Any) -> dict[str, FileFacts]:
    _require(isinstance(given, dict) and {WEIGHTS, STATE, CONFIG} <= given.keys(), "files",
             f"sizes and hashes of {WEIGHTS}, {STATE} and {CONFIG}")
    files = {}
    for name, facts in given.items():
        _require(_FILE_NAME.fullmatch(name) is not None, f"files.{name[:80]!r}", "the name of a file in the folder")
        _require(isinstance(facts, dict), f"files.{name}", "a size and a sha256")
        size, sha256 = facts.get("size"), facts.get("sha256")
        _require(_is_count(size), f"files.{name}.size", "a number of bytes")
        _require(isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None, f"files.{name}.sha256",
                 "64 hexadecimal digits")
        files[name] = FileFacts(size, sha256)
    return files


def _require(fits: bool, key: str, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{key} must be {wanted}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_time(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


# weights --------------------------------------------------------------------------------------------------------------
def weight_files(path: Path) -> list[Path]:
    """The files that hold the tensors of a checkpoint or of a model's folder; empty if there are no such files."""
    if path.is_file():
        return [path]
    for name in (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX):
        if (path / name).is_file():
            shards = set(shards_of(path / name).values()) if name.endswith(".json") else {name}
            return sorted(path / shard for shard in shards)
    return []


def shards_of(index: Path) -> dict[str, str]:
    """Name of each tensor -> name of the file beside the index that has it.

    Raises:
        CheckpointError: it is not an index of shards.
    """
    try:
        return {name: Path(file).name for name, file in json.loads(index.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index} is not an index of shards (weight_map: name -> file): {error}") from error


@contextlib.contextmanager
def reading_safetensors(path: Path) -> Iterator[None]:
    """Within it a damaged .safetensors file is a CheckpointError."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); it is damaged.") from error


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file; empty for other files, or if there is no file.

    Raises:
        CheckpointError: it is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with reading_safetensors(path), safe_open(path, "pt") as content:
        return content.metadata() or {}


def json_object(content: str | bytes, where: str | Path) -> dict[str, Any]:
    """A JSON text that must be an object; `where` is what messages call it.

    Raises:
        CheckpointError: it is not.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{where} cannot be read as JSON ({error}); it was altered or damaged.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} is not a JSON object, but {type(found).__name__}; it was altered or damaged.")
    return found


def hash_of(path: str | Path) -> str:
    """sha256 of the weights at a path: of the file, or of its shards' hashes; "" for more than `MOST_HASHED` bytes."""
    found = [file for file in weight_files(Path(path)) if file.is_file()]
    facts = [file.stat() for file in found]
    if not found or sum(fact.st_size for fact in facts) > MOST_HASHED:
        return ""
    hashes = [_hash_file(file, fact.st_size, fact.st_mtime_ns, fact.st_ctime_ns)
              for file, fact in zip(found, facts, strict=True)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@lru_cache(maxsize=64)
def _hash_file(path: Path, size: int, *times: int) -> str:
    """Of one file; kept while its size and the times of its last change stay the same."""
    return atomic.file_sha256(path)


def stored_record(path: str | Path) -> WeightRecord | None:
    """Where the weights of a checkpoint's model came from before its run; None: not recorded.

    Raises:
        CheckpointError: what is recorded is not a weight record.
    """
    content = _stored(Path(path)).get(RECORD)
    return None if content is None else WeightRecord.from_dict(content, f"{path}: {RECORD}")


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
    record, step = stored_record(path), _stored(Path(path)).get("step")
    return WeightSource("", kind, name if step is None else str(path), str(path), step, hash_of(path),
                        origin=record.describe(with_origin=False) if record is not None else "")


def _stored(path: Path) -> dict[str, Any]:
    """What a checkpoint has besides tensors: its manifest, or the metadata of its file."""
    if is_of_a_run(path):
        of_run = read_manifest(path if path.is_dir() else path.parent)
        return {**of_run.extra, "step": of_run.step}
    file = path / WEIGHTS if path.is_dir() else path
    text = safetensors_metadata(file).get(RECORD)
    return {} if text is None else {RECORD: json_object(text, f"{file}: {RECORD}")}


CHECKPOINTS = ("pretrained_stage1", "pretrained", "finetuned")
"""keys of a model section that name checkpoints, in the order of loading"""
WEIGHT_FILES = (".safetensors", ".bin", ".pth", ".pt")
DEPTH = 4
"""levels of folders above a run that may refer to it"""


def steps_of(run_dir: Path) -> list[Path]:
    """The checkpoint folders of one run, newest step first."""
    found = [path for path in (Path(run_dir) / "checkpoints").glob("step_*")
             if path.is_dir() and re.fullmatch(r"step_[0-9]+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(folder.name.removeprefix("step_"))


def saved_at(folder: Path) -> tuple[str, int]:
    """(time of saving, step): what orders the checkpoints of several runs."""
    try:
        return read_manifest(folder).saved_at, step_of(folder)
    except CheckpointError:  # damaged: its folder's time places it among the others, where it will be reported
        return datetime.fromtimestamp(folder.stat().st_mtime, timezone.utc).isoformat(), step_of(folder)


def runs_below(folder: Path) -> Iterator[Path]:
    """The run folders with checkpoints below a folder."""
    for depth in range(1, DEPTH + 1):
        for checkpoints in sorted(folder.glob("*/" * depth + "checkpoints")):
            if steps_of(checkpoints.parent):
                yield checkpoints.parent


def newest_run(runs: Sequence[Path]) -> Path:
    """The run that saved last."""
    return max(runs, key=lambda run: max(map(saved_at, steps_of(run))))


def best_or_last(run_dir: Path) -> tuple[Path, str]:
    """(checkpoint folder, reason) of a run that has some: the best, or the last if there is no best one."""
    folders = steps_of(run_dir)
    last = max(folders, key=saved_at)
    try:
        best = _best(run_dir)
    except CheckpointError as error:
        return last, f"the last; {error}"
    if best is None:
        return last, "the last; no validation chose a best one"
    if best[0] not in folders:
        return last, f"the last; the best one, {best[0].name}, is not there any more"
    return best


def _best(run_dir: Path) -> tuple[Path, str] | None:
    """What best.json says; None if there is no such file.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = run_dir / "checkpoints" / "best.json"
    if not path.is_file():
        return None
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
        folder = run_dir / "checkpoints" / f"step_{int(best['step']):08d}"
        return folder, f"the best by {best['split']} agg_metrics {float(best['metric']):.4g}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"best.json cannot be read: {error}") from error


def checkpoint_of_run(path: Path) -> Path:
    """The checkpoint folder that a run folder, or a folder above runs (the one that saved last), refers to.

    It is the best one if validation chose one, else the last. Any other path is itself.

    Raises:
        CheckpointError: best.json cannot be read.
    """
    if not path.is_dir() or any(file.suffix in WEIGHT_FILES for file in path.iterdir()):
        return path  # a checkpoint itself
    runs = [path] if steps_of(path) else list(runs_below(path))
    if not runs:
        return path
    run = newest_run(runs)
    try:
        _best(run)
    except CheckpointError as error:
        raise CheckpointError(f"{run / 'checkpoints'}: {error}. Name a checkpoint folder in it.") from error
    return best_or_last(run)[0]
