"""LAVIS' `registry`: what is registered there becomes a registered part of this package.

Models derive from this package's base class and are registered as they are. Tasks, builders, processors and schedules
keep LAVIS' own methods, some of which have this package's names with other arguments; each gets an adapter.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from lavis_lite.compat.lavis import paths
from lavis_lite.config.lavis_keys import INSTRUCTION
from lavis_lite.config.named import dataset_names
from lavis_lite.errors import RegistryError
from lavis_lite.registry import Registry
from lavis_lite.registry import registry as core

Decorator = Callable[[type], type]
STATE = {"MAX_INT": sys.maxsize, "SPLIT_NAMES": ["train", "val", "test"]}


def _adapter_of(target: str) -> Any:
    """`module:function` of this room: imported by name, since these modules use the registry themselves."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(f"lavis_lite.compat.lavis.{module}"), name)


class LavisRegistry:
    """LAVIS' calls; `registry` below is the one instance."""

    def __init__(self) -> None:
        self._written: dict[str, dict[str, type]] = {}
        self._state: dict[str, Any] = dict(STATE)

    # registering ------------------------------------------------------------------------------------------------------
    def register_model(self, name: str) -> Decorator:
        """Decorator: register a model."""

        def decorate(cls: type) -> type:
            core.register_model(name)(cls)
            _adapter_of("base_model:adopt")(cls)
            return cls

        return decorate

    def register_processor(self, name: str) -> Decorator:
        """Decorator: register a processor."""
        return self._through(core.processor, name, "processors:adapted")

    def register_builder(self, name: str) -> Decorator:
        """Decorator: register a data set builder.

        Raises:
            RegistryError: the package has a data set of that name.
        """
        if name in dataset_names():
            raise RegistryError(f"builder name {name!r} is registered twice: the package has a data set of that name. "
                                "Choose another name.")
        return self._through(core.builder, name, "builders:adapted")

    def register_task(self, name: str) -> Decorator:
        """Decorator: register a task."""
        return self._through(core.task, name, "tasks:adapted")

    def register_lr_scheduler(self, name: str) -> Decorator:
        """Decorator: register a learning-rate schedule."""
        return self._through(core.lr_scheduler, name, "runners:adapted_schedule")

    def register_runner(self, name: str) -> Decorator:
        """Decorator: register a runner, a subclass of this package's."""
        return core.register_runner(name)

    def _through(self, kind: Registry[Any], name: str, adapter: str) -> Decorator:
        def decorate(cls: type) -> type:
            kind.register(name)(_adapter_of(adapter)(cls))
            self._written.setdefault(kind.kind, {})[name] = cls
            return cls

        return decorate

    # finding ----------------------------------------------------------------------------------------------------------
    def _find(self, kind: Registry[Any], name: str) -> Any:
        return self._written.get(kind.kind, {}).get(name) or kind.get(name)

    def get_model_class(self, name: str) -> Any:
        """The model class of that name; an unknown name is a RegistryError (a KeyError) with the nearest names."""
        return core.get_model_class(name)

    def get_processor_class(self, name: str) -> Any:
        """The processor class of that name, with LAVIS' `from_config`."""
        found = None if name == INSTRUCTION else self._find(core.processor, name)
        return found if hasattr(found, "from_config") else _adapter_of("processors:of_core")(name)

    def get_builder_class(self, name: str) -> Any:
        """The builder class of that name."""
        return self._find(core.builder, name)

    def get_task_class(self, name: str) -> Any:
        """The task class of that name."""
        return self._find(core.task, name)

    def get_lr_scheduler_class(self, name: str) -> Any:
        """The schedule class of that name."""
        return self._find(core.lr_scheduler, name)

    def get_runner_class(self, name: str) -> Any:
        """The runner class of that name, with LAVIS' constructor if it is one of the package's."""
        return _adapter_of("runners:with_lavis_constructor")(core.get_runner_class(name))

    def list_models(self) -> list[str]:
        """Names of all models."""
        return core.list_models()

    def list_processors(self) -> list[str]:
        """Names of all processors."""
        return core.list_processors()

    def list_tasks(self) -> list[str]:
        """Names of all tasks."""
        return core.list_tasks()

    def list_runners(self) -> list[str]:
        """Names of all runners."""
        return core.list_runners()

    def list_lr_schedulers(self) -> list[str]:
        """Names of all schedules."""
        return core.list_lr_schedulers()

    def list_datasets(self) -> list[str]:
        """Names of all data sets: the package's rows, and builders that carry a data set's name."""
        return sorted({*dataset_names(), *core.list_builders()})

    @property
    def mapping(self) -> dict[str, dict[str, Any]]:
        """What is registered by kind, state and paths; a copy."""
        kinds: dict[str, Registry[Any]] = {
            "builder": core.builder, "task": core.task, "processor": core.processor, "model": core.model,
            "lr_scheduler": core.lr_scheduler, "runner": core.runner}
        found = {f"{kind}_name_mapping": {name: self._written.get(kind, {}).get(name, where.builtins.get(name))
                                          for name in where.names()} for kind, where in kinds.items()}
        return {**found, "state": dict(self._state), "paths": dict(paths.ROOTS)}

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
        return paths.root(name) or None

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
