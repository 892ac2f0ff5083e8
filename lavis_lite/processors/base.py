"""The base class of processors, and their construction from a YAML section."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from typing import Any, ClassVar

from lavis_lite.errors import ConfigError, UndefinedMethodError, did_you_mean
from lavis_lite.registry import registry


class BaseProcessor:
    """Turns one raw item (PIL image, text) into a model's input.

    Contract: constructor arguments are the YAML parameters, and preflight checks them by the signature. `__call__(item,
        rng)` draws every random number from `rng`, so a sample's augmentation depends only on (seed, epoch, sample).
        Without `rng` it uses Python's global generator.
    """

    is_random: bool = True
    """whether the result depends on `rng`"""
    takes: ClassVar[str] = "image"
    """input from a data set. image: a PIL image, or a text. pixels: upright RGB, uint8[H, W, 3], or a PIL image. video:
    an open video, with a length and frames by number"""

    def __call__(self, item: Any, rng: random.Random | None = None) -> Any:
        """The processed item."""
        raise UndefinedMethodError.of(self, "__call__")


class AsItIs(BaseProcessor):
    """Returns the item unchanged; used if no processor is named."""

    def __call__(self, item: Any, rng: random.Random | None = None) -> Any:
        """The item."""
        return item


def build_processor(spec: Mapping[str, Any] | None, key: str) -> BaseProcessor:
    """A processor from `{name: registered name, **parameters}`.

    Args:
        spec: the section; None or empty: items stay unchanged.
        key: its dotted key, for messages.

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
