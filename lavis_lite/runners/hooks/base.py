"""The contract of hooks, what they see of a run, and how a runner calls them. Nothing here needs torch at import."""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError, ContractError, shown
from lavis_lite.registry import registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lavis_lite.config.schema import Config
    from lavis_lite.device import Precision
    from lavis_lite.models.base import BaseModel
    from lavis_lite.runners.step import StepResult
    from lavis_lite.runners.train_state import TrainState
    from lavis_lite.tasks.base import BaseTask
    from lavis_lite.tracking.tracker import Tracker


@dataclass
class RunContext:
    """What hooks see of a training; the same object at every call.

    Attributes:
        config: the whole configuration; `config.run` is the run section.
        task, model: of the run; the model is the bare one, without its wrapper for several ranks.
        datasets: data set name -> split -> data set.
        run_dir: the run's folder, equal on all ranks.
        device, precision: where and in which dtype; `precision.autocast()` is the context a model runs in.
        tracker: takes records, texts and images; on ranks other than 0 it does nothing.
        rank: number of this process; 0 is the one that writes.
        train: optimizer, order of samples and schedule.
        step: optimizer steps done.
        last_step: the step that the run ends with; a stop moves it forward.
        resumed: whether the run continues from a checkpoint.
        stop_reason: why a hook wants the run to end; "": no hook does.
        save_reason: why a hook wants a checkpoint; "": no hook does.
    """

    config: Config
    task: BaseTask
    model: BaseModel
    datasets: Mapping[str, Mapping[str, Any]]
    run_dir: Path
    device: torch.device
    precision: Precision
    tracker: Tracker
    train: TrainState = field(init=False)
    rank: int = 0
    step: int = 0
    last_step: int = 0
    resumed: bool = False
    stop_reason: str = ""
    save_reason: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def log(self, text: str) -> None:
        """Print a line for people, on rank 0."""
        self.tracker.log(text)

    def log_scalars(self, hook: str, values: Mapping[str, float]) -> None:
        """Numbers of the present step, for the log, TensorBoard (tags `<hook>/<name>`) and W&B.

        Raises:
            ContractError: a value is not a number.
        """
        self.tracker.record({"step": self.step, "hook": hook,
                             **{name: _number(hook, name, value) for name, value in values.items()}})

    def stop(self, reason: str) -> None:
        """Ask for a normal end of the run. It ends, saved and tested, as soon as all ranks know of it.

        That is at once after a validation, else with the next step (on a GPU the one after it).
        """
        self.stop_reason = self.stop_reason or reason

    def save(self, reason: str) -> None:
        """Ask for a checkpoint. It is saved after the next step (on a GPU the one after it), when all ranks know of it.

        It counts among `run.keep_checkpoints`, as any other.
        """
        self.save_reason = self.save_reason or reason


class Hook:
    """Base of all hooks: every method may stay as it is.

    A hook's constructor takes its arguments, which are keys of `run.hooks.<name>`; type hints are checked. The key
    `every` needs no argument: each hook has it. All ranks call all hooks in the same order, so collectives are allowed.
    An exception of a hook ends the run as any other.
    """

    every: int = 1
    """optimizer steps between calls of `before_step` and `after_step`: the step's number is a multiple of it"""
    name: str = ""
    """as `run.hooks` has it"""
    keeps_weights: ClassVar[bool] = False
    """whether `weights` gives a set of weights that checkpoints keep"""

    def on_start(self, run: RunContext) -> None:
        """Training is about to begin or to continue; the state of a checkpoint is loaded already."""

    def before_step(self, run: RunContext) -> None:
        """The batch of the next step is there; `run.step` steps are done."""

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """A step is done and counted. Reading a tensor of `result` waits for the device."""

    def during_evaluation(self, run: RunContext) -> contextlib.AbstractContextManager[None]:
        """The context in which splits are validated or tested, for example with other weights in the model."""
        return contextlib.nullcontext()

    def after_evaluation(self, run: RunContext, split: str, scores: Mapping[str, float]) -> None:
        """A split was validated or tested; its scores are equal on all ranks."""

    def on_save(self, run: RunContext) -> None:
        """A checkpoint is about to be written."""

    def on_end(self, run: RunContext) -> None:
        """All steps are done; the test follows. Not called if an error or a signal ends the run."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the hook: plain values and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave. Not called if the checkpoint's run did not have the hook."""

    def weights(self) -> dict[str, Tensor]:
        """Another set of weights, under the model's names: checkpoints keep it as `<hook name>.safetensors`.

        Asked if `keeps_weights`. The file gets the model's own tensors too under all names that are not in the set, so
        that it stands for `model.safetensors`.
        """
        return {}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `weights` gave: after a resume, and before the best checkpoint is tested.

        Empty: the best checkpoint is older than the hook, and is tested with its own weights.
        """


# --- called by the runner --------------------------------------------------------------------------------------------
def build_hooks(run: RunConfig) -> list[Hook]:
    """The hooks that `run.hooks` names, in its order; those that are null are off.

    Raises:
        ConfigError: a hook refuses its arguments.
        RegistryError: unknown hook.
        ContractError: one of its methods takes other arguments than `Hook`'s.
    """
    return [build_hook(name, arguments) for name, arguments in run.hooks.items() if arguments is not None]


def build_hook(name: str, arguments: Mapping[str, Any]) -> Hook:
    """One hook; `every` is set from outside unless its constructor takes it."""
    cls = registry.get_hook_class(name)
    given = dict(arguments)
    every = None if "every" in inspect.signature(cls).parameters else given.pop("every", None)
    try:
        hook: Hook = cls(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"run.hooks.{name}: it refuses its arguments: {error}") from error
    _check_methods(name, hook)
    hook.name, hook.every = name, hook.every if every is None else every
    if hook.every < 1:
        raise ConfigError(f"run.hooks.{name}.every: must be above 0, not {hook.every}.")
    return hook


def _check_methods(name: str, hook: Hook) -> None:
    """Raise ContractError unless each method can be called as `Hook`'s is."""
    for method, own in inspect.getmembers(Hook, inspect.isfunction):
        arguments = list(inspect.signature(own).parameters)[1:]
        try:
            inspect.signature(getattr(hook, method)).bind(*arguments)
        except TypeError as error:
            raise ContractError(f"run.hooks.{name}: {type(hook).__name__}.{method} must take ({', '.join(arguments)}): "
                                f"{error}.") from error


