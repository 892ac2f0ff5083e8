"""The folders of runs: which checkpoint to go on from, and what killed runs left behind."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from lavis_lite.errors import CheckpointError
from lavis_lite.runners import checkpointing
from lavis_lite.runners.run_lock import RunBusyError, RunLock, is_busy

_STRAYS = (".tmp-step_*", ".old-step_*", ".tmp-probe*", ".tmp-last.json-*", ".tmp-best.json-*")


def newest_to_resume(output_dir: Path, start_over: bool) -> Path | None:
    """The newest good checkpoint under `output_dir`; None if there is none at all.

    Args:
        output_dir: the parent of run folders.
        start_over: begin at step 0 if every checkpoint is damaged.

    Raises:
        CheckpointError: there are checkpoints, all damaged, and `start_over` is false.
    """
    damaged: list[str] = []

    def note(line: str) -> None:
        damaged.append(line)
        print(line, flush=True)

    found = checkpointing.newest_good(Path(output_dir), note)
    if found is not None or not damaged:
        return found
    if start_over:
        print(f"every checkpoint under {output_dir} is damaged: starting over", flush=True)
        return None
    raise CheckpointError(
        f"--resume auto: every checkpoint under {output_dir} is damaged ({len(damaged)}, listed above), so going on "
        "would begin at step 0 again. Restore one of them from a copy; or, to begin again, add --start-over.")


def remove_strays(output_dir: Path) -> None:
    """Remove the half-written checkpoints of runs under `output_dir` that were killed; running ones are left alone."""
    for run_dir in _runs_with_strays(Path(output_dir)):
        lock = RunLock(run_dir)
        with contextlib.suppress(RunBusyError, OSError):  # in use, or somebody else's
            lock.acquire()
            try:
                for stray in _strays(run_dir):
                    shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
            finally:
                lock.release()


def _runs_with_strays(output_dir: Path) -> Iterator[Path]:
    for run_dir in sorted(output_dir.iterdir()) if output_dir.is_dir() else []:
        if (run_dir / "config.yaml").is_file() and _strays(run_dir) and not is_busy(run_dir):
            yield run_dir


def _strays(run_dir: Path) -> list[Path]:
    folder = run_dir / "checkpoints"
    return [path for pattern in _STRAYS for path in folder.glob(pattern)]
