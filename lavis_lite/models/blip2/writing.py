"""LAVIS' entry points of a model with a language model: texts, answers, and the likeliest of several candidates.

Every method builds its prompts, refuses prompts that are too long for the language model, and only then encodes images.
Axes: B samples, C candidates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lavis_lite.conversation import Text
from lavis_lite.errors import ConfigError, UndefinedMethodError
from lavis_lite.models.base import BaseModel, known_options
from lavis_lite.models.blip2.base import ImageBatch
from lavis_lite.models.blip2.config import ArchDefaults
from lavis_lite.models.blip2.prompts import (
    candidate_prompts,
    clean_answers,
    generation_prompts,
    question_prompts,
    with_examples,
)
from lavis_lite.models.decoding import LogitsProcessor
from lavis_lite.models.language import GenerationConfig, LanguageModel
from lavis_lite.models.language.answering import Candidates, Normalise, candidate_lists, tried
from lavis_lite.models.language.rows import Segment, Vectors
from lavis_lite.models.outputs import SamplesLike

if TYPE_CHECKING:
    from lavis_lite.models.attention import Attention, GradCam
    from lavis_lite.models.language.chat import Chat


class TextWriter(BaseModel):
    """LAVIS' entry points of a model with a language model.

    Attributes:
        language_model: frozen.
        prompt: read where a call brings no prompt.
        apply_lemmatizer: bring answers to their base form.
    """

    language_model: LanguageModel
    prompt: str
    apply_lemmatizer: bool
    template: str | Mapping[str, Any] = "vicuna_v1"
    """how conversations are written"""
    defaults: ClassVar[ArchDefaults] = ArchDefaults()
    reads_instructions = False
    """whether a soft prompt depends on the instruction too"""
    is_measuring = False
    """whether nothing is written or scored, see `measuring`"""

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Within it texts are built and measured, images are not looked at, and nothing is written or scored."""
        self.is_measuring = True
        try:
            yield
        finally:
            self.is_measuring = False

    def soft_prompt_length(self, images: ImageBatch) -> int:
        """Vectors of a soft prompt of such images, known before any is made."""
        raise UndefinedMethodError.of(self, "soft_prompt_length")

    def embed_image(self, image: Tensor, texts: list[str] | None = None, index: Tensor | None = None) -> Tensor:
        """The soft prompt of each image, or of each text if `reads_instructions`: float[B,Q,D]."""
        raise UndefinedMethodError.of(self, "embed_image")

    def soft_prompts(self, images: ImageBatch, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Soft prompts, and which one each text follows, int64[B]; None: each has its own."""
        shared = None if self.reads_instructions else images.index
        return self.embed_image(images.image, texts, images.index), shared

    def chat(self, template: str | Mapping[str, Any] | None = None, options: GenerationConfig | None = None,
             system: str | None = None) -> Chat:
        """A conversation with this model; arguments and errors as `Chat`. template None: the model's own."""
        from lavis_lite.models.language.chat import Chat  # imported here: most programs have no conversation

        return Chat(self.language_model, lambda image, text: self.embed_image(image.to(self.device), [text])[0],
                    self.template if template is None else template, options, system)

    def written_after(self, vectors: Tensor, prompt: str, text: str) -> list[Segment]:
        """A picture's vectors float[V,D], a prompt, and a text that is learned after them, as one sequence."""
        return [Vectors(vectors), *([Text(prompt)] if prompt else []), Text(text, learned=True)]

    def attention(self, samples: SamplesLike) -> list[Attention]:
        """Where the vectors of each picture and each written word look, one entry for each sample.

        Args:
            samples: as `generate` takes them; text_output (optional), B texts; without it, those that `generate`
                writes.

        Raises:
            ConfigError: the encoder's features are not a square grid of patches.
            DataError: a video.
        """
        from lavis_lite.models.blip2.looking import of_text

        return of_text(self, samples)

    def gradcam(self, samples: SamplesLike) -> list[GradCam]:
        """Where in each picture the likelihood of each written word comes from; arguments as `attention`.

        Raises:
            ConfigError: the connector has no attention; and as `attention`.
        """
        from lavis_lite.models.blip2.looking import cam_of_text

        return cam_of_text(self, samples)

    def answer_prompts(self, samples: SamplesLike) -> tuple[ImageBatch, list[str], list[str]]:
        """(images, what the Q-Former reads, what the language model reads) of B samples for `generate`."""
        images = ImageBatch.of(samples)
        instructions = generation_prompts(samples, self.prompt, len(images))
        return images, instructions, with_examples(instructions, samples, self.language_model)

    @known_options
    @torch.no_grad()
    def generate(self, samples: SamplesLike, use_nucleus_sampling: bool = False, num_beams: int = 5,
                 max_length: int | None = None, min_length: int = 1, top_p: float = 0.9,
                 repetition_penalty: float | None = None, length_penalty: float = 1.0, num_captions: int = 1,
                 temperature: float = 1.0, *, max_new_tokens: int | None = None, min_new_tokens: int | None = None,
                 seeds: tuple[int, ...] | None = None, lavis_lengths: bool = False, penalise_prompt: bool = False,
                 logits_processors: Sequence[LogitsProcessor] = (), stop: Sequence[str] = ()) -> list[str]:
        """Texts for images.

        Args:
            samples: image or video; prompt (optional), one string or B; ocr_tokens (optional), B lists that go into
                a prompt's `{}`; few_shot_samples (optional), see `lavis_lite.models.blip2.prompts.with_examples`.
            use_nucleus_sampling: sample from the smallest set of tokens that holds `top_p` of the mass.
            num_beams: width of beam search; 1: greedy.
            max_length, min_length: LAVIS' lengths, which count a start token in some archs; None: the arch's default.
            top_p, temperature: when sampling.
            repetition_penalty: above 1 makes tokens already written less likely; None: the arch's default.
            length_penalty: a text's score is its log-probability / length ** length_penalty.
            num_captions: texts per image.
            max_new_tokens, min_new_tokens: in place of the lengths, new tokens with the end.
            seeds, lavis_lengths, penalise_prompt, logits_processors, stop: see `GenerationConfig`.

        Returns:
            B * num_captions texts, images in order.
        """
        images, instructions, prompts = self.answer_prompts(samples)
        longest = self._default_length(images) if max_length is None else max_length
        if repetition_penalty is None:
            repetition_penalty = self.defaults.repetition_penalty
        longest, shortest = self._lengths(longest, min_length, 0, max_new_tokens, min_new_tokens)
        options = GenerationConfig(
            longest, shortest, 1 if use_nucleus_sampling else num_beams, sample=use_nucleus_sampling, top_p=top_p,
            temperature=temperature, repetition_penalty=repetition_penalty, length_penalty=length_penalty,
            num_captions=num_captions, seeds=seeds, lavis_lengths=lavis_lengths, penalise_prompt=penalise_prompt,
            logits_processors=logits_processors, stop=stop)
        options.check_batch(len(images))
        return self._write(images, instructions, prompts, options)

    def _lengths(self, longest: int, shortest: int, method: int, most: int | None,
                 least: int | None) -> tuple[int, int]:
        """Most and fewest new tokens, given or from LAVIS' lengths; method 0: `generate`, 1: `predict_answers`."""
        lavis = self.defaults.lengths(longest, shortest, self.defaults.counts_start[method])
        return (lavis["max_new_tokens"] if most is None else most, lavis["min_new_tokens"] if least is None else least)

    def _default_length(self, images: ImageBatch) -> int:
        """The arch's own max_length, or less: a prompt of model.max_txt_len tokens keeps its room."""
        language_model, start = self.language_model, int(self.defaults.counts_start[0])
        room = language_model.room.after(self.soft_prompt_length(images), language_model.limits.prompt)
        return self.defaults.max_length if room is None else min(self.defaults.max_length, max(room, 1) + start)

    def _write(self, images: ImageBatch, instructions: list[str], prompts: list[str],
               options: GenerationConfig) -> list[str]:
        """Texts after the prompts; the Q-Former reads the instructions. What is too long is refused first."""
        if not len(images):
            return []
        self.check_room(images, prompts, options)
        if self.is_measuring:
            return [""] * (len(images) * options.num_captions)
        return self.answers(images, instructions, prompts, options)

    def answers(self, images: ImageBatch, instructions: list[str], prompts: list[str],
                options: GenerationConfig) -> list[str]:
        """Texts after the prompts, which are not too long."""
        soft_prompts, index = self.soft_prompts(images, instructions)
        return self.language_model.generate(soft_prompts, prompts, options, index)

    def check_room(self, images: ImageBatch, prompts: list[str], options: GenerationConfig) -> None:
        """Raise TextTooLongError where images, prompts and the longest answer do not fit; no image is looked at."""
        self.language_model.prompt_rows(self.measured(prompts), self.soft_prompt_length(images), options)

    def measured(self, prompts: list[str]) -> list[str]:
        """Prompts as their length is measured."""
        return prompts

    @known_options
    @torch.no_grad()
    def predict_answers(self, samples: SamplesLike, num_beams: int = 5, inference_method: str = "generate",
                        max_len: int = 10, min_len: int = 1, num_ans_candidates: int | None = 128,
                        answer_list: list[str] | None = None, prompt: str = "", length_penalty: float | None = None,
                        *, repetition_penalty: float | None = None, sample: bool = False, top_p: float = 1.0,
                        temperature: float = 1.0, max_new_tokens: int | None = None,
                        min_new_tokens: int | None = None, seeds: tuple[int, ...] | None = None,
                        lavis_lengths: bool = False, penalise_prompt: bool = False,
                        logits_processors: Sequence[LogitsProcessor] = (), stop: Sequence[str] = ()) -> list[str]:
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
            length_penalty, repetition_penalty: None: the arch's default.
            max_new_tokens, min_new_tokens: in place of the lengths, new tokens with the end.
            sample, top_p, temperature, seeds, lavis_lengths, penalise_prompt, logits_processors, stop: see
                `GenerationConfig`.
        """
        images = ImageBatch.of(samples)
        instructions = question_prompts(samples, prompt, len(images))
        prompts = with_examples(instructions, samples, self.language_model, template=prompt)
        if inference_method == "rank":
            answers = tried(answer_list or [], num_ans_candidates)
            if not answers:
                raise ConfigError("predict_answers: inference_method rank chooses among answer_list, which is empty.")
            best = self._score(images, instructions, prompts, answers).argmax(1).tolist()
            return [answers[index] for index in best]
        if inference_method != "generate":
            raise ConfigError(f"predict_answers: inference_method {inference_method!r} is not generate or rank.")
        penalty = self.defaults.answer_length_penalty if length_penalty is None else length_penalty
        if repetition_penalty is None:
            repetition_penalty = self.defaults.answer_repetition_penalty
        longest, shortest = self._lengths(max_len, min_len, 1, max_new_tokens, min_new_tokens)
        options = GenerationConfig(
            longest, shortest, num_beams, sample, top_p, temperature, repetition_penalty, penalty, seeds=seeds,
            lavis_lengths=lavis_lengths, penalise_prompt=penalise_prompt, logits_processors=logits_processors,
            stop=stop)
        texts = self._write(images, instructions, prompts, options)
        if not (self.apply_lemmatizer or samples.get("apply_lemmatizer", False)):
            return clean_answers(texts)
        from lavis_lite.processors.lemmatizer import shared_lemmatizer

        return clean_answers(texts, shared_lemmatizer())

    @known_options
    @torch.no_grad()
    def predict_class(self, samples: SamplesLike, candidates: Candidates, n_segments: int = 1,
                      normalise: Normalise = "sum") -> Tensor | list[Tensor]:
        """Candidates from the likeliest to the least likely answer.

        Args:
            samples: image or video; prompt, one string or B; text_input (optional) for the prompt's `{}`; context,
                history, caption (optional) put in front.
            candidates: strings for all samples, or one list per sample.
            n_segments: score in so many parts, to save memory; no result depends on it.
            normalise: rank by the sum of a candidate's log-likelihoods (LAVIS), or by their mean.

        Returns:
            int64[B,C] of indices into the list; with one list per sample, a list of int64[C_b].
        """
        scores = self.score_candidates(samples, candidates, n_segments, normalise)
        order = scores.argsort(dim=1, descending=True, stable=True)
        if not isinstance(candidates[0], (list, tuple)):
            return order
        return [row[:len(texts)] for row, texts in zip(order, candidates, strict=True)]

    @known_options
    @torch.no_grad()
    def score_candidates(self, samples: SamplesLike, candidates: Candidates, n_segments: int = 1,
                         normalise: Normalise = "sum") -> Tensor:
        """Log-likelihood of every candidate, float[B,C]; arguments as `predict_class`, -inf for absent ones.

        Raises:
            ConfigError: fewer than one segment.
        """
        if n_segments < 1:
            raise ConfigError(f"predict_class: n_segments must be at least 1, not {n_segments}.")
        images = ImageBatch.of(samples)
        batch = len(images)
        instructions = candidate_prompts(samples, self.prompt, batch)
        most = max(map(len, candidate_lists(candidates, batch)), default=0)
        pairs = -(-most * batch // n_segments)
        prompts = with_examples(instructions, samples, self.language_model)
        return self._score(images, instructions, prompts, candidates, normalise=normalise, pairs=max(pairs, 1))

    def _score(self, images: ImageBatch, instructions: list[str], prompts: list[str], candidates: Candidates,
               **how: Any) -> Tensor:
        """Likelihoods float[B,C] of candidates after the prompts. What is too long is refused first."""
        if not len(images):
            return torch.zeros(0, len(candidates), device=self.device)
        _, rows = self.language_model.scoring_rows(self.measured(prompts), candidates, self.soft_prompt_length(images))
        if self.is_measuring:
            return torch.zeros(len(rows), max(map(len, rows)))
        return self.candidate_scores(images, instructions, prompts, candidates, **how)

    def candidate_scores(self, images: ImageBatch, instructions: list[str], prompts: list[str], candidates: Candidates,
                         **how: Any) -> Tensor:
        """Likelihoods float[B,C] of candidates after the prompts, which are not too long."""
        soft_prompts, index = self.soft_prompts(images, instructions)
        return self.language_model.score(soft_prompts, prompts, candidates, **how, image_index=index)
