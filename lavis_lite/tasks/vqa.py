"""Visual question answering: answers by generation or by rank, scored by the official VQA accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.protocols import AnswerList, MajorityAnswers, NamedImages, Questions
from lavis_lite.errors import DataError
from lavis_lite.metrics.anls import anls, anls_score
from lavis_lite.metrics.ranking import order, shares
from lavis_lite.metrics.vqa import (
    LEAVES_ONE_OUT,
    Majority,
    Rule,
    Truth,
    accuracies,
    chosen_rule,
    lacking,
    question_scores,
    truth_score,
    vqa_accuracy,
)
from lavis_lite.models.blip2.prompts import question_prompts
from lavis_lite.models.language.answering import PAIRS_AT_ONCE, tried
from lavis_lite.models.protocols import Answerer, Ranker
from lavis_lite.registry import need, registry
from lavis_lite.report.sample import Candidate, ReportSample
from lavis_lite.tasks.base import Row
from lavis_lite.tasks.config import ANSWER_METRICS, Server, Submission, VQARunConfig, answer_row
from lavis_lite.tasks.writing import (
    CONTROLS,
    PICTURES,
    WritingTask,
    caption_scores,
    context_of,
    counted,
    in_prompt,
    pictures_of,
    plain,
)

LEFT_OUT = "left_out"
EMPTY = "empty_answers"
IN_LINE = ("accuracy", "anls", "majority", "agg_metrics", LEFT_OUT, EMPTY)
KEPT = 10
"""candidates of each sample in rows and reports; the answer lists of real data sets have thousands"""
Likeliest = list[list[Any]]
"""[answer, log-likelihood in nats, its share of the probability of all candidates], most likely first; lists, because
rows are saved as JSON"""


@registry.register_task("vqa")
class VQATask(WritingTask[Answerer, Questions]):
    """Trains on samples {image, text_input, text_output}; evaluates a data set of questions (`QAEvalDataset`).

    The prompt is text_input, put into `run.prompt` if that is set. Scores (fractions unless counts):

    - accuracy, accuracy_answer_<type>, accuracy_question_<type>; anls and caption scores if run.vqa_metrics has them;
    - majority, majority_by_question: accuracy of the most frequent training answers, if the training split is here;
    - empty_answers: number of empty answers;
    - left_out: number of questions that A-OKVQA calls too difficult for a direct answer and does not count.

    agg_metrics is the first metric.
    """

    config_class: ClassVar[type[RunConfig]] = VQARunConfig
    needs_model = Answerer
    needs_data = Questions
    servers: ClassVar[tuple[Server, ...]] = ("vqa", "textvqa", "gqa", "vizwiz", "aokvqa")
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    in_line: tuple[str, ...] = IN_LINE
    cfg: VQARunConfig

    def __init__(self, cfg: VQARunConfig) -> None:
        super().__init__(cfg)
        named = self.default_metrics if cfg.vqa_metrics is None else tuple(cfg.vqa_metrics)
        self.metrics = [name for name in named if name in ANSWER_METRICS]
        self.caption_metrics = [name for name in named if name not in ANSWER_METRICS]
        self._first = named[0] if named else ""
        self._captioned: dict[str, float] = {}
        self._answers: list[str] = []
        self._majority: tuple[Any, Majority | None] = (None, None)
        self._rule: tuple[Any, Rule] = (None, "official")

    def training_samples(self, samples: dict[str, Any]) -> dict[str, Any]:
        """Questions in the prompt of the evaluation; the answers are learned after it."""
        return in_prompt(samples, self.prompt_of(samples))

    def prompt_of(self, samples: dict[str, Any]) -> str:
        """The template around the questions of a batch; "": no template."""
        return self.cfg.prompt or ""

    def rule(self, dataset: Questions) -> Rule:
        """How answers of a data set are scored."""
        if self.cfg.vqa_rule != "auto":
            self._rule = dataset, self.cfg.vqa_rule
        elif self._rule[0] is not dataset:
            annotators = (len(dataset.question(index)["answers"]) for index in range(len(dataset)))
            self._rule = dataset, chosen_rule("auto", annotators)
        return self._rule[1]

    def before_evaluation(self, dataset: Questions, split: str) -> None:
        """Refuse a data set without questions, ranking without candidates, and a rule that needs more annotators."""
        super().before_evaluation(dataset, split)
        if dataset.has_answers and "accuracy" in self.metrics:
            self._check_rule(dataset, split)
        self._answers, self._split = [], split
        if self.cfg.inference_method == "rank":
            self._answers = need(dataset, AnswerList, f"split {split!r}: run.inference_method=rank").answer_list
            if not self._answers:
                raise DataError(f"split {split!r}: run.inference_method=rank needs candidates. Set answer_list of the "
                                "data set, or keep its training annotations here.")

    def _check_rule(self, dataset: Questions, split: str) -> None:
        """Refuse a rule if a question lacks what it needs."""
        rule = self.rule(dataset)
        for index in range(len(dataset)):
            asked = dataset.question(index)
            truth, where = truth_of(asked), f"split {split!r}, question_id {asked.get('question_id', index)!r}"
            if len(truth.answers) == 1 and rule in LEAVES_ONE_OUT:
                other = "scienceqa for written options, exact for other answers" if truth.choices else "exact"
                raise DataError(f"{where} has one answer; run.vqa_rule={self.cfg.vqa_rule} leaves one annotator out "
                                f"and would give 0 to every answer. Set run.vqa_rule={other}.")
            if reason := lacking(truth, rule):
                raise DataError(f"{where}, run.vqa_rule={rule}: {reason}.")

    def predict(self, model: Answerer, samples: dict[str, Any]) -> list[Row]:
        """One row per question: {id, index, answer}; ranked ones also have their `likeliest` candidates."""
        if not self.has_samples(samples, "question_id", "index", "text_input"):
            return []
        names, indices = plain(samples["question_id"]), plain(samples["index"])
        # examples in prompts are left to `predict_answers`
        if self.cfg.inference_method == "rank" and isinstance(model, Ranker) and "few_shot_samples" not in samples:
            answers = tried(self._answers, self.cfg.num_ans_candidates)
            found = likeliest_answers(model, samples, answers, self.prompt_of(samples))
            return [{"id": name, "index": index, "answer": best[0][0].strip(), "likeliest": best}
                    for name, index, best in zip(names, indices, found, strict=True)]
        written = model.predict_answers(
            samples, num_beams=self.cfg.num_beams, inference_method=self.cfg.inference_method,
            max_len=self.cfg.max_len, min_len=self.cfg.min_len, num_ans_candidates=self.cfg.num_ans_candidates,
            answer_list=self._answers, prompt=self.prompt_of(samples), **self.options())
        return [{"id": name, "index": index, "answer": answer.strip()}
                for name, index, answer in zip(names, indices, written, strict=True)]

    def asked(self, samples: dict[str, Any]) -> dict[str, Any]:
        """The pictures, and the questions in their prompt."""
        texts = samples["text_input"]
        few_shot = {key: samples[key] for key in ("few_shot_samples",) if key in samples}
        return super().asked(samples) | few_shot | {
            "prompt": question_prompts(samples, self.prompt_of(samples), len(texts))}

    def score(self, model: Answerer, rows: list[Row], dataset: Questions, split: str) -> dict[str, float]:
        """Scores of all ranks' rows."""
        if not self.scores(dataset):
            return self.unscored(rows, dataset.has_answers)
        asked = {row["id"]: dataset.question(row["index"]) for row in rows}
        answers = {row["id"]: row["answer"] for row in rows if not asked[row["id"]].get("difficult")}
        truths = {name: truth_of(asked[name]) for name in answers}
        scores: dict[str, float] = {}
        for metric in self.metrics:
            if metric == "anls":
                scores["anls"] = anls(list(answers.values()), [truth.answers for truth in truths.values()])
            else:
                scores |= accuracies(question_scores(answers, truths, self.rule(dataset)), truths)
        if self.caption_metrics:
            references = {name: truth.answers for name, truth in truths.items()}
            self._captioned = caption_scores(answers, references, self.caption_metrics).scores
            scores |= self._captioned
            self.in_line = (*IN_LINE, *self._captioned)
        if self.cfg.baselines and "accuracy" in scores:
            scores |= self._baselines(dataset, {name: asked[name]["question"] for name in answers}, truths)
        counts = {LEFT_OUT: len(rows) - len(answers), EMPTY: sum(not row["answer"] for row in rows)}
        return (scores | {name: float(count) for name, count in counts.items() if count}
                | ({"agg_metrics": scores[self._first]} if self._first in scores else {}))

    def scores(self, dataset: Questions) -> bool:
        """Whether the run scores the data set."""
        return bool(dataset.has_answers and self.cfg.report_metric and self._first)

    def _baselines(self, dataset: Questions, questions: dict[Any, str], truths: dict[Any, Truth]) -> dict[str, float]:
        if self._majority[0] is not dataset:  # the training answers of a large data set take seconds to count
            pairs = list(dataset.majority_pairs()) if isinstance(dataset, MajorityAnswers) else []
            self._majority = dataset, Majority(pairs) if pairs else None
        majority = self._majority[1]
        if majority is None:
            return {}
        by_question = {name: majority.answer(text) for name, text in questions.items()}
        overall = dict.fromkeys(questions, majority.overall)
        return {name: vqa_accuracy(answers, truths, self.rule(dataset))["accuracy"]
                for name, answers in (("majority", overall), ("majority_by_question", by_question))}

    def predictions(self, rows: list[Row], dataset: Questions) -> list[Row] | Submission:
        """The official results format, question_id and answer; without labels that of `run.submission`."""
        if dataset.has_answers:
            return [{"question_id": row["id"], "answer": row["answer"]} for row in rows]
        if self.server == "aokvqa":
            return self.submitted({str(row["id"]): {"direct_answer": row["answer"]} for row in rows},
                                  f"predictions_{self._split}.json")
        images = need(dataset, NamedImages, "run.submission=vizwiz") if self.server == "vizwiz" else None
        return self.submitted([answer_row(self.server, row["id"], row["answer"],
                                          "" if images is None else images.image_name(row["index"])) for row in rows])

    def report(self, rows: list[Row], dataset: Questions, split: str) -> list[ReportSample]:
        """Question, answer, the annotators' answers and the scores; right: at least half the first score."""
        picture = pictures_of(self.evaluated(dataset))
        samples = []
        for row in rows:
            asked = dataset.question(row["index"])
            counts = self.scores(dataset) and not asked.get("difficult")
            scores = self._scores(row["answer"], asked, self.rule(dataset)) if counts else {}
            samples.append(ReportSample(
                row["id"], row["answer"], asked["question"], counted(asked["answers"]), scores,
                self._is_right(scores) if scores else None, picture(row["index"]),
                self._ranked(row, asked, self.rule(dataset) if counts else None),
                group=asked.get("question_type") or asked.get("answer_type") or "", context=context_of(asked)))
        return samples

    def _ranked(self, row: Row, asked: dict[str, Any], rule: Rule | None) -> list[Candidate]:
        """The ranked candidates, most likely first. Without a rule no candidate is right."""
        return [Candidate(text, value, share, rule is not None and self._is_right(self._scores(text, asked, rule)))
                for text, value, share in row.get("likeliest", ())]

    def _is_right(self, scores: dict[str, float]) -> bool:
        return next(iter(scores.values())) >= 0.5

    def _scores(self, answer: str, asked: dict[str, Any], rule: Rule) -> dict[str, float]:
        """The scores of one question."""
        truth = truth_of(asked)
        scores: dict[str, float] = {}
        for metric in self.metrics:
            scores |= ({"anls": anls_score(answer, truth.answers)} if metric == "anls"
                       else accuracies({0: truth_score(answer, truth, rule)}, {0: truth}))
        return scores

    def line(self, scores: dict[str, float]) -> str:
        """The scores, the majority's, and the numbers of empty answers and of questions left out."""
        plainly = self._rule[1] in ("exact", "thirds", "halves", "scienceqa")  # another score than VQA's own
        names = {"accuracy": "accuracy" if plainly else "VQA accuracy", "anls": "ANLS"}
        names |= {name: name for name in self._captioned if not name.islower()}
        line = ", ".join(f"{shown} {scores[name]:.3f}" for name, shown in names.items() if name in scores)
        line += CONTROLS[self.cfg.control]
        if "majority" in scores:
            line += f" (majority {scores['majority']:.3f}, by question {scores['majority_by_question']:.3f})"
        if EMPTY in scores:
            line += f"; {scores[EMPTY]:.0f} answers were empty"
        if LEFT_OUT in scores:
            line += f"; {scores[LEFT_OUT]:.0f} difficult questions were left out, as A-OKVQA's own evaluation does"
        return line


