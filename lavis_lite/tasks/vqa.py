"""Visual question answering: answers by generation or by rank, scored by the official VQA accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.metrics.vqa import Majority, Rule, Truth, accuracies, answer_score, question_scores, vqa_accuracy
from lavis_lite.models.prompts import question_prompts
from lavis_lite.registry import registry
from lavis_lite.report.sample import Candidate, ReportSample
from lavis_lite.tasks.base import BaseTask, Row
from lavis_lite.tasks.likelihood import likeliest_answers, tells_likelihoods
from lavis_lite.tasks.reporting import context_of, counted, pictures_of
from lavis_lite.tasks.writing import CONTROLS, WritingRunConfig, WritingTask, plain

AnswerRule = Literal["official", "normalised", "exact", "thirds", "halves", "auto"]
Submission = Literal["vqa", "gqa", "vizwiz", "aokvqa"]
SERVERS = {"vqa": "VQA", "gqa": "GQA", "vizwiz": "VizWiz", "aokvqa": "A-OKVQA"}


@dataclass
class VQARunConfig(WritingRunConfig):
    """The run section of question answering. A `prompt` has `{}` for the question, in training as in evaluation."""

    task: str = "vqa"
    max_len: int = 10
    inference_method: Literal["generate", "rank"] = "generate"
    """rank: the likeliest of the data set's answer_list"""
    num_ans_candidates: int | None = 128
    """rank: only so many of the list are tried; null: all"""
    vqa_rule: AnswerRule = "official"
    """official: texts are cleaned where the annotators differ, as in the official script; normalised: always; exact:
    equal after cleaning, for data sets with one answer per question; thirds: A-OKVQA's; halves: iVQA's; auto: exact
    where a data set has one answer per question, else official"""
    submission: Submission = "vqa"
    """whose format predictions have where a split has no answers"""
    baselines: bool = True
    """report what the commonest training answer would score, overall and by question"""


