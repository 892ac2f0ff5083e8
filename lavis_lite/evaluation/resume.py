"""Progress of an evaluation, and what a stopped one resumes from: each finished batch is a line in a file.

One file per rank, `<run folder>/results/.unfinished/<split>_<data set>_step<N>.rank<r>.jsonl`. The first line is the
fingerprint of the evaluation: what its rows depend on. Every other line is one batch, or one finished part of the
scoring, with a checksum. Rank 0 reads the files of all ranks, so the number of ranks may change.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from lavis_lite import __version__, distributed
from lavis_lite.config.layers import flatten
from lavis_lite.config.schema import Config
from lavis_lite.datasets.files.locate import annotation_hashes
from lavis_lite.models.base import weights_hash
from lavis_lite.redaction import mask_all
from lavis_lite.tasks.base import ProgressHandle, Row
from lavis_lite.tracking.tracker import Tracker

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""Windows has none: a second process is not noticed there"""
FOLDER = Path("results") / ".unfinished"
FORMAT = 1
SYNC_SECONDS = 1.0
LONGEST = 60
"""characters of a value in a message"""
Entry = dict[str, Any]
Fingerprint = dict[str, Any]
"""name -> plain value; the names of configured values are dotted keys. Values, not one hash, so that a refusal can say
what differs"""


# --- progress of one data set -----------------------------------------------------------------------------------------
class EvaluationStopped(Exception):
    """A signal stopped the evaluation of a split; all ranks have left it together.

    Attributes:
        exit_code: of the process.
        kept: which finished work is on the disk, as a clause; "": none.
    """

    def __init__(self, exit_code: int, kept: str = "") -> None:
        self.exit_code, self.kept = exit_code, kept
        super().__init__(f"evaluation stopped by a signal (exit code {exit_code})")


