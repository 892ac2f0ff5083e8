"""Where a model's weights came from: every tensor has one named source.

Whatever loads weights marks the tensors that it filled (`mark_loaded`); the mark stays with the module. `sources_of`
collects the marks of a model: a tensor without one is as random as it was made. `WeightRecord` is what reports, results
and checkpoints keep of it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from lavis_lite.errors import CheckpointError, counted

if TYPE_CHECKING:
    from torch import nn

    from lavis_lite.models.base import BaseModel

Kind = Literal["random", "encoder", "language model", "bert", "checkpoint"]
FOLLOWED: tuple[Kind, ...] = ("encoder", "language model", "checkpoint")
"""kinds of sources that a later run reads again; checkpoints keep frozen tensors of any other"""
SHORT_HASH = 8
"""characters of a sha256 that people are shown"""
_MARKS = "weight_marks"
_count = itertools.count()


@dataclass(frozen=True)
class WeightSource:
    """One source of weights, for one part of a model.

    Attributes:
        part: first piece of the tensors' names, such as "qformer".
        kind: random | encoder | language model | bert | checkpoint.
        name: as a YAML names it ("mini/stage1", a path, a URL, a repository); "": the random start.
        path: the local file or folder that was read; "": none.
        step: optimizer steps that a run's checkpoint had done; None: not a run's checkpoint.
        sha256: of the file; "": not known.
        tensors: how many of the part's tensors have their values from it.
        origin: what the run of a checkpoint itself began with, in words.
    """

    part: str
    kind: Kind
    name: str = ""
    path: str = ""
    step: int | None = None
    sha256: str = ""
    tensors: int = 0
    origin: str = ""

    def describe(self, with_origin: bool = True) -> str:
        """Such as "mini/stage1" or "output/a/checkpoints/step_00000400 (step 400, sha256 1b2c3d4e)"."""
        if self.kind == "random":
            return "random start"
        facts = [f"step {self.step}"] if self.step is not None else []
        if self.sha256 and not self.is_packaged:
            facts.append(f"sha256 {self.sha256[:SHORT_HASH]}")
        if self.origin and with_origin:
            facts.append(f"begun from {'a ' if self.origin == 'random start' else ''}{self.origin}")
        return f"{self.name} ({', '.join(facts)})" if facts else self.name

    @property
    def is_packaged(self) -> bool:
        """Whether it ships with the package, so that its name says all."""
        return self.name == "mini" or self.name.startswith("mini/")


RANDOM = WeightSource("", "random")


@dataclass(frozen=True)
class WeightRecord:
    """Where all tensors of a model had their values from before any step of this run.

    Attributes:
        sources: one for each part and source, in the order of loading; the random start comes first.
        untrained: names of tensors that matter to the model's outputs and that nothing loaded, trainable or frozen.
    """

    sources: list[WeightSource] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)

    def describe(self, steps_here: int = 0, with_origin: bool = True) -> str:
        """One true line: "random start, 400 steps here", "mini/stage2_opt, then 40 steps here", or a checkpoint's path.

        Args:
            steps_here: optimizer steps that followed in this run.
            with_origin: of a run's checkpoint, say what that run began from too.
        """
        starts = self._starts(with_origin)
        text = " + ".join(starts) if starts else "random start"
        if starts and self.untrained:
            text += f" ({', '.join(sorted({part_of(name) for name in self.untrained}))} from a random start)"
        if not steps_here:
            return text
        return f"{text}, {'then ' if starts else ''}{counted(steps_here, 'step')} here"

    @property
    def step(self) -> int:
        """Optimizer steps of the run's checkpoint that was loaded last; 0: the last one is not a run's."""
        steps = [source.step for source in self.sources if source.kind == "checkpoint"]
        return (steps[-1] if steps else None) or 0

    def _starts(self, with_origin: bool) -> list[str]:
        """The checkpoints (or the BERT) that began the trained parts, each once; without any, the language model."""
        found = ([source for source in self.sources if source.kind in ("bert", "checkpoint")]
                 or [source for source in self.sources if source.kind == "language model"])
        return list(dict.fromkeys(source.describe(with_origin) for source in found))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {"sources": [asdict(source) for source in self.sources], "untrained": list(self.untrained)}

    @classmethod
    def from_dict(cls, content: Any, where: str = "the weight record") -> WeightRecord:
        """What `to_dict` gave; keys that a later version added are left alone.

        Raises:
            CheckpointError: something else.
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("sources"), list):
            raise CheckpointError(f"{where} is not a record of weights (sources, untrained).")
        untrained = content.get("untrained", [])
        if not isinstance(untrained, list) or not all(isinstance(name, str) for name in untrained):
            raise CheckpointError(f"{where}: untrained must be a list of tensor names.")
        return cls([_source(row, where) for row in content["sources"]], list(untrained))


