"""A chat model in the shape of MiniGPT-4: frozen vision encoder, Q-Former and language model, one trained layer."""

import os

from lavis.common.registry import registry

root_dir = os.path.dirname(os.path.abspath(__file__))
registry.register_path("minigpt4ish_root", root_dir)

from minigpt4ish import builder, model, task  # noqa: E402, F401
