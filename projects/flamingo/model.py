"""Flamingo (arXiv 2204.14198): between the blocks of a frozen language model, trained layers look at pictures.

In a text a picture is one learned vector, its mark. Every token looks at the picture of the last mark before it.

Axes: B rows, S tokens, N pictures of a batch, M most pictures of a row, n vectors of a picture, D width of the words.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicCache, DynamicLayer

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.base import blocks_of
from lavis_lite.models.blip2.base import ImageBatch
from lavis_lite.models.language.rows import Segment
from lavis_lite.models.outputs import ModelOutput, SamplesLike
from lavis_lite.models.vision_language.config import VisionLanguageConfig
from lavis_lite.models.vision_language.model import ChatBatch, VisionLanguage
from lavis_lite.registry import registry


@dataclass
class FlamingoConfig(VisionLanguageConfig):
    """Section `model`: that of `vision_language`, and the layers between the blocks."""

    vit_layer: Any = -1
    connector: dict[str, Any] = field(default_factory=lambda: {"type": "resampler"})
    look_every: int = 1
    """a gated layer precedes every so many blocks"""
    look_heads: int = 8
    look_head_width: int = 64
    look_ratio: int = 4
    """width of a gated layer's feed-forward part over D"""
    gate_lr_scale: float = 1.0
    """factor on the learning rate of the tanh gates; Adam moves a gate by at most the learning rate in a step"""

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """As `VisionLanguageConfig`, and numbers that must be positive."""
        names = ("look_every", "look_heads", "look_head_width", "look_ratio")
        found = [(name, f"must be at least 1, not {getattr(self, name)}.") for name in names if getattr(self, name) < 1]
        found += [("gate_lr_scale", "must be above 0.")] if not self.gate_lr_scale > 0 else []
        return super().errors(run) + found


class GatedLayer(nn.Module):
    """Cross-attention and a feed-forward part, each behind a tanh gate that starts at 0 (figure 4)."""

    def __init__(self, width: int, heads: int, head_width: int, ratio: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm, self.query = nn.LayerNorm(width), nn.Linear(width, inner, bias=False)
        self.key_value, self.output = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ratio * width, bias=False), nn.GELU(),
                                          nn.Linear(ratio * width, width, bias=False))
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, text: Tensor, pictures: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
        """Text that has looked, float[B,S,D].

        Args:
            text: float[B,S,D].
            pictures: float[N,n,D].
            rows: int64[B,M], the pictures of each row.
            seen: int64[B,S], which of them a token looks at, from 1; 0: none.
        """
        own = self.key_value(pictures)[rows].flatten(1, 2).chunk(2, -1)      # float[B,M*n,I] each
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for part in (self.query(self.norm(text)), *own))
        order = torch.arange(1, rows.shape[1] + 1, device=rows.device).repeat_interleave(pictures.shape[1])
        blind = (seen == 0)[..., None]                                       # a row of the mask may not be empty
        mixed = scaled_dot_product_attention(query, key, value, ((seen[..., None] == order) | blind)[:, None])
        attended = self.output(mixed.transpose(1, 2).flatten(2)).masked_fill(blind, 0.0)
        text = text + self.gates[0].tanh() * attended
        return text + self.gates[1].tanh() * self.feed_forward(text)