class EvalProgress(ProgressHandle):
    """Saves what is finished, shows it, and knows what an earlier try finished. Made by all ranks together.

    Args:
        checkpoint: the file of this evaluation and rank.
        resume: whether to load what an earlier try finished; else it is removed.
        tracker: shows the bars.
        title: of the bars, `<split> <data set>`.
        stop_code: returns the exit code of a pending signal on this rank; 0: no signal.

    Attributes:
        completed: finished batches by number; their rows are on rank 0 only, which reads the files.
        done: numbers of the finished batches, on all ranks.
        writable: false if another process runs the same evaluation, or its files cannot be read; nothing is saved then.
    """

    def __init__(self, checkpoint: EvalCheckpoint, resume: bool, tracker: Tracker, title: str,
                 stop_code: Callable[[], int]) -> None:
        self.checkpoint, self.tracker, self.title, self._stop_code = checkpoint, tracker, title, stop_code
        self.completed: dict[int, Entry] = {}
        parts, self.writable = self._load(resume) if distributed.is_main() else ({}, True)
        done, self._parts, self.writable = distributed.broadcast_object((list(self.completed), parts, self.writable))
        self.done = frozenset(done)
        self._total = self._done = 0

    def _load(self, resume: bool) -> tuple[dict[str, Any], bool]:
        """(finished parts of the scoring, whether this process may write); fills `completed`."""
        parts, messages, writable = dict[str, Any](), list[str](), True
        try:
            if resume:
                self.completed, parts, messages = self.checkpoint.load()
            else:
                self.checkpoint.remove()
        except OSError as error:
            writable = False
            messages = [f"{error.filename or self.checkpoint.folder}: {error.strerror}; this evaluation begins from "
                        "the start and saves no finished batches"]
        for message in messages:
            self.tracker.log(message)
        return parts, writable

    def save_batch(self, number: int, rows: list[Row], bad: list[Any], samples: int) -> None:
        """Save a finished batch, unless JSON would change its rows, or the mask of secrets an answer."""
        if is_plain(rows) and mask_all(rows) == rows:
            self._append({"batch": number, "rows": rows, "samples": samples, "bad": bad})

    def load(self, key: str) -> Any:
        """A part of the scoring that an earlier try finished; None: it is not there."""
        return self._parts.get(key)

    def save(self, key: str, value: Any) -> None:
        """Save a finished part of the scoring."""
        self._append({"key": key, "value": value})

    def _append(self, entry: Entry) -> None:
        if self.writable and (problem := self.checkpoint.append(entry)):
            self.tracker.log(problem)

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Show a bar of `total` units of all ranks, `done` of them finished earlier."""
        self._total, self._done = total, done
        self.tracker.begin(f"{self.title} {title}".rstrip(), total, done, unit)

    def advance(self, count: int = 1) -> None:
        """Move the bar as far as all ranks get while this one finishes `count` units."""
        self._done += count * distributed.world_size()
        self.tracker.proceed(min(self._done, self._total))

    def stop_requested(self) -> int:
        """Exit code of a pending signal on this rank; 0: none."""
        return self._stop_code()

    def stop_if_requested(self) -> None:
        """Leave the evaluation if a signal asked any rank to stop. Collective.

        Raises:
            EvaluationStopped: on all ranks.
        """
        if code := max(distributed.all_gather_object(self.stop_requested())):
            folder = self.checkpoint.folder  # with the data sets before this one
            written = self.writable and any(folder.glob("*.rank*.jsonl"))
            raise EvaluationStopped(code, f"what is finished is kept in {folder}" if written else "")

    def close(self) -> None:
        """Remove the bar and close the file, which stays on the disk."""
        self.tracker.end()
        self.checkpoint.close()


# --- the file ---------------------------------------------------------------------------------------------------------
class EvalCheckpoint:
    """This rank's file of one evaluation. It is opened when the first line is written.

    Loader workers are forked before that, so they do not inherit the lock and cannot keep it after this process is
    killed.

    Args:
        run_dir: the run folder.
        name: `<split>_<data set>_step<N>`.
        fingerprint: what the rows depend on, see `eval_fingerprint`.
        standalone: whether the evaluation is a separate run and not part of a training.
        rank: of this process.

    Attributes:
        problem: why nothing is written any more.
    """

    def __init__(self, run_dir: Path, name: str, fingerprint: Fingerprint, standalone: bool, rank: int) -> None:
        self.folder, self.name, self.rank = Path(run_dir) / FOLDER, name, rank
        self.path = self.folder / f"{name}.rank{rank}.jsonl"
        self.header: Entry = {"format": FORMAT, "alone": standalone, "evaluation": fingerprint}
        self.problem, self._synced = "", 0.0
        self._file: IO[bytes] | None = None

    def paths(self) -> list[Path]:
        """The files of all ranks."""
        return sorted(self.folder.glob(f"{self.name}.rank*.jsonl"))

    def load(self) -> tuple[dict[int, Entry], dict[str, Any], list[str]]:
        """(finished batches by number, parts of the scoring by key, messages) of the files of all ranks.

        For rank 0, before any rank writes. A file of another evaluation under the same name is renamed, not read.

        Raises:
            OSError: another process is writing a file, or this user may not read it.
        """
        batches, parts, messages = dict[int, Entry](), dict[str, Any](), list[str]()
        for path in self.paths():
            if is_busy(path):
                raise OSError(errno.EAGAIN, "another process is writing it", str(path))
            header, entries = read(path)
            changed = differences(header["evaluation"], self.header["evaluation"]) if header else ["it is damaged"]
            if changed:
                renamed = path.with_name(f"{path.name}.other")
                os.replace(path, renamed)
                messages.append(f"{renamed}: this unfinished evaluation is not resumed: {'; '.join(changed[:3])}")
            for entry in () if changed else entries:
                if "batch" in entry:
                    batches.setdefault(entry["batch"], entry)
                else:
                    parts.setdefault(entry["key"], entry["value"])
        return batches, parts, messages

    def append(self, entry: Entry) -> str:
        """Write a line and flush it, so that it survives a kill; sync to the disk at most once a second.

        After a failure (a full disk) nothing more is written, because the evaluation itself does not need the file.

        Returns:
            What went wrong, once; else "".
        """
        if self.problem:
            return ""
        try:
            self._file = self._file or self._opened()
            self._file.write(encode_line(entry))
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            self.problem = f"{self.path} cannot be written ({error}); if this run is killed, what follows is lost"
        return self.problem

    def _opened(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "ab")
        if not _lock(file):
            file.close()
            raise OSError("another process writes it")
        # a kill may have torn the last line: the next one must not continue it
        file.write(b"\n" if file.tell() else encode_line(self.header))
        return file

    def close(self) -> None:
        """Close the file; it stays on the disk."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # `append` has reported a full disk already
                file.close()

    def remove(self) -> None:
        """Remove this rank's file and, on rank 0, those of all ranks and then their folder, if disks are shared."""
        for path in [self.path] if self.rank else self.paths():
            path.unlink(missing_ok=True)
        if not self.rank:
            with contextlib.suppress(OSError):  # not empty, or never made
                self.folder.rmdir()


