"""Checks of values: plain containers -> dataclass instances, arguments of classes, and rules of the run section.

Each collects every error instead of stopping at the first.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, cast

from lavis_lite.config.schema import Config, OpenSection, RunConfig
from lavis_lite.errors import RegistryError, did_you_mean, nearest, shown
from lavis_lite.redaction import mask
from lavis_lite.registry import registry

D = TypeVar("D")


class Checker:
    """Builds typed sections and collects their errors.

    A key that is null keeps its default, unless null is a value of its type.

    Args:
        where: dotted key -> name of the layer that set it, for messages.
        unset: dotted keys set to null over another layer's value: these may be unknown, or entries of open sections.

    Attributes:
        errors, notes: one sentence each.
        left_out: dotted keys that null removed.
    """

    def __init__(self, where: Callable[[str], str], unset: Collection[str] = ()) -> None:
        self.where, self.unset = where, unset
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.left_out: list[str] = []

    def error(self, key: str, message: str) -> None:
        """Collect one error of a dotted key."""
        self.errors.append(mask(f"{self.where(key)}: {key}: {message}"))

    def note(self, key: str, message: str) -> None:
        """Collect a note on a dotted key."""
        self.notes.append(f"{self.where(key)}: {key} {message}")

    def section(self, cls: type[D], content: Any, path: str, extra: Mapping[str, Any] | None = None) -> D:
        """An instance of a dataclass; unknown keys and wrong types become errors, the field keeps its default.

        Args:
            extra: keys that are allowed but not part of the class (they pass with a note): key -> type(s).
        """
        if content is None:
            content = {}
        if not isinstance(content, Mapping):
            self.error(path, f"must be a section of keys, not {shown(content)}.")
            content = {}
        if issubclass(cls, OpenSection):
            opened = cls.opened(content)
            cls = cast("type[D]", opened)
            self.notes += [f"{self.where(f'{path}.{key}')}: {path}.{key}: nothing in the source of "
                           f"{opened.reader.__name__} reads it." for key in sorted(opened.unread)]
        hints = _hints(cls)  # type: ignore[arg-type]
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for key, value in content.items():
            dotted = f"{path}.{key}" if path else str(key)
            if value is None and (not _takes_null(hints[key]) if key in known else dotted in self.unset):
                self.left_out.append(dotted)
            elif key in known:
                ok, converted = self.convert(value, hints[key], dotted)
                if ok:
                    values[key] = converted
            elif getattr(cls, "open_ended", False) and not nearest(str(key), known):
                continue
            elif extra is not None and key in extra:
                self.notes.append(f"{self.where(dotted)}: {dotted} belongs to another task and has no effect here.")
            else:
                choices = getattr(cls, "suggested", known)
                self.errors.append(f"{self.where(dotted)}: unknown key {dotted}; {did_you_mean(str(key), choices)}")
        return cls(**values)

    def convert(self, value: Any, hint: Any, path: str) -> tuple[bool, Any]:
        """(whether the value fits the type, the value as that type); a value that does not fit is an error."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return self._finite(value, path), self._without_unset(value, path)
        if origin in (Union, types.UnionType):
            return self._union(value, args, path)
        if origin is Literal:
            if value in args:
                return True, value
            self.error(path, f"{shown(value)} is not allowed; {did_you_mean(str(value), map(str, args))}")
            return False, None
        if dataclasses.is_dataclass(hint):
            return True, self.section(hint, value, path)  # type: ignore[arg-type]
        if origin is list:
            return self._list(value, args[0] if args else Any, path)
        if origin is dict:
            return self._dict(value, args[1] if args else Any, path)
        return self._plain(value, hint, path)

    def _union(self, value: Any, args: tuple[Any, ...], path: str) -> tuple[bool, Any]:
        if value is None and type(None) in args:
            return True, None
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return self.convert(value, options[0], path)
        for option in options:
            trial = Checker(self.where, self.unset)
            ok, converted = trial.convert(value, option, path)
            if ok and not trial.errors:
                return True, converted
        alike = [option for option in options if _is_of_kind(value, option)]
        if len(alike) == 1:
            return self.convert(value, alike[0], path)  # its error says more: which entry is wrong, and how
        self.error(path, f"must be {_names(options)}, not {shown(value)}.")
        return False, None

    def _list(self, value: Any, item: Any, path: str) -> tuple[bool, Any]:
        if not isinstance(value, list):
            self.error(path, f"must be a list, not {shown(value)}; write [{str(value)[:80]}].")
            return False, None
        pairs = [self.convert(entry, item, f"{path}.{number}") for number, entry in enumerate(value)]
        return all(ok for ok, _ in pairs), [entry for _, entry in pairs]

    def _dict(self, value: Any, item: Any, path: str) -> tuple[bool, Any]:
        if not isinstance(value, Mapping):
            self.error(path, f"must be a section of keys, not {shown(value)}.")
            return False, None
        kept = {str(key): entry for key, entry in value.items()
                if entry is not None or _takes_null(item) and f"{path}.{key}" not in self.unset}
        self.left_out += [f"{path}.{key}" for key in value if key not in kept]
        pairs = {key: self.convert(entry, item, f"{path}.{key}") for key, entry in kept.items()}
        return all(ok for ok, _ in pairs.values()), {key: entry for key, (_, entry) in pairs.items()}

    def _plain(self, value: Any, hint: Any, path: str) -> tuple[bool, Any]:
        if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            ok = self._finite(value, path)
            return ok, float(value) if ok else None
        if hint is int and isinstance(value, float) and value.is_integer():
            return True, int(value)
        if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return True, value
        self.error(path, f"must be {_names([hint])}, not {shown(value)}.")
        return False, None

    def _without_unset(self, value: Any, path: str) -> Any:
        """A value of any type, without the entries of its sections that null removed."""
        if not isinstance(value, Mapping):
            return value
        gone = [key for key, entry in value.items() if entry is None and f"{path}.{key}" in self.unset]
        self.left_out += [f"{path}.{key}" for key in gone]
        return {key: self._without_unset(entry, f"{path}.{key}") for key, entry in value.items() if key not in gone}

    def _finite(self, value: Any, path: str) -> bool:
        """Whether all numbers in a value are finite; NaN would pass every comparison with a limit."""
        if isinstance(value, Mapping):
            return all([self._finite(entry, f"{path}.{key}") for key, entry in value.items()])
        if isinstance(value, list):
            return all([self._finite(entry, f"{path}.{number}") for number, entry in enumerate(value)])
        if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
            self.error(path, f"must be a finite number, not {value}.")
            return False
        return True


