"""The `run` sections of the tasks in this package: keys, defaults, and what is wrong with values. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lavis_lite.config.schema import SCORING_ONLY, RunConfig
from lavis_lite.datasets.controls import Control
from lavis_lite.errors import did_you_mean
from lavis_lite.metrics.answer_rules import AnswerRule
from lavis_lite.tasks.submission import Server

ANSWER_METRICS = ("accuracy", "anls")


def _unknown(key: str, names: Iterable[str] | None, known: Sequence[str]) -> list[tuple[str, str]]:
    return [(key, f"no metric {name!r}; {did_you_mean(name, known)}") for name in names or () if name not in known]

@dataclass
class RetrievalRunConfig(RunConfig):
    """The run section of tasks that search images by text and texts by image."""

    task: str = "retrieval"
    k_test: int = 128
    """candidates per query that ITM re-ranks; clipped to the gallery's size; 0: ITC only"""
    captions_per_image: int | None = None
    """captions of each image that make up the gallery: the first n; absent: all"""
    pair_batch_size: int = 256
    """(image, caption) pairs per pass of the ITM head in evaluation"""


@dataclass
class PretrainRunConfig(RetrievalRunConfig):
    """The run section of pre-training."""

    task: str = "image_text_pretrain"
    valid_itm: bool = False
    """re-rank by ITM also on splits that are only validated on; test splits always are (unless k_test is 0)"""
    valid_recall: bool = True
    """compute retrieval recall besides the losses, where the model has an ITC space"""


@dataclass
class WritingRunConfig(RunConfig):
    """The run section of tasks whose predictions are texts."""

    num_beams: int = 5
    """width of beam search; 1: greedy"""
    max_len: int = 30
    """of a text, tokens as LAVIS counts them"""
    min_len: int = 1
    length_penalty: float | None = None
    """a text's score is its log-probability / length ** length_penalty; null: the model's default"""
    repetition_penalty: float | None = None
    """above 1 makes tokens already written less likely; null: the model's default"""
    penalise_prompt: bool = False
    """repetition_penalty also counts the prompt's tokens (transformers, decoder-only models), not only written ones"""
    prompt: str | None = None
    """what the model reads; absent: the sample's own prompt, else the model's"""
    report_metric: bool = field(default=True, metadata=SCORING_ONLY)
    """false: predictions are written and not scored"""
    submission: Server | None = field(default=None, metadata=SCORING_ONLY)
    """whose format predictions have where a split has no labels; absent: the task's own server (VQA, GQA, A-OKVQA,
    Visual Dialog, COCO captions), plain rows for rankings"""
    control: Control = "none"
    """evaluate with other samples' images, or with blank ones: what is left of the score does not come from seeing"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Values that no text could be written with."""
        found = [(key, f"must be at least {least}, not {getattr(self, key)}.")
                 for key, least in (("num_beams", 1), ("max_len", 1), ("min_len", 0)) if getattr(self, key) < least]
        if self.min_len > self.max_len >= 1:
            found.append(("min_len", f"{self.min_len} is above run.max_len={self.max_len}."))
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            found.append(("repetition_penalty", f"must be above 0, not {self.repetition_penalty}."))
        return found


@dataclass
class CaptioningRunConfig(WritingRunConfig):
    """The run section of captioning."""

    task: str = "captioning"
    length_penalty: float | None = 0.0
    """LAVIS' task says 0 where the YAML is silent; null: the model's default, 1"""
    repetition_penalty: float | None = 1.15
    """LAVIS' task says 1.15 where the YAML is silent; null: the model's default"""
    use_nucleus_sampling: bool = False
    """sample from the smallest set of tokens that holds top_p of the mass, in place of beam search"""
    top_p: float = 0.9
    temperature: float = 1.0
    caption_metrics: list[str] | None = field(default=None, metadata=SCORING_ONLY)
    """coco (BLEU, ROUGE-L and CIDEr; the default), bleu, rouge_l, cider; meteor and spice, which need Java; scene:
    attributes of the mini world's objects. []: captions are written and not scored"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Unknown metrics too."""
        if not self.caption_metrics:
            return super().task_errors()
        from lavis_lite.metrics.caption_report import SCORES  # its tokenizer takes a while to import

        return super().task_errors() + _unknown("caption_metrics", self.caption_metrics, (*SCORES, "scene"))


