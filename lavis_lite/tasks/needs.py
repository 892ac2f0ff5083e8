"""What a run's task needs of its model and data sets, compared with their classes before anything is made."""

from __future__ import annotations

from typing import Any

from lavis_lite.config.schema import Config
from lavis_lite.contracts import lacking
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.registry import registry
from lavis_lite.tasks.base import BaseTask


def unmet_needs(config: Config) -> list[str]:
    """Why the task cannot evaluate the run's data sets, or not with its model; one sentence each, empty if it can.

    Names of the registry must be valid. A data set that cannot be judged by its builder is judged when it is built.
    """
    run = config.run
    evaluated = {*run.valid_splits, *run.test_splits}
    if not evaluated:
        return []
    try:
        task = registry.get_task_class(run.task).from_config(config)
    except ConfigError as error:
        return [str(error)]
    classes = data_classes(config, evaluated)
    fitting = {name: cls for name, cls in classes.items() if cls is None or task.takes(cls)}
    if not fitting:
        return [f"datasets.{name}: {task.refusal(cls)}" for name, cls in classes.items() if cls is not None]
    model = registry.get_model_class(config.model.arch)
    problems = (model_problem(task, config.model.arch, model, cls) for cls in fitting.values())
    return list(dict.fromkeys(problem for problem in problems if problem))


def data_classes(config: Config, splits: set[str]) -> dict[str, type | None]:
    """Name -> evaluation class (None: not known yet) of the data sets that have one of the splits."""
    found: dict[str, type | None] = {}
    for name, section in config.datasets.items():
        builder = registry.get_builder_class(section.builder or name)
        if splits & set(builder(name, section).splits()):
            found[name] = builder.evaluation_class()
    return found


def model_problem(task: BaseTask[Any, Any], arch: str, model: type[BaseModel], data: type | None) -> str:
    """Why a model cannot be evaluated on a class of data sets, and what can; "" if it can."""
    parts = [part for part in task.evaluators() if data is None or part.takes(data)]
    if not parts or any(not part.lacking_methods(model) for part in parts):
        return ""
    methods = sorted({name for part in parts for name in part.lacking_methods(model)})
    able = [name for name in registry.list_models()
            if any(not part.lacking_methods(registry.get_model_class(name)) for part in parts)]
    return (f"model.arch={arch}: run.task={task.cfg.task} cannot evaluate {model.__name__}, which has no "
            f"{', '.join(methods)}. Models that it can evaluate: {', '.join(able) or 'none'}. Tasks that can evaluate "
            f"this model: {', '.join(tasks_for(model)) or 'none'}.")


def tasks_for(model: type[BaseModel]) -> list[str]:
    """Tasks of the package that can evaluate a model, by their class's needs."""
    found = []
    for name in registry.task.builtins:
        cls = registry.get_task_class(name)
        if cls.needs_model is not None and not lacking(model, cls.needs_model):
            found.append(name)
    return sorted(found)
