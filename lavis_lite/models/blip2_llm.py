"""BLIP-2 stage 2 and InstructBLIP: vision encoder -> Q-Former -> projection -> a frozen language model.

Stage 2 (BLIP-2, section 3.3) learns captions after a soft prompt; InstructBLIP also lets the Q-Former read the
instruction. One class does both; the registered archs differ in a few facts (`Style`).

Axes: B samples, T frames of a video (or several images), P patches, Q queries, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models import few_shot
from lavis_lite.models.base import loss_weight
from lavis_lite.models.blip2_base import Blip2Base
from lavis_lite.models.blip2_config import build_parts
from lavis_lite.models.blip2_llm_config import (
    Blip2LLMConfig,
    Blip2OPTConfig,
    Blip2T5Config,
    Blip2T5InstructConfig,
    Blip2VicunaConfig,
    Blip2VicunaInstructConfig,
)
from lavis_lite.models.language_model import GenerationConfig, LanguageModel, Limits, build_language_model
from lavis_lite.models.language_model.contract import Candidates, Normalise, candidate_lists
from lavis_lite.models.language_model.placement import blocks
from lavis_lite.models.llm_styles import OPT, T5, T5_INSTRUCT, VICUNA, VICUNA_INSTRUCT, Style
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.models.pictures import Pictures, frames_of, pictures_of
from lavis_lite.models.prompts import (
    as_list,
    candidate_prompts,
    clean_answers,
    generation_prompts,
    question_prompts,
    split_caption,
    strip_prompt,
)
from lavis_lite.models.qformer import QFormer
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.processors.lemmatizer import shared_lemmatizer
from lavis_lite.registry import registry

FRESH_AFTER_STAGE1 = (r"language_projection\..*",)
NEW_ADAPTERS = (r"language_model\..*\.lora_[AB]\..*",)
NOT_FOR_WRITING = (r"temp", r"(itm_head|vision_proj|text_proj)\..*", r"qformer\.(lm_head|embeddings)\..*",
                   r"qformer\.layers\.\d+\.text_ffn\..*")
"""Names (regular expressions) of stage 1 that a model that writes has no use for."""


class Blip2LLM(Blip2Base):
    """A model that writes.

    Samples may share pictures: image float[U,3,H,W] (or video) with image_rows int64[B], the place of each sample's
    picture. Each picture is then encoded once.

    Args:
        vision_encoder: image float[B,3,H,W] -> float[B,P,Dv].
        qformer: with its text half exactly where it reads the instruction.
        tokenizer: of the Q-Former's text.
        language_model: frozen.
        prompt: read before captions in training, and before answers where a call brings no prompt.
        freeze_vit: keep the vision encoder constant and in eval mode.
        ln_vision_eps: epsilon of the norm over image features.

    Attributes:
        apply_lemmatizer, num_few_shot_examples, few_shot_prob: see `Blip2LLMConfig`.
    """

    config_class: ClassVar[type[Blip2LLMConfig]] = Blip2LLMConfig
    takes_image_rows: ClassVar[bool] = True
    style: ClassVar[Style] = Style()

    def __init__(self, vision_encoder: nn.Module, qformer: QFormer, tokenizer: TextTokenizer,
                 language_model: LanguageModel, *, prompt: str = "", freeze_vit: bool = True,
                 ln_vision_eps: float = 1e-5) -> None:
        super().__init__(vision_encoder, qformer, tokenizer, freeze_vit, ln_vision_eps)
        self.prompt = prompt
        self.apply_lemmatizer, self.num_few_shot_examples, self.few_shot_prob = False, 0, 0.0
        self.language_model = language_model
        self.language_projection = nn.Linear(qformer.cfg.hidden_size, language_model.hidden_size)

    @classmethod
    def from_config(cls, cfg: Any) -> Blip2LLM:
        """Build from a section; all weights are random (see `lavis_lite.weights.build_model`)."""
        few_shot.check_settings(cfg.num_few_shot_examples, cfg.few_shot_prob)
        parts = build_parts(cfg, with_text=cfg.qformer_text_input, with_lm_head=False, truncation_side="left")
        together = cfg.max_txt_len if cls.style.joint_limit else None
        target = cfg.max_txt_len if cfg.max_output_txt_len is None else cfg.max_output_txt_len
        limits = Limits(cfg.max_txt_len, target, together, cls.style.prompt_side)
        language_model = build_language_model(
            cfg.language_model_name(), sizes=cfg.llm_args, tokenizer=cfg.llm_tokenizer,
            family=cfg.llm_family or cls.style.family, precision=cfg.llm_precision, limits=limits,
            lm_reduction=cfg.lm_reduction, setup=cfg.setup())
        model = cls(**parts, language_model=language_model, prompt=cfg.prompt, freeze_vit=cfg.freeze_vit,
                    ln_vision_eps=cfg.ln_vision_eps)
        model.apply_lemmatizer = cfg.apply_lemmatizer
        model.num_few_shot_examples, model.few_shot_prob = cfg.num_few_shot_examples, cfg.few_shot_prob
        return model

    def excuses(self, given: Set[str]) -> tuple[Sequence[str], Sequence[str]]:
        """A stage-1 checkpoint has no projection yet, and heads (and, where no text is read, a text half) to spare."""
        stage1 = any(name.startswith("itm_head.") for name in given)
        adapters = () if any(".lora_" in name for name in given) else NEW_ADAPTERS
        return ((*FRESH_AFTER_STAGE1, *adapters) if stage1 else adapters), NOT_FOR_WRITING

    def blocks_to_shard(self) -> list[nn.Module]:
        """The language model's."""
        return blocks(self.language_model.model)

    # training -------------------------------------------------------------------------------------------------------
    def forward(self, samples: dict[str, Any]) -> ModelOutput:
        """The language-model loss.

        Args:
            samples: image (or video) float[B,3,H,W] or float[B,3,T,H,W]; text_input, B strings; with text_output, B
                strings: these are learned after text_input as prompt; without: text_input is a caption, learned after
                the model's prompt, or split at random where the language model has an encoder (samples["uniform"],
                float64[B] or [B,2] in [0, 1), chooses the places; absent: drawn from torch's generator).
        """
        pictures = pictures_of(samples)
        prompts, shown, targets = self._training_rows(samples, len(pictures))
        loss = self.language_model.loss(self.soft_prompt(pictures.repeated(), prompts), shown, targets)
        return ModelOutput(loss * loss_weight(samples, "loss", loss))

    def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
        """Learned tokens of a batch; none if every rank and micro-batch counts alike (lm_reduction per_rank)."""
        if self.language_model.lm_reduction == "per_rank":
            return {}
        _, shown, targets = self._training_rows(samples, len(pictures_of(samples)))
        return {"loss": self.language_model.count_tokens(shown, targets)}

    def _training_rows(self, samples: dict[str, Any], batch: int) -> tuple[list[str], list[str], list[str]]:
        """(what the Q-Former reads, what the language model reads, what is learned) of every sample."""
        prompts, targets = self.training_texts(samples, batch)
        count = few_shot.draw_count(samples, self.num_few_shot_examples, self.few_shot_prob)
        return prompts, few_shot.with_examples(prompts, samples, self.language_model, most=count), targets

    def training_texts(self, samples: dict[str, Any], batch: int) -> tuple[list[str], list[str]]:
        """(what is read, what is learned) of every sample.

        Raises:
            DataError: the samples bring no text_input.
            ConfigError: not one text per image.
        """
        if "text_input" not in samples:
            raise DataError(f"{type(self).__name__}: training needs text_input; the samples have {sorted(samples)}.")
        texts = as_list(samples["text_input"], batch, "text_input")
        if "text_output" in samples:
            return texts, as_list(samples["text_output"], batch, "text_output")
        captions = [strip_prompt(text, self.prompt) for text in texts]
        if not self.style.prefix_lm:
            return [self.prompt] * batch, captions
        places = self._places(samples, batch)
        halves = [split_caption(text, place) for text, place in zip(captions, places, strict=True)]
        prompt = self.prompt.strip()
        return [f"{prompt} {first}".strip() for first, _ in halves], [second for _, second in halves]

    @staticmethod
    def _places(samples: dict[str, Any], batch: int) -> list[float]:
        given = samples.get("uniform")
        if given is None:
            given = torch.rand(batch, dtype=torch.float64)
        return [float(value) for value in given.reshape(batch, -1)[:, 0].tolist()]

    def example_samples(self, batch: int, device: torch.device) -> dict[str, Any]:
        """Samples of the right shapes without content, for a dry run; texts are as long as the limits let them be."""
        size = int(self.vision_encoder.image_size)  # type: ignore[arg-type]
        text = " ".join(["text"] * self.language_model.limits.prompt)
        return {"image": torch.zeros(batch, 3, size, size, device=device), "text_input": [text] * batch,
                "text_output": ["text"] * batch}

    # parts ----------------------------------------------------------------------------------------------------------
    def soft_prompt(self, image: Tensor, texts: list[str] | None = None, rows: Tensor | None = None) -> Tensor:
        """What the language model sees of the pictures: float[B,Q,D], or float[B,T*Q,D] of T frames.

        Args:
            image: float[B,3,H,W] or float[B,3,T,H,W]; with `rows` U pictures in place of B.
            texts: B strings that the Q-Former reads along, where it reads.
            rows: int64[B], the picture of each text; None: its own.

        Returns:
            One soft prompt per text where the Q-Former reads, else one per picture.
        """
        projected: Tensor = self.language_projection(self.query_output(image, texts, rows))
        return projected

    def query_output(self, image: Tensor, texts: list[str] | None = None, rows: Tensor | None = None) -> Tensor:
        """The Q-Former's answer before the projection: float[B,Q,D'] or float[B,T*Q,D']; see `soft_prompt`."""
        count, frames = len(image), 1
        if image.ndim == 5:
            frames = image.shape[2]
            image = image.transpose(1, 2).flatten(0, 1)
        keys = self.qformer.precompute_kv(self.normalise(self.encode_image(image)), self.ln_vision)
        if not self.qformer.cfg.with_text:
            output = self.qformer(self._queries(keys.rows), image=keys).query
            return output.reshape(count, -1, output.shape[-1])
        if texts is None:
            raise ConfigError("this Q-Former reads the instruction: give the texts along with the images.")
        if rows is not None:
            count, keys = len(rows), keys.select(frames_of(rows, frames))
        tokens = self.tokenize(texts)
        ids, mask = (part.repeat_interleave(frames, 0) for part in (tokens.ids, tokens.mask))
        output = self.qformer(self._queries(keys.rows), ids, mask, keys, "bidirectional").query
        return output.reshape(count, -1, output.shape[-1])

    def _prefix(self, pictures: Pictures, texts: list[str]) -> tuple[Tensor, dict[str, Any]]:
        """What stands before B texts: soft prompts, and options of the language model that say whose they are."""
        found = self.soft_prompt(pictures.image, texts, pictures.rows)
        if pictures.rows is None or self.qformer.cfg.with_text:
            return found, {}
        return found, {"owners": pictures.rows}

    # writing --------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def generate(self, samples: dict[str, Any], use_nucleus_sampling: bool = False, num_beams: int = 5,
                 max_length: int | None = None, min_length: int = 1, top_p: float = 0.9,
                 repetition_penalty: float | None = None, length_penalty: float = 1.0, num_captions: int = 1,
                 temperature: float = 1.0, **more: Any) -> list[str]:
        """Texts for images.

        Args:
            samples: image or video; prompt (optional), one string or B; ocr_tokens (optional), B lists that go into
                a prompt's `{}`; few_shot_samples (optional), see `lavis_lite.models.few_shot`.
            use_nucleus_sampling: sample from the smallest set of tokens that holds `top_p` of the mass.
            num_beams: width of beam search; 1: greedy.
            max_length, min_length: LAVIS' lengths, which count a start token in some archs; None: the arch's default.
            top_p, temperature: when sampling.
            repetition_penalty: above 1 makes tokens already written less likely; None: the arch's default.
            length_penalty: a text's score is its log-probability / length ** length_penalty.
            num_captions: texts per image.
            more: further fields of `GenerationConfig`: max_new_tokens and min_new_tokens (in place of the lengths,
                new tokens with the end), seeds, lavis_lengths.

        Returns:
            B * num_captions texts, images in order.
        """
        pictures = pictures_of(samples)
        prompts = generation_prompts(samples, self.prompt, len(pictures))
        longest = self.style.max_length if max_length is None else max_length
        if repetition_penalty is None:
            repetition_penalty = self.style.repetition_penalty
        lengths = {"max_new_tokens": longest - int(self.style.counts_start[0]),
                   "min_new_tokens": max(min_length - 1, 0)}
        options = GenerationConfig(**{**lengths, **more}, num_beams=1 if use_nucleus_sampling else num_beams,
                                   sample=use_nucleus_sampling, top_p=top_p, temperature=temperature,
                                   repetition_penalty=repetition_penalty, length_penalty=length_penalty,
                                   num_captions=num_captions)
        options.check_batch(len(pictures))
        shown = few_shot.with_examples(prompts, samples, self.language_model)
        soft_prompt, owners = self._prefix(pictures, prompts)
        return self.language_model.generate(soft_prompt, shown, options, **owners)

    @torch.no_grad()
    def predict_answers(self, samples: dict[str, Any], num_beams: int = 5, inference_method: str = "generate",
                        max_len: int = 10, min_len: int = 1, num_ans_candidates: int = 128,
                        answer_list: list[str] | None = None, prompt: str = "", length_penalty: float | None = None,
                        **more: Any) -> list[str]:
        """Short answers to questions: first lines without blanks around, in base form where that is asked for.

        Args:
            samples: image or video; text_input, the questions; ocr_tokens or choices for prompts with two `{}`;
                few_shot_samples (optional), its text_input for the same `{}`; apply_lemmatizer (optional).
            num_beams: width of beam search.
            inference_method: generate | rank (the likeliest of answer_list).
            max_len, min_len: of an answer, as LAVIS counts them.
            num_ans_candidates: rank: only so many of answer_list are tried.
            answer_list: rank: the answers.
            prompt: template with `{}` for the question; "": the question as it is.
            length_penalty: None: the arch's default.
            more: further fields of `GenerationConfig`.
        """
        pictures = pictures_of(samples)
        prompts = question_prompts(samples, prompt, len(pictures))
        shown = few_shot.with_examples(prompts, samples, self.language_model, template=prompt)
        if inference_method == "rank":
            answers = list(answer_list or [])[:num_ans_candidates]
            if not answers:
                raise ConfigError("predict_answers: inference_method rank chooses among answer_list, which is empty.")
            soft_prompt, owners = self._prefix(pictures, prompts)
            best = self.language_model.score(soft_prompt, shown, answers, **owners).argmax(1).tolist()
            return [answers[place] for place in best]
        if inference_method != "generate":
            raise ConfigError(f"predict_answers: inference_method {inference_method!r} is not generate or rank.")
        penalty = self.style.answer_length_penalty if length_penalty is None else length_penalty
        given = {"max_new_tokens": max_len - int(self.style.counts_start[1]), "min_new_tokens": max(min_len - 1, 0),
                 "repetition_penalty": self.style.answer_repetition_penalty, **more}
        options = GenerationConfig(**given, num_beams=num_beams, length_penalty=penalty)
        soft_prompt, owners = self._prefix(pictures, prompts)
        texts = self.language_model.generate(soft_prompt, shown, options, **owners)
        lemmatise = self.apply_lemmatizer or samples.get("apply_lemmatizer", False)
        return clean_answers(texts, shared_lemmatizer() if lemmatise else None)

    @torch.no_grad()
    def predict_class(self, samples: dict[str, Any], candidates: Candidates, n_segments: int = 1,
                      normalise: Normalise = "sum") -> Tensor | list[Tensor]:
        """Candidates from the likeliest to the least likely answer.

        Args:
            samples: image or video; prompt, one string or B; text_input (optional) for the prompt's `{}`; context,
                history, caption (optional) put in front.
            candidates: strings for all samples, or one list per sample.
            n_segments: score in so many parts, to save memory; no result depends on it.
            normalise: rank by the sum of a candidate's log-likelihoods (LAVIS), or by their mean.

        Returns:
            int64[B,C] of places in the list; with one list per sample, a list of int64[C_b].
        """
        scores = self.score_candidates(samples, candidates, n_segments, normalise)
        order = scores.argsort(dim=1, descending=True, stable=True)
        if isinstance(candidates[0], str):
            return order
        return [row[:len(texts)] for row, texts in zip(order, candidates, strict=True)]

    @torch.no_grad()
    def score_candidates(self, samples: dict[str, Any], candidates: Candidates, n_segments: int = 1,
                         normalise: Normalise = "sum") -> Tensor:
        """Log-likelihood of every candidate, float[B,C]; arguments as `predict_class`, -inf for absent ones.

        Raises:
            ConfigError: fewer than one segment.
        """
        if n_segments < 1:
            raise ConfigError(f"predict_class: n_segments must be at least 1, not {n_segments}.")
        pictures = pictures_of(samples)
        batch = len(pictures)
        prompts = candidate_prompts(samples, self.prompt, batch)
        most = max(map(len, candidate_lists(candidates, batch)))
        pairs = -(-most * batch // n_segments)
        shown = few_shot.with_examples(prompts, samples, self.language_model)
        soft_prompt, owners = self._prefix(pictures, prompts)
        return self.language_model.score(soft_prompt, shown, candidates, normalise=normalise, pairs=max(pairs, 1),
                                         **owners)


@registry.register_model("blip2_opt")
class Blip2OPT(Blip2LLM):
    """Stage 2 over OPT."""

    config_class = Blip2OPTConfig
    style = OPT


@registry.register_model("blip2_t5")
class Blip2T5(Blip2LLM):
    """Stage 2 over FlanT5."""

    config_class = Blip2T5Config
    style = T5


@registry.register_model("blip2_t5_instruct")
class Blip2T5Instruct(Blip2LLM):
    """InstructBLIP over FlanT5."""

    config_class = Blip2T5InstructConfig
    style = T5_INSTRUCT


@registry.register_model("blip2_vicuna")
class Blip2Vicuna(Blip2LLM):
    """Stage 2 over Vicuna."""

    config_class = Blip2VicunaConfig
    style = VICUNA


@registry.register_model("blip2_vicuna_instruct")
class Blip2VicunaInstruct(Blip2LLM):
    """InstructBLIP over Vicuna."""

    config_class = Blip2VicunaInstructConfig
    style = VICUNA_INSTRUCT
