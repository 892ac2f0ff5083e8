"""Ranking: the answer is the most likely candidate; multiple choice, yes or no, and dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import location_of
from lavis_lite.datasets.protocols import Choices
from lavis_lite.errors import DataError, did_you_mean
from lavis_lite.metrics.ranking import KS, auc, ndcg, order, rank_scores, ranks, shares
from lavis_lite.metrics.vqa import Truth, accuracies
from lavis_lite.models.blip2.prompts import question_prompts
from lavis_lite.models.language.answering import tried
from lavis_lite.models.protocols import Ranker
from lavis_lite.registry import registry
from lavis_lite.report.sample import MISSED, Candidate, ReportSample
from lavis_lite.tasks.base import Row
from lavis_lite.tasks.config import DialogueRunConfig, RankingRunConfig, Server, Submission
from lavis_lite.tasks.writing import CONTROLS, PICTURES, WritingTask, context_of, in_prompt, pictures_of, plain

CONTEXT = ("context", "history", "caption")
"""keys put in front of the question, unless an instruction has them"""
SHOWN = 10
"""candidates of each sample that a report shows"""


@registry.register_task("ranking", "multimodal_classification")
class RankingTask(WritingTask[Ranker, Choices]):
    """Trains on samples {image, text_input, text_output}; evaluates a data set of questions (`QAEvalDataset`).

    Scores (fractions):

    - accuracy of the most likely candidate, overall and by type (accuracy_question_<type>, for example by subject);
    - chance, the accuracy of a random candidate;
    - answerable, the share of samples with their answer in the data set's answer_list, if that gives the candidates;
    - auc with run.positive.
    """

    config_class: ClassVar[type[RunConfig]] = RankingRunConfig
    needs_model = Ranker
    needs_data = Choices
    servers: ClassVar[tuple[Server, ...]] = ("plain", "hatefulmemes", "aokvqa")
    in_line = ("accuracy", "chance", "answerable", "auc", "agg_metrics", "mrr", "r1", "r5", "r10", "mean_rank", "ndcg")
    cfg: RankingRunConfig

    def __init__(self, cfg: RankingRunConfig) -> None:
        super().__init__(cfg)
        self._shared: list[str] | None = cfg.candidates

    def training_samples(self, samples: dict[str, Any]) -> dict[str, Any]:
        """Questions in the prompt of the evaluation; the right answers are learned after it."""
        return in_prompt(samples, self.cfg.prompt)

    def before_evaluation(self, dataset: Choices, split: str) -> None:
        """Find the candidates.

        Raises:
            DataError: there are no questions, or no candidates.
        """
        super().before_evaluation(dataset, split)
        self._shared, self._split = self.cfg.candidates, split
        if self._shared is None and not dataset.multiple_choice:
            whole = getattr(dataset, "whole_list", False)  # of classes
            self._shared = tried(dataset.answer_list, None if whole else self.cfg.num_ans_candidates)
            if len(self._shared) < 2:
                raise DataError(f"split {split!r}: its rows have no candidates to rank. Set run.candidates, or "
                                "answer_list of the data set, or keep its training annotations here.")

    def predict(self, model: Ranker, samples: dict[str, Any]) -> list[Row]:
        """One row per question: {id, index, scores}; scores are the log-likelihoods of its candidates, in order."""
        own = () if self._shared is not None else ("candidates",)
        if not self.has_samples(samples, "question_id", "index", "text_input", *own):
            return []
        names, indices = plain(samples["question_id"]), plain(samples["index"])
        candidates = self._shared if self._shared is not None else samples["candidates"]
        for name, texts in zip(names, candidates, strict=False) if self._shared is None else ():
            if not texts or not all(map(str.strip, texts)):
                lack = "an empty candidate" if texts else "no candidates to choose from"
                raise DataError(f"question_id {name!r} has {lack}; fix its row, or set run.candidates.")
        asked = {key: samples[key] for key in (*PICTURES, *CONTEXT) if key in samples}
        asked["prompt"] = question_prompts(samples, self.cfg.prompt or "", len(names))
        found = model.score_candidates(asked, candidates, n_segments=self.cfg.segments,
                                       normalise=self.cfg.candidate_score).float().tolist()
        counts = [len(self._shared)] * len(names) if self._shared is not None else [len(own) for own in candidates]
        return [{"id": name, "index": index, "scores": scores[:count]}
                for name, index, scores, count in zip(names, indices, found, counts, strict=True)]

    def score(self, model: Ranker, rows: list[Row], dataset: Choices, split: str) -> dict[str, float]:
        """Accuracies of all ranks' rows."""
        if not (dataset.has_answers and self.cfg.report_metric):
            return self.unscored(rows, dataset.has_answers)
        questions = {row["id"]: dataset.question(row["index"]) for row in rows}
        right = {row["id"]: self.right(questions[row["id"]], dataset, row) for row in rows}
        hits = {row["id"]: float(int(order(row["scores"])[0]) in right[row["id"]]) for row in rows}
        scores = accuracies(hits, {name: _types(row) for name, row in questions.items()})
        scores["chance"] = sum(len(right[row["id"]]) / len(row["scores"]) for row in rows) / len(rows)
        if self._shared is not None and self.cfg.candidates is None:
            scores["answerable"] = sum(map(bool, right.values())) / len(rows)
        if self.cfg.positive is not None:
            scores["auc"] = self._auc(rows, questions, right)
        return scores | {"agg_metrics": scores.get("auc", scores["accuracy"])}

    def texts(self, question: Row) -> list[str]:
        """The candidates of a question."""
        if self._shared is not None:
            return self._shared
        own: list[str] = question.get("candidates") or question.get("choices", [])
        return own

    def right(self, question: Row, dataset: Choices, row: Row) -> set[int]:
        """Indices of the right candidates, equal texts included; none if the data set's answer_list lacks the answer.

        Raises:
            DataError: the right answer is not among the row's or the run's candidates.
        """
        if self._shared is None:
            label = question.get("label")
            if label is None or not 0 <= label < len(row["scores"]):
                raise DataError(f"{location_of(dataset, row['index'])}: its right answer (label {label}) is not among "
                                f"its {len(row['scores'])} candidates.")
            own = self.texts(question)
            return {index for index, text in enumerate(own) if text == own[label]}
        answers = set(question["answers"])
        found = {index for index, text in enumerate(self._shared) if text in answers}
        if not found and self.cfg.candidates is not None:
            raise DataError(f"{location_of(dataset, row['index'])}: its answer {sorted(answers)[0]!r} is not in "
                            f"run.candidates {self._shared}; {did_you_mean(sorted(answers)[0], self._shared)}")
        return found

    def _auc(self, rows: Sequence[Row], questions: dict[Any, Row], right: dict[Any, set[int]]) -> float:
        indices = [self.positive_index(questions[row["id"]]) for row in rows]
        return auc([shares(row["scores"])[index] for row, index in zip(rows, indices, strict=True)],
                   [index in right[row["id"]] for row, index in zip(rows, indices, strict=True)])

    def positive_index(self, question: Row) -> int:
        """Index of the positive class among a question's candidates."""
        texts, wanted = self.texts(question), str(self.cfg.positive)
        if wanted not in texts:
            raise DataError(f"run.positive={wanted!r} is not among the candidates of question_id "
                            f"{question.get('question_id')!r}: {did_you_mean(wanted, texts)}")
        return texts.index(wanted)

    def predictions(self, rows: list[Row], dataset: Choices) -> list[Row] | Submission:
        """The most likely candidate as answer and as choice (its index), all scores; proba with run.positive.

        A split without labels has the format of `run.submission`.
        """
        written = [self._choice(row, dataset) for row in rows]
        if dataset.has_answers:
            return written
        if self.server == "aokvqa":
            return self.submitted({str(row["question_id"]): {"multiple_choice": row["answer"]} for row in written},
                                  f"predictions_{self._split}.json")
        if self.server == "hatefulmemes":
            return self.submitted([{"id": row["question_id"], "proba": row["proba"],
                                    "label": int(row["answer"] == self.cfg.positive)} for row in written])
        return self.submitted(written)

    def _choice(self, row: Row, dataset: Choices) -> Row:
        question, best = dataset.question(row["index"]), int(order(row["scores"])[0])
        chosen = {"question_id": row["id"], "answer": self.texts(question)[best], "choice": best,
                  "scores": row["scores"]}
        if self.cfg.positive is None:
            return chosen
        return {**chosen, "proba": float(shares(row["scores"])[self.positive_index(question)])}

    def report(self, rows: list[Row], dataset: Choices, split: str) -> list[ReportSample]:
        """Question, most likely candidate, the candidates by likelihood, and the rank of the right one."""
        picture = pictures_of(self.evaluated(dataset))
        scored = dataset.has_answers and self.cfg.report_metric
        samples = []
        for row in rows:
            asked, best = dataset.question(row["index"]), order(row["scores"]).tolist()
            texts, share = self.texts(asked), shares(row["scores"]).tolist()
            right = self.right(asked, dataset, row) if scored else set()
            rank = next((rank for rank, index in enumerate(best, 1) if index in right), MISSED) if scored else None
            shown = [Candidate(texts[index], row["scores"][index], share[index], index in right)
                     for index in best[:SHOWN]]
            samples.append(ReportSample(
                row["id"], texts[best[0]], asked["question"], asked.get("answers", []),
                {} if rank is None else self.sample_scores(rank, asked), None if rank is None else rank == 1,
                picture(row["index"]), shown, rank, asked.get("question_type", ""), context_of(asked)))
        return samples

    def sample_scores(self, rank: int, question: Row) -> dict[str, float]:
        """The scores of a sample by the rank of its right answer; MISSED: the answer is not a candidate."""
        return accuracies({0: float(rank == 1)}, {0: _types(question)})

    def line(self, scores: dict[str, float]) -> str:
        """Accuracy beside chance."""
        area = f", AUC {scores['auc']:.3f}" if "auc" in scores else ""
        listed = f", {scores['answerable']:.3f} of the answers are listed" if scores.get("answerable", 1) < 1 else ""
        return (f"accuracy {scores['accuracy']:.3f} (chance {scores['chance']:.3f}{listed}){area}"
                f"{CONTROLS[self.cfg.control]}")


