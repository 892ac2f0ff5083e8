"""Hooks: what else happens during a training, each in its own class.

A run names them in `run.hooks`. The runner calls each at a few named points and keeps their state in its checkpoints.
"""

from lavis_lite.runners.hooks.base import Hook, RunContext

__all__ = ["Hook", "RunContext"]
