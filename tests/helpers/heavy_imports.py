"""Imported once by the server that test processes are forked from: what takes seconds to import."""

from __future__ import annotations

from lavis_lite.torchvision_shim import ensure_torchvision

ensure_torchvision()
import timm  # noqa: E402, F401
import torch.distributed.fsdp  # noqa: E402, F401
import torch.distributed.tensor  # noqa: E402, F401
import transformers.models.bert.tokenization_bert  # noqa: E402, F401

import lavis_lite.models.blip2.llm  # noqa: E402, F401
import lavis_lite.models.blip2.stage1  # noqa: E402, F401
import tests.helpers.toy  # noqa: E402, F401  (runners and tasks)
import tests.models.language.tiny  # noqa: E402, F401
from lavis_lite.tracking import tracker  # noqa: E402

tracker.draw = lambda rows, picture: False  # curves.png would take most of the time of a small run
