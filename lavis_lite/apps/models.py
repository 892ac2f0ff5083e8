"""Models by name, each loaded once and used by one thread at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_lite.config.named import model_types
from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.registry import lacking, registry
from lavis_lite.zoo import load_model_and_preprocess

MOST_LOADED = 6
"""models in memory; the one that was not used for the longest time makes room"""


@dataclass
class Loaded:
    """A model ready for use.

    Attributes:
        name: as in `Models`.
        model: in eval mode.
        images: a PIL image -> float32[3,H,W].
        lock: held while the model computes.
    """

    name: str
    model: Any
    images: Any
    lock: threading.Lock = field(default_factory=threading.Lock)

    def can(self, protocol: type) -> bool:
        """Whether the model has a protocol of `lavis_lite.models.protocols`."""
        return not lacking(self.model, protocol)


@dataclass(frozen=True)
class Source:
    """What a name stands for.

    Attributes:
        arch: of the model.
        arguments: of `load_model_and_preprocess`.
    """

    arch: str
    arguments: Mapping[str, Any]


def source_of(name: str) -> Source:
    """`ARCH`, `ARCH/TYPE`, either with `@CHECKPOINT`, or the path of a run, with `@best`, `@last` or `@step_N`.

    Raises:
        ConfigError, RegistryError, CheckpointError: there is no such arch, type or run.
    """
    whole = Path(name.strip()).expanduser().is_dir()  # "@" may be part of a folder's name
    named, _, checkpoint = (name.strip(), "", "") if whole else name.strip().partition("@")
    if Path(named).expanduser().is_dir():
        from lavis_lite.runs import find_checkpoint, model_sections  # a model of the zoo needs no runs

        found = find_checkpoint(str(Path(named).expanduser()), checkpoint or None)
        return Source(model_sections(found)[0].arch, {"run": found.folder})
    arch, _, model_type = named.partition("/")
    if arch not in registry.list_models():
        raise ConfigError(f"there is no model or run {name!r}; {registry.model.hint(arch)} A run is "
                          "named by its folder, a type as ARCH/TYPE.")
    if model_type and model_type not in model_types(arch):
        raise ConfigError(f"{arch} has no type {model_type!r}; {did_you_mean(model_type, model_types(arch))}")
    return Source(arch, {"name": arch, "model_type": model_type or "mini", "checkpoint": checkpoint or None})


class Models:
    """Models by name, loaded when they are first used.

    Args:
        names: see `source_of`; they are looked up now, so that a wrong one is an error at the start.
        options: further arguments of `load_model_and_preprocess`, such as device.
        any_name: whether other names may be loaded, too.

    Raises:
        LavisLiteError: see `source_of`.
    """

    def __init__(self, names: Sequence[str], options: Mapping[str, Any] | None = None, any_name: bool = False) -> None:
        self.names, self.options, self.any_name = list(dict.fromkeys(names)), dict(options or {}), any_name
        self._sources = {name: source_of(name) for name in self.names}
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def able(self, protocol: type) -> list[str]:
        """The names of models that have a protocol, without loading them."""
        return [name for name, source in self._sources.items()
                if not lacking(registry.get_model_class(source.arch), protocol)]

    def get(self, name: str) -> Loaded:
        """The model of a name.

        Raises:
            ConfigError: a name that may not be loaded here.
            LavisLiteError: see `source_of` and `load_model_and_preprocess`.
        """
        with self._lock:
            if name not in self._sources and not self.any_name:
                raise ConfigError(f"the model {name!r} is not offered here; {did_you_mean(name, self.names)}")
            if name not in self._loaded:
                source = self._sources.get(name) or source_of(name)
                model, images, _ = load_model_and_preprocess(**source.arguments, is_eval=True, **self.options)
                self._loaded[name] = Loaded(name, model, images["eval"])
                if len(self._loaded) > MOST_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]
