"""The contract of connectors, and how one is built from its section `model.connector`.

Axes: B images, P features of each, Dv their width, n vectors, D width of the language model's words.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError
from lavis_lite.models.connectors.settings import settings_error
from lavis_lite.registry import registry


class Connector(nn.Module):
    """Base class of connectors: image features float[B,P,Dv] -> vectors float[B,n,D].

    A subclass takes `SIZES`, then its own settings by keyword: they are the keys of `model.connector` beside `type`.
    `@registry.register_connector("name")` makes it a `type`.

    Args:
        features: P; None where it differs from sample to sample.
        feature_width: Dv.
        width: D.

    Attributes:
        tokens: n.
        width: D.
    """

    reads_instructions: ClassVar[bool] = False
    """whether the vectors depend on a text too; a subclass may set it on itself"""
    any_count: ClassVar[bool] = True
    """whether it gives n vectors for any P, and leaves out features that a mask hides"""

    def __init__(self, features: int | None, feature_width: int, width: int) -> None:
        super().__init__()
        if features is None and not self.any_count:
            raise ConfigError(f"model.connector: {type(self).__name__} gives one vector for each feature, and samples "
                              "have different numbers of features; take one with a fixed number, such as resampler.")
        self.feature_width, self.width, self.tokens = feature_width, width, features or 0

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor | None = None, texts: Sequence[str] | None = None) -> Tensor:
        """Vectors of images.

        Args:
            features: float[B,P,Dv].
            mask: bool[B,P], the features that may be seen; None: all. What it hides is finite.
            texts: B instructions, for a connector that reads them.

        Returns:
            float[B,n,D].
        """


def build_connector(section: Mapping[str, Any], features: int | None, feature_width: int, width: int) -> Connector:
    """The connector of a section `model.connector`.

    Args:
        section: `type` and the settings of that connector.
        features, feature_width, width: see `Connector`.

    Raises:
        ConfigError: no type, an unknown one, or settings that it does not take.
    """
    if wrong := settings_error(section):
        raise ConfigError(f"model.{wrong[0]}: {wrong[1]}")
    settings = dict(section)
    kind = registry.connector.get(settings.pop("type"))
    connector: Connector = kind(features, feature_width, width, **settings)
    return connector


def connector_error(section: Mapping[str, Any]) -> tuple[str, str] | None:
    """(key of the model section, sentence) of what is wrong with a section `model.connector`; None: nothing.

    It is built on the meta device for sizes that any connector takes.
    """
    try:
        with torch.device("meta"):
            build_connector(section, 64, 64, 64)
    except ConfigError as error:
        key, _, sentence = str(error).partition(": ")
        return key.removeprefix("model."), sentence
    except (TypeError, ValueError, RuntimeError) as error:
        return "connector", f"{dict(section)} cannot be built: {str(error).splitlines()[0]}"
    return None


def positive(**settings: Any) -> None:
    """Raise ConfigError unless every setting is a whole number of at least 1."""
    for key, value in settings.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"model.connector.{key}: must be a whole number of at least 1, not {value!r}.")


def check_heads(width: int, heads: int) -> None:
    """Raise ConfigError unless the width divides among the heads."""
    if width % heads:
        raise ConfigError(f"model.connector.heads: {heads} heads do not divide a width of {width}.")
