"""The one Q-Former (BLIP-2, section 3.1): its configuration, layers, attention masks and the model."""

from __future__ import annotations

from lavis_lite.models.qformer.model import QFormer, QFormerConfig

__all__ = ["QFormer", "QFormerConfig"]