def _is_of_kind(value: Any, hint: Any) -> bool:
    """Whether a section, a list or a number was meant for a type, whatever is wrong inside."""
    kind = typing.get_origin(hint) or hint
    return any(isinstance(value, given) and kind is wanted
               for given, wanted in ((Mapping, dict), (list, list), (float, float)))


def _takes_null(hint: Any) -> bool:
    """Whether null is a value of a type."""
    return hint is Any or type(None) in typing.get_args(hint)


def parameter_problem(function: Callable[..., Any], key: str, value: Any) -> str:
    """The type error of a value for a parameter, as the end of a sentence; "" if the value fits.

    Annotations of types that are not plain are left to the function itself.
    """
    try:
        hint = typing.get_type_hints(function).get(key, Any)
    except NameError:  # a name that only type checkers import
        return ""
    if not _is_plain_hint(hint):
        return ""
    checker = Checker(lambda path: "")
    fits, _ = checker.convert(value, hint, key)
    return "" if fits else checker.errors[-1].partition(f"{key}: ")[2]


def _is_plain_hint(hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType, list):
        return all(map(_is_plain_hint, args))
    return origin is Literal or hint in (int, float, str, bool, type(None))


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list",
          dict: "a section"}


@functools.lru_cache(maxsize=256)
def _hints(cls: Any) -> dict[str, Any]:
    """The types of a section's keys, kept: Python compiles each annotation."""
    return typing.get_type_hints(cls)


def _names(hints: list[Any]) -> str:
    words = (" or ".join(map(repr, typing.get_args(hint))) if typing.get_origin(hint) is Literal
             else _WORDS.get(typing.get_origin(hint) or hint, str(hint)) for hint in hints)
    return " or ".join(words)


