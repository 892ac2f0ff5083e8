"""Sizes of the parts that LAVIS' helpers build with fixed ones: BERT-base for the Q-Former, its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lavis_lite.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Sizes:
    """What `init_Qformer`, `init_tokenizer` and `init_vision_encoder` build; the defaults are LAVIS'.

    A model section sets them by the same keys as `blip2`'s section does.
    """

    tokenizer: str = "bert-base-uncased"
    """bert-base-uncased | mini | a folder with vocab.txt"""
    qformer_hidden_size: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    qformer_intermediate_size: int = 3072
    qformer_max_positions: int = 512
    qformer_dropout: float = 0.1
    qformer_initializer_range: float = 0.02
    qformer_weights: str | None = "bert-base-uncased"
    """BERT weights to start from: a name, a folder, or None for random ones"""
    vit_weights: str | None = None
    """file or URL of the vision encoder's weights; None: those of `vit_model`; "random": none"""
    vit_args: dict[str, Any] = field(default_factory=dict)
    """other dimensions for the vision encoder: depth, width, heads, mlp_ratio, patch_size"""


KEYS = tuple(entry.name for entry in fields(Sizes))
_current: ContextVar[Sizes] = ContextVar("lavis_sizes", default=Sizes())  # noqa: B039 (frozen)


def current() -> Sizes:
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
