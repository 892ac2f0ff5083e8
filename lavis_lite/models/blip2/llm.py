"""BLIP-2 stage 2 and InstructBLIP: vision encoder -> Q-Former -> projection -> a frozen language model.

Stage 2 (BLIP-2, section 3.3, figure 3) learns captions after a soft prompt. InstructBLIP (section 2.3, figure 3) also
lets the Q-Former read the instruction. One class does both; the registered archs differ in a few facts
(`ArchDefaults`). `TextLearner.forward` is the figure from left to right, `embed_image` its part up to the projection.

Axes: B samples, U different images, T frames of a video (or several images), P patches, Q queries. Widths: Dv of the
vision encoder, D' of the Q-Former, D of the language model. A video's soft prompt has T*Q vectors.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.base import loss_weight
from lavis_lite.models.blip2.base import Blip2Base, ImageBatch, build_parts, frame_index, merged_frames
from lavis_lite.models.blip2.config import (
    OPT,
    T5,
    T5_INSTRUCT,
    VICUNA,
    VICUNA_INSTRUCT,
    ArchDefaults,
    Blip2AnyLLMConfig,
    Blip2LLMConfig,
    Blip2OPTConfig,
    Blip2T5Config,
    Blip2T5InstructConfig,
    Blip2VicunaConfig,
    Blip2VicunaInstructConfig,
    LanguageConfig,
)
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
from lavis_lite.models.qformer.model import ImageKV, QFormer
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.registry import registry

NEW_AFTER_STAGE1 = (r"language_projection\..*",)
NEW_ADAPTERS = (r"language_model\..*\.lora_[AB]\..*",)
HEADS = (r"temp", r"(itm_head|vision_proj|text_proj)\..*", r"qformer\.lm_head\..*")
NOT_FOR_GENERATION = (*HEADS, r"qformer\.embeddings\..*", r"qformer\.layers\.\d+\.text_ffn\..*")
"""Names (regular expressions) of stage 1 that a model with a language model does not use."""


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
        """The loss of B targets after soft prompts float[B,Q,D] and prompts."""
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
        """Learned tokens of targets after prompts and images."""
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


class Blip2LLM(TextLearner, Blip2Base):
    """A vision-language model that generates text: image -> vision encoder -> Q-Former -> projection -> language model.

    Samples may share images: image float[U,3,H,W] (or video) with image_rows int64[B], the image of each sample. Each
    image is then encoded once.

    Args:
        vision_encoder: image float[B,3,H,W] -> float[B,P,Dv].
        qformer: with its text half if it reads the instruction.
        tokenizer: of the Q-Former's text.
        language_model: frozen.
        prompt: read before captions in training, and before answers if a call brings no prompt.
        freeze_vit: keep the vision encoder constant and in eval mode.
        ln_vision_eps: epsilon of the norm over image features.
    """

    config_class: ClassVar[type[Blip2LLMConfig]] = Blip2LLMConfig
    traced = ("embed_tokens",)

    def __init__(self, vision_encoder: nn.Module, qformer: QFormer, tokenizer: TextTokenizer,
                 language_model: LanguageModel, *, prompt: str = "", freeze_vit: bool = True,
                 ln_vision_eps: float = 1e-5) -> None:
        super().__init__(vision_encoder, qformer, tokenizer, freeze_vit, ln_vision_eps)
        self.prompt, self.language_model = prompt, language_model
        self.language_projection = nn.Linear(qformer.cfg.hidden_size, language_model.hidden_size)

    @property
    def reads_instructions(self) -> bool:  # type: ignore[override]  # of this model, not of its class
        """Whether the Q-Former reads the instruction too."""
        return self.qformer.cfg.with_text

    def soft_prompt_length(self, images: ImageBatch) -> int:
        """Vectors of a soft prompt of such images: queries x frames."""
        return int(self.query_tokens.shape[1]) * images.frames

    def embed_image(self, image: Tensor, texts: list[str] | None = None, index: Tensor | None = None) -> Tensor:
        """The soft prompt, an image in the space of the language model's words: float[B,Q,D], or float[B,T*Q,D].

        Args:
            image: float[B,3,H,W], or B videos of T frames, float[B,3,T,H,W]; U of them if there is an index.
            texts: B instructions; needed if the Q-Former reads them.
            index: int64[B], the image of each text; None: text b goes with image b.

        Returns:
            One soft prompt per text if the Q-Former reads texts, else one per image.
        """
        if type(self).query_output is Blip2LLM.query_output:
            return self.embed_tokens(image, self.instruction_tokens(texts), index)  # what `run.compile` traces
        projected: Tensor = self.language_projection(self.query_output(image, texts, index))
        return projected

    def query_output(self, image: Tensor, texts: list[str] | None = None, index: Tensor | None = None) -> Tensor:
        """The Q-Former's output before the projection: float[B,Q,D'], or float[B,T*Q,D']. As `embed_image`."""
        return self._queries_of(image, self.instruction_tokens(texts), index)

    def instruction_tokens(self, texts: list[str] | None) -> TextTokens | None:
        """B instructions as the Q-Former reads them; None if it reads none.

        Raises:
            ConfigError: it reads them, and they are missing.
        """
        if not self.qformer.cfg.with_text:
            return None
        if texts is None:
            raise ConfigError("this Q-Former reads the instruction: give the texts along with the images.")
        tokens = self.tokenize(texts)
        if not (self.few_widths and self.training):
            return tokens
        return tokens.in_few_widths(self.tokenizer.max_length, self.tokenizer.special_ids.pad)

    def embed_tokens(self, image: Tensor, tokens: TextTokens | None, index: Tensor | None = None) -> Tensor:
        """As `embed_image`, of instructions that are tokens: float[B,Q,D], or float[B,T*Q,D]."""
        projected: Tensor = self.language_projection(self._queries_of(image, tokens, index))
        return projected

    def _queries_of(self, image: Tensor, tokens: TextTokens | None, index: Tensor | None) -> Tensor:
        count, (image, frames) = len(image), merged_frames(image)            # float[B*T,3,H,W]
        features = self.normalise(self.encode_image(image))                  # float[B*T,P,Dv]
        image_kv = self.qformer.precompute_kv(features, self.ln_vision)
        if tokens is None:
            output = self.qformer(self._queries(image_kv.rows), image=image_kv).query
        else:
            if index is not None:
                count, image_kv = len(index), image_kv.select(frame_index(index, frames))
            output = self._instructed(tokens.each_repeated(frames), image_kv)
        return output.reshape(count, -1, output.shape[-1])               # float[B,T*Q,D']

    def _instructed(self, tokens: TextTokens, image_kv: ImageKV) -> Tensor:
        """Queries that see image and instruction: float[B*T,Q,D']. On a CPU nothing is computed for padding."""
        from lavis_lite.models.blip2.passes import itm_pass, packed_itm_pass  # most Q-Formers read no instruction

        if self.device.type == "cpu" and tokens.lengths is not None:
            return packed_itm_pass(self.qformer, self.query_tokens, [image_kv], tokens, whole=self.training)
        if not self.training:
            return itm_pass(self.qformer, self.query_tokens, [image_kv], tokens)
        queries = self._queries(image_kv.rows)
        found: Tensor = self.qformer(queries, tokens.ids, tokens.mask, image_kv, "bidirectional").query
        return found

    # construction ---------------------------------------------------------------------------------------------------
    @classmethod
    def from_config(cls, cfg: Any) -> Blip2LLM:
        """Build from a section. All weights are random: `lavis_lite.checkpoints.weights.build_model` loads them."""
        parts = build_parts(cfg, with_text=cfg.qformer_text_input, with_lm_head=False, truncation_side="left")
        language_model = language_model_of_section(cfg, cls.defaults)
        model = cls(**parts, language_model=language_model, prompt=cfg.prompt, freeze_vit=cfg.encoder_is_frozen,
                    ln_vision_eps=cfg.ln_vision_eps)
        model.set_up_texts(cfg)
        return model

    def allowed_differences(self, given: Set[str]) -> tuple[Sequence[str], Sequence[str]]:
        """A stage-1 checkpoint has no projection yet, and heads (and perhaps a text half) that are not used here.

        The text half of a later stage is no such: InstructBLIP's queries mean nothing without the instruction.
        """
        is_stage1 = any(name.startswith("itm_head.") for name in given)
        adapters = () if any(".lora_" in name for name in given) else NEW_ADAPTERS
        is_later = not is_stage1 and any(name.startswith("language_projection.") for name in given)
        return (*NEW_AFTER_STAGE1, *adapters) if is_stage1 else adapters, HEADS if is_later else NOT_FOR_GENERATION


@registry.register_model("blip2_llm")
class Blip2AnyLLM(Blip2LLM):
    """Stage 2 or InstructBLIP over any language model of transformers, decoder-only or encoder-decoder.

    Which it is, its configuration says; what is peculiar about it, its row in `models.language.families`. Captions
    without a text_output are split if it has an encoder, as with FlanT5.
    """

    config_class = Blip2AnyLLMConfig

    def __init__(self, vision_encoder: nn.Module, qformer: QFormer, tokenizer: TextTokenizer,
                 language_model: LanguageModel, **settings: Any) -> None:
        super().__init__(vision_encoder, qformer, tokenizer, language_model, **settings)
        self.follow_language_model()


@registry.register_model("blip2_opt")
class Blip2OPT(Blip2LLM):
    """Stage 2 over OPT."""

    config_class = Blip2OPTConfig
    defaults = OPT


@registry.register_model("blip2_t5")
class Blip2T5(Blip2LLM):
    """Stage 2 over FlanT5."""

    config_class = Blip2T5Config
    defaults = T5


@registry.register_model("blip2_t5_instruct")
class Blip2T5Instruct(Blip2LLM):
    """InstructBLIP over FlanT5."""

    config_class = Blip2T5InstructConfig
    defaults = T5_INSTRUCT


@registry.register_model("blip2_vicuna")
class Blip2Vicuna(Blip2LLM):
    """Stage 2 over Vicuna."""

    config_class = Blip2VicunaConfig
    defaults = VICUNA


@registry.register_model("blip2_vicuna_instruct")
class Blip2VicunaInstruct(Blip2LLM):
    """InstructBLIP over Vicuna."""

    config_class = Blip2VicunaInstructConfig
    defaults = VICUNA_INSTRUCT
