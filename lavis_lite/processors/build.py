"""From a YAML's processor sections to processors."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from typing import Any

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import registry


class AsItIs(BaseProcessor):
    """Where no processor is named: the item itself."""

    def __call__(self, item: Any, rng: random.Random | None = None) -> Any:
        """The item."""
        return item


def build_processor(spec: Mapping[str, Any] | None, key: str) -> BaseProcessor:
    """A processor from `{name: registered name, **parameters}`.

    Args:
        spec: the section; None or empty: items stay as they are.
        key: where it stands, for messages.

    Raises:
        RegistryError: unknown name.
        ConfigError: no name, or parameters that the processor does not have.
    """
    given = dict(spec or {})
    if not given:
        return AsItIs()
    if "name" not in given:
        raise ConfigError(f"{key}: names no processor, for example {{name: blip_image_eval, image_size: 224}}.")
    cls = registry.get_processor_class(str(given.pop("name")))
    known = inspect.signature(cls).parameters
    for name in given:
        if name not in known:
            raise ConfigError(f"{key}.{name}: {cls.__name__} has no such parameter; {did_you_mean(str(name), known)}")
    processor: BaseProcessor = cls(**given)
    return processor
