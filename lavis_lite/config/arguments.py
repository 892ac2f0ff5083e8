"""Checks a YAML's arguments for a registered class by the constructor's signature, before it is created."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.config.typed import parameter_problem
from lavis_lite.errors import RegistryError, did_you_mean
from lavis_lite.registry import registry

Report = Callable[[str, str], None]
"""takes a dotted key and its error"""
SET_ELSEWHERE = {"lr": "run.init_lr", "weight_decay": "run.weight_decay"}
"""arguments of optimizers that have keys in the run section"""


def check_arguments(cls: type, given: Mapping[str, Any], path: str, report: Report, more: Collection[str] = (),
                    without: Collection[str] = ()) -> None:
    """Report unknown, wrongly typed and missing arguments.

    Args:
        cls: takes `given` as keyword arguments.
        given: name -> value, from a YAML.
        path: dotted key of `given`.
        report: takes each error.
        more: allowed names besides the constructor's.
        without: parameters of the constructor that a YAML does not set.
    """
    parameters = {name: parameter for name, parameter in inspect.signature(cls).parameters.items()
                  if name not in without}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key, value in given.items():
        if key not in parameters and key not in more:
            report(f"{path}.{key}", f"{cls.__name__} has no such parameter; {did_you_mean(key, [*parameters, *more])}")
        elif key in parameters and (wrong := parameter_problem(cls.__init__, key, value)):  # type: ignore[misc]
            report(f"{path}.{key}", wrong)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            report(path, f"{cls.__name__} needs {name}.")


def check_hooks(config: Config, report: Report) -> None:
    """Report unregistered hooks, arguments that they do not take, and `run.weights` without a run."""
    run = config.run
    if run.weights is not None and not str(config.model.pretrained).endswith(f"{run.weights}.safetensors"):
        report("run.weights", "selects weights of a run's checkpoint: name the run with evaluate.py --run RUN.")
    for name, given in run.hooks.items():
        try:
            cls = registry.get_hook_class(name)
        except RegistryError as error:
            report(f"run.hooks.{name}", str(error))
            continue
        if given is None:
            continue
        check_arguments(cls, given, f"run.hooks.{name}", report, more=("every",))
        every = given.get("every", 1)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            report(f"run.hooks.{name}.every", f"must be a number of steps above 0, not {every!r}.")


def check_optimizer(run: RunConfig, report: Report) -> None:
    """Report an unknown optimizer, one that cannot train here, and arguments that it does not take.

    The default optimizer without arguments is not checked, because that would import torch.
    """
    if run.optimizer == RunConfig.optimizer and not run.optimizer_args:
        return
    try:
        cls = registry.get_optimizer_class(run.optimizer)
    except RegistryError as error:
        report("run.optimizer", str(error))
        return
    if cls.__name__ in ("LBFGS", "SparseAdam"):
        needs = {"LBFGS": "calls the model several times per step", "SparseAdam": "needs sparse gradients"}
        report("run.optimizer", f"{cls.__name__} {needs[cls.__name__]}, so it cannot train here; use adamw or sgd.")
        return
    parameters = inspect.signature(cls).parameters
    for key in SET_ELSEWHERE.keys() & run.optimizer_args.keys():
        report(f"run.optimizer_args.{key}", f"set {SET_ELSEWHERE[key]} instead.")
    given = {key: value for key, value in run.optimizer_args.items() if key not in SET_ELSEWHERE}
    check_arguments(cls, given, "run.optimizer_args", report, without=("params", "self", *SET_ELSEWHERE))
    if cls.__module__.startswith("torch.") and run.weight_decay and "weight_decay" not in parameters:
        report("run.weight_decay", f"{run.optimizer} has no weight decay; set run.weight_decay=0.")
