"""LAVIS' models over a language model, for subclasses that call their constructors and use their parts.

They are this package's models of these names, with LAVIS' constructors and LAVIS' parts.

    visual_encoder, ln_vision, Qformer, query_tokens, tokenizer
    opt_model, opt_proj, opt_tokenizer      t5_ and llm_ likewise

The package's own classes compute texts, losses and answers. They use the module `Qformer`, however a subclass has
changed it.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_lite.checkpoints.manifest import source_of
from lavis_lite.checkpoints.reading import check_folder
from lavis_lite.checkpoints.weights import WeightFile
from lavis_lite.compat.lavis.base_model import BaseModel
from lavis_lite.compat.lavis.blip2 import Blip2Base
from lavis_lite.compat.lavis.paths import types_of
from lavis_lite.compat.lavis.sections import given_name
from lavis_lite.models.base import freeze
from lavis_lite.models.blip2 import llm as core
from lavis_lite.models.language import LanguageModel, Limits, build_language_model
from lavis_lite.models.language.build import load_pretrained
from lavis_lite.models.plain_text import CutTexts
from lavis_lite.models.qformer.model import QFormer

RENAMED = {"img_size": "image_size"}
"""parameters of a constructor that are called otherwise in a section"""


class LavisBlip2LLM(Blip2Base, core.Blip2LLM):
    """What the four classes below share; see the module's docstring."""

    part: ClassVar[str] = "llm"
    """what LAVIS calls the language model: opt | t5 | llm"""

    def _build(self, vit_model: str, img_size: int, drop_path_rate: float, use_grad_checkpoint: Any,
               vit_precision: str, freeze_vit: bool, num_query_token: int, prompt: str, max_txt_len: int,
               apply_lemmatizer: bool, max_output_txt_len: int | None = None, qformer_text_input: bool = False,
               num_few_shot_examples: int = 0, few_shot_prob: float = 0.0, **language_model: str) -> None:
        """All parts, by the values of a LAVIS constructor."""
        BaseModel.__init__(self)
        self.tokenizer: Any = self.init_tokenizer(truncation_side="left")
        self.add_encoder(vit_model, img_size, drop_path_rate, use_grad_checkpoint, vit_precision, freeze_vit)
        self.qformer_text_input = qformer_text_input
        self.Qformer, self.query_tokens = self.init_Qformer(
            num_query_token, self.visual_encoder.num_features)  # type: ignore[arg-type]
        self.Qformer.cls = None
        if qformer_text_input:
            self.Qformer.resize_token_embeddings(len(self.tokenizer))
        else:
            drop_text_half(self.Qformer)
        self._add_language_model(language_model[f"{self.part}_model"], max_txt_len, max_output_txt_len)
        width = self.Qformer.config.hidden_size
        setattr(self, f"{self.part}_proj", nn.Linear(width, self.language_model.hidden_size))
        self.prompt, self.max_txt_len, self.max_output_txt_len = prompt, max_txt_len, max_output_txt_len
        ids = getattr(self, f"{self.part}_tokenizer")(prompt, return_tensors="pt").attention_mask
        self.prompt_length = int(ids.sum())
        self.num_few_shot_examples, self.few_shot_prob = num_few_shot_examples, few_shot_prob
        self.apply_lemmatizer = apply_lemmatizer
        if self.part == "opt":
            self.eos_token_id = self.language_model.tokenizer.end

    def _add_language_model(self, name: str, max_txt_len: int, max_output_txt_len: int | None) -> None:
        joint = max_txt_len if self.defaults.joint_limit else None
        limits = Limits(max_txt_len, max_output_txt_len or max_txt_len, joint, self.defaults.prompt_side)
        path = str(WeightFile("llm_model", name).fetch())
        is_llama = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
        family = self.defaults.family if is_llama else None  # Vicuna's facts are those of a LLaMA
        language_model = build_language_model(path, family=family, limits=limits)
        check_folder(path, "model.llm_model")
        load_pretrained(language_model, path, source_of("language model", given_name(name), path))
        self.__dict__["wrapped_language_model"] = language_model  # its module is a child under LAVIS' name
        setattr(self, f"{self.part}_model", freeze(language_model.model))
        setattr(self, f"{self.part}_tokenizer", language_model.tokenizer.loaded)

    @classmethod
    def from_config(cls, cfg: Any) -> Any:
        """Build from a section: each parameter of the constructor is the key of its name; then load its checkpoint."""
        keys = {name: RENAMED.get(name, name) for name in inspect.signature(cls.__init__).parameters}
        model = cls(**{name: cfg[key] for name, key in keys.items() if key in cfg})
        model.load_checkpoint_from_config(cfg)
        return model

    # what the package's class goes through ----------------------------------------------------------------------------
    @property
    def language_model(self) -> LanguageModel:  # type: ignore[override]
        """The module `opt_model`, `t5_model` or `llm_model`, as this package calls it."""
        wrapped: LanguageModel = self.__dict__["wrapped_language_model"]
        wrapped.model = self._modules[f"{self.part}_model"]  # a subclass may have put another one there
        return wrapped

    @property
    def language_projection(self) -> nn.Module:  # type: ignore[override]
        """The module `opt_proj`, `t5_proj` or `llm_proj`."""
        return getattr(self, f"{self.part}_proj")

    @property
    def qformer(self) -> QFormer:  # type: ignore[override]
        """Only what is asked of it: whether it reads texts."""
        return SimpleNamespace(cfg=SimpleNamespace(with_text=self.qformer_text_input))  # type: ignore[return-value]

    def query_output(self, image: Tensor, texts: list[str] | None = None, index: Tensor | None = None) -> Tensor:
        """The Q-Former's answer before the projection: float[B,Q,D'], or float[B,T*Q,D'] of T frames.

        Args:
            image: float[B,3,H,W] or float[B,3,T,H,W]; with `index` U images in place of B.
            texts: B strings that the Q-Former reads along, where it reads.
            index: int64[B], the image of each text; None: its own.
        """
        frames = image.shape[2] if image.ndim == 5 else 1
        if image.ndim == 5:
            image = image.transpose(1, 2).flatten(0, 1)
        with self.maybe_autocast():
            features: Tensor = self.ln_vision(self.visual_encoder(image))
        inputs: dict[str, Any] = {}
        if self.qformer_text_input:
            if index is not None:
                steps = torch.arange(frames, device=index.device)
                features = features.index_select(0, (index[:, None] * frames + steps).flatten())
            inputs = self._reading(texts or [], frames)
        queries = self.query_tokens.expand(len(features), -1, -1)
        mask = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
        found = self.Qformer.bert(query_embeds=queries, encoder_hidden_states=features, encoder_attention_mask=mask,
                                  return_dict=True, **inputs).last_hidden_state[:, :queries.shape[1]]
        return found.reshape(len(features) // frames, -1, found.shape[-1])

    def _reading(self, texts: list[str], frames: int) -> dict[str, Tensor]:
        """What `Qformer.bert` is given of the instructions, each once per frame."""
        tokens = self.tokenizer(texts, padding="longest", truncation=True, max_length=self.max_txt_len,
                                return_tensors="pt").to(self.device)
        ids, text_mask = (tokens[key].repeat_interleave(frames, 0) for key in ("input_ids", "attention_mask"))
        queries = text_mask.new_ones(len(ids), self.query_tokens.shape[1])
        return {"input_ids": ids, "attention_mask": torch.cat([queries, text_mask], 1)}

    def cut_texts(self) -> dict[str, CutTexts]:
        """Prompts and targets that were longer than their limits."""
        words = self.language_model.tokenizer
        return {"prompts were cut (max_txt_len)": words.cut_prompts, "targets were cut": words.cut_targets}

    # what subclasses call ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def predict_answers(self, samples: dict[str, Any], *args: Any,  # type: ignore[override]
                        **kwargs: Any) -> list[str]:
        """Short answers; through the subclass's `generate`, if it has its own."""
        if _is_core(type(self).generate):
            return super().predict_answers(samples, *args, **kwargs)
        bound = inspect.signature(core.Blip2LLM.predict_answers).bind(self, samples, *args, **kwargs).arguments
        questions, prompt = samples["text_input"], bound.get("prompt") or "{}"
        questions = [questions] if isinstance(questions, str) else questions
        prompts = [prompt.format(question) if prompt.count("{}") == 1 else question for question in questions]
        penalty = bound.get("length_penalty")
        texts = self.generate({**samples, "prompt": prompts}, num_beams=bound.get("num_beams", 5),
                              max_length=bound.get("max_len", 10), min_length=bound.get("min_len", 1),
                              **({} if penalty is None else {"length_penalty": penalty}))
        lemmatise = self.apply_lemmatizer or samples.get("apply_lemmatizer", False)
        return self._lemmatize(texts) if lemmatise else texts

    def concat_text_input_output(self, input_ids: Tensor, input_atts: Tensor, output_ids: Tensor,
                                 output_atts: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Right-padded prompts int64[B,L] and targets int64[B,T], joined without padding between.

        Returns:
            {"input_ids", "attention_mask"} int64[B,L+T-1], the targets' first token (bos) left out; and the number of
            prompt tokens of each row.
        """
        lengths = [mask.sum() for mask in input_atts]

        def joined(prompts: Tensor, targets: Tensor) -> Tensor:
            return torch.stack([torch.cat([prompt[:length], target[1:], prompt[length:]])
                                for prompt, target, length in zip(prompts, targets, lengths, strict=True)])

        return {"input_ids": joined(input_ids, output_ids),
                "attention_mask": joined(input_atts, output_atts)}, lengths


def _is_core(method: Any) -> bool:
    return str(method.__module__).startswith("lavis_lite.")


def drop_text_half(qformer: Any) -> None:
    """Take the text half out of a Q-Former, as LAVIS does where no text is read."""
    qformer.bert.embeddings.word_embeddings = qformer.bert.embeddings.position_embeddings = None
    for layer in qformer.bert.encoder.layer:
        layer.output = layer.intermediate = None


def constructor(**settings: Any) -> Any:
    """A constructor of LAVIS: its parameters in LAVIS' order, with LAVIS' defaults."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([own, *(own.replace(name=name, default=value) for name, value in settings.items())])

    def __init__(self: LavisBlip2LLM, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        self._build(**{name: value for name, value in bound.arguments.items() if name != "self"})

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


VISION = {"vit_model": "eva_clip_g", "img_size": 224, "drop_path_rate": 0, "use_grad_checkpoint": False,
          "vit_precision": "fp16", "freeze_vit": True, "num_query_token": 32}
T5 = {**VISION, "t5_model": "google/flan-t5-xl", "prompt": ""}
LONG = {"max_txt_len": 128, "max_output_txt_len": 256, "apply_lemmatizer": False}


class Blip2OPT(LavisBlip2LLM, core.Blip2OPT):
    """Stage 2 over OPT."""

    part, PRETRAINED_MODEL_CONFIG_DICT = "opt", types_of("blip2_opt")
    __init__ = constructor(**VISION, opt_model="facebook/opt-2.7b", prompt="", max_txt_len=32, apply_lemmatizer=False)


class Blip2T5(LavisBlip2LLM, core.Blip2T5):
    """Stage 2 over FlanT5."""

    part, PRETRAINED_MODEL_CONFIG_DICT = "t5", types_of("blip2_t5")
    __init__ = constructor(**T5, max_txt_len=32, apply_lemmatizer=False)


class Blip2T5Instruct(LavisBlip2LLM, core.Blip2T5Instruct):
    """InstructBLIP over FlanT5."""

    part, PRETRAINED_MODEL_CONFIG_DICT = "t5", types_of("blip2_t5_instruct")
    __init__ = constructor(**T5, **LONG, num_few_shot_examples=0, few_shot_prob=0, qformer_text_input=True)


class Blip2VicunaInstruct(LavisBlip2LLM, core.Blip2VicunaInstruct):
    """InstructBLIP over Vicuna."""

    PRETRAINED_MODEL_CONFIG_DICT = types_of("blip2_vicuna_instruct")
    __init__ = constructor(**VISION, llm_model="", prompt="", **LONG, qformer_text_input=True)
