"""Any encoder, any connector, any language model: image -> features -> vectors in a text -> text.

LLaVA, MiniGPT-4 and mPLUG-Owl are settings of this class. A picture stands before the prompt, or where the prompt has
the mark `<image>`; in a conversation it stands where the template puts it.

Axes: B samples, N pictures of a batch, P features, n vectors of a picture. Widths: Dv of the encoder, D of the language
model.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_lite import distributed
from lavis_lite.conversation import Conversation, Picture, Text
from lavis_lite.errors import ConfigError, ContractError, DataError
from lavis_lite.models.base import freeze, known_options
from lavis_lite.models.blip2.base import EncoderModel, ImageBatch, build_encoder, frame_index, merged_frames
from lavis_lite.models.blip2.llm import NEW_ADAPTERS, NOT_FOR_GENERATION, TextLearner, language_model_of_section
from lavis_lite.models.connectors.base import Connector, build_connector
from lavis_lite.models.language import GenerationConfig, LanguageModel
from lavis_lite.models.language.answering import prompt_rows
from lavis_lite.models.language.rows import Segment, Vectors, insert_pictures
from lavis_lite.models.outputs import Blip2Features, ModelOutput, SamplesLike
from lavis_lite.models.vision_language.config import VisionLanguageConfig
from lavis_lite.processors.chat_templates import apply_template
from lavis_lite.registry import registry

MARK = "<image>"
"""where a prompt wants its picture"""
NEW_PARTS = (r"vision_encoder\..*\.lora_[AB]\..*", *NEW_ADAPTERS)
NEW_PROJECTION = (r"connector\.language_projection\..*",)


@dataclass(frozen=True)
class ChatBatch(ImageBatch):
    """B conversations and all their pictures.

    Attributes:
        image: float[N,3,H,W], in the order of the rows; N may be 0.
        parts: of each conversation, texts and pictures in order.
        counts: pictures of each.
    """

    parts: Sequence[Sequence[Text | Picture]] = ()
    counts: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def frames(self) -> int:
        """Most pictures of one conversation."""
        return max(self.counts, default=0)


@registry.register_model("vision_language")
class VisionLanguage(TextLearner, EncoderModel):
    """Encoder, connector and language model, each named in the section.

    Args:
        vision_encoder: image float[N,3,H,W] -> float[N,P,Dv].
        connector: float[N,P,Dv] -> float[N,n,D].
        language_model: frozen, with adapters, or trained as a whole.
        freeze_vit: keep the encoder constant and in eval mode.
        template: how conversations are written.
    """

    config_class: ClassVar[type[VisionLanguageConfig]] = VisionLanguageConfig

    def __init__(self, vision_encoder: nn.Module, connector: Connector, language_model: LanguageModel, *,
                 freeze_vit: bool = True, template: Any = "vicuna_v1") -> None:
        super().__init__(vision_encoder, freeze_vit)
        self.connector, self.language_model, self.template, self.prompt = connector, language_model, template, ""
        self.follow_language_model()

    # the figure -----------------------------------------------------------------------------------------------------
    def forward(self, samples: SamplesLike) -> ModelOutput:
        """The language-model loss of B samples.

        Args:
            samples: as `TextLearner.forward` takes them. Or conversation, B of them: their learned turns count. Then
                picture_counts has B numbers, and image float[N,3,H,W] the pictures of all rows in order.
        """
        if "conversation" not in samples:
            return super().forward(samples)
        batch = self.chat_batch(samples)
        nothing = 0.0 if len(batch.image) else self._nothing()  # first: ranks that share blocks run them in one order
        sequences = self.sequences(batch)
        return self.weighed(self.language_model.loss(sequences) + nothing, sequences, samples)

    def _nothing(self) -> Tensor:
        """0, with a gradient of zeros for encoder and connector, which the other ranks wait for."""
        if distributed.has_shards(self.vision_encoder):  # the other ranks wait for its blocks too
            encoder: Any = self.vision_encoder
            picture = encoder.example_input(1, self.device)
            return self.embed_image(picture, [""]).sum() * 0.0
        trained = [value for part in (self.vision_encoder, self.connector) for value in part.parameters()
                   if value.requires_grad]
        zero = torch.zeros((), device=self.device)
        return torch.stack([value.flatten()[:1].sum() * 0.0 for value in trained]).sum() if trained else zero

    @property
    def tokens_per_image(self) -> int:
        """Vectors that an image, or a frame, has in a text."""
        return self.connector.tokens

    def embed_image(self, image: Tensor, texts: list[str] | None = None, index: Tensor | None = None) -> Tensor:
        """The vectors of each image: float[B,n,D], or float[B,T*n,D] of videos with T frames.

        Args:
            image: float[B,3,H,W], or float[B,3,T,H,W]; U of them if there is an index.
            texts: B instructions; needed if the connector reads them.
            index: int64[B], the image of each text, for such a connector.
        """
        count = len(image)
        image, frames = merged_frames(image)                                 # float[B*T,3,H,W]
        features, mask = self.encode_image(image), None                      # float[B*T,P,Dv]
        if getattr(self.vision_encoder, "pads", False):
            mask = ~features[..., 0].isnan()
            features = features.masked_fill(~mask[..., None], 0.0)
        if self.reads_instructions:
            if index is not None:
                count, rows = len(index), frame_index(index, frames)
                features, mask = features[rows], None if mask is None else mask[rows]
            texts = [text for text in texts or () for _ in range(frames)] if texts is not None else None
        vectors = self.connector(features, mask, texts)                      # float[B*T,n,D]
        expected = (len(features), self.connector.tokens, self.connector.width)
        if tuple(vectors.shape) != expected:
            raise ContractError(f"the connector {type(self.connector).__name__} must return vectors of shape "
                                f"{expected}, images x its `tokens` x its `width`, not {tuple(vectors.shape)}.")
        return vectors.reshape(count, -1, vectors.shape[-1])

    @property
    def feature_type(self) -> tuple[int, torch.dtype]:
        """Dv, and the connector's type."""
        return self.connector.feature_width, next(self.connector.parameters()).dtype

    @property
    def reads_instructions(self) -> bool:  # type: ignore[override]  # of this model, not of its class
        """Whether the connector reads the instruction too."""
        return self.connector.reads_instructions

    def soft_prompt_length(self, images: ImageBatch) -> int:
        """Vectors of such images, known before any is made."""
        return self.tokens_per_image * images.frames

    # conversations --------------------------------------------------------------------------------------------------
    def chat_batch(self, samples: SamplesLike, answering: bool = False) -> ChatBatch:
        """Conversations as the template writes them. Raises DataError if the numbers of pictures do not go together."""
        given: dict[str, Any] = dict(samples)
        talks: list[Conversation] = given["conversation"]
        tokenizer = self.language_model.tokenizer.loaded
        parts = [apply_template(talk, self.template, tokenizer, answering) for talk in talks]
        counts = list(given.get("picture_counts", [talk.pictures for talk in talks]))
        image = given.get("image")
        image = torch.empty(0, 3, 1, 1, device=self.device) if image is None else image
        if len(counts) != len(talks) or sum(counts) != len(image):
            raise DataError(f"{len(talks)} conversations came with picture_counts {counts}, and {len(image)} pictures; "
                            "the counts must be one for each conversation and add up to the pictures.")
        return ChatBatch(image, None, parts, counts)

    def sequences(self, batch: ChatBatch) -> list[list[Segment]]:
        """Conversations as the language model reads them, every picture encoded once."""
        none = torch.empty(0, self.tokens_per_image, self.connector.width, device=self.device)
        vectors = self.embed_image(batch.image, _instructions(batch)) if len(batch.image) else none
        return self._placed(batch, vectors)

    def _placed(self, batch: ChatBatch, vectors: Tensor) -> list[list[Segment]]:
        rows = vectors.split(list(batch.counts)) if batch.counts else ()
        return [insert_pictures(parts, list(own)) for parts, own in zip(batch.parts, rows, strict=True)]

    # marks in prompts -----------------------------------------------------------------------------------------------
    def marked(self, soft_prompts: Tensor, prompts: Sequence[str], index: Tensor | None = None,
               targets: Sequence[str] | None = None) -> list[list[Segment]] | None:
        """Sequences of prompts that say where their picture stands; None if no prompt does.

        Args:
            soft_prompts: float[U,n,D], the vectors of each image.
            prompts: B strings.
            index: int64[B], the image of each prompt; None: prompt b goes with image b.
            targets: B strings that are learned after the prompts.

        Raises:
            DataError: a prompt has several marks.
        """
        if not any(MARK in prompt for prompt in prompts):
            return None
        images = range(len(prompts)) if index is None else index.tolist()
        rows = []
        for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            if prompt.count(MARK) > 1:
                raise DataError(f"row {row}: its prompt has {prompt.count(MARK)} marks {MARK}, and it has one picture; "
                                "several pictures of a row go into a conversation.")
            before, _, after = prompt.rpartition(MARK)
            learned = [] if targets is None else [Text(targets[row], learned=True)]
            pieces: list[Segment] = [Text(before), Vectors(soft_prompts[image]), Text(after), *learned]
            rows.append([piece for piece in pieces if not (isinstance(piece, Text) and not piece.text)])
        return rows

    def written_after(self, vectors: Tensor, prompt: str, text: str) -> list[Segment]:
        """As `TextWriter.written_after`; the picture stands at its mark or in front."""
        rows = self.marked(vectors[None], [prompt], targets=[text])
        return super().written_after(vectors, prompt, text) if rows is None else rows[0]

    def text_loss(self, soft_prompt: Tensor, prompts: list[str], targets: list[str]) -> Tensor:
        """The loss float[] of targets after prompts; a picture, float[B,n,D], stands at its mark or in front."""
        rows = self.marked(soft_prompt, prompts, targets=targets)
        return super().text_loss(soft_prompt, prompts, targets) if rows is None else self.language_model.loss(rows)

    def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
        """Learned tokens of a batch; see `TextLearner.loss_terms`."""
        if "conversation" not in samples:
            return super().loss_terms(samples)
        if self.language_model.lm_reduction == "per_rank":
            return {}
        batch = self.chat_batch(samples)
        return {"loss": self.language_model.count_tokens(self._placed(batch, self._blank(len(batch.image))))}

    def count_terms(self, prompts: list[str], targets: list[str], images: ImageBatch) -> int:
        """Learned tokens of targets after prompts."""
        rows = self.marked(self._blank(len(images), images.frames), prompts, targets=targets)
        return super().count_terms(prompts, targets, images) if rows is None else self.language_model.count_tokens(rows)

    def _blank(self, count: int, frames: int = 1) -> Tensor:
        """What stands for the vectors of so many pictures where only lengths matter; it takes no memory."""
        return torch.zeros(()).expand(count, self.tokens_per_image * frames, self.connector.width)

    # answers --------------------------------------------------------------------------------------------------------
    def answer_prompts(self, samples: SamplesLike) -> tuple[ImageBatch, list[str], list[str]]:
        """As `TextWriter.answer_prompts`; of conversations, their batch and no texts."""
        if "conversation" not in samples:
            return super().answer_prompts(samples)
        batch = self.chat_batch(samples, answering=True)
        return batch, [""] * len(batch), [""] * len(batch)

    def answers(self, images: ImageBatch, instructions: list[str], prompts: list[str],
                options: GenerationConfig) -> list[str]:
        """Texts after prompts or conversations."""
        if isinstance(images, ChatBatch):
            return self.language_model.generate(self.sequences(images), options)
        if not any(MARK in prompt for prompt in prompts):
            return super().answers(images, instructions, prompts, options)
        soft_prompts, index = self.soft_prompts(images, instructions)
        return self.language_model.generate(self.marked(soft_prompts, prompts, index) or [], options)

    def check_room(self, images: ImageBatch, prompts: list[str], options: GenerationConfig) -> None:
        """As `TextWriter.check_room`, of conversations too."""
        if isinstance(images, ChatBatch):
            prompt_rows(self.language_model, self._placed(images, self._blank(len(images.image))), options)
        else:
            super().check_room(images, prompts, options)

    def candidate_scores(self, images: ImageBatch, instructions: list[str], prompts: list[str], candidates: Any,
                         **how: Any) -> Tensor:
        """Likelihoods float[B,C] of candidates after prompts."""
        if not any(MARK in prompt for prompt in prompts):
            return super().candidate_scores(images, instructions, prompts, candidates, **how)
        soft_prompts, index = self.soft_prompts(images, instructions)
        return self.language_model.score(self.marked(soft_prompts, prompts, index) or [], candidates, **how)

    def measured(self, prompts: Sequence[str]) -> list[str]:
        """Prompts without marks, which are not text."""
        return [prompt.replace(MARK, "") for prompt in prompts]

    @known_options
    @torch.no_grad()
    def extract_features(self, samples: SamplesLike, mode: str = "image") -> Blip2Features:
        """Vectors of images, float[B,n,D], as the language model reads them; mode must be image."""
        if mode != "image":
            raise ConfigError(f"extract_features: {type(self).__name__} has features of images only (mode image), not "
                              f"{mode!r}.")
        images, instructions, _ = TextLearner.answer_prompts(self, samples)
        return Blip2Features(image_embeds=self.soft_prompts(images, instructions)[0])

    # construction ---------------------------------------------------------------------------------------------------
    @classmethod
    def from_config(cls, cfg: Any) -> VisionLanguage:
        """Build from a section. All weights are random: `lavis_lite.checkpoints.weights.build_model` loads them."""
        encoder = build_encoder(cfg)
        language_model = language_model_of_section(cfg, cls.defaults)
        features = getattr(encoder, "num_tokens", None if encoder.pads else encoder.input_shape[0])
        connector = build_connector(cfg.connector, features, encoder.width, language_model.hidden_size)
        if not cfg.connector_train:
            freeze(connector)
        model = cls(encoder, connector, language_model, freeze_vit=cfg.encoder_is_frozen, template=cfg.template)
        model.set_up_texts(cfg)
        model.lr_scales = {**model.lr_scales, "connector.": cfg.connector_lr_scale}
        return model

    def allowed_differences(self, given: Set[str]) -> tuple[Sequence[str], Sequence[str]]:
        """A checkpoint of an earlier stage has no adapters yet; one of BLIP-2's stage 1 has no projection either."""
        adapters = () if any(".lora_" in name for name in given) else NEW_PARTS
        is_stage1 = any(name.startswith("itm_head.") for name in given)
        unread = (*NOT_FOR_GENERATION, *self._behind_features())
        return ((*NEW_PROJECTION, *adapters) if is_stage1 else adapters), unread

    def _behind_features(self) -> list[str]:
        """Names (regular expressions) of a whole ViT's parts that come after the features."""
        first, total = (getattr(self.vision_encoder, key, 0) for key in ("num_layers", "total_layers"))
        unread = [rf"vision_encoder\.vit\.blocks\.{number}\..*" for number in range(first, total)]
        return [*unread, r"vision_encoder\.vit\.norm\..*"] if unread else []


def _instructions(batch: ChatBatch) -> list[str]:
    """Per picture, what is read between it and the next answer: what an instruction-aware connector reads."""
    found = []
    for parts in batch.parts:
        for number, part in enumerate(parts):
            if isinstance(part, Picture):
                texts: list[str] = []
                for piece in parts[number + 1:]:
                    if isinstance(piece, Text) and piece.learned:
                        break
                    texts += [piece.text] if isinstance(piece, Text) else []
                found.append(" ".join(texts).strip())
    return found
