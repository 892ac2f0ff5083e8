"""The folders of runs: which checkpoint to go on from, and what killed runs left behind."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import OmegaConf

from lavis_lite import distributed
from lavis_lite.checkpoints.manifest import CONFIG, STATE
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, LavisLiteError
from lavis_lite.runners import checkpointing
from lavis_lite.runs.lock import HOLDER, RunBusyError, RunLock, is_busy

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


def accumulation_to_go_on(checkpoint: Path, run: RunConfig, ranks: int) -> int:
    """Micro-batches per step with which a run on another number of ranks sees the global batches that it began with.

    What a restart on fewer hosts needs, which nobody watches. `run.accum_grad_iters` as it is if no number fits; the
    runner then says what differs.

    Args:
        checkpoint: a good one.
        run: the section of the run that goes on.
        ranks: their number now.
    """
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True, mmap=True)
    wanted, micro = state["order"]["global batch"], run.batch_size_train * ranks
    if wanted == micro * run.accum_grad_iters or wanted % micro or not _had_batch(checkpoint, run.batch_size_train):
        return run.accum_grad_iters
    print(f"the run began with {wanted} samples per step: {ranks} process{'es' if ranks > 1 else ''} with "
          f"run.batch_size_train={run.batch_size_train} now accumulate{'' if ranks > 1 else 's'} {wanted // micro} "
          f"micro-batches per step, in place of run.accum_grad_iters={run.accum_grad_iters}", flush=True)
    return int(wanted // micro)


def _had_batch(checkpoint: Path, batch_size: int) -> bool:
    """Whether the checkpoint's run had this `run.batch_size_train`; another one is a wish, and none to guess about."""
    text = (checkpoint / CONFIG).read_text(encoding="utf-8")
    saved = OmegaConf.create(text)
    return bool(OmegaConf.select(saved, "run.batch_size_train") == batch_size)


@contextlib.contextmanager
def removed_if_unused(run_dir: Path) -> Iterator[None]:
    """Remove the folder of a run that an error ended before anything but its configuration was written.

    Such an error is one that its message explains; of any other the folder gets the traceback.
    """
    try:
        yield
    except LavisLiteError:
        if distributed.is_main() and [path for path in run_dir.rglob("*") if not path.is_dir()] == [run_dir / CONFIG]:
            shutil.rmtree(run_dir)
        raise


def remove_strays(output_dir: Path) -> None:
    """Remove half-written checkpoints and locks of killed runs under `output_dir`; running ones are left alone."""
    for run_dir in _runs_with_strays(Path(output_dir)):
        lock = RunLock(run_dir)
        with contextlib.suppress(RunBusyError, OSError):  # in use, or somebody else's
            lock.acquire()
            try:
                for stray in _strays(run_dir):
                    shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
            finally:
                lock.release()  # which removes its files


def _runs_with_strays(output_dir: Path) -> Iterator[Path]:
    for run_dir in sorted(output_dir.iterdir()) if output_dir.is_dir() else []:
        left = (run_dir / HOLDER).exists() or _strays(run_dir)
        if left and (run_dir / "config.yaml").is_file() and not is_busy(run_dir):
            yield run_dir


def _strays(run_dir: Path) -> list[Path]:
    folder = run_dir / "checkpoints"
    return [path for pattern in _STRAYS for path in folder.glob(pattern)]
