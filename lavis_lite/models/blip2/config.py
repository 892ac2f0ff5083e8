"""The `model` sections of the archs in this package: keys, defaults and what may not go together. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lavis_lite.config.schema import ModelConfig, RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.language.families import LMLoadOptions, Lora, Precision, Quantization, family_of
from lavis_lite.models.plain_text import Side
from lavis_lite.models.vision.config import EncoderConfig


@dataclass(frozen=True)
class ArchDefaults:
    """Facts in which LAVIS' archs differ.

    Attributes:
        family: row of the language model's facts; None: by its type.
        prefix_lm: captions without a text_output are split at random, the first part read, the second learned; else
            the whole caption is learned.
        joint_limit: max_txt_len counts prompt and caption together.
        prompt_side: where a long prompt loses tokens in training.
        max_length, repetition_penalty: defaults of `generate`.
        answer_repetition_penalty, answer_length_penalty: defaults of `predict_answers`.
        counts_start: LAVIS' max_length counts a start token in `generate`; the second value, in `predict_answers`.
    """

    family: str | None = None
    prefix_lm: bool = False
    joint_limit: bool = False
    prompt_side: Side = "left"
    max_length: int = 30
    repetition_penalty: float = 1.0
    answer_repetition_penalty: float = 1.0
    answer_length_penalty: float = 0.0
    counts_start: tuple[bool, bool] = (False, False)

    @staticmethod
    def lengths(longest: int, shortest: int, counts_start: bool) -> dict[str, int]:
        """LAVIS' lengths as numbers of new tokens."""
        return {"max_new_tokens": longest - int(counts_start), "min_new_tokens": max(shortest - 1, 0)}


OPT = ArchDefaults(joint_limit=True, prompt_side="right", counts_start=(True, False))
T5 = ArchDefaults(prefix_lm=True, prompt_side="right", answer_length_penalty=-1.0)
T5_INSTRUCT = replace(T5, prompt_side="left", max_length=256, repetition_penalty=1.5, answer_repetition_penalty=1.5)
VICUNA = ArchDefaults(family="vicuna", joint_limit=True, counts_start=(True, True))
VICUNA_INSTRUCT = replace(VICUNA, joint_limit=False, max_length=256, repetition_penalty=1.5,
                          answer_repetition_penalty=1.5)


COUNTS = ("num_query_token", "cross_attention_freq", "max_txt_len", "qformer_hidden_size",
          "qformer_layers", "qformer_heads", "qformer_intermediate_size", "qformer_max_positions")
"""keys that count something"""


@dataclass
class Blip2Config(EncoderConfig):
    """What the sections `model` of all stages share: LAVIS' keys, then this package's."""

    qformer_grad_checkpoint: bool = False
    """the same for the Q-Former"""
    num_query_token: int = 32
    """number of query tokens"""
    cross_attention_freq: int = 2
    """cross-attention in every so many layers, from the first on"""
    max_txt_len: int = 32
    """tokens per text, [CLS] and [SEP] included"""
    # this package's -------------------------------------------------------------------------------------------------
    ln_vision_eps: float = 1e-5
    """epsilon of the norm over image features: LAVIS' 1e-5; transformers has the vision encoder's 1e-6 there"""
    tokenizer: str = "bert-base-uncased"
    """bert-base-uncased | mini | a folder with vocab.txt"""
    qformer_hidden_size: int = 768
    """width of the Q-Former"""
    qformer_layers: int = 12
    """number of its layers"""
    qformer_heads: int = 12
    """attention heads per layer"""
    qformer_intermediate_size: int = 3072
    """width of its feed-forward layers"""
    qformer_max_positions: int = 512
    """longest text of the Q-Former, in tokens"""
    qformer_dropout: float = 0.1
    """dropout of the Q-Former"""
    qformer_attention_dropout: float | None = None
    """of attention weights; None: as qformer_dropout"""
    qformer_layer_norm_eps: float = 1e-12
    """epsilon of the Q-Former's norms: BERT's"""
    qformer_initializer_range: float = 0.02
    """standard deviation of random weights: BERT's 0.02 is right for its width 768; a narrow Q-Former that starts at
    random learns many times faster with about width ** -0.5"""
    qformer_weights: str | None = "bert-base-uncased"
    """BERT weights to start from: a name, a folder, or None for random ones; not read when a checkpoint is loaded"""
    lm_reduction: Literal["global", "per_rank"] = "global"
    """language-model loss averaged over all tokens of a step, or over each rank's micro-batches first (LAVIS);
    run.lm_reduction sets it"""

    @property
    def reads_text(self) -> bool:
        """Whether the Q-Former has its text half."""
        return True

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """As `EncoderConfig`, and sizes that do not go together."""
        found = super().errors(run)
        found += [(key, f"must be at least 1, not {getattr(self, key)}.") for key in COUNTS if getattr(self, key) < 1]
        found += [(key, f"must be at least 0 and below 1, not {getattr(self, key)}.")
                  for key in ("qformer_dropout", "qformer_attention_dropout")
                  if not 0.0 <= (getattr(self, key) or 0.0) < 1.0]
        if not any("qformer" in key for key, _ in found) and self.qformer_hidden_size % self.qformer_heads:
            found.append(("qformer_hidden_size", f"{self.qformer_hidden_size} is not a multiple of qformer_heads: "
                          f"{self.qformer_heads}."))
        if self.reads_text and (error := self.length_error()):
            found.append(("max_txt_len", error))
        return found

    def length_error(self) -> str:
        """Why the Q-Former cannot read texts of max_txt_len; "" if it can."""
        if self.max_txt_len <= self.qformer_max_positions:
            return ""
        return (f"{self.max_txt_len} tokens are more than the {self.qformer_max_positions} positions of "
                "model.qformer_max_positions.")


