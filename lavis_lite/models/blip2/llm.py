"""BLIP-2 stage 2 and InstructBLIP: vision encoder -> Q-Former -> projection -> a frozen language model.

Stage 2 (BLIP-2, section 3.3) learns captions after a soft prompt; InstructBLIP also lets the Q-Former read the
instruction. One class does both; the registered archs differ in a few facts (`Style`).

Axes: B samples, T frames of a video (or several images), P patches, Q queries, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.base import loss_weight
from lavis_lite.models.blip2 import few_shot
from lavis_lite.models.blip2.arch_defaults import OPT, T5, T5_INSTRUCT, VICUNA, VICUNA_INSTRUCT, Style
from lavis_lite.models.blip2.config import (
    Blip2AnyLLMConfig,
    Blip2LLMConfig,
    Blip2OPTConfig,
    Blip2T5Config,
    Blip2T5InstructConfig,
    Blip2VicunaConfig,
    Blip2VicunaInstructConfig,
)
from lavis_lite.models.blip2.image_batch import Pictures, frames_of, pictures_of
from lavis_lite.models.blip2.parts import build_parts
from lavis_lite.models.blip2.prompts import as_list, split_caption, strip_prompt
from lavis_lite.models.blip2.writing import Blip2Writer
from lavis_lite.models.language import LanguageModel, Limits, build_language_model
from lavis_lite.models.language.encoder_decoder import EncoderDecoder
from lavis_lite.models.language.placement import blocks
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.models.plain_text import CutTexts
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.registry import registry

FRESH_AFTER_STAGE1 = (r"language_projection\..*",)
NEW_ADAPTERS = (r"language_model\..*\.lora_[AB]\..*",)
NOT_FOR_WRITING = (r"temp", r"(itm_head|vision_proj|text_proj)\..*", r"qformer\.(lm_head|embeddings)\..*",
                   r"qformer\.layers\.\d+\.text_ffn\..*")
"""Names (regular expressions) of stage 1 that a model that writes has no use for."""


class Blip2LLM(Blip2Writer):
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
        """Build from a section; all weights are random (see `lavis_lite.checkpoints.weights.build_model`)."""
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
        if not len(pictures):
            raise DataError("the batch is empty: there is nothing to learn from.")
        prompts, shown, targets = self._training_rows(samples, len(pictures))
        loss = self.language_model.loss(self.soft_prompt(pictures.repeated(), prompts), shown, targets)
        return ModelOutput(loss * loss_weight(samples, "loss", loss))

    def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
        """Learned tokens of a batch; none if every rank and micro-batch counts alike (lm_reduction per_rank)."""
        if self.language_model.lm_reduction == "per_rank":
            return {}
        pictures = pictures_of(samples)
        _, shown, targets = self._training_rows(samples, len(pictures))
        vectors = self.query_tokens.shape[1] * (pictures.image.shape[2] if pictures.image.ndim == 5 else 1)
        return {"loss": self.language_model.count_tokens(shown, targets, vectors)}

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

    def cut_texts(self) -> dict[str, CutTexts]:
        """See `BaseModel`."""
        words = self.language_model.tokenizer
        return {**super().cut_texts(),
                "prompts were cut (model.max_txt_len, or the language model's positions)": words.cut_prompts,
                "targets were cut (model.max_output_txt_len or max_txt_len, or the positions)": words.cut_targets}

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

    def prefix(self, pictures: Pictures, texts: list[str]) -> tuple[Tensor, dict[str, Any]]:
        """See `Blip2Writer`."""
        found = self.soft_prompt(pictures.image, texts, pictures.rows)
        if pictures.rows is None or self.qformer.cfg.with_text:
            return found, {}
        return found, {"owners": pictures.rows}


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
        own = replace(self.style, prefix_lm=isinstance(language_model, EncoderDecoder))
        self.style = own  # type: ignore[misc]  # of this model: its class does not know the language model


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
