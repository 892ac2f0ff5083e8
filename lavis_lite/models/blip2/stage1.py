"""BLIP-2 stage 1 in training: a frozen vision encoder, the Q-Former, and the objectives ITC, ITM and ITG (section 3.2).

`passes` has the three passes through the Q-Former, `objectives` the losses, `scoring` the use of the trained model.
Also trains retrieval (samples with `image_id`). Axes: B samples of this rank, N of all ranks, Q queries, P patches, L
text tokens, D Q-Former width, Dv vision width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lavis_lite import distributed
from lavis_lite.models.base import BaseModel, Exchange, loss_weight
from lavis_lite.models.blip2 import objectives
from lavis_lite.models.blip2.base import ImageBatch, build_parts
from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.models.blip2.passes import (
    UnimodalAndItg,
    gather_texts,
    image_keys,
    image_numbers,
    itm_pass,
    packed_itm_pass,
    packed_unimodal_and_itg_pass,
    unimodal_and_itg_pass,
)
from lavis_lite.models.blip2.scoring import Blip2Scorer
from lavis_lite.models.outputs import Blip2Output, SamplesLike
from lavis_lite.models.plain_text import uncounted
from lavis_lite.models.qformer.model import ImageKV, QFormer
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens, as_tokens
from lavis_lite.registry import registry

INITIAL_TEMPERATURE = 0.07


@dataclass
class Encoded:
    """A batch on its way to the three losses.

    features: float[B,P,Dv], after ln_vision without its affine part, which is folded into the keys and values.
    image: their keys and values. tokens: the texts. hidden: states of the unimodal and the ITG pass.
    """

    features: Tensor
    image: ImageKV
    tokens: TextTokens
    hidden: UnimodalAndItg


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
class Blip2Qformer(Blip2Scorer):
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
        pack_text: compute texts of lengths known to the host without padding between them; None: on the CPU.
        itm_negatives: draw ITM's negatives by ITC similarity ("hard"), or with equal probability ("random").
    """

    config_class = Blip2QformerConfig
    in_batch_negatives = True

    def __init__(self, vision_encoder: nn.Module, qformer: QFormer, tokenizer: TextTokenizer, *, embed_dim: int = 256,
                 freeze_vit: bool = True, lm_reduction: Literal["global", "per_rank"] = "global",
                 itc_full_gradient: bool = False, ln_vision_eps: float = 1e-5, itg_weight: float = 1.0,
                 itm_negatives: Literal["hard", "random"] = "hard", pack_text: bool | None = None) -> None:
        super().__init__(vision_encoder, qformer, tokenizer, freeze_vit, ln_vision_eps)
        self.itg_weight, self.itm_negatives, self.pack_text = itg_weight, itm_negatives, pack_text
        width = qformer.cfg.hidden_size
        self.lm_reduction, self.itc_full_gradient = lm_reduction, itc_full_gradient
        self.vision_proj = nn.Linear(width, embed_dim)
        self.text_proj = nn.Linear(width, embed_dim)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))

    @classmethod
    def from_config(cls, cfg: Any) -> Blip2Qformer:
        """Build from a `Blip2QformerConfig`."""
        return cls(**build_parts(cfg), embed_dim=cfg.embed_dim, freeze_vit=cfg.encoder_is_frozen,
                   lm_reduction=cfg.lm_reduction, itc_full_gradient=cfg.itc_full_gradient,
                   ln_vision_eps=cfg.ln_vision_eps, itg_weight=cfg.itg_weight, itm_negatives=cfg.itm_negatives,
                   pack_text=cfg.pack_text)

    # training -------------------------------------------------------------------------------------------------------
    def forward(self, samples: SamplesLike) -> Blip2Output:
        """The sum of the three losses, ITC + ITM + ITG (section 3.2), and each of them.

        Args:
            samples: image float[B,3,H,W], or features float[B,P,Dv]; text_input, B strings or `TextTokens`.
                image_id (optional), int64[B] or a list of ints or strings: samples with equal ids are never each
                other's negatives and share ITC's target.
                uniform (optional), float64[B,2] in [0, 1), chooses the hard negatives: column 0 the image for each
                text, column 1 the text for each image.
        """
        has_more = getattr(self.auxiliary_losses, "__func__", None) is not BaseModel.auxiliary_losses
        output, encoded = self.losses(self.prepared(samples), has_more)
        if encoded is None:
            return output
        return output.plus(self.auxiliary_losses(encoded, cast("dict[str, Any]", samples)))

    @property
    def traced(self) -> Sequence[str]:  # type: ignore[override]  # depends on the number of ranks
        """The losses as one function. Among several ranks its parts, between which the ranks exchange."""
        return ("losses",) if distributed.world_size() == 1 else ("encode", "match_all", "lm_terms")

    def prepared(self, samples: SamplesLike) -> dict[str, Any]:
        """The samples as tensors only: what `losses` reads, with texts as `TextTokens` on the model's device."""
        image = ImageBatch.of(samples).image                                       # float[B,3,H,W]
        tokens = self.text_of(samples, len(image))                                 # int64[B,L]
        uniform, numbers = samples.get("uniform"), image_numbers(samples.get("image_id"))
        if self.few_widths:
            tokens = tokens.in_few_widths(self.tokenizer.max_length, self.tokenizer.special_ids.pad)
            uniform = torch.rand(len(image), 2, dtype=torch.float64) if uniform is None else uniform
            uniform = uniform.to(self.device, non_blocking=True)
        return {"image": image, "text_input": tokens, "uniform": uniform,
                "image_id": None if numbers is None else numbers.to(self.device, non_blocking=True),
                "loss_weights": samples.get("loss_weights", {})}

    def losses(self, samples: SamplesLike, with_encoded: bool = True) -> tuple[Blip2Output, Encoded | None]:
        """The three losses of `prepared` samples, and the encoded batch if `with_encoded`."""
        encoded = self.encode(samples)                                             # unimodal and ITG pass
        contrast = self.contrast(encoded, samples.get("image_id"))                 # similarities float[B,N]
        loss_itc = self.itc_loss(contrast)
        negatives = self.draw_negatives(contrast, samples.get("uniform"))          # hard ones, by similarity
        itm_sum, itm_count = self.itm_terms(encoded, contrast, negatives)          # matching pass
        lm_sum, lm_count = self.lm_terms(encoded)
        itm_count, lm_count = self._shared_counts(itm_count, lm_count)
        loss_itm, loss_lm = itm_sum / itm_count, lm_sum / lm_count
        loss_lm = loss_lm * loss_weight(samples, "loss_lm", loss_lm)
        loss_itc = loss_itc.to(loss_itm.dtype)
        loss = loss_itc + loss_itm + self.itg_weight * loss_lm
        return Blip2Output(loss, loss_itc, loss_itm, loss_lm), encoded if with_encoded else None

    def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
        """Tokens that ITG predicts; none if every rank and micro-batch counts alike (lm_reduction per_rank).

        ITC and ITM compare the samples of a micro-batch, so no weights could make them those of the whole step.
        """
        if self.lm_reduction == "per_rank":
            return {}
        with uncounted(self.tokenizer.cut):
            return {"loss_lm": int(as_tokens(samples["text_input"], self.tokenizer).mask[:, 1:].sum())}

    def exchanged(self, batch: int, ranks: int, dtype: torch.dtype) -> Exchange:
        """See `BaseModel`: features and ids of all texts, similarities both ways, and one image for each text."""
        everyone, width = batch * ranks, self.vision_proj.out_features
        exact = 8 if dtype == torch.float32 else 4                     # `objectives.common_space`
        image = getattr(self.vision_encoder, "num_tokens", 0) * self.feature_type[0] * dtype.itemsize
        ids = 4 * (4 + self.tokenizer.max_length) + 8                  # `gather_texts`, and a request of `plan_rows`
        return Exchange(everyone * (width * exact + ids), everyone * width * exact,
                        2 * everyone * batch * exact + batch * image * (1 if self.freeze_vit else 2),
                        4 * 2 * self.query_tokens.shape[1] * width * batch * (everyone - batch), calls=8)

    def encode(self, samples: SamplesLike) -> Encoded:
        """Vision encoder, keys and values of the image, and the pass that ITC and ITG share."""
        images = ImageBatch.of(samples).image                                      # float[B,3,H,W]
        tokens = self.text_of(samples, len(images))                                # int64[B,L]
        features = self.normalise(self.encode_image(images))                       # float[B,P,Dv]
        image = self.qformer.precompute_kv(features, self.ln_vision)
        run_pass = packed_unimodal_and_itg_pass if self.packs(tokens) else unimodal_and_itg_pass
        begin = self.tokenizer.special_ids.begin
        return Encoded(features, image, tokens, run_pass(self.qformer, self.query_tokens, image, tokens, begin))

    def packs(self, tokens: TextTokens) -> bool:
        """Whether these texts are computed without padding between them; see `pack_text`."""
        wanted = self.device.type == "cpu" if self.pack_text is None else self.pack_text
        return wanted and tokens.lengths is not None

    def contrast(self, encoded: Encoded, image_id: Any = None) -> Contrast:
        """Similarities of this rank's images and texts with everyone's (ITC).

        Texts cross ranks and images do not: an image has Q vectors. A rank compares its own images with all texts, and
        ranks exchange the similarities of its own texts, one number per pair.
        """
        image_feats = objectives.common_space(encoded.hidden.query, self.vision_proj)      # float[B,Q,E]
        text_feats = objectives.common_space(encoded.hidden.text_cls, self.text_proj)      # float[B,E]
        everyones = distributed.all_gather_with_grad(text_feats)                          # float[N,E]
        temperature = self.temp.to(image_feats.dtype)
        if self.itc_full_gradient:
            of_images = of_texts = objectives.similarity(image_feats, everyones)
        else:
            of_images = objectives.similarity(image_feats, everyones.detach())
            of_texts = objectives.similarity(image_feats.detach(), everyones)
        sim_i2t, sim_t2i = of_images / temperature, distributed.global_transpose(of_texts) / temperature
        keys = image_keys(image_id, len(image_feats), image_feats.device)
        everyone, all_keys = gather_texts(encoded.tokens, keys, self.tokenizer.special_ids.pad,
                                          self.tokenizer.max_length)
        positives = (keys[:, None] == all_keys[None]).all(2)
        return Contrast(sim_i2t, sim_t2i, positives, everyone)

    def itc_loss(self, contrast: Contrast) -> Tensor:
        """ITC of the similarities, float[]; a subclass may compute another loss of them."""
        return objectives.itc_loss(contrast.sim_i2t, contrast.sim_t2i, contrast.positives)

    def draw_negatives(self, contrast: Contrast, uniform: Tensor | None) -> Negatives:
        """One negative image per text and one text per image, by ITC similarity or with equal probability.

        Args:
            contrast: the similarities; their softmax weighs the candidates that are not positives (section 3.2, ITM).
            uniform: float64[B,2] in [0, 1), see `forward`; None: drawn here.
        """
        batch, device = len(contrast.positives), contrast.positives.device
        if uniform is None:
            uniform = torch.rand(batch, 2, dtype=torch.float64, device=device)
        uniform = uniform.to(device, non_blocking=True)
        weights = (contrast.sim_t2i, contrast.sim_i2t)
        if self.itm_negatives == "random":
            weights = (torch.zeros_like(contrast.sim_t2i), torch.zeros_like(contrast.sim_i2t))
        image, image_valid = objectives.choose_negatives(weights[0], contrast.positives, uniform[:, 0])
        text, text_valid = objectives.choose_negatives(weights[1], contrast.positives, uniform[:, 1])
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
        own, pack = encoded.tokens, self.packs(encoded.tokens)
        other_image, other_text = self._chosen(encoded, contrast.everyone, negatives, pack)
        tokens = TextTokens.joined([own, other_text, own], self.tokenizer.special_ids.pad)
        return self.match_all([encoded.image.repeated(2), other_image], tokens)

    def match_all(self, images: Sequence[ImageKV], tokens: TextTokens) -> Tensor:
        """Logits of pairs, float[M,2]; the images serve the M texts in order."""
        run_pass = packed_itm_pass if self.packs(tokens) else itm_pass
        return objectives.itm_logits(run_pass(self.qformer, self.query_tokens, images, tokens), self.itm_head)

    def _chosen(self, encoded: Encoded, everyone: TextTokens, negatives: Negatives,
                pack: bool) -> tuple[ImageKV, TextTokens]:
        """Keys and values of the chosen images, and the chosen texts.

        From other ranks only the chosen images' features come. The host reads once from the device: who sends how
        many rows, and how long the chosen texts are. One rank that does not pack reads nothing.
        """
        texts, images = everyone.select(negatives.text_of_image), negatives.image_of_text
        alone = distributed.world_size() == 1
        if alone and not pack:
            return encoded.image.select(images), texts
        plan = distributed.plan_rows(images, len(encoded.features), read=texts.ends())
        texts = texts if self.few_widths else texts.trimmed(plan.numbers)
        if alone:
            return encoded.image.select(images), texts
        return self.qformer.precompute_kv(plan.fetch(encoded.features), self.ln_vision), texts

    def lm_terms(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Summed loss of image-grounded text generation (ITG) of this rank and its predicted tokens, float[] each."""
        tokens, hidden = encoded.tokens, encoded.hidden.decoder
        targets = tokens.ids[:, 1:].masked_fill(~tokens.mask[:, 1:], objectives.IGNORE).flatten()
        rows = tokens.prediction_rows()
        if rows is not None:
            rows = rows.to(hidden.device, non_blocking=True)
            targets = targets.index_select(0, rows)
        if hidden.dim() == 3:  # of a padded pass
            hidden = hidden.flatten(0, 1) if rows is None else hidden.flatten(0, 1).index_select(0, rows)
        assert self.qformer.lm_head is not None
        total = objectives.lm_sum(self.qformer.lm_head(hidden), self.qformer.embeddings.word_embeddings.weight,
                                  self.qformer.lm_head.bias, targets)
        return total, (targets != objectives.IGNORE).sum().to(total.dtype)

    def _shared_counts(self, itm: Tensor, lm: Tensor) -> tuple[Tensor, Tensor]:
        """Divisors that make the mean over ranks of the losses the mean over all ranks' terms."""
        mean = distributed.all_reduce_sum(torch.stack([itm, lm.to(itm.dtype)])) / distributed.world_size()
        return mean[0], (lm if self.lm_reduction == "per_rank" else mean[1]).clamp(min=1e-9)


@registry.register_model("blip2_image_text_matching")
class Blip2ImageTextMatching(Blip2Qformer):
    """Stage 1 for scores of pairs: by `forward`, and of candidates by ITM."""

    ranking_head = "itm"

    def forward(self, samples: SamplesLike, match_head: str = "itm") -> Tensor:  # type: ignore[override]
        """As `match`: float[B,2] for "itm", float[B,1] for "itc"."""
        return self.match(samples, match_head)
