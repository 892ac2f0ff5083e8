"""The `run` sections of the package's tasks, and the formats of servers that score predictions. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lavis_lite.config.schema import SCORING_ONLY, RunConfig
from lavis_lite.datasets.controls import Control
from lavis_lite.errors import did_you_mean
from lavis_lite.metrics.vqa import AnswerRule

# --- predictions for a server ----------------------------------------------------------------------------------------
Row = dict[str, Any]
Server = Literal["plain", "vqa", "textvqa", "gqa", "vizwiz", "aokvqa", "hatefulmemes", "visdial", "coco", "nocaps",
                 "llava_bench"]
NAMES: dict[str, str] = {"vqa": "VQA", "textvqa": "TextVQA", "gqa": "GQA", "vizwiz": "VizWiz", "aokvqa": "A-OKVQA",
                         "hatefulmemes": "Hateful Memes", "visdial": "Visual Dialog", "coco": "COCO captions",
                         "nocaps": "NoCaps", "llava_bench": "LLaVA-Bench"}
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_COLUMNS: dict[str, tuple[str, ...]] = {"hatefulmemes": ("id", "proba", "label")}
"""of servers that take a table"""


@dataclass(frozen=True)
class Submission:
    """Predictions for a server.

    Attributes:
        server: defines the format; plain: rows of this package.
        content: rows, one per id; or an object of them by id (A-OKVQA).
        name: the file's name if the server prescribes one; "": the usual name of predictions.
    """

    server: Server
    content: Sequence[Row] | Mapping[str, Any]
    name: str = ""

    @property
    def suffix(self) -> str:
        """Ending of the file's name."""
        return ".csv" if self.server in _COLUMNS else ".jsonl" if self.server == "llava_bench" else ".json"

    def format_hint(self) -> str:
        """The format of the file, as the end of a sentence."""
        if self.server == "plain":
            return "; each row of the file has question_id, answer, choice and scores; no server takes this format"
        return f"; the file has the format of the {NAMES[self.server]} server"

    def text(self) -> str:
        """The file's content."""
        if self.server in _COLUMNS:
            assert not isinstance(self.content, Mapping), self.server
            return _table(self.content, _COLUMNS[self.server])
        if self.server == "llava_bench":
            return "".join(f"{json.dumps(row)}\n" for row in self.content)
        return lines(self.content)


def lines(content: Sequence[Row] | Mapping[str, Any]) -> str:
    """JSON with one row per line."""
    if isinstance(content, Mapping):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in content.items()) + "\n}\n"
    return "[\n" + ",\n".join(json.dumps(row) for row in content) + "\n]\n"


def _table(content: Sequence[Row], columns: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: as_cell(value) for key, value in row.items()} for row in content)
    return file.getvalue()


def as_cell(value: Any) -> Any:
    """A value as a table cell; a text that a spreadsheet would read as a formula gets an apostrophe in front.

    Numbers, and texts that are numbers (`-0.5`), stay unchanged because a server reads them.
    """
    if not isinstance(value, str) or _is_number(value):
        return value
    text = value.replace("\r", " ")  # a carriage return would end the row
    return f"'{text}" if value.lstrip(" ").startswith(FORMULA_STARTS) else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and text == text.strip() and "_" not in text
    except ValueError:
        return False


def answer_row(server: Server, name: Any, answer: str, image: str) -> Row:
    """One answer to a question for the servers of VQA, TextVQA, GQA and VizWiz.

    Args:
        server: one of these four.
        name: the question's id.
        answer: the predicted text.
        image: file name of its picture, by which VizWiz' server identifies questions.
    """
    if server == "gqa":
        return {"questionId": str(name), "prediction": answer}
    if server == "vizwiz":
        return {"image": image.rpartition("/")[2], "answer": answer}
    return {"question_id": name, "answer": answer}


ANSWER_METRICS = ("accuracy", "anls")
CAPTION_METRICS = ("coco", "bleu", "rouge_l", "cider", "meteor", "spice")
"""the keys of metrics.caption_report.SCORES, named here because its tokenizer takes a while to import"""


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
    """also re-rank by ITM on validation splits; test splits are always re-ranked (unless k_test is 0)"""
    valid_recall: bool = True
    """compute retrieval recall besides the losses, if the model has an ITC space"""