def _types(question: Row) -> Truth:
    """The types of a question, which get separate accuracies."""
    return Truth((), question.get("question_type", ""), question.get("answer_type", ""))


@registry.register_task("dialogue")
class DialogueTask(RankingTask):
    """Visual Dialog: ranks the candidates of every round.

    Scores: r1, r5, r10, mrr (fractions), mean_rank; ndcg if rounds have dense annotations (`relevance` of the data
        set); agg_metrics = mrr.
    """

    config_class: ClassVar[type[RunConfig]] = DialogueRunConfig
    servers: ClassVar[tuple[Server, ...]] = ("visdial",)

    def before_evaluation(self, dataset: Choices, split: str) -> None:
        """Refuse questions that are not rounds of dialogues, and dialogues without candidates."""
        if "history" in getattr(dataset, "extras", ()) and not dataset.multiple_choice:
            raise DataError(f"split {split!r}: these dialogues have no candidates to rank. Write the answers: "
                            "run.task=vqa run.vqa_metrics=[cider,bleu,rouge_l].")
        super().before_evaluation(dataset, split)
        if "history" not in dataset.extras:
            raise DataError(f"split {split!r} has questions without a dialogue. Use a data set of the builder "
                            "image_dialogue, such as visdial, or set run.task=ranking.")

    def score(self, model: Ranker, rows: list[Row], dataset: Choices, split: str) -> dict[str, float]:
        """Ranks of the right answers of all ranks' rows."""
        if not (dataset.has_answers and self.cfg.report_metric):
            return self.unscored(rows, dataset.has_answers)
        questions = [dataset.question(row["index"]) for row in rows]
        true_ranks = []
        for row, question in zip(rows, questions, strict=True):
            by_candidate = ranks(row["scores"]).tolist()
            found = [by_candidate[index] for index in self.right(question, dataset, row)]
            true_ranks.append(min(found, default=len(by_candidate)))
        scores = rank_scores(true_ranks)
        dense = [ndcg(row["scores"], question["relevance"])
                 for row, question in zip(rows, questions, strict=True) if any(question.get("relevance", ()))]
        if dense:
            scores["ndcg"] = sum(dense) / len(dense)
        return scores | {"agg_metrics": scores["mrr"]}

    def predictions(self, rows: list[Row], dataset: Choices) -> list[Row] | Submission:
        """The server's format, image_id, round_id and ranks; with labels also the answer and the scores."""
        ranked = [_round(row) | {"ranks": ranks(row["scores"]).tolist()} for row in rows]
        if not dataset.has_answers:
            return self.submitted(ranked)
        return [self._choice(row, dataset) | one for row, one in zip(rows, ranked, strict=True)]

    def right(self, question: Row, dataset: Choices, row: Row) -> set[int]:
        """The labelled candidate alone, as the challenge counts it: an equal text in another place is another one."""
        found = super().right(question, dataset, row)
        return found & {question.get("label")} or found

    def sample_scores(self, rank: int, question: Row) -> dict[str, float]:
        """Reciprocal rank, and whether it is among the first."""
        return {"mrr": 1 / rank if rank != MISSED else 0.0, **{f"r{k}": float(MISSED < rank <= k) for k in KS}}

    def line(self, scores: dict[str, float]) -> str:
        """MRR and R@1, NDCG where it was measured."""
        dense = f", NDCG {scores['ndcg']:.3f}" if "ndcg" in scores else ""
        return (f"MRR {scores['mrr']:.3f}, R@1 {scores['r1']:.3f}, mean rank {scores['mean_rank']:.1f}{dense}"
                f"{CONTROLS[self.cfg.control]}")


def _round(row: Row) -> Row:
    """A round's id "<image>-<round>" in two."""
    image, _, number = str(row["id"]).rpartition("-")
    return {"image_id": int(image) if image.isdecimal() else image, "round_id": int(number)}
