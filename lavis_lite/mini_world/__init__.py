"""The mini world: a generated data set of small pictures with captions, questions, dialogues, signs and clips."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

GENERATORS = {"mini_world": "lavis_lite.mini_world.world:prepare_mini_world",
              "mini_tasks": "lavis_lite.mini_world.tasks:prepare_mini_tasks"}
"""values for `prepare:` of a data set -> function(root, **prepare_args) -> folder"""


def generate(generator: str, root: Path, **arguments: Any) -> Path:
    """Make sure that `root` holds a generator's output; safe to call again and from several processes.

    Args:
        generator: key of GENERATORS.
        root: the folder to write.
        arguments: `prepare_args` of the data set.

    Raises:
        TypeError: an argument that the generator does not have.
        DataError: the folder holds something else or cannot be written.
    """
    module, _, function = GENERATORS[generator].partition(":")
    return Path(getattr(importlib.import_module(module), function)(root, **arguments))