@registry.register_task("vqa")
class VQATask(WritingTask):
    """Trains on samples {image, text_input, text_output}; evaluates a data set of questions (`QAEvalDataset`).

    The prompt that is read is text_input, put into `run.prompt` where that is set. Scores (fractions): accuracy,
    accuracy_answer_<type>, accuracy_question_<type>; majority and majority_by_question, answers without looking, from
    the training split where it is here; agg_metrics = accuracy.
    """

    config_class: ClassVar[type[RunConfig]] = VQARunConfig
    cfg: VQARunConfig

    def __init__(self, cfg: VQARunConfig) -> None:
        super().__init__(cfg)
        if cfg.prompt and cfg.prompt.count("{}") not in (1, 2):
            raise ConfigError(f"run.prompt={cfg.prompt!r}: the question needs a place, for example "
                              "'Question: {} Short answer:'.")
        self._answers: list[str] = []
        self._server = ""
        self._majority: tuple[Any, Majority | None] = (None, None)

    def train_step(self, model: Any, samples: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss on (prompt, answer), with the prompt of the evaluation."""
        prompt = self.prompt_of(samples)
        if prompt:
            prompts = question_prompts(samples, prompt, len(samples["text_input"]))
            samples = {**samples, "text_input": prompts}
        return BaseTask.train_step(self, model, samples)

    def prompt_of(self, samples: dict[str, Any]) -> str:
        """The template around the questions of a batch; "": they are read as they are."""
        return self.cfg.prompt or ""

    def rule(self, dataset: Any) -> Rule:
        """How answers of a data set are scored."""
        if self.cfg.vqa_rule == "auto":
            return "exact" if len(dataset.question(0)["answers"]) < 2 else "official"
        return self.cfg.vqa_rule

    def takes(self, dataset: Any) -> bool:
        """Whether it lists questions."""
        return hasattr(dataset, "question")

    def before_evaluation(self, dataset: Any, split: str) -> None:
        """Refuse a data set without questions, ranking without candidates, and a rule that needs more annotators."""
        if not self.takes(dataset):
            raise DataError(f"split {split!r} has no questions ({type(dataset).__name__}); take a data set of the "
                            "builder image_qa, such as mini_world_vqa.")
        if dataset.has_answers and self.rule(dataset) != "exact" and len(dataset.question(0)["answers"]) < 2:
            raise DataError(f"split {split!r} has one answer per question; run.vqa_rule={self.cfg.vqa_rule} leaves one "
                            "annotator out and would give 0 to every answer. Set run.vqa_rule=exact.")
        self._answers = []
        if self.cfg.inference_method == "rank":
            self._answers = dataset.answer_list
            if not self._answers:
                raise DataError(f"split {split!r}: run.inference_method=rank needs candidates. Set answer_list of the "
                                "data set, or keep its training annotations here.")

    def predict(self, model: Any, samples: dict[str, Any]) -> list[Row]:
        """One row per question: {id, index, answer}; ranked ones also have their `likeliest` candidates."""
        if "index" not in samples:  # every image of the batch was bad
            return []
        if not hasattr(model, "predict_answers"):
            raise ConfigError(f"{type(model).__name__} does not answer questions; take an arch such as blip2_opt.")
        names, places = plain(samples["question_id"]), plain(samples["index"])
        if self.cfg.inference_method == "rank" and tells_likelihoods(model, samples):
            tried = self._answers[:self.cfg.num_ans_candidates]
            found = likeliest_answers(model, samples, tried, self.prompt_of(samples))
            return [{"id": name, "index": place, "answer": best[0][0].strip(), "likeliest": best}
                    for name, place, best in zip(names, places, found, strict=True)]
        answers = model.predict_answers(
            samples, num_beams=self.cfg.num_beams, inference_method=self.cfg.inference_method,
            max_len=self.cfg.max_len, min_len=self.cfg.min_len, num_ans_candidates=self.cfg.num_ans_candidates,
            answer_list=self._answers, prompt=self.prompt_of(samples), **self.options())
        return [{"id": name, "index": place, "answer": answer.strip()}
                for name, place, answer in zip(names, places, answers, strict=True)]

    def score(self, model: Any, rows: list[Row], dataset: Any, split: str) -> dict[str, float]:
        """Accuracies of all ranks' rows."""
        if not (dataset.has_answers and self.cfg.report_metric):
            return self.unscored(rows)
        rule = self.rule(dataset)
        questions = {row["id"]: dataset.question(row["index"]) for row in rows}
        truths = {name: Truth(row["answers"], row.get("question_type", ""), row.get("answer_type", ""))
                  for name, row in questions.items()}
        per_question = question_scores({row["id"]: row["answer"] for row in rows}, truths, rule)
        scores = accuracies(per_question, truths)
        if self.cfg.baselines:
            scores |= self._baselines(dataset, {name: row["question"] for name, row in questions.items()}, truths)
        return scores | {"agg_metrics": scores["accuracy"]}

    def _baselines(self, dataset: Any, questions: dict[Any, str], truths: dict[Any, Truth]) -> dict[str, float]:
        if self._majority[0] is not dataset:  # the training answers of a large data set take seconds to count
            pairs = list(dataset.majority_pairs())
            self._majority = dataset, Majority(pairs) if pairs else None
        majority = self._majority[1]
        if majority is None:
            return {}
        by_question = {name: majority.answer(text) for name, text in questions.items()}
        overall = dict.fromkeys(questions, majority.overall)
        return {name: vqa_accuracy(answers, truths, self.rule(dataset))["accuracy"]
                for name, answers in (("majority", overall), ("majority_by_question", by_question))}

    def predictions(self, rows: list[Row], dataset: Any) -> list[Row]:
        """The official results format, question_id and answer; without labels that of `run.submission`."""
        self._server = ""
        if not dataset.has_answers:
            self._server = f"; the file has the format of the {SERVERS[self.cfg.submission]} server"
            return [_submitted(row, self.cfg.submission, dataset) for row in rows]
        return [{"question_id": row["id"], "answer": row["answer"]} for row in rows]

    def report(self, rows: list[Row], dataset: Any, split: str) -> list[ReportSample]:
        """Question, answer, the annotators' answers and the accuracy; right: at least half the score."""
        picture = pictures_of(self.evaluated(dataset))
        scored = dataset.has_answers and self.cfg.report_metric
        samples = []
        for row in rows:
            asked = dataset.question(row["index"])
            scores = self._scores(row["answer"], asked, self.rule(dataset)) if scored else {}
            samples.append(ReportSample(
                row["id"], row["answer"], asked["question"], counted(asked["answers"]), scores,
                scores["accuracy"] >= 0.5 if scores else None, picture(row["index"]),
                self._ranked(row, asked, self.rule(dataset) if scored else None),
                group=asked.get("question_type") or asked.get("answer_type") or "", context=context_of(asked)))
        return samples

    @classmethod
    def _ranked(cls, row: Row, asked: dict[str, Any], rule: Rule | None) -> list[Candidate]:
        """What was ranked, likeliest first; right where it would be right as the answer. No rule: no answers."""
        return [Candidate(text, value, share, rule is not None and cls._scores(text, asked, rule)["accuracy"] >= 0.5)
                for text, value, share in row.get("likeliest", ())]

    @staticmethod
    def _scores(answer: str, asked: dict[str, Any], rule: Rule) -> dict[str, float]:
        """One question's part in every accuracy it counts for."""
        truth = Truth(asked["answers"], asked.get("question_type", ""), asked.get("answer_type", ""))
        return accuracies({0: answer_score(answer, truth.answers, rule)}, {0: truth})

    def summary(self, scores: dict[str, float]) -> str:
        """Accuracy beside the majority."""
        if "accuracy" not in scores:
            return super().summary(scores) + self._server
        plainly = self.cfg.vqa_rule in ("exact", "thirds", "halves")  # another score than VQA's own
        line = f"{'' if plainly else 'VQA '}accuracy {scores['accuracy']:.3f}{CONTROLS[self.cfg.control]}"
        if "majority" not in scores:
            return line
        return f"{line} (majority {scores['majority']:.3f}, by question {scores['majority_by_question']:.3f})"


def _submitted(row: Row, submission: Submission, dataset: Any) -> Row:
    """A row as a benchmark's server takes it."""
    name, answer = row["id"], row["answer"]
    if submission == "gqa":
        return {"questionId": str(name), "prediction": answer}
    if submission == "vizwiz":
        return {"image": dataset.image_name(row["index"]).rpartition("/")[2], "answer": answer}
    return {"question_id": name, "direct_answer" if submission == "aokvqa" else "answer": answer}