def truth_of(asked: Row) -> Truth:
    """The answers, types and options of a question."""
    choices = asked.get("candidates") or asked.get("choices", ())
    return Truth(asked["answers"], asked.get("question_type", ""), asked.get("answer_type", ""),
                 asked.get("confidences", ()), choices, asked.get("label"))


def likeliest(answers: Sequence[str], scores: Sequence[float]) -> Likeliest:
    """The first KEPT answers by score; equal ones keep their order."""
    share = shares(scores).tolist()
    return [[answers[index], scores[index], share[index]] for index in order(scores)[:KEPT].tolist()]


def likeliest_answers(model: Ranker, samples: dict[str, Any], answers: Sequence[str], prompt: str) -> list[Likeliest]:
    """One list per question of a batch; its first item is the answer of `predict_answers` by rank.

    Args:
        model: scores candidates one by one.
        samples: image or video, text_input, and other keys of the prompt.
        answers: candidates, the same for all.
        prompt: template around the question; "": no template.
    """
    size = len(samples["text_input"])
    asked: dict[str, Any] = {key: samples[key] for key in PICTURES if key in samples}
    asked["prompt"] = question_prompts(samples, prompt, size)
    segments = max(1, -(-size * len(answers) // PAIRS_AT_ONCE))
    scores = model.score_candidates(asked, list(answers), n_segments=segments).float().tolist()
    return [likeliest(answers, row) for row in scores]
