"""Run folders: from a folder to one of its checkpoints, its configuration and its evaluations."""

from lavis_lite.checkpoints.manifest import runs_below
from lavis_lite.runs.find import (
           EVALUATIONS,
           RunCheckpoint,
           compose_evaluation,
           find_checkpoint,
           find_unfinished,
           hint_at_run,
           model_sections,
           resume_evaluation,
)

__all__ = ["EVALUATIONS", "RunCheckpoint", "compose_evaluation", "find_checkpoint", "find_unfinished", "hint_at_run",
           "model_sections", "resume_evaluation", "runs_below"]
