"""Pictures and texts in turns: questions behind solved examples (section 3.4), and captions to train on (section 2.4).

All examples come from the training split, with their pictures.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.datasets.base import BaseDataset, Sample
from lavis_lite.datasets.builders.images import ImageCaptionBuilder, ImageDatasetConfig
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry
from lavis_lite.tasks.vqa import VQATask

OF_QUESTIONS = ("has_answers", "question", "image_name", "picture", "majority_pairs", "location")
"""what tasks and reports ask of the questions themselves"""


@dataclass
class ShotsConfig(ImageQAConfig):
    """Section of a data set of questions with examples in front."""

    shots: int = 4
    """examples in front of a question; in training every answer of a row is learned, those of the examples too"""
    blind_shots: int = 0
    """of these, so many come without their pictures: the paper's zero shots are two examples of text"""


@dataclass
class CaptionShotsConfig(ImageDatasetConfig):
    """Section of a data set of captions that trains on several pictures a row."""

    shots: int = 4
    """pictures with captions in front of each; all captions are learned"""
    prompt: str = ""
    """text between a picture and its caption"""


class ShotsDataset(BaseDataset):
    """Questions as conversations: examples with answers, then the question; training learns every answer.

    Batches: conversation, picture_counts and image float32[N,3,H,W] as those of `ChatDataset`; lists of text_input,
    question_id, index (evaluation) and instance_id.

    Args:
        questions: the data set that is asked.
        examples: the training split.
        shots, blind_shots: as in the section.
        training: draw other examples every time, and end with an answer to learn.
        prompt: for captions, the text in front of each; None: rows are questions.
    """

    def __init__(self, questions: Any, examples: Any, shots: int, blind_shots: int, training: bool,
                 prompt: str | None = None) -> None:
        self.questions, self.examples, self.training, self.prompt = questions, examples, training, prompt
        self.shots, self.blind_shots = shots, blind_shots
        kept = ("text_input", "question_id", "index", "instance_id")
        self.keys = [key for key in questions.sample_keys if key in kept]
        self.sample_keys = ("conversation", "image", *self.keys)
        for name in OF_QUESTIONS:
            if hasattr(questions, name):
                setattr(self, name, getattr(questions, name))

    def __len__(self) -> int:
        return len(self.questions)

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """A question behind its examples; in evaluation a question has the same ones in every run."""
        drawn = rng if self.training and rng is not None else random.Random(index)
        rows = [self.examples.sample(drawn.randrange(len(self.examples)), rng) for _ in range(self.shots)]
        own = self.questions.sample(index, rng, *([] if picture is None else [picture]))
        turns, pictures = [], []
        for number, row in enumerate([*rows, own]):
            shown = () if number < self.blind_shots else (Picture(len(pictures)),)
            pictures += [row["image"]] if shown else []
            asked, answer = self.texts(row)
            turns.append(Turn("user", (*shown, asked)))
            turns += [Turn("assistant", (answer,), self.training)] if answer is not None else []
        talk = Conversation(tuple(turns), len(pictures))
        return {"conversation": talk, "image": pictures, **{key: own[key] for key in self.keys}}

    def texts(self, row: Sample) -> tuple[str, str | None]:
        """What is asked about a picture, and the answer if there is one."""
        if self.prompt is not None:
            return self.prompt, row["text_input"]
        return row["text_input"], row.get("text_output")

    def collater(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of samples; all pictures in the order of the rows."""
        pictures = [torch.as_tensor(picture) for sample in samples for picture in sample["image"]]
        counts = [len(sample["image"]) for sample in samples]
        texts = {key: [sample[key] for sample in samples] for key in ("conversation", *self.keys)}
        return {**texts, "picture_counts": counts, "image": torch.stack(pictures)}


@registry.register_builder("image_qa_shots")
class ShotsBuilder(ImageQABuilder):
    """As `image_qa`, every question behind examples of the training split."""

    config_class = ShotsConfig

    def build(self, split: str, training: bool) -> ShotsDataset | None:
        """The data set of a split; None where there is no such split."""
        asked = super().build(split, training)
        shots, blind = self.cfg.shots, self.cfg.blind_shots
        if not 0 <= blind <= shots:
            raise ConfigError(f"datasets.{self.name}.blind_shots: {blind} is not from 0 to shots: {shots}.")
        return asked and ShotsDataset(asked, super().build("train", True), shots, blind, training)


@registry.register_builder("image_caption_shots")
class CaptionShotsBuilder(ImageCaptionBuilder):
    """As `image_caption`; a row of training is several pictures, each before its caption, in one conversation."""

    config_class = CaptionShotsConfig

    def build(self, split: str, training: bool) -> Any:
        """The data set of a split; None where there is no such split."""
        found = super().build(split, training)
        return ShotsDataset(found, found, self.cfg.shots, 0, True, self.cfg.prompt) if found and training else found


@registry.register_task("few_shot_vqa")
class FewShotTask(VQATask):
    """As `vqa`, for conversations: what a model writes behind the examples and the question is its answer."""

    def training_samples(self, samples: dict[str, Any]) -> dict[str, Any]:
        """The samples as they are: the model's template writes questions."""
        return samples

    def predict(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
        """One row per question: {id, index, answer}; its first line counts."""
        texts = model.generate(samples, num_beams=self.cfg.num_beams, max_new_tokens=self.cfg.max_len, min_new_tokens=1)
        answers = [text.strip().partition("\n")[0].strip() for text in texts]
        rows = zip(samples["question_id"], samples["index"], answers, strict=True)
        return [{"id": name, "index": index, "answer": answer} for name, index, answer in rows]
