"""The journal of an evaluation: every finished batch is a line, so that what a kill ends goes on where it was.

One file per rank, `<run folder>/results/.unfinished/<split>_<data set>_step<N>.rank<r>.jsonl`. Its first line says
which evaluation it is of; each other line holds one batch, or one part of the scoring, and its own checksum. The files
of all ranks are read by whoever goes on, so the number of ranks may change. They are removed when the results are
written.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lavis_lite.config.schema import Config
from lavis_lite.evaluation import fingerprint as identity
from lavis_lite.evaluation.fingerprint import Parts
from lavis_lite.redaction import mask_all

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""Windows has none: a second process is not noticed there"""
FOLDER = Path("results") / ".unfinished"
FORMAT = 1
SYNC_SECONDS = 1.0
Entry = dict[str, Any]


@dataclass
class Finished:
    """What journals hold of one evaluation.

    batches: number -> {"batch", "rows", "samples", "bad"}.
    parts: key -> value of `LongWork.put`.
    ours: whether this process may write; another one is at the same evaluation if not.
    """

    batches: dict[int, Entry] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    ours: bool = True


def is_plain(value: Any) -> bool:
    """Whether JSON gives a value back as it was: None, bool, int, float (bit for bit), str, and lists and dicts."""
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and is_plain(one) for key, one in value.items())
    if isinstance(value, list):
        return type(value) is list and all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def sealed(entry: Entry) -> bytes:
    """An entry, its secrets masked, as a line with its checksum."""
    body = json.dumps(mask_all(entry))[:-1].encode()  # ASCII: no line break of any kind is left in it
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


def unsealed(line: bytes) -> Entry | None:
    """The entry of a line; None where it was cut short or altered, or is no entry."""
    body, mark, seal = line.rpartition(b', "crc": "')
    if not mark or seal != b'%08x"}' % zlib.crc32(body):
        return None
    try:
        entry = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def head_of(line: bytes) -> Entry | None:
    """The first line of a journal; None where it is damaged, of another format, or no such line."""
    head = unsealed(line) or {}
    fits = (head.get("format") == FORMAT and isinstance(head.get("alone"), bool)
            and isinstance(head.get("evaluation"), dict))
    return head if fits else None


def read(path: Path) -> tuple[Entry | None, Iterator[Entry]]:
    """(first line, the other whole lines) of a journal; no first line: it is of no use."""
    lines = path.read_bytes().split(b"\n")
    head = head_of(lines[0])
    if head is None:
        return None, iter(())
    return head, (entry for entry in map(unsealed, lines[1:]) if entry is not None and _is_entry(entry))


def _is_entry(entry: Entry) -> bool:
    """Whether it is a finished batch or a part of the scoring."""
    if "batch" not in entry:
        return isinstance(entry.get("key"), str) and "value" in entry
    return (isinstance(entry["batch"], int) and isinstance(entry.get("samples"), int)
            and all(isinstance(entry.get(key), list) for key in ("rows", "bad")))


