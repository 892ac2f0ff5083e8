"""What all stages of BLIP-2 share: a batch of images, a vision encoder, the norm over its features, the Q-Former.

`build_parts` makes encoder, Q-Former and tokenizer from a section.

Axes: B images, P patches, Dv vision width, Q queries, D Q-Former width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, ContractError, DataError, TextTooLongError, UndefinedMethodError
from lavis_lite.models.base import BaseModel, autocast_type, freeze
from lavis_lite.models.blip2.config import Blip2Config
from lavis_lite.models.plain_text import CutTexts, Side
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens, as_tokens
from lavis_lite.models.vision.config import EncoderConfig
from lavis_lite.models.vision.encoder import Encoder, VisionEncoder
from lavis_lite.registry import registry


@dataclass(frozen=True)
class ImageBatch:
    """U images of B samples; its length is B.

    Attributes:
        image: float[U,3,H,W], videos float[U,3,T,H,W], or the output of a frozen encoder, float[U,P,Dv].
        index: int64[B], the image of each sample; None: sample b has image b.
    """

    image: Tensor
    index: Tensor | None = None

    @classmethod
    def of(cls, samples: Mapping[str, Any]) -> ImageBatch:
        """samples["image"] or samples["video"], with samples["image_rows"] as the index if samples share images.

        Raises:
            DataError: no image or one of another shape, or an index out of range.
        """
        image = samples.get("image", samples.get("video"))
        if not isinstance(image, Tensor):
            given = f" ({type(image).__name__} is none)" if image is not None else ""
            raise DataError(f"samples need a tensor under 'image' or 'video'{given}; they have {sorted(samples)}. "
                            "vis_processors['eval'](picture)[None] makes one of a PIL image.")
        if image.ndim < 3:
            raise DataError(f"an image has shape (B, 3, H, W), a video (B, 3, T, H, W); this one {tuple(image.shape)}.")
        index = samples.get("image_rows")
        return cls(image, None if index is None else _checked(index, image))

    def __len__(self) -> int:
        return len(self.image if self.index is None else self.index)

    @property
    def frames(self) -> int:
        """T of videos; 1 of images."""
        return self.image.shape[2] if self.image.ndim == 5 else 1

    def repeated(self) -> Tensor:
        """The image of every sample: float[B,3,H,W]; videos and features too."""
        return self.image if self.index is None else self.image[self.index]


def _checked(index: Any, image: Tensor) -> Tensor:
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
        raise DataError(f"image_rows must be int64[B], one number for each sample, not {index!r}.")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(image):
        raise DataError(f"image_rows must be from 0 to {len(image) - 1}, the indices of the {len(image)} images; they "
                        f"go from {int(index.min())} to {int(index.max())}.")
    return index.to(image.device)


def merged_frames(image: Tensor) -> tuple[Tensor, int]:
    """Videos float[B,3,T,H,W] -> float[B*T,3,H,W] and T; images and features stay, with T = 1."""
    if image.ndim != 5:
        return image, 1
    return image.transpose(1, 2).flatten(0, 1), image.shape[2]


def frame_index(index: Tensor, frames: int) -> Tensor:
    """Indices of videos int64[B] -> indices of their frames int64[B*T]; the T frames of a video follow each other."""
    return (index[:, None] * frames + torch.arange(frames, device=index.device)).flatten()


class EncoderModel(BaseModel):
    """A model that looks at images through an encoder.

    Args:
        vision_encoder: image float[B,3,H,W] -> float[B,P,Dv]; has `width` (Dv).
        freeze_vit: keep it constant and in eval mode.
    """

    def __init__(self, vision_encoder: nn.Module, freeze_vit: bool = True) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.freeze_vit = freeze_vit and not getattr(vision_encoder, "trains", False)
        if self.freeze_vit and not getattr(vision_encoder, "frozen", False):
            freeze(vision_encoder)

    @property
    def feature_type(self) -> tuple[int, torch.dtype]:
        """Dv, and the type that reads the features."""
        raise UndefinedMethodError.of(self, "feature_type")

    def encode_image(self, image: Tensor) -> Tensor:
        """float[B,3,H,W] -> float[B,P,Dv] in the type that reads them; no autograd when frozen.

        What the frozen encoder made of the images before, float[B,P,Dv], only changes its type.

        Raises:
            DataError: such features of another width, or for an encoder that trains; an empty batch.
            ContractError: the encoder returns something else.
        """
        if image.shape[0] == 0:  # unlike `len`, a symbol for torch.export
            raise DataError("the batch is empty: there is no picture to look at.")
        width, dtype = self.feature_type
        own = len(getattr(self.vision_encoder, "input_shape", (3, None, None))) == image.ndim - 1
        if image.ndim == 3 and not own:
            self._check_features(image, width)
            return image.to(dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_vit):
            features: Tensor = self.vision_encoder(image)
        if features.ndim != 3 or features.shape[2] != width:
            raise ContractError(f"the encoder {type(self.vision_encoder).__name__} must return features of shape "
                                f"(B, P, {width}), {width} being its `width`, not {tuple(features.shape)}.")
        return features.to(dtype)

    def encode_ahead(self, image: Tensor) -> Tensor:
        """Features float[B,P,Dv] of images float[B,3,H,W] that a frozen encoder sees; all else stays."""
        return self.encode_image(image) if self.freeze_vit and image.ndim == 4 and len(image) else image

    def _check_features(self, features: Tensor, width: int) -> None:
        if not self.freeze_vit or features.shape[-1] != width:
            trains = "" if self.freeze_vit else ", and this encoder trains"
            raise DataError(f"an image has shape (B, 3, H, W), what a frozen encoder made of it (B, P, {width}); "
                            f"this one {tuple(features.shape)}{trains}.")

    def example_image(self, batch: int, device: torch.device) -> Tensor:
        """Input of the encoder without content, float[B,3,H,W] or what it takes, for a dry run."""
        encoder: Any = self.vision_encoder
        image: Tensor = encoder.example_input(batch, device)
        return image

    def layer_scale(self, name: str, decay: float) -> float:
        """decay ** (layers between a vision encoder's parameter and its output, plus one); 1 elsewhere (LAVIS)."""
        if not name.startswith("vision_encoder."):
            return 1.0
        encoder: Any = self.vision_encoder
        return float(encoder.layer_scale(name, decay))


class Blip2Base(EncoderModel):
    """The common parts and what is done with them.

    Args:
        vision_encoder: image float[B,3,H,W] -> float[B,P,Dv]; has `width` (Dv).
        qformer: with or without its text half.
        tokenizer: text -> ids for the Q-Former.
        freeze_vit: keep the vision encoder constant and in eval mode.
        ln_vision_eps: epsilon of the norm over image features.
    """

    def __init__(self, vision_encoder: nn.Module, qformer: QFormer, tokenizer: TextTokenizer, freeze_vit: bool = True,
                 ln_vision_eps: float = 1e-5) -> None:
        super().__init__(vision_encoder, freeze_vit)
        self.tokenizer = tokenizer
        self.ln_vision = nn.LayerNorm(qformer.cfg.vision_width, eps=ln_vision_eps)
        self.qformer = qformer
        self.query_tokens = nn.Parameter(torch.empty(1, qformer.cfg.num_queries, qformer.cfg.hidden_size))
        nn.init.normal_(self.query_tokens, std=qformer.cfg.initializer_range)

    @property
    def feature_type(self) -> tuple[int, torch.dtype]:
        """Dv, and the type of ln_vision."""
        return int(self.ln_vision.normalized_shape[0]), self.ln_vision.weight.dtype

    def tokenize(self, text: Any, max_length: int | None = None) -> TextTokens:
        """Strings to ids on the model's device, padded to the longest; `TextTokens` pass through.

        Raises:
            TextTooLongError: tokens that were made elsewhere are more than the Q-Former's positions.
        """
        tokens, positions = as_tokens(text, self.tokenizer, max_length), self.qformer.cfg.max_positions
        if tokens.ids.shape[1] > positions:
            lengths = dict(enumerate(tokens.mask.sum(1).tolist()))
            raise TextTooLongError(f"the Q-Former has {positions} positions for text; these texts have up to "
                                   f"{tokens.ids.shape[1]} tokens. Cut them, or give strings: those are cut at "
                                   "model.max_txt_len.", {row: n for row, n in lengths.items() if n > positions})
        return tokens.to(self.device)

    def text_of(self, samples: Mapping[str, Any], images: int | None = None,
                max_length: int | None = None) -> TextTokens:
        """Tokens of samples["text_input"]; one string serves all of so many images.

        Raises:
            DataError: there is no text_input.
            ConfigError: not one text per image.
        """
        if "text_input" not in samples:
            raise DataError(f"{type(self).__name__} needs text_input; the samples have {sorted(samples)}.")
        text = samples["text_input"]
        tokens = self.tokenize([text] * (images or 1) if isinstance(text, str) else text, max_length)
        if images is not None and len(tokens.ids) != images:
            raise ConfigError(f"text_input: {len(tokens.ids)} texts for {images} images; give one string for all, or "
                              "one for each.")
        return tokens

    def normalise(self, features: Tensor) -> Tensor:
        """ln_vision without its affine part: float[B,P,Dv] -> float[B,P,Dv], in autocast's type under autocast.

        The cast is the one the next matrix product would make; done here, ranks exchange half the bytes.
        """
        normalised = F.layer_norm(features, features.shape[-1:], eps=self.ln_vision.eps)
        return normalised.to(dtype=autocast_type(normalised.device))

    def _queries(self, batch: int) -> Tensor:
        return self.query_tokens.expand(batch, -1, -1)

    def cut_texts(self) -> dict[str, CutTexts]:
        """Texts for the Q-Former that were longer than model.max_txt_len."""
        limit = f"texts for the Q-Former were cut to {self.tokenizer.max_length} tokens (model.max_txt_len)"
        return {limit: self.tokenizer.cut}


def qformer_config(cfg: Blip2Config, vocab_size: int, vision_width: int, *, with_text: bool = True,
                   with_lm_head: bool = True, padded_features: bool = False) -> QFormerConfig:
    """Sizes of the Q-Former that a section asks for."""
    return QFormerConfig(
        hidden_size=cfg.qformer_hidden_size, num_layers=cfg.qformer_layers, num_heads=cfg.qformer_heads,
        intermediate_size=cfg.qformer_intermediate_size, vocab_size=vocab_size,
        max_positions=cfg.qformer_max_positions, num_queries=cfg.num_query_token,
        cross_attention_freq=cfg.cross_attention_freq, vision_width=vision_width, dropout=cfg.qformer_dropout,
        attention_dropout=cfg.qformer_attention_dropout,
        layer_norm_eps=cfg.qformer_layer_norm_eps, initializer_range=cfg.qformer_initializer_range,
        with_text=with_text, with_lm_head=with_lm_head, padded_features=padded_features)


def build_encoder(cfg: EncoderConfig) -> Encoder:
    """The encoder that `vit_model` names: one that is registered, or a ViT."""
    if cfg.vit_model in registry.encoder.names():
        return registry.encoder.get(cfg.vit_model)(**cfg.vit_args)
    return VisionEncoder(cfg.vit_model, cfg.image_size, cfg.drop_path_rate, cfg.use_grad_checkpoint,
                         cfg.vit_precision, frozen=cfg.freeze_vit, pretrained=cfg.vit_weights == "timm",
                         layer=cfg.vit_layer, prefix=cfg.vit_cls, train=cfg.vit_train, **cfg.vit_args)


def build_parts(cfg: Blip2Config, *, with_text: bool = True, with_lm_head: bool = True,
                truncation_side: Side = "right") -> dict[str, Any]:
    """vision_encoder, qformer and tokenizer of a section.

    All weights are random and no file but the tokenizer's is read: `lavis_lite.checkpoints.weights.build_model` fills
    them. On the meta device (`with torch.device("meta")`) shapes are all there is.

    Args:
        cfg: the section.
        with_text: whether the Q-Former has its text half.
        with_lm_head: whether the text half ends in a language-model head (ITG).
        truncation_side: where texts for the Q-Former lose tokens.

    Raises:
        ConfigError: sizes that do not go together.
    """
    if with_text and (error := cfg.length_error()):
        raise ConfigError(f"model.max_txt_len: {error}")
    encoder = build_encoder(cfg)
    tokenizer = TextTokenizer(cfg.tokenizer, cfg.max_txt_len, truncation_side)
    vocab_size = tokenizer.special_ids.vocab_size if with_text else 0
    qformer = QFormer(qformer_config(cfg, vocab_size, encoder.width, with_text=with_text, with_lm_head=with_lm_head,
                                     padded_features=encoder.pads))
    qformer.grad_checkpoint = cfg.qformer_grad_checkpoint
    return {"vision_encoder": encoder, "qformer": qformer, "tokenizer": tokenizer}