@dataclass
class WritingRunConfig(RunConfig):
    """The run section of tasks that predict texts."""

    num_beams: int = 5
    """width of beam search; 1: greedy"""
    max_len: int = 30
    """longest text, in tokens as LAVIS counts them"""
    min_len: int = 1
    """shortest text, in tokens as LAVIS counts them"""
    length_penalty: float | None = None
    """a text's score is its log-probability / length ** length_penalty; null: the model's default"""
    repetition_penalty: float | None = None
    """above 1 makes tokens already written less likely; null: the model's default"""
    penalise_prompt: bool = False
    """repetition_penalty also counts the prompt's tokens (transformers, decoder-only models), not only written ones"""
    prompt: str | None = None
    """the prompt; absent: the sample's own, else the model's"""
    report_metric: bool = field(default=True, metadata=SCORING_ONLY)
    """false: write predictions without scoring them"""
    submission: Server | None = field(default=None, metadata=SCORING_ONLY)
    """the server that defines the format of predictions on a split without labels. Absent: the task's own server (VQA,
    GQA, A-OKVQA, Visual Dialog, COCO captions), plain rows for rankings"""
    report_attention: int = field(default=0, metadata=SCORING_ONLY)
    """so many samples of the report page also show where the model looks for each word of its text"""
    control: Control = "none"
    """evaluate with other samples' images, or with blank ones, to measure the score that needs no image"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Values with which no text can be generated."""
        smallest = {"num_beams": 1, "max_len": 1, "min_len": 0, "report_attention": 0}
        found = [(key, f"must be at least {least}, not {getattr(self, key)}.") for key, least in smallest.items()
                 if getattr(self, key) < least]
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
    """the default of LAVIS' task; null: the model's default, 1"""
    repetition_penalty: float | None = 1.15
    """the default of LAVIS' task; null: the model's default"""
    use_nucleus_sampling: bool = False
    """instead of beam search, sample from the smallest set of tokens that holds top_p of the probability"""
    top_p: float = 0.9
    """with use_nucleus_sampling: share of the probability"""
    temperature: float = 1.0
    """with use_nucleus_sampling: above 1 makes unlikely tokens likelier"""
    annotation_file: str | None = field(default=None, metadata=SCORING_ONLY)
    """COCO captions file or URL: the references of the evaluated splits, in place of the data set's own"""
    img_ids: list[Any] | None = None
    """ids of the only images that count, such as the out-of-domain ones of NoCaps"""
    sample_id_key: str = "image_id"
    """key of the sample that names it, and its name in the file of predictions"""
    caption_key: str = field(default="caption", metadata=SCORING_ONLY)
    """name of the caption in the file of predictions"""
    load_gt_from_file: bool = field(default=False, metadata=SCORING_ONLY)
    """without effect: references always come from the annotations of the split, or from annotation_file"""
    caption_metrics: list[str] | None = field(default=None, metadata=SCORING_ONLY)
    """coco (BLEU, ROUGE-L and CIDEr; the default), bleu, rouge_l, cider; meteor and spice, which need Java; scene:
    attributes of the mini world's objects. []: write captions without scoring them"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Also unknown metrics."""
        return super().task_errors() + _unknown("caption_metrics", self.caption_metrics, (*CAPTION_METRICS, "scene"))


@dataclass
class ChatRunConfig(WritingRunConfig):
    """The run section of conversations."""

    task: str = "chat"
    num_beams: int = 1
    """width of beam search; 1: greedy"""
    max_len: int = 256
    """longest answer, in new tokens with the end"""
    model_id: str | None = field(default=None, metadata=SCORING_ONLY)
    """name of the model in the file of answers; absent: its arch and type"""


@dataclass
class VQARunConfig(WritingRunConfig):
    """The run section of question answering. A `prompt` has `{}` for the question, in training as in evaluation."""

    task: str = "vqa"
    num_beams: int = 3
    """width of beam search; 1: greedy. LAVIS' default"""
    max_len: int = 10
    inference_method: Literal["generate", "rank"] = "generate"
    """rank: choose the most likely answer of the data set's answer_list"""
    num_ans_candidates: int | None = 128
    """with rank: number of answers of the list that are tried; null: all"""
    vqa_rule: AnswerRule = field(default="auto", metadata=SCORING_ONLY)
    """official: the official script, which cleans texts if the annotators differ. normalised: always cleans them.
    textvqa: always, by TextVQA's own rules. vizwiz: the official script on VizWiz' records, which have a confidence and
    no id. scienceqa: the option that a written answer names ("The answer is B."). exact: equal to any answer after
    cleaning. thirds: A-OKVQA's rule. halves: iVQA's rule. auto: official if each question has at least four annotators,
    else exact"""
    vqa_metrics: list[str] | None = None
    """accuracy (by vqa_rule) and anls (similarity to the nearest answer, ST-VQA's and DocVQA's). Answers that are
    sentences (AVSD) may have those of caption_metrics. The first is agg_metrics. Absent: accuracy; also anls for
    vqa_reading_comprehension"""
    baselines: bool = field(default=True, metadata=SCORING_ONLY)
    """report the scores of the most frequent training answer, overall and by question"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Also a prompt without `{}` for the question, and unknown metrics."""
        found = super().task_errors()
        if self.prompt and self.prompt.count("{}") not in (1, 2):
            found.append(("prompt", f"{self.prompt!r} has no {{}} for the question; write, for example, "
                          "'Question: {} Short answer:'."))
        return found + _unknown("vqa_metrics", self.vqa_metrics, (*ANSWER_METRICS, *CAPTION_METRICS))


@dataclass
class RankingRunConfig(WritingRunConfig):
    """The run section of ranking. A `prompt` has `{}` for the question, and a second one for the options."""

    task: str = "ranking"
    candidates: list[str] | None = None
    """answers to choose from, the same for all samples; absent: each sample's own, else the data set's answer_list"""
    num_ans_candidates: int | None = 128
    """number of answers of the data set's answer_list that are tried; null: all"""
    candidate_score: Literal["sum", "mean"] = "sum"
    """a candidate's log-likelihood, or that divided by its tokens"""
    segments: int = 1
    """number of parts in which a batch's candidates are scored, to save memory; it changes no result"""
    positive: str | None = field(default=None, metadata=SCORING_ONLY)
    """two classes: the candidate that counts as positive; adds auc, which becomes agg_metrics"""

    def task_errors(self) -> list[tuple[str, str]]:
        """Also candidates that cannot be ranked."""
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
    """The run section of instruction tuning: the keys of captions, answers and rankings."""

    task: str = "instruction_tuning"
    num_beams: int = 5
    length_penalty: float | None = None
    """null: captions have captioning's default, answers the model's"""
    repetition_penalty: float | None = None
    """null: captions have captioning's default, answers the model's"""
    max_len: int = 10
    """longest answer, in tokens as LAVIS counts them"""
    max_caption_len: int = 30
    """longest caption, in tokens as LAVIS counts them"""
    vqa_rule: AnswerRule = "auto"
    num_ans_candidates: int | None = 128
