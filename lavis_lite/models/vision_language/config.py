"""The `model` section of `vision_language`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.config import AnyLanguageConfig
from lavis_lite.models.connectors.settings import settings_error
from lavis_lite.models.vision.config import EncoderConfig
from lavis_lite.processors.chat_templates import find_template


@dataclass
class VisionLanguageConfig(AnyLanguageConfig, EncoderConfig):
    """Section `model`."""

    vit_layer: Any = -2
    """which layer gives the features: from 1, or from the end (-1: the last with its norm, -2: the one before). A list
    joins several along the channels"""
    vit_cls: Literal["keep", "drop"] = "drop"
    """class token and registers in front of the patches"""
    connector: dict[str, Any] = field(default_factory=lambda: {"type": "mlp"})
    """type: linear | mlp | resampler | abstractor | qformer | a registered one; the other keys are its settings"""
    connector_train: bool = True
    """whether the connector trains"""
    connector_lr_scale: float = 1.0
    """factor on the learning rate of the connector"""
    template: Any = "vicuna_v1"
    """how conversations are written: a name of `lavis_lite.processors.chat_templates`, or the keys of a template"""

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """What encoder, connector and language model cannot be or cannot do in this run."""
        found = super().errors(run)
        wrong = settings_error(self.connector)
        if wrong is None and not found:
            from lavis_lite.models.connectors.base import connector_error  # needs torch: not before the rest is right

            wrong = connector_error(self.connector)
        found += [wrong] if wrong else []
        if not 0 < self.connector_lr_scale < float("inf"):
            found.append(("connector_lr_scale", f"must be above 0, not {self.connector_lr_scale}."))
        try:
            find_template(self.template)
        except ConfigError as error:
            found.append(("template", str(error)))
        return found
