"""Fill a model from the files that its section names, in order, and keep account of where each tensor came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lavis_lite.checkpoints.formats.key_maps import LANGUAGE_MODEL
from lavis_lite.checkpoints.formats.vision import load_vision_weights
from lavis_lite.checkpoints.load import LoadReport, fit_state, frozen_tensors, load_checkpoint, refuse_other_settings
from lavis_lite.checkpoints.manifest import CHECKPOINTS, CONFIG, hash_of, source_of, stored_record
from lavis_lite.checkpoints.reading import Content, check_folder, read_content, read_extra
from lavis_lite.config.layers import read_yaml
from lavis_lite.config.schema import ModelConfig, NamesLanguageModel
from lavis_lite.errors import CheckpointError, counted, listed
from lavis_lite.models.base import BaseModel
from lavis_lite.models.provenance import (
    FOLLOWED,
    SHORT_HASH,
    Kind,
    WeightRecord,
    WeightSource,
    mark_loaded,
    record_of,
    sources_of,
)
from lavis_lite.models.vision.config import timm_repository

# --- frozen tensors that a checkpoint leaves out ----------------------------------------------------------------------
Locate = Callable[[WeightSource], Path | None]
PROJECTIONS = ("language_projection.", "connector.")
"""how names begin of what is trained for one language model"""
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
    """A clause on each source of the tensors `absent` in a checkpoint that is another one than its record names."""
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
        raise CheckpointError(f"{checkpoint} {clause}. A run continues with the frozen weights that it began with: put "
                              f"these back, or begin a new run with model.pretrained={checkpoint}.")


Log = Callable[[str], None]
SHOWN = 5


@dataclass
class _Loaded:
    """A checkpoint that was loaded while the model may still get parts."""

    content: Content
    source: WeightSource
    report: LoadReport
    extra: dict[str, Any] = field(default_factory=dict)


class Assembly:
    """One model on its way from random to ready.

    Args:
        model: as its `from_config` made it.
        section: with local paths in place of names.
        names: key of the section -> the name that the user gave there.
        starts: (key, path) of the checkpoints, in the order of loading.
        locate: where the file of a source is now.
        log: takes lines for people.
    """

    def __init__(self, model: BaseModel, section: ModelConfig, names: dict[str, str], starts: list[tuple[str, str]],
                 locate: Locate, log: Log) -> None:
        self.model, self.section, self.names, self.log = model, section, names, log
        self.starts, self.locate = starts, locate
        self.allow_non_finite = bool(section.get("allow_non_finite"))
        self._loaded: list[_Loaded] = []

    # --- backbones --------------------------------------------------------------------------------------------------
    def load_backbones(self) -> None:
        """Encoder, language model and, where no checkpoint follows, BERT."""
        section, model = self.section, self.model
        if self.names.keys() & {"llm_model", "llm_tokenizer"}:
            model.language_model.check_tokenizer()  # type: ignore[operator, union-attr]
        if section.brings_backbones:
            return
        if "vit_weights" in self.names:
            encoder: Any = model.vision_encoder
            load_vision_weights(encoder, section["vit_weights"], allow_non_finite=self.allow_non_finite)
            mark_loaded(encoder, self._source("encoder", "vit_weights"))
        elif section.get("vit_weights") == "timm":
            mark_loaded(model.vision_encoder,  # type: ignore[arg-type]
                        WeightSource("", "encoder", timm_repository(section["vit_model"])))
        if "llm_model" in self.names:
            from lavis_lite.models.language.build import load_pretrained

            language_model: Any = model.language_model
            is_quantised = language_model.load_options.quantization is not None
            check_folder(self._named_model(), "model.llm_model", is_quantised and not self.allow_non_finite)
            load_pretrained(language_model, self._named_model(), self._source("language model", "llm_model"),
                            allow_non_finite=self.allow_non_finite)
        if "qformer_weights" in self.names:
            from lavis_lite.checkpoints.formats.bert import initialise_from_bert  # no checkpoint follows

            qformer: Any = model.qformer
            untouched = initialise_from_bert(qformer, section["qformer_weights"], self.allow_non_finite)
            mark_loaded(qformer, self._source("bert", "qformer_weights"), qformer.state_dict().keys() - set(untouched))

    def _named_model(self) -> str:
        assert isinstance(self.section, NamesLanguageModel), type(self.section)  # it named an `llm_model`
        return self.section.language_model_name()

    def _source(self, kind: Kind, key: str) -> WeightSource:
        path = self._named_model() if key == "llm_model" else self.section.get(key)
        return source_of(kind, self.names[key], path)

    # --- checkpoints ------------------------------------------------------------------------------------------------
    def load_checkpoints(self) -> None:
        """Each checkpoint that the section names, after what its own run kept frozen."""
        gets_parts_later = type(self.model).on_weights_loaded is not BaseModel.on_weights_loaded
        for key, path in self.starts:
            if path in self.model.loaded_checkpoints:
                continue
            content, extra = read_content(path), read_extra(path)
            refuse_other_settings(self.model, path)
            self._follow(content, path)
            had = self._supplied()
            is_last = key == self.starts[-1][0]  # what the last one lacks must have come from those before
            fitted, report = fit_state(
                self.model, content, path, allowed_missing=map(re.escape, had) if is_last else [".*"], extra=extra,
                allowed_unexpected=[".*"] if gets_parts_later else [], allow_non_finite=self.allow_non_finite)
            report.notes += self._unknown_language_model(path, fitted)
            report.had = [name for name in report.allowed_missing if name in had]
            self.model.load_state_dict(fitted, strict=False)
            source = source_of("checkpoint", self.names[key], path)
            mark_loaded(self.model, source, report.loaded)
            self._loaded.append(_Loaded(content, source, report, extra))
            self.log(str(report))

    def _supplied(self) -> set[str]:
        """Names of the tensors that something loaded."""
        return {name for name, source in sources_of(self.model).items() if source.kind != "random"}

    def _follow(self, content: Content, path: str) -> None:
        """Load what the checkpoint's run kept frozen: it came from other files and is not in the checkpoint."""
        record = record_behind(Path(path))
        if record is None:
            return
        everything = fit_state(self.model, content, path, allowed_missing=[".*"], allowed_unexpected=[".*"],
                               allow_non_finite=True)
        absent = self.model.state_dict().keys() - everything[0].keys()
        follow(self.model, record, absent - self._supplied(), path, self.locate, self.log,
                         self.allow_non_finite)
        for clause in differing_sources(self.model, record, absent):
            self.log(f"note: {path} {clause}")

    def _unknown_language_model(self, path: str, fitted: Mapping[str, Any]) -> list[str]:
        """A note on a projection of which is not recorded for which language model it was trained.

        One of the same width takes it, and answers worse than the right one.
        """
        if "llm_model" not in self.names or record_behind(Path(path)) is not None:
            return []
        if not any(name.startswith(PROJECTIONS) for name in fitted) or any(
                name.startswith(LANGUAGE_MODEL) for name in fitted):
            return []
        return [f"the language model that its projection was trained for is not recorded; here it is "
                f"{self.names['llm_model']}"]

    # --- the end ----------------------------------------------------------------------------------------------------
    def finish(self) -> BaseModel:
        """Call the model's `on_weights_loaded` and account for every tensor.

        Raises:
            CheckpointError: names of a checkpoint that the model does not have, or frozen tensors without a source.
        """
        model = self.model
        model.allow_non_finite = self.allow_non_finite
        model.on_weights_loaded()
        for loaded in self._loaded:
            self._load_late(loaded)
        not_stored = [name for loaded in self._loaded for name in loaded.report.not_in_layout]
        model.weight_record = record_of(model, without_use=not_stored)
        self._account_for_frozen()
        return model

    def _load_late(self, loaded: _Loaded) -> None:
        """Tensors of parts that `on_weights_loaded` made."""
        late = set(loaded.report.ignored)
        if not late:
            return
        fitted, _ = fit_state(self.model, loaded.content, loaded.report.source, allowed_missing=[".*"],
                              extra=loaded.extra, allow_non_finite=self.allow_non_finite)
        new = {name: tensor for name, tensor in fitted.items() if name in late}
        if new:
            self.model.load_state_dict(new, strict=False)
            mark_loaded(self.model, loaded.source, new)

    def _account_for_frozen(self) -> None:
        """Frozen tensors that nothing loaded: an error where a checkpoint was, else a note."""
        frozen = frozen_tensors(self.model, self.model.state_dict())
        lost = [name for name in self.model.weight_record.untrained if name in frozen]
        if lost and self._loaded:
            unnamed = [name for name in lost if not name.startswith(self._random_on_purpose())]
            if unnamed:
                raise CheckpointError(_unsupplied(unnamed, [loaded.report.source for loaded in self._loaded]))
        if lost:
            self.log(f"note: frozen and random, as no file is named for them: {count_by_part(lost)}. Checkpoints of a "
                     "training keep them.")

    def _random_on_purpose(self) -> tuple[str, ...]:
        """What names begin with of the parts that the section itself asks to be random."""
        asked = (("vision_encoder.", self.section.get("vit_weights") == "random"),
                 ("language_model.", self.section.get("llm_args") is not None))
        return tuple(start for start, random in asked if random)


def count_by_part(names: Iterable[str]) -> str:
    """Such as "qformer (206 tensors), query_tokens (1 tensor)"."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} ({counted(count, 'tensor')})" for part, count in counts.items())


def _unsupplied(names: list[str], sources: list[str]) -> str:
    return (f"{' and '.join(sources)}: {len(names)} frozen tensors of the model are not in it, and nothing else that "
            f"is named brings them, so they would be random: {listed(names, SHOWN)}. In all: "
            f"{count_by_part(names)}. Name the checkpoint that has them: model.pretrained_stage1=PATH is loaded first "
            "(a vision encoder: model.vit_weights=PATH; a language model: model.llm_model=FOLDER).")
