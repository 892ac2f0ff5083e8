"""The contract of processors, and how a YAML section becomes one."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from typing import Any, ClassVar

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.registry import registry


class BaseProcessor:
    """Turns one raw item (PIL image, text) into what a model takes.

    Contract: constructor arguments are the YAML parameters (their signature is what preflight checks);
    `__call__(item, rng)` draws every random number from `rng`, so that a sample's augmentation is a function of
    (seed, epoch, sample); without `rng` it uses Python's global generator.
    """

    is_random: bool = True
    """whether the result depends on `rng`"""
    takes: ClassVar[str] = "image"
    """what a data set hands it: `image` (a PIL image; texts too), `pixels` (upright RGB, uint8[H, W, 3]; such a
    processor takes PIL images too) or `video` (an open video: its length, and frames by their numbers)"""

    def __call__(self, item: Any, rng: random.Random | None = None) -> Any:
        """The processed item."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


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
