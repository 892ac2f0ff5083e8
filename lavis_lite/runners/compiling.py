"""`run.compile`: a model's blocks, or its losses as a whole, translated by torch.compile.

Compiled modules keep their names, so checkpoints are those of an eager run. Evaluation stays eager: beams and caches
change their shapes with every token.
"""

from __future__ import annotations

import contextlib
from types import MethodType
from typing import TYPE_CHECKING

import torch

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.process.compiler import why_not

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

BACKEND = "inductor"


def compile_model(model: BaseModel, run: RunConfig, device: torch.device) -> None:
    """Compile what `run.compile` names, at its first use; of an evaluation nothing.

    Raises:
        ConfigError: the model has no such parts, or this machine cannot compile.
    """
    if run.compile == "none" or run.evaluate:
        return
    reason = why_not(device.type) if BACKEND == "inductor" else None
    if reason:
        raise ConfigError(f"run.compile={run.compile}: {reason}")
    compiled = _compile_blocks(model, device) if run.compile == "blocks" else _compile_losses(model, device)
    if not compiled:
        other = "full" if run.compile == "blocks" else "blocks"
        raise ConfigError(f"run.compile={run.compile}: {type(model).__name__} has nothing to compile in this way. Set "
                          f"run.compile={other} or none.")
    for part in model.modules():
        if getattr(part, "few_widths", None) is not None:
            part.few_widths = True  # type: ignore[assignment]


def _compile_blocks(model: BaseModel, device: torch.device) -> int:
    """Compile each block for all widths at once; the number of blocks."""
    blocks = model.blocks_to_compile(device)
    for block in blocks:
        block.compile(backend=BACKEND, dynamic=True)
    return len(blocks)


def _compile_losses(model: BaseModel, device: torch.device) -> int:
    """Compile the methods that a model and its language model name, for each width; the number of methods of its own.

    They are compiled as functions of the model, so that a copy of it runs with its own weights.
    """
    model.vision_blocks_to_shard(device)  # a frozen encoder takes its final dtype, which no compiled code can do
    for part in model.modules() if model.traced else ():
        for name in getattr(part, "traced", ()):
            function = torch.compile(getattr(type(part), name), backend=BACKEND, dynamic=False)
            setattr(part, name, MethodType(function, part))
    return len(model.traced)


def eagerly(run: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Within it, nothing is compiled and compiled parts run as they are written."""
    if run.compile == "none" or run.evaluate:
        return contextlib.nullcontext()  # the compiler is not even imported
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
