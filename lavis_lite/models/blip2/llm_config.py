"""The sections of a YAML file for models that end in a frozen language model (stage 2 and InstructBLIP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lavis_lite.config.schema import RunConfig
from lavis_lite.models.blip2.config import Blip2Config
from lavis_lite.models.language.families import Precision
from lavis_lite.models.language.load_options import LMLoadOptions, Lora, Quantization


@dataclass
class Blip2LLMConfig(Blip2Config):
    """Section `model`: LAVIS' keys, then this package's."""

    prompt: str = ""
    """read before every caption in training, and before every answer where a call brings no prompt"""
    max_output_txt_len: int | None = 256
    """tokens of a target, its end included, where samples have a text_output; max_txt_len is for what is read.
    null: max_txt_len for both"""
    qformer_text_input: bool = False
    """whether the Q-Former reads the instruction (or question) along with the image"""
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
    lora: Lora | None = None
    """adapters on the language model that train (extra lora); {} takes the defaults"""

    def setup(self) -> LMLoadOptions:
        """How the language model is held."""
        return LMLoadOptions(self.llm_quantization, self.llm_device_map, self.llm_grad_checkpoint, self.lora)

    def faults(self, run: RunConfig) -> list[tuple[str, str]]:
        """See `ModelConfig`."""
        found = list(self.setup().faults(has_weights=self.llm_args is None))
        if self.llm_device_map is not None and not run.evaluate:
            found.append(("llm_device_map", "is for answering; to train a language model larger than one GPU set "
                          "run.fsdp=llm, or model.llm_quantization."))
        if self.llm_quantization is not None and run.fsdp != "none":
            found.append(("llm_quantization", "quantised weights cannot be shared out among ranks; set run.fsdp=none."))
        return found

    def language_model_name(self) -> str:
        """Folder or hub name of the language model."""
        return self.llm_model


@dataclass
class Blip2OPTConfig(Blip2LLMConfig):
    """As LAVIS names it: opt_model."""

    opt_model: str = "facebook/opt-2.7b"
    """folder or hub name; llm_model goes before it"""

    def language_model_name(self) -> str:
        """See `Blip2LLMConfig`."""
        return self.llm_model or self.opt_model


@dataclass
class Blip2T5Config(Blip2LLMConfig):
    """As LAVIS names it: t5_model."""

    max_output_txt_len: int | None = None
    t5_model: str = "google/flan-t5-xl"
    """folder or hub name; llm_model goes before it"""

    def language_model_name(self) -> str:
        """See `Blip2LLMConfig`."""
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
