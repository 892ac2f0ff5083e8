"""A registry of one kind: names -> classes, which are imported on first use.

`lavis_lite.registry` holds one for each kind.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

from lavis_lite.errors import RegistryError, did_you_mean, shown

T = TypeVar("T")
C = TypeVar("C", bound=type)
PLUGIN_GROUP = "lavis_lite.plugins"


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _address(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _location(cls: type) -> str:
    """`file:line` of a class, for messages."""
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: its name in messages ("model").
        base: "module:Class" that every registered class must derive from; imported only when a class registers.
        builtins: name -> "module:Class" of the package's own classes; imported on first `get`.
        sections: name -> "module:Config" of a builtin's `config_class`, if it is in a lighter module than the class;
            see `section_of`.
    """

    def __init__(self, kind: str, base: str, builtins: Mapping[str, str],
                 sections: Mapping[str, str] | None = None) -> None:
        self.kind, self.base, self.builtins, self.sections = kind, base, dict(builtins), dict(sections or {})
        self._classes: dict[str, type[T]] = {}
        self.replaced: set[str] = set()
        """built-in names that a class from outside took over"""

    def replace(self, name: str) -> Callable[[C], C]:
        """As `register`; a built-in class of that name gives way."""
        if name in self.builtins and not self.is_own(name):
            self._classes.pop(name, None)
            self.replaced.add(name)
        return self.register(name)

    def is_own(self, name: str) -> bool:
        """Whether a class from outside of the package has that name."""
        held = self._classes.get(name)
        return held is not None and _address(held) != self.builtins.get(name)

    def builtin_name(self, cls: type) -> str | None:
        """The first name of one of the package's own classes; None: it is not one."""
        return next((name for name, address in self.builtins.items() if address == _address(cls)), None)

    def builtin(self, name: str) -> type[T]:
        """The package's own class of that name, whatever is registered under it.

        Raises:
            RegistryError: it has none.
        """
        if name not in self.builtins:
            raise RegistryError(f"unknown {self.kind} {shown(name)}: {did_you_mean(name, self.builtins)}")
        found: type[T] = _load(self.builtins[name])
        return found

    def register(self, *names: str) -> Callable[[C], C]:
        """Decorator: makes a class known under `names`.

        Raises:
            RegistryError: the class lacks the kind's base class, or a name is taken (both locations are named).
        """

        def decorate(cls: C) -> C:
            base = _load(self.base)
            if not (inspect.isclass(cls) and issubclass(cls, base)):
                raise RegistryError(f"{_location(cls)}: a {self.kind} must derive from {self.base.replace(':', '.')}.")
            for name in names:
                if name in self.replaced and self.builtins[name] == _address(cls):
                    continue
                self._check_free(name, cls)
                self._classes[name] = cast("type[T]", cls)
            return cls

        return decorate

    def _check_free(self, name: str, cls: type) -> None:
        held = self._classes.get(name)
        builtin = None if name in self.replaced else self.builtins.get(name)
        taken = _address(held) if held is not None else builtin
        if taken is not None and taken != _address(cls):  # the same class again is a reload, not a clash
            first = _location(held) if held is not None else taken
            raise RegistryError(f"{self.kind} name {name!r} is registered twice: at {first} and at {_location(cls)}.")

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            RegistryError: unknown name; the message lists the nearest names.
        """
        if not isinstance(name, str):
            raise RegistryError(f"the name of a {self.kind} is text, not a {type(name).__name__}; "
                                f"{did_you_mean('', self.names())}")
        if name not in self._classes and name in self.builtins:
            _load(self.builtins[name])
        if name not in self._classes:
            load_plugins()
        cls = self._classes.get(name) or self._elsewhere(name)
        if cls is None:
            raise RegistryError(f"unknown {self.kind} {shown(name)}: {self.hint(name)}")
        return cls

    def hint(self, name: str) -> str:
        """A clause for messages about an unknown name: what is nearest to it."""
        return did_you_mean(name, self.names())

    def _elsewhere(self, name: str) -> type[T] | None:
        """The class of a name that is not registered; None: no such class."""
        return None

    def section_of(self, name: str) -> type | None:
        """The `config_class` of a name, which defines its section of a YAML; None if the class has none.

        A builtin is not imported if its section has its own entry in the index.

        Raises:
            RegistryError: unknown name.
        """
        if isinstance(name, str) and name in self.sections and name not in self._classes:
            section: type = _load(self.sections[name])
            return section
        cls = self.get(name)  # `section_class` is for classes to which `config_class` means something else
        return getattr(cls, "section_class", None) or getattr(cls, "config_class", None)

    def names(self) -> list[str]:
        """All names, built-in and registered, sorted. Imports nothing."""
        return sorted(self.builtins.keys() | self._classes.keys())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.names()


OTHER_FAMILIES = {
    "ALBEF": {"albef_pretrain": "blip2", "albef_retrieval": "blip2", "albef_feature_extractor":
              "blip2_feature_extractor", "albef_classification": "blip2_t5_instruct", "albef_nlvr":
              "blip2_t5_instruct", "albef_vqa": "blip2_t5_instruct"},
    "ALPRO": {"alpro_retrieval": "blip2", "alpro_qa": "blip2_t5_instruct"},
    "BLIP (before BLIP-2)": {
        "blip_pretrain": "blip2", "blip_retrieval": "blip2", "blip_feature_extractor": "blip2_feature_extractor",
        "blip_image_text_matching": "blip2_image_text_matching", "blip_caption": "blip2_opt", "blip_vqa":
        "blip2_t5_instruct", "blip_classification": "blip2_t5_instruct", "blip_nlvr": "blip2_t5_instruct"},
    "BLIP-Diffusion": {"blip_diffusion": ""},
    "CLIP": {"clip": "blip2_image_text_matching", "clip_feature_extractor": "blip2_feature_extractor"},
    "GPT for dialogues": {"gpt_dialogue": "blip2_vicuna_instruct"},
    "Img2LLM": {"img2prompt_vqa": "blip2_t5_instruct"},
    "PNP-VQA": {"pnp_vqa": "blip2_t5_instruct", "pnp_unifiedqav2_fid": "blip2_t5_instruct"},
    "X-InstructBLIP": {"blip2_vicuna_xinstruct": "blip2_vicuna_instruct"},
}
"""families of models that LAVIS has and this package does not: arch there -> the nearest arch here"""


class ModelRegistry(Registry[T]):
    """Models; it knows the names of LAVIS' other families too."""

    def hint(self, name: str) -> str:
        """As `Registry.hint`; of a model of LAVIS' other families, that it is not here."""
        for family, archs in OTHER_FAMILIES.items():
            if name in archs:
                near = f" Nearest to it: {archs[name]}." if archs[name] else ""
                return f"lavis_lite has BLIP-2 and InstructBLIP, and not LAVIS' {family}.{near}"
        return super().hint(name)


TORCH_OPTIMIZERS = ("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop",
                    "rprop", "sgd")
"""classes of torch.optim in every supported version of torch, in small letters, so that torch need not be imported"""


class OptimizerRegistry(Registry[Any]):
    """Optimizers: those that are registered, and every class of torch.optim by its name in any case."""

    def names(self) -> list[str]:
        """All names, torch's in small letters, sorted. Imports nothing."""
        return sorted({*super().names(), *TORCH_OPTIMIZERS})

    def _elsewhere(self, name: str) -> Any:
        import torch

        classes = {key.lower(): value for key, value in vars(torch.optim).items()
                   if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)}
        return None if name.lower() == "optimizer" else classes.get(name.lower())


class _Plugins:  # entry points are loaded once per process, on the first unknown name
    loaded, lock = False, threading.RLock()


def load_plugins() -> None:
    """Import every entry point of the group `lavis_lite.plugins`; importing runs its decorators."""
    with _Plugins.lock:
        if _Plugins.loaded:
            return
        _Plugins.loaded = True  # before they are imported: a plugin may ask for names itself
        for entry in metadata.entry_points(group=PLUGIN_GROUP):
            entry.load()
