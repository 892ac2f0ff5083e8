"""LAVIS' `registry`: what is registered there becomes a registered part of this package.

Models derive from this package's base class and are registered as they are. Tasks, builders, processors and schedules
keep LAVIS' own methods, some of which have this package's names with other arguments; each gets an adapter. A project
that grew out of LAVIS registers its changed classes under LAVIS' names: they take the place of the package's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

from lavis_lite.compat.lavis import paths
from lavis_lite.config.lavis_keys import INSTRUCTION
from lavis_lite.config.named import dataset_names
from lavis_lite.errors import RegistryError
from lavis_lite.registry import registry as core

Decorator = Callable[[type], type]
ADAPTERS = {"processor": "processors:adapted", "builder": "builders:adapted", "task": "tasks:adapted",
            "lr_scheduler": "runners:adapted_schedule"}
"""kind -> what makes this package's class of LAVIS' one"""
MODELS = {"blip2": "blip2_qformer:Blip2Qformer", "blip2_feature_extractor": "blip2_qformer:Blip2Qformer",
          "blip2_image_text_matching": "blip2_qformer:Blip2ITM", "blip2_opt": "blip2_llm:Blip2OPT",
          "blip2_t5": "blip2_llm:Blip2T5", "blip2_t5_instruct": "blip2_llm:Blip2T5Instruct",
          "blip2_vicuna_instruct": "blip2_llm:Blip2VicunaInstruct"}
"""the package's models that LAVIS has too, with LAVIS' methods"""
KINDS = ("builder", "task", "processor", "model", "lr_scheduler", "runner")
STATE = {"MAX_INT": sys.maxsize, "SPLIT_NAMES": ["train", "val", "test"]}


def _adapter_of(target: str) -> Any:
    """`module:function` of this room: imported by name, since these modules use the registry themselves."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(f"lavis_lite.compat.lavis.{module}"), name)


class Names(Mapping[str, Any]):
    """Name -> class of a kind."""

    def __init__(self, registry: LavisRegistry, kind: str) -> None:
        self.registry, self.kind = registry, kind

    def __getitem__(self, name: str) -> Any:
        return getattr(self.registry, f"get_{self.kind}_class")(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry.list_datasets() if self.kind == "builder" else self.registry._names(self.kind))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def pop(self, name: str, default: Any = None) -> Any:
        """The class of a name. It stays until a project registers the name again, which takes its place anyway."""
        return self.get(name, default)


class LavisRegistry:
    """LAVIS' calls; `registry` below is the one instance."""

    def __init__(self) -> None:
        self._written: dict[str, dict[str, type]] = {}
        self._state: dict[str, Any] = dict(STATE)
        self.built: Mapping[str, Mapping[str, Any]] = {}
        """data sets of a run, while its task is shown them"""
        self.built_model: Any = None
        """model of a run, while its task's `build_model` is called"""

    # registering ------------------------------------------------------------------------------------------------------
    def register_model(self, name: str) -> Decorator:
        """Decorator: register a model."""

        def decorate(cls: type) -> type:
            core.model.replace(name)(cls)
            _adapter_of("base_model:adopt")(cls)
            return cls

        return decorate

    def _register(self, kind: str, name: str) -> Decorator:
        def decorate(cls: type) -> type:
            getattr(core, kind).replace(name)(_adapter_of(ADAPTERS[kind])(cls))
            self._written.setdefault(kind, {})[name] = cls
            return cls

        return decorate

    register_processor = partialmethod(_register, "processor")
    register_builder = partialmethod(_register, "builder")  # it takes the place of the package's data set of that name
    register_task = partialmethod(_register, "task")
    register_lr_scheduler = partialmethod(_register, "lr_scheduler")

    def register_runner(self, name: str) -> Decorator:
        """Decorator: register a runner, a subclass of this package's."""
        return core.runner.replace(name)

    # finding ----------------------------------------------------------------------------------------------------------
    def _find(self, kind: str, name: str) -> Any:
        return self._written.get(kind, {}).get(name) or getattr(core, kind).get(name)

    get_task_class = partialmethod(_find, "task")

    def get_builder_class(self, name: str) -> Any:
        """The builder of that name, for a data set of the package too; in a run its data sets are those of the run."""
        if name in self.built:
            return lambda cfg=None: SimpleNamespace(config=cfg, build_datasets=lambda: dict(self.built[name]))
        known = name in self._written.get("builder", {}) or name not in dataset_names()
        return self._find("builder", name) if known else _adapter_of("builders:of_core")(name)

    def get_model_class(self, name: str) -> Any:
        """The model class of that name, with LAVIS' methods; an unknown name is a RegistryError (a KeyError)."""
        of_lavis = name in MODELS and not core.model.is_own(name)
        return _adapter_of(MODELS[name]) if of_lavis else core.get_model_class(name)

    def get_processor_class(self, name: str) -> Any:
        """The processor class of that name, with LAVIS' `from_config`."""
        found = None if name == INSTRUCTION else self._find("processor", name)
        return found if hasattr(found, "from_config") else _adapter_of("processors:of_core")(name)

    def get_lr_scheduler_class(self, name: str) -> Any:
        """The schedule class of that name, with LAVIS' constructor if it is one of the package's."""
        own = self._written.get("lr_scheduler", {}).get(name) or core.get_lr_scheduler_class(name)
        return own if core.lr_scheduler.is_own(name) else _adapter_of("runners:SCHEDULES")[name]

    def get_runner_class(self, name: str) -> Any:
        """The runner class of that name, with LAVIS' constructor if it is one of the package's."""
        return _adapter_of("runners:with_lavis_constructor")(core.get_runner_class(name))

    def _names(self, kind: str) -> list[str]:
        found: list[str] = getattr(core, kind).names()
        return found

    list_models = partialmethod(_names, "model")
    list_processors = partialmethod(_names, "processor")
    list_tasks = partialmethod(_names, "task")
    list_runners = partialmethod(_names, "runner")
    list_lr_schedulers = partialmethod(_names, "lr_scheduler")

    def list_datasets(self) -> list[str]:
        """Names of all data sets: the package's rows, and builders that carry a data set's name."""
        return sorted({*dataset_names(), *core.list_builders()})

    @property
    def mapping(self) -> dict[str, Any]:
        """What is registered by kind (looked up when it is used), state and paths (which may be set here)."""
        return {**{f"{kind}_name_mapping": Names(self, kind) for kind in KINDS}, "state": self._state,
                "paths": paths.ROOTS}

    # paths and state --------------------------------------------------------------------------------------------------
    def register_path(self, name: str, path: str) -> None:
        """Name a folder: `library_root` is what relative configuration paths of classes are relative to.

        Raises:
            RegistryError: a project registered another one under that name.
        """
        if paths.ROOTS.get(name, path) != path:
            raise RegistryError(f"path {name!r} is registered twice: {paths.ROOTS[name]} and {path}.")
        paths.ROOTS[name] = path

    def get_path(self, name: str) -> str | None:
        """A folder by its name; None for an unknown name."""
        return paths.ROOTS[name] or None

    def register(self, name: str, obj: Any) -> None:
        """Keep an object under a dotted name."""
        self._state[name] = obj

    def get(self, name: str, default: Any = None, no_warning: bool = False) -> Any:
        """What `register` kept; `default` if there is nothing."""
        return self._state.get(name, default)

    def unregister(self, name: str) -> Any:
        """Forget what `register` kept, and return it."""
        return self._state.pop(name, None)


registry = LavisRegistry()