@registry.register_model("flamingo")
class Flamingo(VisionLanguage):
    """Encoder, resampler, gated layers and a frozen decoder-only language model. Samples: as `vision_language`."""

    config_class = FlamingoConfig

    @classmethod
    def from_config(cls, cfg: FlamingoConfig) -> "Flamingo":
        """Build from a section; all weights are random, and all gates 0."""
        model = super().from_config(cfg)
        model.insert(cfg.look_every, cfg.look_heads, cfg.look_head_width, cfg.look_ratio)
        gates = {f"gated.{number}.gates": cfg.gate_lr_scale for number in range(len(model.gated))}
        model.lr_scales = {**model.lr_scales, **gates}
        return model

    def insert(self, every: int, heads: int, head_width: int, ratio: int) -> None:
        """Put gated layers in front of every so many blocks: hooks leave the names of the blocks as they are."""
        model = self.language_model.model
        if model.config.is_encoder_decoder:
            raise ConfigError("model.llm_model: Flamingo needs a decoder-only language model, such as OPT or LLaMA.")
        chosen = blocks_of(model)[every - 1::every]
        width, self.counts, self.pictures = self.connector.width, None, None
        self.gated = nn.ModuleList(GatedLayer(width, heads, head_width, ratio) for _ in chosen)
        self.mark = nn.Parameter(torch.randn(width) * 0.02)
        self.language_model.most_padding = 1.0  # all rows in one pass: the gated layers know the pictures of each
        model.base_model.register_forward_pre_hook(self.look, with_kwargs=True)
        for layer, block in zip(self.gated, chosen, strict=True):
            block.register_forward_pre_hook(partial(self.attend, layer), with_kwargs=True)

    def forward(self, samples: SamplesLike) -> ModelOutput:
        """The language-model loss of B samples; see `VisionLanguage.forward`."""
        try:
            return super().forward(samples)
        finally:
            self.pictures = None  # it would keep the graph

    @property
    def tokens_per_image(self) -> int:
        """A mark."""
        return 1

    def embed_image(self, image: Tensor, texts: list[str] | None = None, index: Tensor | None = None) -> Tensor:
        """The marks of B images, float[B,1,D], or of videos with T frames, float[B,T,D]."""
        vectors = super().embed_image(image, texts, index)
        frames = image.shape[2] if image.ndim == 5 else 1
        self.pictures, self.counts = vectors.reshape(len(image) * frames, -1, vectors.shape[-1]), [frames] * len(image)
        return self.mark.expand(len(image), frames, -1)  # in its own type, so that `look` finds it under autocast

    def soft_prompts(self, images: ImageBatch, texts: list[str]) -> tuple[Tensor, None]:
        """The marks of every sample: rows do not share pictures here."""
        return self.embed_image(images.repeated(), texts), None

    def sequences(self, batch: ChatBatch) -> list[list[Segment]]:
        """Conversations as the language model reads them: a mark for each picture."""
        self.pictures = self.mark[None, None] * 0  # for a batch without any; its gradients are 0
        rows = super().sequences(batch)
        self.counts = list(batch.counts)
        return rows

    def look(self, base: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Find what every token of a pass sees. What a row saw last stays in its cache, so that beams move it."""
        embeds, cache = given["inputs_embeds"], given.get("past_key_values")
        if cache is not None:
            last = cache.layers[-1].keys[:, 0, 0]                            # int64[B,1], from 1; 0: none
            self.view = (last - 1).clamp(min=0), (last > 0).long().expand(-1, embeds.shape[1])
            return args, given
        counts = torch.tensor(self.counts, device=embeds.device)
        if len(counts) != len(embeds):
            raise DataError(f"of {len(counts)} conversations only {len(embeds)} fit the language model's positions. "
                            "Shorten them or leave them out: the others' pictures cannot be told apart.")
        seen = (embeds == self.mark.to(embeds)).all(-1).cumsum(1)            # int64[B,S]
        first = (counts.cumsum(0) - counts)[:, None]
        rows = first + torch.arange(max(int(counts.max()), 1), device=embeds.device)
        self.view = rows.clamp(max=len(self.pictures) - 1), seen
        if given.get("use_cache"):
            last = torch.where(seen[:, -1:] > 0, first + seen[:, -1:], 0)[:, None, None]
            given["past_key_values"] = cache = DynamicCache(config=base.config)
            cache.layers.append(DynamicLayer())
            cache.layers[-1].update(last, last)
        return args, given

    def attend(self, layer: GatedLayer, block: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, Any]:
        """What enters a block, after a look at the pictures."""
        text = args[0] if args else given["hidden_states"]
        looked = layer(text.to(layer.gates), self.pictures.to(layer.gates), *self.view).to(text)
        return ((looked, *args[1:]), given) if args else (args, {**given, "hidden_states": looked})