class Journal:
    """This rank's file of one evaluation. Opened with the first line to write.

    Opened late so that loader workers, forked before, do not inherit the lock and keep it when this process is killed.

    Args:
        run_dir: the run folder.
        name: `<split>_<data set>_step<N>`.
        parts: what the rows depend on.
        alone: whether the evaluation is a run of its own and not part of a training.
        rank: of this process.
    """

    def __init__(self, run_dir: Path, name: str, parts: Parts, alone: bool, rank: int) -> None:
        self.folder, self.name, self.rank = Path(run_dir) / FOLDER, name, rank
        self.path = self.folder / f"{name}.rank{rank}.jsonl"
        self.head: Entry = {"format": FORMAT, "alone": alone, "evaluation": parts}
        self.trouble = ""
        """why nothing is written any more"""
        self._file: IO[bytes] | None = None
        self._synced = 0.0

    def paths(self) -> list[Path]:
        """The files of all ranks."""
        return sorted(self.folder.glob(f"{self.name}.rank*.jsonl"))

    def take_up(self) -> tuple[Finished, list[str]]:
        """What is finished, from the files of all ranks, and what there is to say. Rank 0 only, before anyone writes.

        A file of another evaluation under the same name is set aside.
        """
        try:
            return self._taken_up()
        except OSError as fault:
            return Finished(ours=False), [f"{fault.filename or self.folder}: {fault.strerror}; this evaluation begins "
                                          "from the start and keeps no finished batches"]

    def _taken_up(self) -> tuple[Finished, list[str]]:
        found, told = Finished(), []
        for path in self.paths():
            if _is_busy(path):
                return Finished(ours=False), [f"{path} is being written by another process: this evaluation begins "
                                              "from the start and keeps no finished batches"]
            head, entries = read(path)
            differing = ["it is damaged"] if head is None else identity.differences(
                head["evaluation"], self.head["evaluation"])
            if differing:
                told.append(f"{_set_aside(path)}: an unfinished evaluation is not gone on with, because "
                            f"{'; '.join(differing[:3])}")
                continue
            for entry in entries:
                if "batch" in entry:
                    found.batches.setdefault(entry["batch"], entry)
                else:
                    found.parts.setdefault(entry["key"], entry["value"])
        return found, told

    def append(self, entry: Entry) -> str:
        """Write a line and hand it to the system, which survives a kill; to the disk at most once a second.

        Where that fails (a full disk) nothing more is written: the evaluation itself does not need it. Returns what to
        say about it, once.
        """
        if self.trouble:
            return ""
        try:
            file = self._opened()
            file.write(sealed(entry))
            file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        except OSError as fault:
            self.trouble = f"{self.path} cannot be written ({fault}); a kill would cost what follows"
        return self.trouble

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _end_in_a_whole_line(self.path)
            self._file = open(self.path, "ab")
            if not _locked(self._file):
                raise OSError("another process writes it")
            if not self._file.tell():
                self._file.write(sealed(self.head))
        return self._file

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk was told of already
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Remove the files: rank 0 those of all ranks, and the folder with the last; others their own.

        Theirs is another file than rank 0 sees where disks are not shared.
        """
        if self.rank:
            self.path.unlink(missing_ok=True)
            return
        for path in self.paths():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or never made
            self.folder.rmdir()


def _end_in_a_whole_line(path: Path) -> None:
    """Cut off a line that a kill tore, so that the next one begins a line."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _locked(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed or this process ends; False: another one has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_busy(path: Path) -> bool:
    """Whether another process writes a journal. Raises OSError where this user may not."""
    with open(path, "ab") as file:
        return not _locked(file)


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.other")
    os.replace(path, aside)
    return aside


def unfinished(output_dir: Path, cfg: Config) -> tuple[Path | None, str]:
    """The run folder in which an evaluation of this configuration was stopped, the newest; and what to say about it.

    Only evaluations that were runs of their own are looked for. Whether weights and data are still the same is found
    out when they are there.
    """
    other, wanted = "", {*cfg.run.valid_splits, *cfg.run.test_splits}
    for run_dir, head in _stopped(Path(output_dir)):
        if head["evaluation"].get("split", "") not in wanted:
            continue
        differing = _differing(head["evaluation"], cfg)
        if not differing:
            return run_dir, f"going on with the evaluation that was stopped in {run_dir}"
        other = other or (f"the evaluation that was stopped in {run_dir} is another one ({'; '.join(differing[:3])}); "
                          "starting afresh")
    return None, other


def _stopped(output_dir: Path) -> Iterator[tuple[Path, Entry]]:
    """(run folder, first line) of the journals of evaluations that nobody is at, the newest first.

    Files that this user may not read, or that vanish meanwhile, are passed over.
    """
    found: list[tuple[float, Path, Entry]] = []
    busy = set()
    for path in output_dir.glob(f"*/{FOLDER}/*.rank*.jsonl"):
        run_dir = path.parents[len(FOLDER.parts)]
        with contextlib.suppress(OSError):
            if _is_busy(path):
                busy.add(run_dir)
            with open(path, "rb") as file:
                head = head_of(file.readline().rstrip(b"\n"))
            if head is not None and head["alone"]:
                found.append((path.stat().st_mtime, run_dir, head))  # not of a training
    for _, run_dir, head in sorted(found, key=lambda one: one[0], reverse=True):
        if run_dir not in busy:
            yield run_dir, head


def _differing(kept: Mapping[str, Any], cfg: Config) -> list[str]:
    """How the configured parts of a journal differ from a configuration, its own data set's and no other's."""
    present = identity.of_config(cfg, str(kept.get("data set")))
    sections = ("model.", "preprocess.", "datasets.", "run.")
    return identity.differences({key: value for key, value in kept.items() if key.startswith(sections)}, present)
