"""Connectors with learned queries that look at all features: Flamingo's resampler, mPLUG-Owl's abstractor.

Axes: B images, P features, Dv their width, Q queries, D width of the language model's words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.errors import UndefinedMethodError
from lavis_lite.models.connectors.base import Connector, check_heads, positive
from lavis_lite.registry import registry


class Attention(nn.Module):
    """Queries float[B,Q,W] look at float[B,T,W], features and queries.

    Args:
        width: W.
        inner: width of all heads together.
        heads: of them.
        bias: of the projections.
        dropout: of attention weights.
        features_first: whether the features come first of the T.
    """

    looks_at_features = True

    def __init__(self, width: int, inner: int, heads: int, bias: bool, dropout: float = 0.0,
                 features_first: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.features_first = heads, dropout, features_first
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=bias) for _ in range(3))
        self.output = nn.Linear(inner, width, bias=bias)

    def forward(self, queries: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        """-> float[B,Q,W]; mask: bool[B,T] or None."""
        query, key, value = (layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, given in
                             ((self.query, queries), (self.key, seen), (self.value, seen)))
        projected: Tensor = self.output(self.attend(query, key, value, None if mask is None else mask[:, None, None]))
        return projected

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """float[B,H,Q,d], float[B,H,T,d] twice -> float[B,Q,H*d]."""
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)


def all_seen(mask: Tensor | None, queries: Tensor, first: bool) -> Tensor | None:
    """A mask bool[B,P] of features with the queries before (`first`) or behind them: bool[B,P+Q]."""
    if mask is None:
        return None
    own = mask.new_ones(queries.shape[:2])
    return torch.cat([own, mask] if first else [mask, own], 1)


class ResamplerLayer(nn.Module):
    """Cross-attention of the queries to features and queries, then a feed-forward layer; norms come first."""

    def __init__(self, width: int, heads: int, head_width: int, ratio: int) -> None:
        super().__init__()
        self.norm_features, self.norm_queries = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads * head_width, heads, bias=False)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ratio * width, bias=False), nn.GELU(),
                                          nn.Linear(ratio * width, width, bias=False))

    def forward(self, queries: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        """float[B,Q,Dv], float[B,P,Dv] -> float[B,Q,Dv]."""
        own = self.norm_queries(queries)
        seen = torch.cat([self.norm_features(features), own], 1)
        queries = queries + self.attention(own, seen, all_seen(mask, own, first=False))
        fed: Tensor = queries + self.feed_forward(queries)
        return fed


class WithQueries(Connector):
    """Learned queries, the layers that they go through, and a projection to the words' width."""

    queries: nn.Parameter
    layers: nn.ModuleList

    def forward(self, features: Tensor, mask: Tensor | None = None, texts: Sequence[str] | None = None) -> Tensor:
        """float[B,P,Dv] -> float[B,n,D]."""
        queries = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features, mask)
        return self.projected(queries)

    def projected(self, queries: Tensor) -> Tensor:
        """Queries behind the last layer, float[B,Q,Dv] -> float[B,n,D]."""
        raise UndefinedMethodError.of(self, "projected")


@registry.register_connector("resampler")
class Resampler(WithQueries):
    """The perceiver resampler (Flamingo, arXiv 2204.14198, figure 5), and a projection to the words' width.

    Args:
        features, feature_width, width: see `Connector`.
        queries: Q, the vectors of an image.
        depth: layers.
        heads, head_width: of the attention.
        ratio: width of the feed-forward layers over Dv.
    """

    def __init__(self, features: int | None, feature_width: int, width: int, *, queries: int = 64, depth: int = 6,
                 heads: int = 8, head_width: int = 64, ratio: int = 4) -> None:
        super().__init__(features, feature_width, width)
        positive(queries=queries, depth=depth, heads=heads, head_width=head_width, ratio=ratio)
        self.tokens = queries
        self.queries = nn.Parameter(torch.randn(1, queries, feature_width))
        self.layers = nn.ModuleList(ResamplerLayer(feature_width, heads, head_width, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(feature_width)
        self.projection = nn.Linear(feature_width, width)

    def projected(self, queries: Tensor) -> Tensor:
        """float[B,Q,Dv] -> float[B,Q,D]."""
        vectors: Tensor = self.projection(self.norm(queries))
        return vectors


class AbstractorLayer(nn.Module):
    """Attention of the queries to queries and features, then a gated feed-forward layer with a norm inside.

    What is added to the attention's output is the normalised queries, as mPLUG-Owl does.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm_queries, self.norm_features = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, bias=True, dropout=dropout, features_first=False)
        self.norm_attended = nn.LayerNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_inner = nn.LayerNorm(inner, eps=1e-6)  # the release's: 1e-6 here, torch's own in the other norms

    def forward(self, queries: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        """float[B,Q,Dv], float[B,P,Dv] -> float[B,Q,Dv]."""
        own = self.norm_queries(queries)
        seen = torch.cat([own, self.norm_features(features)], 1)
        attended = own + self.attention(own, seen, all_seen(mask, own, first=True))
        given = self.norm_attended(attended)
        fed: Tensor = attended + self.down(self.norm_inner(F.silu(self.gate(given)) * self.up(given)))
        return fed


@registry.register_connector("abstractor")
class Abstractor(WithQueries):
    """mPLUG-Owl's visual abstractor (arXiv 2304.14178, section 3.1); a learned vector ends every image.

    Args:
        features, feature_width, width: see `Connector`.
        queries: Q; an image has Q + 1 vectors.
        depth: layers.
        heads: of the attention.
        inner: width of the feed-forward layers; the released weights have 2816 for Dv 1024.
        dropout: of attention weights.
    """

    def __init__(self, features: int | None, feature_width: int, width: int, *, queries: int = 64, depth: int = 6,
                 heads: int = 16, inner: int = 2816, dropout: float = 0.1) -> None:
        super().__init__(features, feature_width, width)
        positive(queries=queries, depth=depth, heads=heads, inner=inner)
        check_heads(feature_width, heads)
        self.tokens = queries + 1
        self.queries = nn.Parameter(0.02 * torch.randn(1, queries, feature_width))
        self.layers = nn.ModuleList(AbstractorLayer(feature_width, heads, inner, dropout) for _ in range(depth))
        self.projection = nn.Linear(feature_width, width)
        self.end = nn.Parameter(0.02 * torch.randn(1, 1, width))

    def projected(self, queries: Tensor) -> Tensor:
        """float[B,Q,Dv] -> float[B,Q+1,D]."""
        vectors = self.projection(queries)
        return torch.cat([vectors, self.end.to(vectors.dtype).expand(len(vectors), -1, -1)], 1)