def _number(hook: str, name: str, value: Any) -> float:
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # as a tensor of several elements raises
        if not isinstance(value, str):
            return value if isinstance(value, int | float) else float(value)
    raise ContractError(f"run.hooks.{hook}: log_scalars takes numbers, and {name!r} is {shown(value)}.")


def _not_plain(value: Any, location: str) -> str:
    """Which part of a state is neither a tensor nor plain, as a clause; "": none. Subclasses are not plain."""
    import torch

    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor):
        return ""
    if type(value) in (dict, OrderedDict):
        inner = {f"{location}[{key!r}]": one for key, one in value.items()}
    elif type(value) in (list, tuple):
        inner = {f"{location}[{number}]": one for number, one in enumerate(value)}
    else:
        return f"{location} is a {type(value).__name__}"
    return next(filter(None, (_not_plain(one, where) for where, one in inner.items())), "")


class Hooks:
    """Calls several hooks in turn.

    Args:
        hooks: those of the package first, then those of `run.hooks`.
        context: what they see.
    """

    def __init__(self, hooks: Sequence[Hook], context: RunContext) -> None:
        self.hooks, self.context = list(hooks), context

    def on_start(self) -> None:
        """Training begins or continues."""
        for hook in self.hooks:
            hook.on_start(self.context)
        self.state()  # what a checkpoint could not keep is told now

    def before_step(self) -> None:
        """The next step's batch is there."""
        for hook in self.hooks:
            if (self.context.step + 1) % hook.every == 0:
                hook.before_step(self.context)

    def after_step(self, result: StepResult) -> None:
        """A step is done."""
        for hook in self.hooks:
            if self.context.step % hook.every == 0:
                hook.after_step(self.context, result)

    @contextlib.contextmanager
    def during_evaluation(self) -> Iterator[None]:
        """All hooks' contexts, the last one innermost."""
        with contextlib.ExitStack() as stack:
            for hook in self.hooks:
                context: object = hook.during_evaluation(self.context)
                if not isinstance(context, contextlib.AbstractContextManager):
                    raise ContractError(f"run.hooks.{hook.name}: during_evaluation must return a context manager, not "
                                        f"{context!r}; contextlib.contextmanager makes one of a function that yields.")
                stack.enter_context(context)
            yield

    def after_evaluation(self, split: str, scores: Mapping[str, float]) -> None:
        """A split was evaluated."""
        for hook in self.hooks:
            hook.after_evaluation(self.context, split, scores)

    def on_save(self) -> None:
        """A checkpoint is about to be written."""
        for hook in self.hooks:
            hook.on_save(self.context)

    def on_end(self) -> None:
        """All steps are done."""
        for hook in self.hooks:
            hook.on_end(self.context)

    def agree_to_stop(self) -> bool:
        """Whether a hook of any rank wants the run to end. Collective."""
        from lavis_lite import distributed  # it imports torch, which a hook need not

        return any(distributed.all_gather_object(bool(self.context.stop_reason)))

    def state(self) -> dict[str, Any]:
        """The state of every hook that has any, by name.

        Raises:
            ContractError: a value that a checkpoint could not give back.
        """
        states = {hook.name: hook.state() for hook in self.hooks}
        for name, state in states.items():
            if wrong := _not_plain(state, "state()"):
                raise ContractError(f"run.hooks.{name}: {wrong}, which a checkpoint cannot keep. Return a dict of "
                                    "tensors, numbers, texts, lists and dicts.")
        return {name: state for name, state in states.items() if state}

    def load_state(self, states: Mapping[str, Any], kept: Sequence[str]) -> list[str]:
        """Put back what `state` gave; returns a note on each hook that was added or removed since.

        Args:
            states: by name.
            kept: names of the hooks that have weights in the checkpoint.
        """
        names = {hook.name for hook in self.hooks}
        for hook in self.hooks:
            if hook.name in states:
                hook.load_state(states[hook.name])
        before = {*states, *kept}
        stateful = {hook.name for hook in self.hooks if hook.keeps_weights or hook.state()}
        return [*(f"note: run.hooks.{name} is new since the checkpoint; it begins here."
                  for name in sorted(stateful - before)),
                *(f"note: run.hooks.{name} was there before and is not now; what it had kept is dropped."
                  for name in sorted(before - names))]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Sets of weights that checkpoints keep, by hook name."""
        found = {hook.name: hook.weights() for hook in self.hooks if hook.keeps_weights}
        if "model" in found:
            raise ContractError("a hook that keeps weights cannot be called 'model': model.safetensors is the model's.")
        return {name: tensors for name, tensors in found.items() if tensors}

    def load_weights(self, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `weights` gave, to the hooks that are there."""
        for hook in self.hooks:
            if hook.name in found:
                hook.load_weights(found[hook.name])
