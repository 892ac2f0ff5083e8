"""A class that reads keys of its section; alone in its module, whose source is what says which."""

from __future__ import annotations

from typing import Any

from lavis.models.base_model import BaseModel


class Reader(BaseModel):
    @classmethod
    def from_config(cls, cfg: Any) -> Any:
        return cfg, cfg.get("prompt_path", ""), cfg["len_video_ft"], cfg.lora_rank, "low_resource"