@dataclass
class VQARunConfig(WritingRunConfig):
    """The run section of question answering. A `prompt` has `{}` for the question, in training as in evaluation."""

    task: str = "vqa"
    num_beams: int = 3
    """width of beam search; 1: greedy. LAVIS' default"""
    max_len: int = 10
    inference_method: Literal["generate", "rank"] = "generate"
    """rank: the likeliest of the data set's answer_list"""
    num_ans_candidates: int | None = 128
    """rank: only so many of the list are tried; null: all"""
    vqa_rule: AnswerRule = field(default="auto", metadata=SCORING_ONLY)
    """official: texts are cleaned where the annotators differ, as in the official script; normalised: always; textvqa:
    always, as TextVQA's own evaluator does; vizwiz: the official script on VizWiz' records, which have a confidence and
    no id; scienceqa: the option that a written answer names ("The answer is B."); exact: equal to any answer after
    cleaning; thirds: A-OKVQA's; halves: iVQA's; auto: official if the questions have at least four annotators each,
    else exact"""
    vqa_metrics: list[str] | None = None
    """accuracy (by vqa_rule) and anls (similarity to the nearest answer, ST-VQA's and DocVQA's); the first is
    agg_metrics. Absent: accuracy; both for vqa_reading_comprehension"""
    baselines: bool = field(default=True, metadata=SCORING_ONLY)
    """report what the commonest training answer would score, overall and by question"""

    def task_errors(self) -> list[tuple[str, str]]:
        """A prompt without a place for the question, and unknown metrics, too."""
        found = super().task_errors()
        if self.prompt and self.prompt.count("{}") not in (1, 2):
            found.append(("prompt", f"{self.prompt!r} has no place for the question; write, for example, "
                          "'Question: {} Short answer:'."))
        return found + _unknown("vqa_metrics", self.vqa_metrics, ANSWER_METRICS)


@dataclass
class RankingRunConfig(WritingRunConfig):
    """The run section of ranking. A `prompt` has `{}` for the question, and a second one for the options."""

    task: str = "ranking"
    candidates: list[str] | None = None
    """answers to choose among, the same for all samples; absent: each sample's own, else the data set's answer_list"""
    num_ans_candidates: int | None = 128
    """only so many of the data set's answer_list are tried; null: all"""
    candidate_score: Literal["sum", "mean"] = "sum"
    """a candidate's log-likelihood, or that divided by its tokens"""
    segments: int = 1
    """a batch's candidates are scored in so many parts, to save memory; no result depends on it"""
    positive: str | None = field(default=None, metadata=SCORING_ONLY)
    """two classes: the candidate that counts as positive; adds auc, which becomes agg_metrics"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Candidates that cannot be ranked too."""
        found, given = super().task_errors(), self.candidates
        if given is not None and (len(given) < 2 or len(set(given)) < len(given) or not all(given)):
            found.append(("candidates", f"must be at least two different texts, not {given}."))
        elif given is not None and self.positive is not None and self.positive not in given:
            found.append(("positive", f"{self.positive!r} is not one of run.candidates; "
                          f"{did_you_mean(self.positive, given)}"))
        if self.submission == "hatefulmemes" and self.positive is None:
            found.append(("submission", "hatefulmemes needs run.positive, the candidate that means hateful."))
        return found


@dataclass
class DialogueRunConfig(RankingRunConfig):
    """The run section of dialogues about images."""

    task: str = "dialogue"


@dataclass
class GQARunConfig(VQARunConfig):
    """The run section of GQA."""

    task: str = "gqa"
    vqa_rule: AnswerRule = "exact"


@dataclass
class ReadingRunConfig(VQARunConfig):
    """The run section of questions about text in pictures."""

    task: str = "vqa_reading_comprehension"


@dataclass
class VideoQARunConfig(VQARunConfig):
    """The run section of questions about videos."""

    task: str = "video_qa"
    vqa_rule: AnswerRule = "exact"
    num_ans_candidates: int | None = None


@dataclass
class AOKVQARunConfig(VQARunConfig, RankingRunConfig):
    """The run section of A-OKVQA, direct answers and multiple choice."""

    task: str = "aok_vqa"
    vqa_rule: AnswerRule = "thirds"
    num_ans_candidates: int | None = 128


@dataclass
class InstructionTuningRunConfig(CaptioningRunConfig, VQARunConfig, RankingRunConfig):
    """The run section of instruction tuning: that of captions, answers and rankings together."""

    task: str = "instruction_tuning"
    num_beams: int = 5
    length_penalty: float | None = None
    """null: captions have captioning's default, answers the model's"""
    repetition_penalty: float | None = None
    """null: captions have captioning's default, answers the model's"""
    max_len: int = 10
    """of an answer, tokens as LAVIS counts them"""
    max_caption_len: int = 30
    """of a caption"""
    vqa_rule: AnswerRule = "auto"
    num_ans_candidates: int | None = 128