# --- arguments of registered classes ----------------------------------------------------------------------------------
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
    for one in [*inspect.signature(cls.step).parameters.values()][1:]:
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD:
            report("run.optimizer", f"{cls.__name__}.step needs {one.name!r}, but `step()` is called after one forward "
                   "and backward pass. Give the argument a default of None.")
            return
    parameters = inspect.signature(cls).parameters
    for key in SET_ELSEWHERE.keys() & run.optimizer_args.keys():
        report(f"run.optimizer_args.{key}", f"set {SET_ELSEWHERE[key]} instead.")
    given = {key: value for key, value in run.optimizer_args.items() if key not in SET_ELSEWHERE}
    check_arguments(cls, given, "run.optimizer_args", report, without=("params", "self", *SET_ELSEWHERE))
    if cls.__module__.startswith("torch.") and run.weight_decay and "weight_decay" not in parameters:
        report("run.weight_decay", f"{run.optimizer} has no weight decay; set run.weight_decay=0.")


# --- rules for values of the run section ------------------------------------------------------------------------------
POSITIVE = ("max_epoch", "max_iters", "iters_per_inner_epoch", "batch_size_train", "batch_size_eval",
            "decode_at_once", "accum_grad_iters", "shuffle_window", "log_freq", "save_every", "val_freq",
            "keep_checkpoints", "max_grad_norm", "dist_timeout_minutes", "prefetch_factor", "ddp_bucket_mb")
MOST_WORKERS = 1000
"""loader workers of one process; more is a typing error, and starting them takes minutes"""
NOT_NEGATIVE = ("init_lr", "min_lr", "warmup_steps", "weight_decay", "num_workers")
FRACTIONS = ("max_bad_fraction", "max_skipped_share", "lr_layer_decay")


def run_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    """(key of the run section, sentence) of every invalid value."""
    yield from _number_errors(run)
    yield from _length_errors(run)
    yield from _device_errors(run)
    yield from run.task_errors()


def _number_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    for key in POSITIVE:
        if getattr(run, key) is not None and not getattr(run, key) > 0:  # NaN is not above 0 either
            yield key, f"must be above 0, not {getattr(run, key)}."
    for key in NOT_NEGATIVE:
        if not getattr(run, key) >= 0:
            yield key, f"must not be negative, but is {getattr(run, key)}."
    if run.num_workers > MOST_WORKERS:
        yield "num_workers", (f"must be at most {MOST_WORKERS}, not {run.num_workers}. Each worker is a process; "
                              "about one per core is usual.")
    for key in FRACTIONS:
        if not 0.0 <= getattr(run, key) <= 1.0:
            yield key, f"must be between 0 and 1, not {getattr(run, key)}."
    for key in ("beta1", "beta2"):
        if not 0.0 <= getattr(run, key) < 1.0:  # Adam divides by 1 - beta
            yield key, f"must be at least 0 and below 1, not {getattr(run, key)}."


def _length_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    if run.evaluate:
        if not run.valid_splits and not run.test_splits:
            yield "test_splits", "nothing to evaluate: name a split, such as --options run.test_splits=[test]."
    elif run.runner == "runner_iter" and run.max_iters is None:
        yield "max_iters", "runner_iter counts optimizer steps and needs it, for example run.max_iters=1000."
    elif run.max_iters is None and run.max_epoch is None:
        yield "max_epoch", "neither it nor run.max_iters says when to stop, for example run.max_epoch=10."


def _device_errors(run: RunConfig) -> Iterator[tuple[str, str]]:
    kind = run.device.split(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        yield "device", f"unknown device {run.device!r}; {did_you_mean(kind, ('auto', 'cpu', 'cuda'))}"
    if kind == "cpu" and run.amp_dtype == "fp16":
        yield "amp_dtype", "fp16 does not train on a CPU; use bf16 or fp32."
    if run.overlap_exchange and run.fsdp == "blocks":
        yield "overlap_exchange", ("the blocks of the vision encoder travel between ranks too (run.fsdp=blocks); set "
                                   "run.fsdp=llm or none, or run.overlap_exchange=false.")
