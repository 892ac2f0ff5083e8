"""Models of this package in VLMEvalKit.

Its `vlmeval/config.py` needs two lines:

    from lavis_lite.compat.vlmevalkit import LavisLite
    supported_VLM["lavis_lite"] = partial(LavisLite, arch="blip2_opt", model_type="mini_instruct")

Arguments are those of `Answering`. Written after VLMEvalKit's interface; the harness itself was not run.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from vlmeval.vlm.base import BaseModel

from lavis_lite.compat.harness import Answering, one_picture


class LavisLite(BaseModel):
    """Answers one message at a time: texts joined by line breaks, one picture."""

    INSTALL_REQ = False
    INTERLEAVE = False

    def __init__(self, max_new_tokens: int | None = None, **arguments: Any) -> None:
        super().__init__()
        self.answering = Answering(**arguments)
        self.settings = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The answer to a message: a list of {"type": "image" or "text", "value": ...}."""
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        paths = [part["value"] for part in message if part["type"] == "image"]
        with Image.open(one_picture(paths, f"a message of {dataset}")) as picture:
            return self.answering.answers([picture], [text], **self.settings)[0]