def is_plain(value: Any) -> bool:
    """Whether JSON returns a value unchanged: None, bool, int, float (bit for bit), str, lists and dicts of these."""
    try:
        return repr(json.loads(json.dumps(value))) == repr(value)
    except (TypeError, ValueError, RecursionError):
        return False


def encode_line(entry: Entry) -> bytes:
    """An entry, with secrets masked, as a line that ends with its checksum."""
    body = json.dumps(mask_all(entry))[:-1].encode()  # ASCII: no kind of line break is left in it
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


def decode_line(line: bytes) -> Entry | None:
    """The entry of a line; None if the line was cut short or altered, or is not an entry."""
    body, mark, checksum = line.rpartition(b', "crc": "')
    if not mark or checksum != b'%08x"}' % zlib.crc32(body):
        return None
    try:
        entry = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def read(path: Path) -> tuple[Entry | None, Iterator[Entry]]:
    """(header, the other valid lines) of a file; without a valid header none of its lines counts."""
    lines = map(decode_line, path.read_bytes().split(b"\n"))
    header = next(lines)
    if header is None or header.get("format") != FORMAT or not _has(header, alone=bool, evaluation=dict):
        return None, iter(())
    return header, (entry for entry in lines if entry and (
        _has(entry, batch=int, samples=int, rows=list, bad=list) if "batch" in entry else
        _has(entry, key=str, value=object)))


def _has(entry: Entry, **types: type) -> bool:
    return all(key in entry and isinstance(entry[key], of) for key, of in types.items())


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed or this process ends; False if another process has the lock."""
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def is_busy(path: Path) -> bool:
    """Whether another process writes a file. Raises OSError if this user may not open it."""
    with open(path, "r+b") as file:  # makes no file if it is gone by now
        return not _lock(file)


# --- the fingerprint --------------------------------------------------------------------------------------------------
def eval_fingerprint(cfg: Config, model: nn.Module, dataset: str, samples: int, **facts: Any) -> Fingerprint:
    """Everything that the rows of an evaluation depend on: configuration, weights and annotation files.

    Args:
        cfg: the whole configuration.
        model: its weights are hashed.
        dataset: name of the data set that is evaluated.
        samples: number of its samples.
        facts: more plain values, such as the split and the precision.
    """
    section = cfg.datasets.get(dataset)
    return {**config_fingerprint(cfg, dataset), **(annotation_hashes(section) if section else {}),
            "number of samples": samples, "weights": weights_hash(model),
            "versions": f"lavis_lite {__version__}, torch {torch.__version__}", **facts}


def config_fingerprint(cfg: Config, dataset: str) -> Fingerprint:
    """The configured part: model, preprocess, the data set's own section, and the run keys that affect rows."""
    whole = asdict(cfg)
    sections = {"model": whole["model"], "preprocess": whole["preprocess"],
                "datasets": {name: section for name, section in whole["datasets"].items() if name == dataset},
                "run": {key: value for key, value in whole["run"].items() if cfg.run.affects_rows(key)}}
    return {key: _without_secret(value) for key, value in flatten(json.loads(json.dumps(sections, default=str)))}


def _without_secret(value: Any) -> Any:
    """A value with its secrets masked, and a short hash that tells another secret."""
    masked = mask_all(value)
    return value if masked == value else f"{masked} (sha256 {hashlib.sha256(str(value).encode()).hexdigest()[:8]}...)"


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One clause for each value that differs; a value that only one side has differs, too."""
    changed = (key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key))
    return [_difference(key, saved.get(key), current.get(key)) for key in changed]


def _difference(key: str, *values: Any) -> str:
    if key == "weights" or key.startswith("content of"):
        return f"{key} differ" if key == "weights" else f"{key} differs"
    texts = (json.dumps(value, ensure_ascii=False) for value in values)
    before, now = (text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in texts)
    return f"{key} was {before} and is {now}"
