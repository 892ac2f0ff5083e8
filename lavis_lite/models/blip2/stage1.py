"""BLIP-2 stage 1: a frozen vision encoder, the Q-Former, and the objectives ITC, ITM and ITG (section 3.2).

Serves pre-training, retrieval fine-tuning (samples with `image_id`), image-text matching and feature extraction.
Axes: B samples of this rank, N of all ranks, Q queries, P patches, L text tokens, D Q-Former width, Dv vision width,
E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite import distributed
from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.models.base import loss_weight
from lavis_lite.models.blip2 import objectives
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.models.blip2.image_batch import pictures_of
from lavis_lite.models.blip2.parts import build_parts
from lavis_lite.models.blip2.passes import (
    JointPass,
    check_pairs,
    gather_texts,
    image_keys,
    joint_pass,
    matching_pass,
    matching_rest,
    matching_start,
    matching_tokens,
    paired,
)
from lavis_lite.models.decoding import Decoding, QFormerDecoder, decode
from lavis_lite.models.options import known_options
from lavis_lite.models.outputs import Blip2Features, Blip2Output
from lavis_lite.models.plain_text import uncounted
from lavis_lite.models.qformer.model import ImageKV, QFormer
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens, as_tokens
from lavis_lite.registry import registry

INITIAL_TEMPERATURE = 0.07
MATCH_HEADS = ("itm", "itc")
FEATURE_MODES = ("multimodal", "image", "text")


@dataclass
class Encoded:
    """A batch on its way to the three losses.

    normalised: float[B,P,Dv], image features after ln_vision without its affine part (that part is folded into the
        keys and values); image: their keys and values; tokens: the texts; joint: hidden states.
    """

    normalised: Tensor
    image: ImageKV
    tokens: TextTokens
    joint: JointPass


@dataclass
class Contrast:
    """ITC's similarities, divided by the temperature, float[B,N] each, and bool[B,N] `positives`."""

    sim_i2t: Tensor
    sim_t2i: Tensor
    positives: Tensor
    everyone: TextTokens
    """texts of all ranks"""


@dataclass
class Negatives:
    """Hard negatives as rows of the global batch: int64[B] each, and bool[B] whether there is one."""

    image_of_text: Tensor
    text_of_image: Tensor
    image_valid: Tensor
    text_valid: Tensor


