"""The mini world: a generated data set of small pictures with captions, questions, dialogues, signs and clips."""

from __future__ import annotations

GENERATORS = {"mini_world": "lavis_lite.mini_world.world:prepare_mini_world",
              "mini_tasks": "lavis_lite.mini_world.tasks:prepare_mini_tasks"}
"""values for `prepare:` of a data set -> function(root, **prepare_args) -> folder"""
