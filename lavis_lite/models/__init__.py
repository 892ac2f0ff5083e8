"""Models: vision encoders, the Q-Former, language models and the families built from them.

LAVIS' names for loading models are found here too, resolved on first use (see `lavis_lite.zoo`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_lite.lazy import lazy_names

if TYPE_CHECKING:
    from lavis_lite.zoo import list_models as list_models
    from lavis_lite.zoo import load_model as load_model
    from lavis_lite.zoo import load_model_and_preprocess as load_model_and_preprocess
    from lavis_lite.zoo import load_preprocess as load_preprocess
    from lavis_lite.zoo import model_zoo as model_zoo

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(
    ("list_models", "load_model", "load_model_and_preprocess", "load_preprocess", "model_zoo"), "lavis_lite.zoo"))
