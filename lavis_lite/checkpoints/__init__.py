"""Checkpoints: weights from files into models and back, in the formats of this project, LAVIS and Hugging Face."""

from __future__ import annotations

from lavis_lite.checkpoints.formats.key_maps import from_hf, from_lavis, to_hf, to_lavis
from lavis_lite.checkpoints.formats.vision import load_vision_weights, vision_state
from lavis_lite.checkpoints.load import load_checkpoint, load_state
from lavis_lite.checkpoints.report import LoadReport

__all__ = ["LoadReport", "from_hf", "from_lavis", "load_checkpoint", "load_state", "load_vision_weights", "to_hf",
           "to_lavis", "vision_state"]
