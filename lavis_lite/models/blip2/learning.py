"""How a model with a language model learns: captions after its own prompt, or an output after an instruction.

Axes: B samples, Q vectors of a soft prompt, D width of the language model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from lavis_lite.errors import DataError
from lavis_lite.models.base import loss_weight
from lavis_lite.models.blip2.base import ImageBatch
from lavis_lite.models.blip2.config import ArchDefaults, LanguageConfig
from lavis_lite.models.blip2.prompts import (
    as_list,
    check_few_shot,
    draw_few_shot,
    split_caption,
    strip_prompt,
    with_examples,
)
from lavis_lite.models.blip2.writing import TextWriter
from lavis_lite.models.language import LanguageModel, Limits, build_language_model
from lavis_lite.models.outputs import ModelOutput, SamplesLike
from lavis_lite.models.plain_text import CutTexts


class TextLearner(TextWriter):
    """Training of a model with an `embed_image` that gives soft prompts to its `language_model`.

    Samples may share images: image float[U,3,H,W] (or video) with image_rows int64[B], the image of each sample. Each
    image is then encoded once.

    Attributes:
        apply_lemmatizer, num_few_shot_examples, few_shot_prob: as in `LanguageConfig`.
    """

    takes_image_rows: ClassVar[bool] = True
    defaults: ClassVar[ArchDefaults] = ArchDefaults()
    apply_lemmatizer, num_few_shot_examples, few_shot_prob = False, 0, 0.0

    def set_up_texts(self, cfg: LanguageConfig) -> None:
        """Take from a section what concerns texts and the language model."""
        check_few_shot(cfg.num_few_shot_examples, cfg.few_shot_prob)
        self.prompt, self.apply_lemmatizer = cfg.prompt, cfg.apply_lemmatizer
        self.num_few_shot_examples, self.few_shot_prob = cfg.num_few_shot_examples, cfg.few_shot_prob
        self.lr_scales = {"language_model.": cfg.llm_lr_scale, "vision_encoder.": cfg.vit_lr_scale}

    def follow_language_model(self) -> None:
        """Split captions without a text_output if this model's language model has an encoder, as with FlanT5."""
        own = replace(self.defaults, prefix_lm=self.language_model.model.config.is_encoder_decoder)
        self.defaults = own  # type: ignore[misc]  # of this model: its class does not know the language model

    def forward(self, samples: SamplesLike) -> ModelOutput:
        """The language-model loss of B samples: BLIP-2's figure 3 from left to right (section 3.3).

        Args:
            samples: image float[B,3,H,W], or video float[B,3,T,H,W]; text_input, B strings; text_output (optional), B
                strings that are learned after text_input. Without text_output, text_input is a caption. It is learned
                after the model's prompt, or split at random if the language model has an encoder. `uniform` (optional),
                float64[B] or [B,2] in [0, 1), chooses where.
        """
        images = ImageBatch.of(samples)                                      # float[B,3,H,W]
        instructions, targets = self.training_texts(samples, len(images))    # B strings each
        prompts = self._with_examples(instructions, samples)                 # B strings
        soft_prompt = self.embed_image(images.repeated(), instructions)      # float[B,Q,D], by the Q-Former
        loss = self.text_loss(soft_prompt, prompts, targets)                 # float[], by the language model
        return self.weighed(loss, soft_prompt, samples)

    def text_loss(self, soft_prompt: Tensor, prompts: list[str], targets: list[str]) -> Tensor:
        """The loss of B targets behind soft prompts float[B,Q,D] and prompts."""
        return self.language_model.loss(soft_prompt, prompts, targets)

    def weighed(self, loss: Tensor, encoded: Any, samples: SamplesLike) -> ModelOutput:
        """The loss of a micro-batch with the weight that it has in its step, and the auxiliary losses."""
        loss = loss * loss_weight(samples, "loss", loss)
        return ModelOutput(loss).plus(self.auxiliary_losses(encoded, cast("dict[str, Any]", samples)))

    def embed_prompt(self, samples: SamplesLike) -> tuple[Tensor, Tensor]:
        """[soft prompt | prompt] as the language model reads it before it answers: float[B,S,D], bool[B,S].

        For decoding by other means, such as `inputs_embeds` and `attention_mask` of transformers' `generate`. Columns
        that the mask leaves out are padding.

        Args:
            samples: as `generate` takes them.
        """
        images, instructions, prompts = self.answer_prompts(samples)
        soft_prompt = self.embed_image(images.repeated(), instructions)      # float[B,Q,D]
        return self.language_model.prefix_embeds(soft_prompt, self.language_model.tokenizer.prompts(prompts))

    def training_texts(self, samples: SamplesLike, batch: int) -> tuple[list[str], list[str]]:
        """(what is read, what is learned) of every sample.

        Raises:
            DataError: the samples have no text_input.
            ConfigError: not one text per image.
        """
        if "text_input" not in samples:
            raise DataError(f"{type(self).__name__}: training needs text_input; the samples have {sorted(samples)}.")
        texts = as_list(samples["text_input"], batch, "text_input")
        if "text_output" in samples:
            return texts, as_list(samples["text_output"], batch, "text_output")
        captions = [strip_prompt(text, self.prompt) for text in texts]
        if not self.defaults.prefix_lm:
            return [self.prompt] * batch, captions
        uniform = samples.get("uniform")
        uniform = torch.rand(batch, dtype=torch.float64) if uniform is None else uniform.reshape(batch, -1)[:, 0]
        halves = [split_caption(text, number) for text, number in zip(captions, uniform.tolist(), strict=True)]
        prompt = self.prompt.strip()
        return [f"{prompt} {first}".strip() for first, _ in halves], [second for _, second in halves]

    def _with_examples(self, prompts: list[str], samples: SamplesLike) -> list[str]:
        """Training prompts with as many examples in front as are drawn for this batch."""
        count = draw_few_shot(samples, self.num_few_shot_examples, self.few_shot_prob)
        return with_examples(prompts, samples, self.language_model, most=count)

    def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
        """Learned tokens of a batch; none if every rank and micro-batch counts alike (lm_reduction per_rank)."""
        if self.language_model.lm_reduction == "per_rank":
            return {}
        images = ImageBatch.of(samples)
        instructions, targets = self.training_texts(samples, len(images))
        prompts = self._with_examples(instructions, samples)
        return {"loss": self.count_terms(prompts, targets, images)}

    def count_terms(self, prompts: list[str], targets: list[str], images: ImageBatch) -> int:
        """Learned tokens of targets behind prompts and images."""
        return self.language_model.count_tokens(prompts, targets, self.soft_prompt_length(images))

    def cut_texts(self) -> dict[str, CutTexts]:
        """Texts that were longer than their limits: prompts, targets, and what the rest of the model reads."""
        words = self.language_model.tokenizer
        return {**super().cut_texts(),
                "prompts were cut (model.max_txt_len, or the language model's positions)": words.cut_prompts,
                "targets were cut (model.max_output_txt_len or max_txt_len, or the positions)": words.cut_targets,
                **words.cut_sequences}

    def example_samples(self, batch: int, device: torch.device) -> dict[str, Any]:
        """Samples of the right shapes without content, for a dry run; texts are as long as the limits allow."""
        limits = self.language_model.limits
        read, learned = (" ".join(["text"] * count) for count in (limits.prompt, limits.target))
        return {"image": cast(Any, self).example_image(batch, device), "text_input": [read] * batch,
                "text_output": [learned] * batch}


def language_model_of_section(cfg: LanguageConfig, defaults: ArchDefaults) -> LanguageModel:
    """The language model that a section describes, without its weights."""
    together = cfg.max_txt_len if defaults.joint_limit else None
    target = cfg.max_txt_len if cfg.max_output_txt_len is None else cfg.max_output_txt_len
    return build_language_model(
        cfg.language_model_name(), sizes=cfg.llm_args, tokenizer=cfg.llm_tokenizer,
        family=cfg.llm_family or defaults.family, precision=cfg.llm_precision,
        limits=Limits(cfg.max_txt_len, target, together, defaults.prompt_side, cfg.max_row_len),
        lm_reduction=cfg.lm_reduction, setup=cfg.setup())
