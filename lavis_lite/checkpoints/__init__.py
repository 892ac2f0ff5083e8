"""Checkpoints: weights from files into models and back, in the formats of this project, LAVIS and Hugging Face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_lite.moved import lazy_names

if TYPE_CHECKING:
    from lavis_lite.checkpoints.formats.key_maps import from_hf, from_lavis, to_hf, to_lavis
    from lavis_lite.checkpoints.formats.vision import load_vision_weights, vision_state
    from lavis_lite.checkpoints.load import LoadReport, load_checkpoint, load_state

__all__ = ["LoadReport", "from_hf", "from_lavis", "load_checkpoint", "load_state", "load_vision_weights", "to_hf",
           "to_lavis", "vision_state"]

_HERE = "lavis_lite.checkpoints."
__getattr__, __dir__ = lazy_names(__name__, {
    **dict.fromkeys(("from_hf", "from_lavis", "to_hf", "to_lavis"), _HERE + "formats.key_maps"),
    **dict.fromkeys(("load_vision_weights", "vision_state"), _HERE + "formats.vision"),
    **dict.fromkeys(("LoadReport", "load_checkpoint", "load_state"), _HERE + "load")})
