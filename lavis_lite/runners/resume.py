"""What a resumed run has in common with the run it goes on with: what must be equal, and what is announced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lavis_lite.checkpoints.manifest import CONFIG
from lavis_lite.errors import ConfigError

UNANNOUNCED = frozenset({"run.resume_ckpt_path"})
"""settings that say how to resume, not how to train"""
ABSENT = "(absent)"
LONGEST = 80
"""characters of a value in a message"""


def check_order(saved: Mapping[str, Any], present: Mapping[str, Any], folder: Path) -> None:
    """Refuse a resume that would see other samples than the run it goes on with.

    Args:
        saved: `TrainingParts.fingerprint` of the checkpoint.
        present: that of this run.
        folder: the checkpoint.

    Raises:
        ConfigError: sizes, seed, global batch, mixing or annotations differ.
    """
    differing = [f"{key} was {saved.get(key)} and is {value}" for key, value in present.items()
                 if key != "annotations" and saved.get(key) != value]
    if differing:
        raise ConfigError(
            f"this run would not go on as it began: {'; '.join(differing)}. The global batch is "
            "run.batch_size_train x processes x run.accum_grad_iters: change one to make up for another. Or start "
            "a new run with model.pretrained set to the checkpoint.")
    changed = changed_annotations(saved.get("annotations", []), present.get("annotations", []))
    if changed:
        raise ConfigError(
            f"the annotations of {', '.join(changed)} are not those that {folder} was trained on: as many rows, with "
            "other content. Put the earlier annotation files back, or start a new run on these with "
            f"--options model.load_pretrained=true model.pretrained={folder}")


def changed_annotations(saved: list[list[Any]], present: list[list[Any]]) -> list[str]:
    """Names of the data sets whose rows have another hash; a hash that was not recorded counts as equal."""
    return [name for (name, now), (_, before) in zip(present, saved, strict=False)
            if now is not None and before is not None and now != before]


def changed_settings(folder: Path, config: str) -> list[str]:
    """One line per setting that differs from the checkpoint's run: `run.init_lr: 0.0001 -> 0.0002`.

    Args:
        folder: the checkpoint.
        config: YAML text of this run's configuration.
    """
    before = _flat(yaml.safe_load((Path(folder) / CONFIG).read_text(encoding="utf-8")))
    now = _flat(yaml.safe_load(config))
    keys = [key for key in {**before, **now} if key not in UNANNOUNCED and before.get(key) != now.get(key)]
    return [f"{key}: {_short(before.get(key))} -> {_short(now.get(key))}" for key in keys]


def _short(value: str | None) -> str:
    if value is None:
        return ABSENT
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."


def _flat(section: object, prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as text."""
    return dict(_items(section, prefix))


def _items(section: object, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(section, Mapping) and section:
        for key, value in section.items():
            yield from _items(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(section, ensure_ascii=False, default=str)


def resume_notes(folder: Path, config: str, saved: Mapping[str, Any], micro_batch: int,
                 in_batch_negatives: bool) -> list[str]:
    """What a resumed run tells of itself, one line each: settings that differ, and another objective.

    Args:
        folder: the checkpoint.
        config: YAML text of this run's configuration.
        saved: the checkpoint's training state.
        micro_batch: samples of a micro-batch over all ranks, in this run.
        in_batch_negatives: whether the loss compares them with each other.
    """
    notes = [f"setting changed since {Path(folder).name}: {line}" for line in changed_settings(folder, config)]
    before = saved.get("micro_batch", micro_batch)  # absent in checkpoints of earlier versions
    if in_batch_negatives and before != micro_batch:
        notes.append(f"WARNING: the number of samples in a micro-batch was {before} and is {micro_batch} "
                     "(run.batch_size_train x processes). ITC and ITM take their negatives from it, so the loss "
                     f"changes from here on. To keep it, resume with run.batch_size_train x processes = {before}.")
    return notes


def accumulation_notes(micro_batch: int, accum: int, in_batch_negatives: bool) -> list[str]:
    """What a run tells of a loss that compares the samples of a micro-batch, if a step has several of them."""
    if accum == 1 or not in_batch_negatives:
        return []
    return [f"note: ITC and ITM compare the samples of one micro-batch, {micro_batch} (run.batch_size_train x "
            f"processes), not those of a step, {micro_batch * accum}. More micro-batches mean fewer in-batch negatives "
            "and another loss than run.accum_grad_iters=1 has."]
