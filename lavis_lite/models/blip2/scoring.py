"""What a stage-1 model is used for: features, image-text matching, captions (LAVIS' entry points).

Axes: B images, M pairs, P patches, Q queries, L text tokens, D Q-Former width, E embedding width.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.models.base import known_options
from lavis_lite.models.blip2 import objectives
from lavis_lite.models.blip2.base import Blip2Base, ImageBatch, merged_frames
from lavis_lite.models.blip2.candidates import candidate_texts, scores
from lavis_lite.models.blip2.passes import check_pairs, itm_pass, paired
from lavis_lite.models.decoding import Decoding, QFormerDecoder, decode
from lavis_lite.models.language.answering import Candidates, Normalise
from lavis_lite.models.outputs import Blip2Features, SamplesLike
from lavis_lite.models.qformer.model import ImageKV
from lavis_lite.models.text_tokens import TextTokens

if TYPE_CHECKING:
    from lavis_lite.models.attention import Attention, GradCam

MATCH_HEADS = ("itm", "itc")
FEATURE_MODES = ("multimodal", "image", "text")


class Blip2Scorer(Blip2Base):
    """A stage-1 model in use; `Blip2Qformer` adds its training.

    Attributes:
        vision_proj, text_proj: D -> E, to the space in which image and text are compared.
        itm_head: D -> 2.
    """

    vision_proj: nn.Linear
    text_proj: nn.Linear
    itm_head: nn.Linear
    temp: nn.Parameter
    ranking_head: ClassVar[Literal["itc", "itm"]] = "itc"
    """by which objective `score_candidates` compares"""

    def encode_image(self, image: Tensor) -> Tensor:
        """float[B,3,H,W] -> float[B,P,Dv]. A video float[B,3,T,H,W] gives one sequence of its frames, float[B,T*P,Dv].

        BLIP reads videos in this way (section 5.6). An encoder of whole clips takes them unchanged.
        """
        own = len(getattr(self.vision_encoder, "input_shape", (3, None, None))) == image.ndim - 1
        frames, count = (image, 1) if own else merged_frames(image)
        features = super().encode_image(frames)
        return features if count == 1 else features.reshape(len(image), -1, features.shape[-1])

    def forward_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (or video) alone -> query hidden states float[B,Q,D], features float[B,P,Dv] after ln_vision.

        Args:
            image: float[B,3,H,W], or float[B,3,T,H,W].
        """
        features = self.ln_vision(self.encode_image(image))
        output = self.qformer(self._queries(features.shape[0]), image=features)
        return output.query, features

    def forward_text(self, text: Any) -> Tensor:
        """Text alone: tokens (or strings) -> hidden state of [CLS], float[B,D]."""
        tokens = self.tokenize(text)
        output = self.qformer(text_ids=tokens.ids, text_mask=tokens.mask, pattern="uni_modal")
        return output.text[:, 0]

    def project_image(self, hidden: Tensor) -> Tensor:
        """Query hidden states to the space of ITC: float[B,Q,D] -> float32[B,Q,E], unit length."""
        return F.normalize(self.vision_proj(hidden).float(), dim=-1)

    def project_text(self, hidden: Tensor) -> Tensor:
        """A text's hidden state to the space of ITC: float[B,D] -> float32[B,E], unit length."""
        return F.normalize(self.text_proj(hidden).float(), dim=-1)

    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """Matching score of pairs: float[B,P,Dv] (after ln_vision), int64[B,L], int or bool[B,L] -> float[B].

        One image serves all texts, and one text all images.
        """
        image = self.qformer.precompute_kv(image_inputs)
        return self.match_logits(image, self.tokenize(TextTokens(text_ids, text_atts.bool())))[:, 1]

    def match_logits(self, image: ImageKV, tokens: TextTokens) -> Tensor:
        """Two-class logits of texts with images whose keys and values are at hand: float[M,2]; see `paired`."""
        image, tokens = paired(image, tokens)
        queries = itm_pass(self.qformer, self.query_tokens, [image], tokens)
        return objectives.itm_logits(queries, self.itm_head)

    def image_kv(self, features: Tensor) -> ImageKV:
        """Keys and values of vision features after ln_vision, float[B,P,Dv], to be reused for many texts."""
        return self.qformer.precompute_kv(features)

    @known_options
    @torch.no_grad()
    def extract_features(self, samples: SamplesLike, mode: str = "multimodal") -> Blip2Features:
        """Features of images, texts or pairs.

        Args:
            samples: image and/or text_input, as `forward` takes them; texts are cut at the Q-Former's positions.
            mode: multimodal | image | text.
        """
        if mode not in FEATURE_MODES:
            raise ConfigError(f"extract_features: unknown mode {mode!r}: {did_you_mean(str(mode), FEATURE_MODES)}")
        if mode == "image":
            query, _ = self.forward_image(ImageBatch.of(samples).image)
            projected = objectives.common_space(query, self.vision_proj, query.dtype)
            return Blip2Features(image_embeds=query, image_embeds_proj=projected)
        most = self.qformer.cfg.max_positions
        if mode == "text":
            tokens = self.text_of(samples, max_length=most)
            text = self.qformer(text_ids=tokens.ids, text_mask=tokens.mask, pattern="uni_modal").text
            projected = objectives.common_space(text, self.text_proj, text.dtype)
            return Blip2Features(text_embeds=text, text_embeds_proj=projected)
        images = ImageBatch.of(samples).image
        tokens = self.text_of(samples, len(images), most)
        features = self.ln_vision(self.encode_image(images))
        output = self.qformer(self._queries(len(features)), tokens.ids, tokens.mask, features, "bidirectional")
        return Blip2Features(multimodal_embeds=output.query)

    @known_options
    def match(self, samples: SamplesLike, match_head: str = "itm") -> Tensor:
        """How well images and texts fit: one of each per pair, or one image for all texts, or one text for all images.

        Args:
            samples: image float[B,3,H,W] and text_input, B strings or tokens (one string, or one image, serves all).
            match_head: itm: two-class logits float[B,2] (class 1 fits); itc: cosine similarity float[B,1].
        """
        if match_head not in MATCH_HEADS:
            raise ConfigError(f"unknown match_head {match_head!r}: {did_you_mean(str(match_head), MATCH_HEADS)}")
        images, tokens = ImageBatch.of(samples).image, self.text_of(samples)
        if match_head == "itm":
            return self.match_logits(self.image_kv(self.ln_vision(self.encode_image(images))), tokens)
        query, _ = self.forward_image(images)
        check_pairs(len(query), len(tokens.ids))
        image_feats = objectives.common_space(query, self.vision_proj)
        text_feats = objectives.common_space(self.forward_text(tokens), self.text_proj)
        return (image_feats @ text_feats[:, :, None])[..., 0].amax(1, keepdim=True).to(query.dtype)

    @known_options
    def attention(self, samples: SamplesLike) -> list[Attention]:
        """Where the queries and each word of a caption look, one entry for each sample.

        Args:
            samples: image float[B,3,H,W]; text_output (optional), B captions; without it, those that `generate` writes.
        """
        from lavis_lite.models.blip2.looking import of_caption

        return of_caption(self, samples)

    @known_options
    def gradcam(self, samples: SamplesLike) -> list[GradCam]:
        """Where in each image the matching score of a text comes from (ITM; LAVIS' `compute_gradcam`).

        Args:
            samples: as `match` takes them.
        """
        from lavis_lite.models.blip2.looking import cam_of_match

        return cam_of_match(self, samples)

    @known_options
    @torch.no_grad()
    def score_candidates(self, samples: SamplesLike, candidates: Candidates, n_segments: int = 1,
                         normalise: Normalise = "sum") -> Tensor:
        """How well each candidate fits, float[B,C]; -inf for absent ones. A text is the prompt and the candidate.

        ITC gives the similarity over the temperature, ITM (`blip2_image_text_matching`) the log-probability of a match.

        Args:
            samples: image (or video) and prompt, one string or B.
            candidates: strings for all samples, or one list per sample.
            n_segments: parts in which the texts are scored, to save memory.
            normalise: without effect here: no likelihoods of tokens are summed up.
        """
        images = ImageBatch.of(samples)
        return scores(self, images, candidate_texts(samples, candidates, len(images)), n_segments)

    @known_options
    @torch.no_grad()
    def generate(self, samples: SamplesLike, use_nucleus_sampling: bool = False, num_beams: int = 3,
                 max_length: int = 30, min_length: int | None = None, top_p: float = 0.9,
                 repetition_penalty: float = 1.0, length_penalty: float = 1.0, temperature: float = 1.0, *,
                 max_new_tokens: int | None = None, min_new_tokens: int | None = None,
                 seeds: tuple[int, ...] | None = None) -> list[str]:
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
            seeds: one for each image, of its random numbers.
        """
        longest = max_length - 1 if max_new_tokens is None else max_new_tokens
        if min_new_tokens is None:
            min_new_tokens = min(9, max(longest, 0)) if min_length is None else max(min_length - 1, 0)
        most = self.qformer.cfg.max_positions
        options = Decoding(
            max_new_tokens=min(longest, most), min_new_tokens=min(min_new_tokens, most),
            num_beams=1 if use_nucleus_sampling else num_beams, sample=use_nucleus_sampling, top_p=top_p,
            temperature=temperature, repetition_penalty=repetition_penalty, length_penalty=length_penalty, seeds=seeds)
        if samples.get("prompt"):
            warnings.warn("samples['prompt'] has no effect: the ITG head writes without a prompt.", stacklevel=4)
        images = ImageBatch.of(samples).image
        if not len(images):
            return []
        features = self.ln_vision(self.encode_image(images))
        output = self.qformer(self._queries(len(features)), image=features, use_cache=True)
        special = self.tokenizer.special_ids
        rows = decode(QFormerDecoder(self.qformer, output.cache), len(features), special, options, features.device)
        return self.tokenizer.decode(rows)

    def example_samples(self, batch: int, device: torch.device) -> dict[str, Any]:
        """Samples of the right shapes without content, for a dry run: forward takes them, also on the meta device."""
        shape = (batch, self.tokenizer.max_length)
        tokens = TextTokens(torch.ones(shape, dtype=torch.long, device=device),
                            torch.ones(shape, dtype=torch.bool, device=device))
        return {"image": self.example_image(batch, device), "text_input": tokens,
                "uniform": torch.full((batch, 2), 0.5, dtype=torch.float64, device=device)}