@dataclass
class Blip2QformerConfig(Blip2Config):
    """Section `model` of stage 1."""

    embed_dim: int = 256
    """width in which image and text are compared"""
    itc_full_gradient: bool = False
    """gradient of ITC to both sides of each similarity; LAVIS: one"""
    itg_weight: float = 1.0
    """factor of image-grounded text generation in the sum of losses; 0: without it (BLIP-2, Table 6)"""
    pack_text: bool | None = None
    """compute captions without padding between them; None: on the CPU"""
    itm_negatives: Literal["hard", "random"] = "hard"
    """negatives of image-text matching: drawn in proportion to ITC similarity (section 3.2), or all equally likely"""

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """As `Blip2Config`, and stage 1's own numbers."""
        found = super().errors(run)
        if self.embed_dim < 1:
            found.append(("embed_dim", f"must be at least 1, not {self.embed_dim}."))
        if self.itg_weight < 0:
            found.append(("itg_weight", f"must not be negative, but is {self.itg_weight}."))
        return found


@dataclass
class LanguageConfig(ModelConfig):
    """What the sections of models with a language model share: LAVIS' keys, then this package's."""

    max_txt_len: int = 32
    """tokens of what is read"""
    lm_reduction: Literal["global", "per_rank"] = "global"
    """loss averaged over all tokens of a step, or over each rank's micro-batches first (LAVIS); run.lm_reduction sets
    it"""
    prompt: str = ""
    """read before every caption in training, and before every answer where a call brings no prompt"""
    max_output_txt_len: int | None = 256
    """tokens of a target, its end included, where samples have a text_output; max_txt_len is for what is read.
    null: max_txt_len for both"""
    max_row_len: int | None = None
    """tokens and vectors of a conversation in training, cut at its end; null: the language model's positions"""
    llm_model: str = ""
    """folder or hub name of the language model, in transformers' format"""
    apply_lemmatizer: bool = False
    """bring answers of predict_answers to their base form ("two dogs" -> "two dog"), for scoring"""
    num_few_shot_examples: int = 0
    """most examples that a training batch shows in front of its prompts, where samples bring few_shot_samples"""
    few_shot_prob: float = 0.0
    """share of training batches that show any"""
    # this package's -------------------------------------------------------------------------------------------------
    llm_args: dict[str, Any] | None = None
    """the language model's configuration in place of that of llm_model: model_type and sizes"""
    llm_tokenizer: str | None = None
    """folder or hub name of its tokenizer; None: llm_model"""
    llm_family: str | None = None
    """row of facts about it; None: by its type"""
    llm_precision: Precision = "auto"
    """of its weights; auto: the family's on a machine with a GPU, else fp32"""

    llm_quantization: Quantization | None = None
    """8bit | 4bit: linear layers of the frozen language model by bitsandbytes (extra quant)"""
    llm_device_map: Any = None
    """auto | {module: device}: the language model over several devices, for answering only (extra devices)"""
    llm_grad_checkpoint: bool = False
    """compute the language model's blocks again in the backward pass instead of keeping what is inside them"""
    llm_train: Literal["frozen", "lora", "full"] | None = None
    """what trains of the language model: nothing, adapters (those of `lora`, or its defaults), or all of it, held in
    fp32. None: adapters if `lora` is given"""
    lora: Lora | None = None
    """adapters on the language model that train (extra lora); {} takes the defaults"""
    llm_lr_scale: float = 1.0
    """factor on the learning rate of what trains of the language model"""
    vit_lr_scale: float = 1.0
    """factor on the learning rate of a vision encoder that trains"""

    def setup(self) -> LMLoadOptions:
        """How the language model is held."""
        lora = (self.lora or Lora()) if self.llm_train == "lora" else self.lora
        return LMLoadOptions(self.llm_quantization, self.llm_device_map, self.llm_grad_checkpoint, lora,
                             self.llm_train == "full")

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """What the language model cannot be or cannot do in this run."""
        found = [*super().errors(run), *self.setup().faults(has_weights=self.llm_args is None)]
        found += self._training_errors(run)
        if self.max_output_txt_len is not None and self.max_output_txt_len < 1:
            found.append(("max_output_txt_len", f"must be at least 1, not {self.max_output_txt_len}."))
        if self.max_row_len is not None and self.max_row_len < 2:
            found.append(("max_row_len", f"must be at least 2, not {self.max_row_len}."))
        found += few_shot_errors(self.num_few_shot_examples, self.few_shot_prob)
        try:
            family_of("", self.llm_family)
        except ConfigError as error:
            found.append(("llm_family", str(error).removeprefix("model.llm_family: ")))
        if self.llm_precision == "fp16" and not _has_gpu(run):
            found.append(("llm_precision", "fp16 arithmetic on a CPU is slow and incomplete; use auto, fp32 or bf16."))
        if self.llm_device_map is not None and not run.evaluate:
            found.append(("llm_device_map", "is for answering; to train a language model larger than one GPU set "
                          "run.fsdp=llm, or model.llm_quantization."))
        if self.llm_quantization is not None and run.fsdp != "none":
            found.append(("llm_quantization", "quantised weights cannot be shared out among ranks; set run.fsdp=none."))
        return found

    def _training_errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """What `llm_train` cannot be combined with."""
        found = [(key, f"must be above 0, not {getattr(self, key)}.") for key in ("llm_lr_scale", "vit_lr_scale")
                 if not 0 < getattr(self, key) < float("inf")]
        if self.llm_train == "frozen" and self.lora is not None:
            found.append(("llm_train", "frozen leaves no adapters; set model.lora=null, or llm_train=lora."))
        if self.llm_train == "full" and self.llm_precision not in ("auto", "fp32"):
            found.append(("llm_precision", f"{self.llm_precision} weights cannot be trained (model.llm_train is full); "
                          "use auto or fp32. run.amp=true gives half-precision arithmetic."))
        if self.llm_train == "full" and run.fsdp != "none" and run.amp_dtype == "fp16":
            found.append(("llm_train", "blocks that ranks share do not train under run.amp_dtype=fp16; set it to bf16, "
                          "or run.fsdp=none."))
        return found

    def language_model_name(self) -> str:
        """Folder or hub name of the language model."""
        return self.llm_model


