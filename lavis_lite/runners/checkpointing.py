"""Checkpoints: folders that appear whole or not at all, know their own hashes, and can be told good from damaged.

    checkpoints/step_00000200/
        model.safetensors     trainable weights and buffers, and frozen ones that no named file has, by parameter name
        training_state.pt     optimizer, scaler, counters, best metric, sampler position; plain containers and tensors
        config.yaml           the run's configuration
        manifest.json         size and sha256 of every file above, step, format, names of the frozen parameters,
                              "weights": where all weights had come from before the run's first step
    checkpoints/last.json     {"checkpoint", "step"}
    checkpoints/best.json     {"checkpoint", "step", "metric", "split"}

A folder is written under a hidden name beside its place, flushed to the disk, then renamed. No random-number state is
kept: the runner derives all randomness from (seed, step, micro-batch, rank).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lavis_lite import __version__, distributed, redaction
from lavis_lite.checkpoints.following import refuse_other_sources
from lavis_lite.checkpoints.manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    STATE,
    WEIGHTS,
    Manifest,
    file_fault,
    read_manifest,
)
from lavis_lite.checkpoints.run_files import saved_at, step_of, steps_of
from lavis_lite.errors import CheckpointError, did_you_mean
from lavis_lite.finite import describe_non_finite, non_finite, non_finite_fused
from lavis_lite.io import atomic, disk, sealed

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

_TEMPORARY = (".tmp-", ".old-")
Say = Callable[[str], None]


# --- writing -------------------------------------------------------------------------------------------------------
class CheckpointStore:
    """The `checkpoints/` folder of one run. All ranks hold one and call `save` together; rank 0 alone writes.

    Args:
        run_dir: the run's folder.
        keep: newest checkpoints that stay; the best one stays besides.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(run_dir) / "checkpoints", max(keep, 1)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` optimizer steps."""
        return self.folder / f"step_{step:08d}"

    def prepare(self) -> None:
        """Make the folder and remove what a killed process left half-written.

        Raises:
            CheckpointError: the folder cannot be made or written to; raised on all ranks.
        """
        self._together(self._prepare)

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for stray in self.folder.iterdir():
            if stray.name.startswith(_TEMPORARY):
                shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
        atomic.write_text(self.folder / ".tmp-probe", "")  # a read-only folder is found now, not after an hour
        (self.folder / ".tmp-probe").unlink()

    def save(self, step: int, model: BaseModel, state: Mapping[str, Any], config: str) -> Path:
        """Write the checkpoint of `step`; called by all ranks, with equal arguments.

        Args:
            step: optimizer steps done.
            model: the bare model (not its DDP wrapper).
            state: plain containers and tensors; `state["best"]` is None or {"step", "metric", "split"}.
            config: YAML text of the run.

        Raises:
            CheckpointError: it could not be written (disk full, no permission), or a weight is not finite; then nothing
                is written, and earlier checkpoints are intact.
        """
        tensors = {name: whole_tensor(value) for name, value in model.checkpoint_state().items()}
        self._together(lambda: self._write_finite(step, model, tensors, state, config))
        return self.path(step)

    def _together(self, work: Callable[[], None]) -> None:
        """Rank 0 works; then all ranks learn how it went, so that none waits for another that has left."""
        problem: str | None = None
        if distributed.rank() == 0:
            try:
                work()
            except CheckpointError as fault:
                problem = str(fault)
            except (OSError, RuntimeError, SafetensorError) as fault:
                problem = disk.cannot_write(self.folder, fault)
        problem = distributed.broadcast_object(problem)
        if problem is not None:
            error = CheckpointError(problem)
            error.same_on_all_ranks = True  # type: ignore[attr-defined]
            raise error

    def _write_finite(self, step: int, model: BaseModel, given: Mapping[str, Tensor], state: Mapping[str, Any],
                      config: str) -> None:
        broken = non_finite_fused(given)
        if broken:
            good = next((str(folder) for folder in steps_of(self.folder.parent) if not verify(folder)), None)
            way_on = f"The last good checkpoint is {good}: go on from it" if good else "Begin again"
            raise CheckpointError(f"step {step} was not saved: {describe_non_finite(broken, given)}. {way_on} with a "
                                  "lower run.init_lr or run.max_grad_norm, or in fp32 (run.amp=false).")
        self._write(step, model, given, state, config)

    def _write(self, step: int, model: BaseModel, given: Mapping[str, Tensor], state: Mapping[str, Any],
               config: str) -> None:
        tensors, tied = _storable(given)
        temporary = self.folder / f".tmp-{self.path(step).name}-{os.getpid()}"
        try:
            temporary.mkdir()
            save_file(tensors, temporary / WEIGHTS)
            torch.save(dict(state), temporary / STATE)
            (temporary / CONFIG).write_text(redaction.mask(config), encoding="utf-8")
            shutil.copymode(temporary / CONFIG, temporary / WEIGHTS)  # safetensors writes for the owner's eyes only
            _write_manifest(temporary, {"format": FORMAT, "step": step, "lavis_lite": __version__,
                                        "torch": torch.__version__, "frozen": sorted(model.frozen_names()),
                                        "tied": tied, "weights": model.weight_record.to_dict(),
                                        "saved_at": datetime.now(timezone.utc).isoformat()})
            self._put_in_place(temporary, self.path(step))
        except (OSError, RuntimeError, SafetensorError) as fault:
            needed = sum(tensor.nbytes for tensor in tensors.values()) + _bytes_of(state)
            problem = disk.cannot_write(self.folder, fault, needed, f"the checkpoint of step {step}")
            raise CheckpointError(f"{problem}{self._left()}") from fault
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._tell(step, state.get("best"))
        self._retain(step, state.get("best"))

    def _left(self) -> str:
        """A sentence about the checkpoint to go on from, if there is one."""
        newest = next(iter(steps_of(self.folder.parent)), None)
        return f" {newest} is as it was; go on from it with --resume auto." if newest is not None else ""

    def _put_in_place(self, temporary: Path, place: Path) -> None:
        old = place.with_name(f".old-{place.name}")
        if place.exists():  # the same step again: after a resume over a damaged one
            shutil.rmtree(old, ignore_errors=True)
            os.rename(place, old)
        os.rename(temporary, place)
        atomic.sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _tell(self, step: int, best: Mapping[str, Any] | None) -> None:
        last = {"checkpoint": self.path(step).name, "step": step}
        atomic.write_text(self.folder / "last.json", json.dumps(last) + "\n")
        if best:
            told = {"checkpoint": self.path(best["step"]).name, **best}
            atomic.write_text(self.folder / "best.json", json.dumps(told) + "\n")

    def _retain(self, step: int, best: Mapping[str, Any] | None) -> None:
        """Remove the older ones. Folders of later steps belong to a future that a resume left; they are not counted."""
        ours = [folder for folder in steps_of(self.folder.parent) if step_of(folder) <= step]
        keep = set(ours[:self.keep]) | ({self.path(best["step"])} if best else set())
        for folder in ours:
            if folder not in keep:
                gone = folder.with_name(f".old-{folder.name}")
                os.rename(folder, gone)  # first out of sight, so that no half-deleted one is ever met
                shutil.rmtree(gone)


def _storable(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU tensors, each stored once, and second names of tied tensors -> the name they are stored under."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            tied[name] = seen[place]
            continue
        seen[place] = name
        tensors[name] = tensor.detach().to("cpu").contiguous()
    return {name: _alone(tensor) for name, tensor in tensors.items()}, tied


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that ranks share out among them; all ranks call this."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _alone(tensor: Tensor) -> Tensor:
    """A tensor that owns its whole storage (views into a larger one cannot be stored by safetensors)."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    files = {}
    for name in (WEIGHTS, STATE, CONFIG):
        atomic.sync_file(folder / name)
        files[name] = {"size": (folder / name).stat().st_size, "sha256": sealed.file_sha256(folder / name)}
    (folder / MANIFEST).write_text(sealed.seal({**facts, "files": files}), encoding="utf-8")
    atomic.sync_file(folder / MANIFEST)
    atomic.sync_folder(folder)


def _bytes_of(state: Any) -> int:
    """Bytes of the tensors in plain containers."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes_of, inner))


# --- finding and judging -------------------------------------------------------------------------------------------
def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint folder, one sentence each; empty when every byte is as it was written."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as fault:
        return [str(fault)]
    found = {Path(folder) / name: file_fault(Path(folder) / name, facts) for name, facts in manifest.files.items()}
    return [f"{path}: {clause}." for path, clause in found.items() if clause]


def newest_good(output_dir: Path, say: Say = print) -> Path | None:
    """The newest undamaged checkpoint of all runs under `output_dir` (or of one run folder); None if there is none.

    Newest is by the time of saving. Damaged ones are passed over, and `say` is told why.
    """
    root = Path(output_dir)
    runs = [root, *(sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else [])]
    found = [folder for run in runs for folder in steps_of(run)]
    for folder in sorted(found, key=saved_at, reverse=True):
        faults = verify(folder)
        if not faults:
            return folder
        if folder.exists():  # else the run that wrote it goes on, and has just removed it
            say(f"skipping the damaged checkpoint {folder}: {' '.join(faults)}")
    return None


def run_dir_of(folder: Path) -> Path:
    """The run folder that a checkpoint folder belongs to."""
    return Path(folder).parent.parent


# --- reading -------------------------------------------------------------------------------------------------------
def require_good(folder: Path) -> Manifest:
    """The manifest of a checkpoint that has been verified to the last byte.

    Raises:
        CheckpointError: with every fault found.
    """
    faults = verify(folder)
    if faults:
        raise CheckpointError(f"{folder} cannot be used: {' '.join(faults)} `--resume auto` takes the newest good one.")
    return read_manifest(folder)


def load_weights(folder: Path, model: BaseModel) -> None:
    """Put a checkpoint's weights into the model, all or none.

    Only parameters that are frozen in the model may be absent from the file.

    Raises:
        CheckpointError: damaged, or keys or shapes that do not fit (all of them listed).
    """
    _fill(Path(folder), require_good(folder), model)


def load(folder: Path, model: BaseModel) -> dict[str, Any]:
    """As `load_weights`, and returns the training state, which is read as tensors and plain values only.

    Raises:
        CheckpointError: as `load_weights`.
    """
    manifest = require_good(folder)
    _fill(Path(folder), manifest, model)
    path = Path(folder) / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as fault:
        raise CheckpointError(f"{path}: not a training state of this package: {fault}") from fault
    if not isinstance(state, dict) or state.get("step") != manifest.step:
        raise CheckpointError(f"{path}: not the training state of step {manifest.step}.")
    return state


def _fill(folder: Path, manifest: Manifest, model: BaseModel) -> None:
    try:
        tensors = load_file(folder / WEIGHTS)
        tensors.update({alias: tensors[name] for alias, name in manifest.tied.items()})
    except (SafetensorError, KeyError) as fault:
        raise CheckpointError(f"{folder / WEIGHTS}: not the weights of a checkpoint ({fault}).") from fault
    broken = [] if model.allow_non_finite else non_finite(tensors)
    if broken:
        raise CheckpointError(f"{folder}: {describe_non_finite(broken, tensors)}, so it was written after the run "
                              "diverged. Resume from an earlier checkpoint: --resume FOLDER.")
    faults = _misfits(tensors, model)
    if faults:
        raise CheckpointError(f"{folder} does not fit the model:\n  " + "\n  ".join(faults)
                              + "\nIs `model:` the same as in its config.yaml?")
    refuse_other_sources(model, manifest.extra.get("weights"), tensors, folder)
    model.load_state_dict(tensors, strict=False)


def _misfits(tensors: Mapping[str, Tensor], model: BaseModel) -> list[str]:
    wanted = model.state_dict()
    faults = [f"{name} {list(wanted[name].shape)}: missing in the checkpoint"
              for name in model.trainable_state() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            faults.append(f"{name} {list(tensor.shape)}: not in the model; {did_you_mean(name, wanted, most=3)}")
        elif wanted[name].shape != tensor.shape:
            faults.append(f"{name}: {list(tensor.shape)} in the checkpoint, {list(wanted[name].shape)} in the model")
    return faults[:40] + ([f"... {len(faults) - 40} more"] if len(faults) > 40 else [])
