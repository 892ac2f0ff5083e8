"""Frozen tensors that a run's checkpoint leaves out, found through the checkpoint's record of their sources."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lavis_lite.checkpoints.load import load_checkpoint
from lavis_lite.checkpoints.manifest import CHECKPOINTS, hash_of, stored_record
from lavis_lite.config.layers import read_yaml
from lavis_lite.errors import CheckpointError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.provenance import FOLLOWED, SHORT_HASH, WeightRecord, WeightSource, mark_loaded, sources_of

Locate = Callable[[WeightSource], Path | None]
CONFIG = "config.yaml"
ANY = ""
"""part of a source of which is not known what it brought"""


def record_behind(path: Path) -> WeightRecord | None:
    """Where the weights of a checkpoint's model had come from; None: not recorded.

    Checkpoints of versions that kept no record have their run's configuration, which names what it began with.
    """
    record = stored_record(path)
    if record is not None or not (path / CONFIG).is_file():
        return record
    model = read_yaml(path / CONFIG).get("model")
    return WeightRecord(list(_starts(model))) if isinstance(model, dict) else None


def _starts(model: dict[str, Any]) -> Iterator[WeightSource]:
    """The checkpoints that a section names, as it is in a run's config.yaml."""
    finetuned = bool(model.get("load_finetuned")) and bool(model.get("finetuned"))
    loaded = {"pretrained_stage1": True, "finetuned": finetuned,
              "pretrained": not finetuned and model.get("load_pretrained", True)}
    for key in CHECKPOINTS:
        if loaded[key] and isinstance(model.get(key), str):
            yield WeightSource(ANY, "checkpoint", model[key])


def follow(model: BaseModel, record: WeightRecord, absent: Set[str], checkpoint: str, locate: Locate,
           log: Callable[[str], None], allow_non_finite: bool = False) -> None:
    """Load what a checkpoint leaves out from the earlier checkpoints that its run started from.

    Args:
        model: filled as far as it goes without the checkpoint.
        record: of the checkpoint.
        absent: names of the model that neither the checkpoint nor anything loaded before has.
        checkpoint: what messages call it.
        locate: where the file of a source is now.
        log: takes a line on each source that was followed.
        allow_non_finite: load tensors that hold NaN or infinity too.

    Raises:
        CheckpointError: a source is not there any more, or is not what it was.
    """
    left = set(absent)
    for source, parts in _by_source(record):
        wanted = {name for name in left if ANY in parts or name.split(".")[0] in parts}
        if not wanted:
            continue
        path = _require(source, locate(source), parts, len(wanted), checkpoint)
        report = load_checkpoint(model, path, only=wanted, allow_non_finite=allow_non_finite)
        mark_loaded(model, replace(source, part="", tensors=0, path=str(path)), report.loaded)
        left -= set(report.loaded)
        log(f"{source.describe()}: {len(report.loaded)} tensors that {checkpoint} lacks, as its run had them frozen")


def _by_source(record: WeightRecord) -> Iterator[tuple[WeightSource, set[str]]]:
    """The checkpoints of a record in the order of loading, each with the parts that it brought."""
    parts: dict[WeightSource, set[str]] = {}
    for row in record.sources:
        if row.kind == "checkpoint":
            parts.setdefault(replace(row, part="", tensors=0), set()).add(row.part)
    yield from parts.items()


def _require(source: WeightSource, path: Path | None, parts: set[str], count: int, checkpoint: str) -> Path:
    """The path of a source, if it is there and still what it was."""
    where_from = "" if ANY in parts else f" of {', '.join(sorted(parts))}"
    why = (f"{checkpoint} lacks {count} tensors{where_from}, which its run kept frozen and had from "
           f"{source.describe()}.")
    way_on = "Or name another checkpoint that has them: model.pretrained_stage1=PATH is loaded first."
    if path is None:
        raise CheckpointError(f"{why} That is not there any more (looked at {source.path or source.name}): put it "
                              f"back. {way_on}")
    now = hash_of(path)
    if source.sha256 and now and now != source.sha256:
        raise CheckpointError(f"{why} {path} has changed since (its sha256 begins with {now[:SHORT_HASH]} now): put "
                              f"the old file back. {way_on}")
    return path


def differing_sources(model: nn.Module, record: WeightRecord, absent: Iterable[str]) -> Iterator[str]:
    """A clause on each source of what a checkpoint lacks that is not the one that it was trained with.

    Args:
        model: with its weights.
        record: of the checkpoint.
        absent: names of the model that the checkpoint does not have.
    """
    now: dict[str, dict[str, WeightSource]] = {}
    sources = sources_of(model)
    for name in absent:
        now.setdefault(name.split(".")[0], {})[sources[name].sha256] = sources[name]
    for then in record.sources:
        found = now.get(then.part, {})
        if then.kind in FOLLOWED and then.sha256 and found and not {"", then.sha256} & found.keys():
            own = next(iter(found.values()))
            yield f"was trained with the {then.kind} {then.describe()}; here it is {own.describe()}"


def refuse_other_sources(model: BaseModel, stored: Any, given: Container[str], checkpoint: Path) -> None:
    """Refuse to resume a run with other frozen weights than it began with.

    Args:
        model: with its weights; one without a record is not asked.
        stored: the record in the checkpoint's manifest; None: it has none.
        given: names that the checkpoint has.
        checkpoint: the run's.

    Raises:
        CheckpointError: naming the part, what it was and what it is.
    """
    if stored is None or not model.weight_record.sources:
        return
    record = WeightRecord.from_dict(stored, f"{checkpoint}: weights")
    for clause in differing_sources(model, record, [name for name in model.state_dict() if name not in given]):
        raise CheckpointError(f"{checkpoint} {clause}. A run goes on with the frozen weights that it began with: put "
                              f"these back, or begin a new run with model.pretrained={checkpoint}.")
