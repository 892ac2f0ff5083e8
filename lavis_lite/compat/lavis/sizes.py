"""Sizes of the parts that LAVIS' helpers build with fixed ones: BERT-base for the Q-Former, its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.models.blip2.config import Blip2Config

KEYS = ("tokenizer", "qformer_hidden_size", "qformer_layers", "qformer_heads", "qformer_intermediate_size",
        "qformer_max_positions", "qformer_dropout", "qformer_initializer_range", "qformer_weights", "vit_weights",
        "vit_args")
"""keys of a model section that are sizes; their defaults are LAVIS'"""
_current: ContextVar[Blip2Config] = ContextVar("lavis_sizes", default=Blip2Config())  # noqa: B039 (never changed)


def current() -> Blip2Config:
    """The sizes in force."""
    return _current.get()


@contextlib.contextmanager
def sizes(**given: Any) -> Iterator[None]:
    """Within it, LAVIS' helpers build parts of other sizes, such as tokenizer="mini", qformer_layers=2.

    Raises:
        ConfigError: a size that there is not.
    """
    for key in given:
        if key not in KEYS:
            raise ConfigError(f"sizes: there is no size {key!r}; {did_you_mean(key, KEYS)}")
    token = _current.set(replace(_current.get(), **given))
    try:
        yield
    finally:
        _current.reset(token)


def sizes_in(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model section that are sizes."""
    return {key: section[key] for key in KEYS if key in section}
