"""Checkpoints: folders that appear complete or not at all, and carry hashes that show damage.

    checkpoints/step_00000200/
        model.safetensors     trainable weights and buffers, and frozen ones that no named file has, by parameter name
        training_state.pt     optimizer, scaler, counters, best metric, sampler position; plain containers and tensors
        config.yaml           the run's configuration
        <hook>.safetensors    weights that a hook keeps, such as ema, under the same names
        manifest.json         size and sha256 of every file above, step, format, names of the frozen parameters,
                              "weights": the sources of all weights before the run's first step
    checkpoints/last.json     {"checkpoint", "step"}
    checkpoints/best.json     {"checkpoint", "step", "metric", "split"}

A folder is written under a hidden name, flushed to the disk, then renamed. No random-number state is kept: the runner
derives all randomness from (seed, step, micro-batch, rank).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lavis_lite import __version__, distributed, redaction
from lavis_lite.checkpoints.assembly import refuse_other_sources
from lavis_lite.checkpoints.manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    STATE,
    WEIGHTS,
    Manifest,
    file_fault,
    read_manifest,
    saved_at,
    step_of,
    steps_of,
)
from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.errors import CheckpointError, did_you_mean
from lavis_lite.finite import describe_non_finite, non_finite, non_finite_fused
from lavis_lite.io import atomic, disk
from lavis_lite.runners.optim import state_per_byte

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

_TEMPORARY = (".tmp-", ".old-")


# --- writing -------------------------------------------------------------------------------------------------------
class CheckpointStore:
    """The `checkpoints/` folder of one run. All ranks have one and call `save` together; only rank 0 writes.

    Args:
        run_dir: the run's folder.
        keep: number of newest checkpoints to keep; the best one is kept besides.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(run_dir) / "checkpoints", max(keep, 1)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` optimizer steps."""
        return self.folder / f"step_{step:08d}"

    def prepare(self, needed: int = 0) -> None:
        """Make the folder and remove a killed process' incomplete files.

        Raises:
            CheckpointError: that cannot be done, or there is no room for `needed` bytes (0: not known); on all ranks.
        """
        self._on_rank_0(lambda: self._prepare(needed))

    def _prepare(self, needed: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name.startswith(_TEMPORARY):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        atomic.write_text(self.folder / ".tmp-probe", "")  # finds a read-only folder now, not after an hour
        (self.folder / ".tmp-probe").unlink()
        if problem := disk.no_room(self.folder, needed, "the first checkpoint of this training"):
            raise CheckpointError(f"{problem} run.output_dir names it.")

    def save(self, step: int, model: BaseModel, state: Mapping[str, Any], config: str,
             hooks: Mapping[str, Mapping[str, Tensor]] | None = None) -> Path:
        """Write the checkpoint of `step`; called by all ranks with equal arguments.

        Args:
            step: optimizer steps done.
            model: the bare model (not its DDP wrapper).
            state: plain containers and tensors; `state["best"]` is None or {"step", "metric", "split"}.
            config: YAML text of the run.
            hooks: sets of weights that hooks keep, by hook: each goes into `<hook>.safetensors`, complete.

        Raises:
            CheckpointError: it could not be written (disk full, no permission), or a weight is not finite. Then nothing
                is written, and earlier checkpoints are intact.
        """
        tensors = _gathered(model.checkpoint_state())
        averages = {hook: _gathered(own) for hook, own in (hooks or {}).items()}
        self._on_rank_0(lambda: self._write(step, model, tensors, state, config, averages))
        return self.path(step)

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        """Rank 0 works, then reports to all ranks, so that no rank waits for one that has failed."""
        problem: str | None = None
        if distributed.rank() == 0:
            try:
                work()
            except CheckpointError as error:
                problem = str(error)
            except (OSError, RuntimeError, SafetensorError) as error:
                problem = disk.cannot_write(self.folder, error)
        problem = distributed.broadcast_object(problem)
        if problem is not None:
            shared = CheckpointError(problem)
            shared.same_on_all_ranks = True  # type: ignore[attr-defined]
            raise shared

    def _write(self, step: int, model: BaseModel, given: Mapping[str, Tensor], state: Mapping[str, Any],
               config: str, hooks: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._require_finite(step, given)
        tensors, tied = _storable(given)
        contents = {WEIGHTS: tensors}
        for hook, own in hooks.items():
            contents[f"{hook}.safetensors"] = _storable({name: own.get(name, tensors[name]) for name in tensors})[0]
        temporary = self.folder / f".tmp-{self.path(step).name}-{os.getpid()}"
        try:
            temporary.mkdir()
            for name, content in contents.items():
                save_file(content, temporary / name)
            torch.save(dict(state), temporary / STATE)
            (temporary / CONFIG).write_text(redaction.mask(config), encoding="utf-8")
            for name in contents:
                shutil.copymode(temporary / CONFIG, temporary / name)  # safetensors lets only the owner read
            _write_manifest(temporary, list(contents), {
                "format": FORMAT, "step": step, "lavis_lite": __version__, "torch": torch.__version__,
                "frozen": sorted(model.frozen_names()), "tied": tied, "weights": model.weight_record.to_dict(),
                "saved_at": datetime.now(timezone.utc).isoformat()})
            self._rename(temporary, self.path(step))
        except (OSError, RuntimeError, SafetensorError) as error:
            needed = _bytes_of(contents) + _bytes_of(state)
            problem = disk.cannot_write(self.folder, error, needed, f"the checkpoint of step {step}")
            newest = next(iter(steps_of(self.folder.parent)), None)
            resume = f" {newest} is intact; resume from it with --resume auto." if newest is not None else ""
            raise CheckpointError(f"{problem}{resume}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._write_pointers(step, state.get("best"))
        self._remove_old(step, state.get("best"))

    def _require_finite(self, step: int, given: Mapping[str, Tensor]) -> None:
        if broken := non_finite_fused(given):
            good = next((str(folder) for folder in steps_of(self.folder.parent) if not verify(folder)), None)
            start = f"The last good checkpoint is {good}: resume from it" if good else "Start again"
            raise CheckpointError(f"step {step} was not saved: {describe_non_finite(broken, given)}. {start} with a "
                                  "lower run.init_lr or run.max_grad_norm, or in fp32 (run.amp=false).")

    def _rename(self, temporary: Path, final: Path) -> None:
        old = final.with_name(f".old-{final.name}")
        if final.exists():  # the same step again: after a resume over a damaged one
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
        os.rename(temporary, final)
        atomic.sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _write_pointers(self, step: int, best: Mapping[str, Any] | None) -> None:
        pointers: dict[str, dict[str, Any]] = {"last.json": {"checkpoint": self.path(step).name, "step": step}}
        if best:
            pointers["best.json"] = {"checkpoint": self.path(best["step"]).name, **best}
        for name, content in pointers.items():
            atomic.write_text(self.folder / name, json.dumps(content) + "\n")

    def _remove_old(self, step: int, best: Mapping[str, Any] | None) -> None:
        """Remove older checkpoints. Those of later steps were left behind by a resume; they do not count."""
        ours = [folder for folder in steps_of(self.folder.parent) if step_of(folder) <= step]
        keep = set(ours[:self.keep]) | ({self.path(best["step"])} if best else set())
        for folder in ours:
            if folder not in keep:
                hidden = folder.with_name(f".old-{folder.name}")
                os.rename(folder, hidden)  # hidden first, so that nobody reads a half-deleted one
                shutil.rmtree(hidden)


def _storable(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(contiguous CPU tensors, each once; other names of tied tensors -> the name they are stored under)."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        storage = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and storage in seen:
            tied[name] = seen[storage]
            continue
        seen[storage] = name
        tensors[name] = tensor.detach().to("cpu").contiguous()
    # safetensors cannot store a view into a larger tensor
    return {name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
            for name, tensor in tensors.items()}, tied


def _gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on rank 0, of those that ranks share too. Collective."""
    return {name: distributed.gather_shards(value) for name, value in tensors.items()}


def _write_manifest(folder: Path, weights: Sequence[str], facts: Mapping[str, Any]) -> None:
    files = {}
    for name in (*weights, STATE, CONFIG):
        atomic.sync_file(folder / name)
        files[name] = {"size": (folder / name).stat().st_size, "sha256": atomic.file_sha256(folder / name)}
    (folder / MANIFEST).write_text(atomic.seal({**facts, "files": files}), encoding="utf-8")
    atomic.sync_file(folder / MANIFEST)
    atomic.sync_folder(folder)


def checkpoint_bytes(model: BaseModel, run: RunConfig) -> int:
    """Bytes of one checkpoint of a run: what `model` brings to it, the optimizer's state, averages."""
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    per_byte = state_per_byte(run)
    copies: Any = 1 + bool(run.hooks.get("ema"))
    return round(sum(value.nbytes * (copies + (per_byte[value.ndim > 1] if name in trained else 0))
                     for name, value in model.checkpoint_state().items()))


def _bytes_of(state: Any) -> int:
    """Bytes of the tensors in plain containers."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes_of, inner))


# --- finding and verifying -----------------------------------------------------------------------------------------
def verify(folder: Path) -> list[str]:
    """What is damaged in a checkpoint folder, one sentence each; empty if every byte is as it was written."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    found = {Path(folder) / name: file_fault(Path(folder) / name, facts) for name, facts in manifest.files.items()}
    return [f"{path}: {clause}." for path, clause in found.items() if clause]


def newest_good(output_dir: Path, log: Callable[[str], None] = print) -> Path | None:
    """The undamaged checkpoint that was saved last under `output_dir` (or in one run folder); None: no checkpoint.

    Damaged checkpoints are skipped, and `log` receives the reason.
    """
    root = Path(output_dir)
    runs = [root, *(sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else [])]
    found = [folder for run in runs for folder in steps_of(run)]
    for folder in sorted(found, key=saved_at, reverse=True):
        errors = verify(folder)
        if not errors:
            return folder
        if folder.exists():  # else its run is still training, and has just removed it
            log(f"skipping the damaged checkpoint {folder}: {' '.join(errors)}")
    return None


# --- reading -------------------------------------------------------------------------------------------------------
def require_good(folder: Path) -> Manifest:
    """Verify a checkpoint to the last byte and return its manifest.

    Raises:
        CheckpointError: with every error found.
    """
    if errors := verify(folder):
        raise CheckpointError(f"{folder} cannot be used: {' '.join(errors)} `--resume auto` takes the newest good one.")
    return read_manifest(folder)


def load_weights(folder: Path, model: BaseModel) -> None:
    """Load a checkpoint's weights into the model, all or none.

    Only parameters that are frozen in the model may be absent from the file.

    Raises:
        CheckpointError: it is damaged, or keys or shapes do not fit (all are listed).
    """
    _fill(Path(folder), require_good(folder), model)


def load(folder: Path, model: BaseModel) -> dict[str, Any]:
    """Load a checkpoint's weights into the model and return its training state (tensors and plain values).

    Raises:
        CheckpointError: as `load_weights`.
    """
    manifest = require_good(folder)
    _fill(Path(folder), manifest, model)
    path = Path(folder) / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a training state of this package: {error}") from error
    if not isinstance(state, dict) or state.get("step") != manifest.step:
        raise CheckpointError(f"{path}: not the training state of step {manifest.step}.")
    return state


def load_hook_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The sets of weights that hooks keep in a verified checkpoint, by hook.

    Raises:
        CheckpointError: a file is not what its name says.
    """
    found = {}
    for name in read_manifest(folder).files:
        if name.endswith(".safetensors") and name != WEIGHTS:
            try:
                found[name.removesuffix(".safetensors")] = load_file(Path(folder) / name)
            except SafetensorError as error:
                raise CheckpointError(f"{Path(folder) / name}: not the weights of a checkpoint ({error}).") from error
    return found


def _fill(folder: Path, manifest: Manifest, model: BaseModel) -> None:
    try:
        tensors = load_file(folder / WEIGHTS)
        tensors.update({alias: tensors[name] for alias, name in manifest.tied.items()})
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: not the weights of a checkpoint ({error}).") from error
    broken = [] if model.allow_non_finite else non_finite(tensors)
    if broken:
        raise CheckpointError(f"{folder}: {describe_non_finite(broken, tensors)}, so it was written after the run "
                              "diverged. Resume from an earlier checkpoint: --resume FOLDER.")
    if errors := _mismatches(tensors, model):
        raise CheckpointError(f"{folder} does not fit the model:\n  " + "\n  ".join(errors)
                              + "\nIs `model:` the same as in its config.yaml?")
    refuse_other_sources(model, manifest.extra.get("weights"), tensors, folder)
    own = model.state_dict()
    parts = {name: distributed.part_like(value, own[name]) for name, value in tensors.items()}
    model.load_state_dict(parts, strict=False)


def _mismatches(tensors: Mapping[str, Tensor], model: BaseModel) -> list[str]:
    expected = model.state_dict()
    errors = [f"{name} {list(expected[name].shape)}: missing in the checkpoint"
              for name in model.trainable_state() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            errors.append(f"{name} {list(tensor.shape)}: not in the model; {did_you_mean(name, expected, most=3)}")
        elif expected[name].shape != tensor.shape:
            errors.append(f"{name}: {list(tensor.shape)} in the checkpoint, {list(expected[name].shape)} in the model")
    return errors[:40] + ([f"... {len(errors) - 40} more"] if len(errors) > 40 else [])


def config_yaml(cfg: Config) -> str:
    """The configuration as YAML text that runs again, without notes and provenance; interpolations stay as written."""
    sections = asdict(cfg)
    for path, text in cfg.as_written.items():
        section = reduce(lambda tree, key: tree.get(key) or {}, path[:-1], sections)
        if path[-1] in section:
            section[path[-1]] = text
    kept = {key: sections[key] for key in ("model", "preprocess", "datasets", "run", "imports") if sections.get(key)}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=10_000)