@registry.register_model("blip2", "blip2_feature_extractor")
class Blip2Qformer(Blip2Base):
    """Stage-1 model.

    Args:
        vision_encoder: image float[B,3,H,W] -> float[B,P,Dv]; has `width` (Dv).
        qformer: with text half and language-model head.
        tokenizer: text -> ids.
        embed_dim: E, width in which image and text are compared.
        freeze_vit: keep the vision encoder constant and in eval mode.
        lm_reduction: average the ITG loss over the tokens of the whole step ("global"), or over those of each rank and
            micro-batch first (LAVIS).
        itc_full_gradient: let ITC's gradient reach both sides of each similarity. False as in LAVIS: the features
            that a sample is compared with are constants.
        ln_vision_eps: epsilon of the norm over image features.
        itg_weight: factor of the ITG loss in the sum.
    """

    config_class = Blip2QformerConfig
    in_batch_negatives = True

    def __init__(self, vision_encoder: nn.Module, qformer: QFormer, tokenizer: TextTokenizer, *, embed_dim: int = 256,
                 freeze_vit: bool = True, lm_reduction: Literal["global", "per_rank"] = "global",
                 itc_full_gradient: bool = False, ln_vision_eps: float = 1e-5, itg_weight: float = 1.0) -> None:
        super().__init__(vision_encoder, qformer, tokenizer, freeze_vit, ln_vision_eps)
        self.itg_weight = itg_weight
        width = qformer.cfg.hidden_size
        self.lm_reduction, self.itc_full_gradient = lm_reduction, itc_full_gradient
        self.vision_proj = nn.Linear(width, embed_dim)
        self.text_proj = nn.Linear(width, embed_dim)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))

    @classmethod
    def from_config(cls, cfg: Any) -> Blip2Qformer:
        """Build from a `Blip2QformerConfig`."""
        return cls(**build_parts(cfg), embed_dim=cfg.embed_dim, freeze_vit=cfg.freeze_vit,
                   lm_reduction=cfg.lm_reduction, itc_full_gradient=cfg.itc_full_gradient,
                   ln_vision_eps=cfg.ln_vision_eps, itg_weight=cfg.itg_weight)

    # training -------------------------------------------------------------------------------------------------------
    def forward(self, samples: dict[str, Any]) -> Blip2Output:
        """The three losses.

        Args:
            samples: image float[B,3,H,W] (or features float[B,P,Dv], see `encode_image`); text_input list of B strings
                or `TextTokens`; image_id (optional) int64[B] or a list of ints or strings, samples with equal ids are
                never each other's negatives and share ITC's target; uniform (optional)
                float64[B,2] in [0, 1), which choose the hard negatives (column 0: the image for each text, 1: the text
                for each image); absent: drawn from torch's generator.
        """
        encoded = self.encode(samples)
        contrast = self.contrast(encoded, samples.get("image_id"))
        loss_itc = objectives.itc_loss(contrast.sim_i2t, contrast.sim_t2i, contrast.positives)
        negatives = self.draw_negatives(contrast, samples.get("uniform"))
        itm_sum, itm_count = self.itm_terms(encoded, contrast, negatives)
        lm_sum, lm_count = self.lm_terms(encoded)
        itm_count, lm_count = self._shared_counts(itm_count, lm_count)
        loss_itm, loss_lm = itm_sum / itm_count, lm_sum / lm_count
        loss_lm = loss_lm * loss_weight(samples, "loss_lm", loss_lm)
        loss_itc = loss_itc.to(loss_itm.dtype)
        return Blip2Output(loss_itc + loss_itm + self.itg_weight * loss_lm, loss_itc, loss_itm, loss_lm)

    def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
        """Tokens that ITG predicts; none if every rank and micro-batch counts alike (lm_reduction per_rank).

        ITC and ITM compare the samples of a micro-batch, so no weights could make them those of the whole step.
        """
        if self.lm_reduction == "per_rank":
            return {}
        with uncounted(self.tokenizer.cut):
            return {"loss_lm": int(as_tokens(samples["text_input"], self.tokenizer).mask[:, 1:].sum())}

    def encode(self, samples: dict[str, Any]) -> Encoded:
        """Vision encoder, keys and values, and the pass that ITC and ITG share."""
        images = pictures_of(samples).image
        tokens = self.text_of(samples, len(images))
        normalised = self.normalise(self.encode_image(images))
        image = self.qformer.precompute_kv(normalised, self.ln_vision)
        joint = joint_pass(self.qformer, self.query_tokens, image, tokens, self.tokenizer.special_ids.begin)
        return Encoded(normalised, image, tokens, joint)

    def contrast(self, encoded: Encoded, image_id: Any = None) -> Contrast:
        """Similarities of this rank's images and texts with everyone's (ITC)."""
        image_feats, text_feats = self._project(encoded.joint.query, encoded.joint.text_cls)
        gather = distributed.all_gather_with_grad if self.itc_full_gradient else distributed.all_gather
        temperature = self.temp.to(image_feats.dtype)
        sim_i2t = objectives.similarity(image_feats, gather(text_feats)) / temperature
        sim_t2i = objectives.similarity(gather(image_feats), text_feats).T / temperature
        keys = image_keys(image_id, len(image_feats), image_feats.device)
        everyone, all_keys = gather_texts(encoded.tokens, keys, self.tokenizer.special_ids.pad)
        positives = (keys[:, None] == all_keys[None]).all(2)
        return Contrast(sim_i2t, sim_t2i, positives, everyone)

    def draw_negatives(self, contrast: Contrast, uniform: Tensor | None) -> Negatives:
        """One hard negative image per text and one text per image, by ITC similarity."""
        batch, device = len(contrast.positives), contrast.positives.device
        if uniform is None:
            uniform = torch.rand(batch, 2, dtype=torch.float64, device=device)
        uniform = uniform.to(device, non_blocking=True)
        image, image_valid = objectives.choose_negatives(contrast.sim_t2i, contrast.positives, uniform[:, 0])
        text, text_valid = objectives.choose_negatives(contrast.sim_i2t, contrast.positives, uniform[:, 1])
        return Negatives(image, text, image_valid, text_valid)

    def itm_terms(self, encoded: Encoded, contrast: Contrast, negatives: Negatives) -> tuple[Tensor, Tensor]:
        """Sum and number of the matching terms of this rank, float[] each."""
        logits = self.itm_logits(encoded, contrast, negatives)
        positive, other = logits.tensor_split([len(encoded.tokens.ids)])
        return objectives.itm_terms(positive, other, torch.cat([negatives.text_valid, negatives.image_valid]))

    def itm_logits(self, encoded: Encoded, contrast: Contrast, negatives: Negatives) -> Tensor:
        """float[3B,2]: B matching pairs, B images with a negative text, B texts with a negative image.

        The first two groups look at the same images, so they share keys and values.
        """
        tokens = matching_tokens(encoded.tokens, contrast.everyone, negatives.text_of_image,
                                 self.tokenizer.special_ids.pad)
        images = [encoded.image.repeated(2), self._negative_images(encoded, negatives.image_of_text)]
        queries = matching_pass(self.qformer, self.query_tokens, images, tokens)
        return objectives.itm_logits(queries, self.itm_head)

    def _negative_images(self, encoded: Encoded, rows: Tensor) -> ImageKV:
        """Keys and values of chosen images; from other ranks only the chosen images' features come."""
        if distributed.world_size() == 1:
            return encoded.image.select(rows)
        return self.qformer.precompute_kv(distributed.fetch_rows(encoded.normalised, rows), self.ln_vision)

    def lm_terms(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Summed ITG loss of this rank and its number of predicted tokens, float[] each."""
        tokens, hidden = encoded.tokens, encoded.joint.decoder.flatten(0, 1)
        targets = tokens.ids[:, 1:].masked_fill(~tokens.mask[:, 1:], objectives.IGNORE).flatten()
        rows = tokens.prediction_rows()
        if rows is not None:
            rows = rows.to(hidden.device, non_blocking=True)
            hidden, targets = hidden.index_select(0, rows), targets.index_select(0, rows)
        assert self.qformer.lm_head is not None
        total = objectives.lm_sum(self.qformer.lm_head(hidden), self.qformer.embeddings.word_embeddings.weight,
                                  self.qformer.lm_head.bias, targets)
        return total, (targets != objectives.IGNORE).sum().to(total.dtype)

    def _shared_counts(self, itm: Tensor, lm: Tensor) -> tuple[Tensor, Tensor]:
        """Divisors that make the mean over ranks of the losses the mean over all ranks' terms."""
        mean = distributed.all_reduce_sum(torch.stack([itm, lm.to(itm.dtype)])) / distributed.world_size()
        return mean[0], (lm if self.lm_reduction == "per_rank" else mean[1]).clamp(min=1e-9)

    # parts ----------------------------------------------------------------------------------------------------------
    def _project(self, query: Tensor, text_cls: Tensor) -> tuple[Tensor, Tensor]:
        """To the common space: float[B,Q,D], float[B,D] -> float[B,Q,E], float[B,E], unit length."""
        return common_space(query, self.vision_proj), common_space(text_cls, self.text_proj)

    # LAVIS' entry points --------------------------------------------------------------------------------------------
    def forward_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image alone: float[B,3,H,W] -> query hidden states float[B,Q,D], features float[B,P,Dv] after ln_vision."""
        features = self.ln_vision(self.encode_image(image))
        output = self.qformer(self._queries(len(features)), image=features)
        return output.query, features

    def forward_text(self, text: Any) -> Tensor:
        """Text alone: tokens (or strings) -> hidden state of [CLS], float[B,D]."""
        tokens = self.tokenize(text)
        output = self.qformer(text_ids=tokens.ids, text_mask=tokens.mask, pattern="uni_modal")
        return output.text[:, 0]

    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """Matching score of pairs: float[B,P,Dv] (after ln_vision), int64[B,L], int or bool[B,L] -> float[B].

        One image serves all texts, and one text all images.
        """
        image = self.qformer.precompute_kv(image_inputs)
        return self.match_logits(image, self.tokenize(TextTokens(text_ids, text_atts.bool())))[:, 1]

    def match_logits(self, image: ImageKV, tokens: TextTokens) -> Tensor:
        """Two-class logits of texts with images whose keys and values are at hand: float[M,2]; see `paired`."""
        image, tokens = paired(image, tokens)
        queries = matching_pass(self.qformer, self.query_tokens, [image], tokens)
        return objectives.itm_logits(queries, self.itm_head)

    def match_start(self, tokens: TextTokens) -> Tensor:
        """What matching computes of texts before it looks at an image, once for all images: float[M,Q+L,D]."""
        return matching_start(self.qformer, self.query_tokens, tokens)

    def match_started(self, image: ImageKV, start: Tensor, mask: Tensor) -> Tensor:
        """As `match_logits`, of texts begun by `match_start`; mask: bool[M,L]."""
        return objectives.itm_logits(matching_rest(self.qformer, start, [image], mask), self.itm_head)

    def image_kv(self, features: Tensor) -> ImageKV:
        """Keys and values of vision features after ln_vision, float[B,P,Dv], to be reused for many texts."""
        return self.qformer.precompute_kv(features)

    @known_options
    @torch.no_grad()
    def extract_features(self, samples: dict[str, Any], mode: str = "multimodal") -> Blip2Features:
        """Features of images, texts or pairs.

        Args:
            samples: image and/or text_input, as `forward` takes them; texts are cut at the Q-Former's positions.
            mode: multimodal | image | text.
        """
        if mode not in FEATURE_MODES:
            raise ConfigError(f"extract_features: unknown mode {mode!r}: {did_you_mean(str(mode), FEATURE_MODES)}")
        if mode == "image":
            query, _ = self.forward_image(pictures_of(samples).image)
            return Blip2Features(image_embeds=query,
                                 image_embeds_proj=common_space(query, self.vision_proj, query.dtype))
        most = self.qformer.cfg.max_positions
        if mode == "text":
            tokens = self.text_of(samples, max_length=most)
            text = self.qformer(text_ids=tokens.ids, text_mask=tokens.mask, pattern="uni_modal").text
            return Blip2Features(text_embeds=text, text_embeds_proj=common_space(text, self.text_proj, text.dtype))
        images = pictures_of(samples).image
        tokens = self.text_of(samples, len(images), most)
        features = self.ln_vision(self.encode_image(images))
        output = self.qformer(self._queries(len(features)), tokens.ids, tokens.mask, features, "bidirectional")
        return Blip2Features(multimodal_embeds=output.query)

    @known_options
    def match(self, samples: dict[str, Any], match_head: str = "itm") -> Tensor:
        """How well images and texts fit: one of each per pair, or one image for all texts, or one text for all images.

        Args:
            samples: image float[B,3,H,W] and text_input, B strings or tokens (one string, or one image, serves all).
            match_head: itm: two-class logits float[B,2] (class 1 fits); itc: cosine similarity float[B,1].
        """
        if match_head not in MATCH_HEADS:
            raise ConfigError(f"unknown match_head {match_head!r}: {did_you_mean(str(match_head), MATCH_HEADS)}")
        images, tokens = pictures_of(samples).image, self.text_of(samples)
        if match_head == "itm":
            return self.match_logits(self.image_kv(self.ln_vision(self.encode_image(images))), tokens)
        query, _ = self.forward_image(images)
        check_pairs(len(query), len(tokens.ids))
        image_feats, text_feats = self._project(query, self.forward_text(tokens))
        return (image_feats @ text_feats[:, :, None])[..., 0].amax(1, keepdim=True).to(query.dtype)

    @known_options
    @torch.no_grad()
    def generate(self, samples: dict[str, Any], use_nucleus_sampling: bool = False, num_beams: int = 3,
                 max_length: int = 30, min_length: int | None = None, top_p: float = 0.9,
                 repetition_penalty: float = 1.0, length_penalty: float = 1.0, temperature: float = 1.0, *,
                 max_new_tokens: int | None = None, min_new_tokens: int | None = None) -> list[str]:
        """Captions from the ITG head, one per image; the first seven arguments are in LAVIS' order.

        Args:
            samples: image float[B,3,H,W].
            use_nucleus_sampling: sample from the smallest set of tokens that holds `top_p` of the mass.
            num_beams: width of beam search; 1: greedy.
            max_length: most tokens, [DEC] included (LAVIS).
            min_length: fewest tokens, [DEC] included (LAVIS); None: 10, or fewer if fewer are written.
            top_p: see use_nucleus_sampling.
            repetition_penalty: above 1 makes tokens already written less likely.
            length_penalty: a finished text's score is its log-probability / length ** length_penalty.
            temperature: divides the scores when sampling.
            max_new_tokens: max_length without [DEC]: most tokens written, the end included; goes before max_length.
            min_new_tokens: likewise.
        """
        longest = max_length - 1 if max_new_tokens is None else max_new_tokens
        if min_new_tokens is None:
            min_new_tokens = min(9, max(longest, 0)) if min_length is None else max(min_length - 1, 0)
        places = self.qformer.cfg.max_positions
        options = Decoding(
            max_new_tokens=min(longest, places), min_new_tokens=min(min_new_tokens, places),
            num_beams=1 if use_nucleus_sampling else num_beams, sample=use_nucleus_sampling, top_p=top_p,
            temperature=temperature, repetition_penalty=repetition_penalty, length_penalty=length_penalty)
        images = pictures_of(samples).image
        if not len(images):
            return []
        features = self.ln_vision(self.encode_image(images))
        output = self.qformer(self._queries(len(features)), image=features, use_cache=True)
        special = self.tokenizer.special_ids
        rows = decode(QFormerDecoder(self.qformer, output.cache), len(features), special, options, features.device)
        return self.tokenizer.decode(rows)

    def example_samples(self, batch: int, device: torch.device) -> dict[str, Any]:
        """Samples of the right shapes without content, for a dry run: forward takes them, also on the meta device."""
        size = int(self.vision_encoder.image_size)  # type: ignore[arg-type]
        shape = (batch, self.tokenizer.max_length)
        tokens = TextTokens(torch.ones(shape, dtype=torch.long, device=device),
                            torch.ones(shape, dtype=torch.bool, device=device))
        return {"image": torch.zeros(batch, 3, size, size, device=device), "text_input": tokens,
                "uniform": torch.full((batch, 2), 0.5, dtype=torch.float64, device=device)}


def common_space(features: Tensor, projection: nn.Linear, dtype: torch.dtype | None = None) -> Tensor:
    """Project and scale to unit length: float[...,D] -> float[...,E], at least float32.

    In float64 outside autocast: similarities are divided by a temperature of about 0.07, which multiplies every
    rounding of these small products by 14 and would show in the temperature's gradient and in close draws of
    negatives.

    Args:
        features: hidden states.
        projection: vision_proj or text_proj.
        dtype: of the result; None: as computed.
    """
    kind = features.device.type
    if kind not in ("cpu", "cuda") or torch.is_autocast_enabled(kind):
        return F.normalize(projection(features).float(), dim=-1)
    weight, bias = projection.weight.double(), projection.bias.double()
    return F.normalize(F.linear(features.double(), weight, bias), dim=-1).to(dtype)


@registry.register_model("blip2_image_text_matching")
class Blip2ImageTextMatching(Blip2Qformer):
    """Stage 1 whose forward scores pairs."""

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> Tensor:  # type: ignore[override]
        """As `match`: float[B,2] for "itm", float[B,1] for "itc"."""
        return self.match(samples, match_head)
