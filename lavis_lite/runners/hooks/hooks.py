"""All hooks of a run behind one face."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError, ContractError
from lavis_lite.registry import registry
from lavis_lite.runners.hooks.base import Hook, RunContext

if TYPE_CHECKING:
    from torch import Tensor

    from lavis_lite.runners.step import StepResult


def build_hooks(run: RunConfig) -> list[Hook]:
    """The hooks that `run.hooks` names, in its order; those that are null are off.

    Raises:
        ConfigError: a hook refuses its arguments.
        RegistryError: unknown hook.
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
    hook.name, hook.every = name, hook.every if every is None else every
    if hook.every < 1:
        raise ConfigError(f"run.hooks.{name}.every: must be above 0, not {hook.every}.")
    return hook


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
                stack.enter_context(hook.during_evaluation(self.context))
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
        return any(distributed.all_gather_object(bool(self.context.stop_reason)))

    def state(self) -> dict[str, Any]:
        """The state of every hook that has any, by name."""
        states = {hook.name: hook.state() for hook in self.hooks}
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