@dataclass
class Blip2LLMConfig(LanguageConfig, Blip2Config):
    """Section `model` of stage 2 and InstructBLIP."""

    qformer_text_input: bool = False
    """whether the Q-Former reads the instruction (or question) along with the image"""

    @property
    def reads_text(self) -> bool:
        """Whether the Q-Former has its text half."""
        return self.qformer_text_input


@dataclass
class AnyLanguageConfig(LanguageConfig):
    """Any language model, named by llm_model."""

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """As `LanguageConfig`, and that no language model is named."""
        found = super().errors(run)
        if not self.llm_model and self.llm_args is None:
            found.append(("llm_model", "names no language model: give a folder or a hub name in transformers' format, "
                          "such as mini/opt, google/flan-t5-xl or Qwen/Qwen2-0.5B."))
        elif not self.llm_model and self.llm_tokenizer is None:
            found.append(("llm_tokenizer", "llm_args gives sizes only: name a tokenizer here."))
        return found


@dataclass
class Blip2AnyLLMConfig(AnyLanguageConfig, Blip2LLMConfig):
    """Stage 2 or InstructBLIP over any language model."""


@dataclass
class Blip2OPTConfig(Blip2LLMConfig):
    """As LAVIS names it: opt_model."""

    opt_model: str = "facebook/opt-2.7b"
    """folder or hub name; llm_model goes before it"""

    def language_model_name(self) -> str:
        """See `LanguageConfig`."""
        return self.llm_model or self.opt_model


@dataclass
class Blip2T5Config(Blip2LLMConfig):
    """As LAVIS names it: t5_model."""

    max_output_txt_len: int | None = None
    t5_model: str = "google/flan-t5-xl"
    """folder or hub name; llm_model goes before it"""

    def language_model_name(self) -> str:
        """See `LanguageConfig`."""
        return self.llm_model or self.t5_model


@dataclass
class Blip2T5InstructConfig(Blip2T5Config):
    """InstructBLIP over FlanT5."""

    max_txt_len: int = 128
    max_output_txt_len: int | None = 256
    qformer_text_input: bool = True


@dataclass
class Blip2VicunaConfig(Blip2LLMConfig):
    """Stage 2 over Vicuna."""

    llm_model: str = "lmsys/vicuna-7b-v1.1"


@dataclass
class Blip2VicunaInstructConfig(Blip2VicunaConfig):
    """InstructBLIP over Vicuna."""

    max_txt_len: int = 128
    qformer_text_input: bool = True


def few_shot_errors(count: int, probability: float) -> list[tuple[str, str]]:
    """What is wrong with model.num_few_shot_examples and model.few_shot_prob: (key, sentence)."""
    least = int(probability > 0)
    if not 0 <= probability <= 1:
        return [("few_shot_prob", f"must be between 0 and 1, not {probability}.")]
    return [] if count >= least else [
        ("num_few_shot_examples", f"must be at least {least} if model.few_shot_prob is {probability}, not {count}.")]


def _has_gpu(run: RunConfig) -> bool:
    if run.device != "auto":
        return run.device != "cpu"
    import torch

    return torch.cuda.is_available()
