"""What a resumed run shares with the run it continues: what must be equal, and which changes are logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lavis_lite.checkpoints.manifest import CONFIG
from lavis_lite.config.layers import flatten
from lavis_lite.errors import ConfigError

UNANNOUNCED = frozenset({"run.resume_ckpt_path"})
"""settings of how to resume, not of how to train"""
LONGEST = 80
"""characters of a value in a message"""


def check_order(saved: Mapping[str, Any], present: Mapping[str, Any], folder: Path) -> None:
    """Refuse a resume that would see other samples than the run it continues.

    Args:
        saved: `TrainState.fingerprint` of the checkpoint.
        present: that of this run.
        folder: the checkpoint.

    Raises:
        ConfigError: sizes, seed, global batch, mixing or annotations differ.
    """
    differing = [f"{key} was {saved.get(key)} and is {value}" for key, value in present.items()
                 if key not in ("annotations", "pictures") and saved.get(key) != value]
    if differing:
        advice = ("The global batch is run.batch_size_train x processes x run.accum_grad_iters: change one to make up "
                  "for another. Or start" if saved.get("global batch") != present.get("global batch") else
                  "Sizes are the rows of each training set. Restore the earlier files, or start"
                  if saved.get("sizes") != present.get("sizes") else "Start")
        raise ConfigError(f"this run would not continue as it began: {'; '.join(differing)}. {advice} a new run with "
                          "model.pretrained set to the checkpoint.")
    changed = changed_annotations(saved.get("annotations", []), present.get("annotations", []))
    if changed:
        raise ConfigError(
            f"the annotations of {', '.join(changed)} are not those that {folder} was trained on: their number of rows "
            "is equal, their content is not. Restore the earlier annotation files, or start a new run on these with "
            f"--options model.load_pretrained=true model.pretrained={folder}")


def changed_annotations(saved: list[list[Any]], present: list[list[Any]]) -> list[str]:
    """Names of the data sets with another hash of their rows; a hash that was not recorded counts as equal."""
    return [name for (name, now), (_, before) in zip(present, saved, strict=False)
            if now is not None and before is not None and now != before]


def changed_pictures(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Names of the data sets of which a file has another size; files that are not there are not compared."""
    names = [name for name, _ in present.get("annotations", [])]
    return [name for name, then, now in zip(names, saved.get("pictures", []), present.get("pictures", []), strict=False)
            if any(before and after and before != after for before, after in zip(then, now, strict=False))]


def changed_settings(folder: Path, config: str) -> list[str]:
    """One line per setting that differs from the checkpoint's run: `run.init_lr: 0.0001 -> 0.0002`.

    Args:
        folder: the checkpoint.
        config: YAML text of this run's configuration.
    """
    before, now = map(_settings, ((Path(folder) / CONFIG).read_text(encoding="utf-8"), config))
    keys = [key for key in {**before, **now} if key not in UNANNOUNCED and before.get(key) != now.get(key)]
    return [f"{key}: {_short(before.get(key, '(absent)'))} -> {_short(now.get(key, '(absent)'))}" for key in keys]


def _settings(config: str) -> dict[str, str]:
    """Dotted key -> value as JSON."""
    return {key: json.dumps(value, ensure_ascii=False, default=str)
            for key, value in flatten(yaml.safe_load(config) or {})}


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."


def resume_notes(folder: Path, config: str, saved: Mapping[str, Any], order: Mapping[str, Any], micro_batch: int,
                 in_batch_negatives: bool) -> list[str]:
    """Messages of a resumed run, one line each: settings that differ, and a changed objective.

    Args:
        folder: the checkpoint.
        config: YAML text of this run's configuration.
        saved: the checkpoint's training state.
        order: `TrainState.fingerprint` of this run.
        micro_batch: samples of a micro-batch over all ranks, in this run.
        in_batch_negatives: whether the loss compares these samples with each other.
    """
    notes = [f"setting changed since {Path(folder).name}: {line}" for line in changed_settings(folder, config)]
    if changed := changed_pictures(saved["order"], order):
        notes.append(f"WARNING: files of {', '.join(changed)} have other sizes than at the checkpoint: the run "
                     "continues with other pictures.")
    before = saved.get("micro_batch", micro_batch)  # absent in checkpoints of earlier versions
    if in_batch_negatives and before != micro_batch:
        notes.append(f"WARNING: the number of samples in a micro-batch was {before} and is {micro_batch} "
                     "(run.batch_size_train x processes). ITC and ITM take their negatives from it, so the loss "
                     f"changes from here on. To keep it, resume with run.batch_size_train x processes = {before}.")
    return notes