def part_of(name: str) -> str:
    """What people call the part of a model that a tensor belongs to: the first piece of its name, or its adapters."""
    return "LoRA adapters" if ".lora_" in name else name.split(".")[0]


_TYPES: dict[str, tuple[type, ...]] = {"step": (int, type(None)), "tensors": (int,)}


def _source(row: Any, where: str) -> WeightSource:
    """One row of a record, checked."""
    known = {one.name for one in fields(WeightSource)}
    given = {key: value for key, value in row.items() if key in known} if isinstance(row, Mapping) else {}
    sound = {"part", "kind"} <= given.keys() and given["kind"] in get_args(Kind) and all(
        isinstance(value, _TYPES.get(key, (str,))) for key, value in given.items())
    if not sound:
        raise CheckpointError(f"{where}: {row!r} is not a source of weights.")
    return WeightSource(**given)


# marks --------------------------------------------------------------------------------------------------------------
def mark_loaded(module: nn.Module, source: WeightSource, names: Iterable[str] | None = None) -> None:
    """Note that tensors of a module have their values from `source` now.

    A model that reads frozen weights by itself calls this; tensors without a mark count as random, and a run's
    checkpoints then keep them.

    Args:
        module: any module of the model.
        source: `part` and `tensors` are filled in by `record_of`.
        names: within the module; None: all of its tensors.
    """
    marked = frozenset(module.state_dict() if names is None else names)
    marks = [*getattr(module, _MARKS, ()), (next(_count), source, marked)]
    setattr(module, _MARKS, marks)


def sources_of(model: nn.Module) -> dict[str, WeightSource]:
    """The source of every tensor of a model by its name; `RANDOM` where nothing loaded it.

    Tied tensors have one source under all of their names.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    identity = {name: id(parameters[name]) if name in parameters else name for name in model.state_dict()}
    # a layer that got an adapter after it was loaded has its weights one level deeper now
    identity |= {name.replace(".base_layer.", "."): key for name, key in identity.items() if ".base_layer." in name}
    found: dict[Any, WeightSource] = {}
    for path, source, names in _marks(model):
        for name in names:
            full = f"{path}.{name}" if path else name
            found[identity.get(full, full)] = source
    return {name: found.get(identity[name], RANDOM) for name in model.state_dict()}


def record_of(model: nn.Module, without_use: Iterable[str] = ()) -> WeightRecord:
    """The record of a model as it stands.

    Args:
        model: with the marks of whatever loaded its weights.
        without_use: names of tensors that may be random anyway, as no output needs them.
    """
    sources, counts = sources_of(model), dict[tuple[str, WeightSource], int]()
    for name, source in sources.items():
        key = name.split(".")[0], source
        counts[key] = counts.get(key, 0) + 1
    order = {source: index for index, source in enumerate(dict.fromkeys(source for _, source, _ in _marks(model)))}
    rows = sorted(counts, key=lambda key: order.get(key[1], -1))
    unneeded = set(without_use)
    return WeightRecord([replace(source, part=part, tensors=counts[part, source]) for part, source in rows],
                        [name for name, source in sources.items() if source.kind == "random" and name not in unneeded])


def _marks(model: nn.Module) -> list[tuple[str, WeightSource, frozenset[str]]]:
    """(path of the module, source, names within the module) of all marks, in the order of loading."""
    marks = [(count, path, source, names) for path, module in model.named_modules()
             for count, source, names in getattr(module, _MARKS, ())]
    return [(path, source, names) for _, path, source, names in sorted(marks, key=lambda mark: mark[0])]


def refuse_untrained(model: BaseModel, remedies: str) -> None:
    """Refuse a model that has trainable parameters which nothing loaded.

    Args:
        model: with its `weight_record`, as `lavis_lite.checkpoints.weights.build_model` sets it.
        remedies: what a user can do instead, as finished sentences.

    Raises:
        CheckpointError: names the parts, with the number of tensors of each.
    """
    trains = {name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
    names = [name for name in model.weight_record.untrained if name in trains]
    if names:
        parts = Counter(part_of(name) for name in names)
        listed = ", ".join(f"{part} ({count})" for part, count in parts.items())
        raise CheckpointError(f"no checkpoint has {len(names)} of the trainable tensors of {type(model).__name__}: "
                              f"{listed}. Their values are random, so results would mean nothing. {remedies}")
