"""Ranking, dialogues, A-OKVQA, reading, videos and instruction tuning on a model that scores as it is told."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_lite.errors import ConfigError, ContractError, DataError
from lavis_lite.evaluation.evaluator import gathered
from lavis_lite.registry import registry
from lavis_lite.tasks.base import BaseTask
from lavis_lite.tasks.by_dataset import InstructionTuningTask

OPTIONS = [["red", "blue"], ["cat", "dog", "cow"], ["yes", "no"]]


class Scorer(torch.nn.Module):
    """Likes candidates by a dictionary, answers by a list; keeps what it was asked."""

    def __init__(self, likes: dict[str, float], answers: list[str] | None = None) -> None:
        super().__init__()
        self.likes, self.answers, self.asked = likes, answers or [], []

    def score_candidates(self, samples: dict[str, Any], candidates: Any, **options: Any) -> torch.Tensor:
        self.asked.append((samples, candidates, options))
        lists = [candidates] * len(samples["image"]) if isinstance(candidates[0], str) else candidates
        most = max(map(len, lists))
        return torch.tensor([[self.likes.get(text, -9.0) for text in texts] + [float("-inf")] * (most - len(texts))
                             for texts in lists])

    def predict_answers(self, samples: dict[str, Any], **options: Any) -> list[str]:
        self.asked.append((samples, None, options))
        return [self.answers[index] for index in samples["index"].tolist()]


class Split:
    """Three questions in memory; with `own`, each has its own candidates."""

    extras: tuple[str, ...] = ("choices",)

    def __init__(self, own: bool = True, answered: bool = True, answers: list[list[str]] | None = None) -> None:
        self.multiple_choice, self.has_answers = own, answered
        self.labels = [1, 0, 0]
        self.answers = answers or [["blue"], ["cat"], ["yes"]]
        self.answer_list = ["yes", "red", "blue"]
        self.difficult: set[int] = set()

    def __len__(self) -> int:
        return len(self.answers)

    def question(self, index: int) -> dict[str, Any]:
        row = {"question": f"q{index}", "question_id": 10 + index, "choices": OPTIONS[index],
               "question_type": ("color", "animal", "animal")[index], "answers": self.answers[index],
               "difficult": index in self.difficult}
        return {**row, "label": self.labels[index]} if self.multiple_choice and self.has_answers else row

    def location(self, index: int) -> str:
        return f"file.json:{index + 1}"

    def image_name(self, index: int) -> str:
        return f"val/picture{index}.jpg"

    def majority_pairs(self) -> list[tuple[str, str]]:
        return []

    def batch(self) -> dict[str, Any]:
        samples = {"image": torch.zeros(3, 3, 2, 2), "index": torch.arange(3), "text_input": ["a?", "b?", "c?"],
                   "question_id": torch.tensor([10, 11, 12]), "choices": OPTIONS}
        return {**samples, "candidates": OPTIONS} if self.multiple_choice else samples


def make(name: str, **keys: Any) -> BaseTask:
    cls = registry.get_task_class(name)
    return cls(cls.config_class(task=name, **keys))


def evaluate(task: Any, split: Any, model: Any) -> tuple[dict[str, float], list[dict]]:
    task = task.part_for(split)
    task.before_evaluation(split, "val")
    rows = gathered(task.predict(model, split.batch()))
    predictions = task.predictions(rows, split)
    return task.score(model, rows, split, "val"), predictions


def test_multiple_choice_takes_the_likeliest_and_reports_by_subject() -> None:
    task, model = make("ranking", prompt="Q: {} O: {} A:", segments=2), Scorer({"blue": -1, "dog": -1, "yes": -1})
    scores, predictions = evaluate(task, Split(), model)
    assert scores == pytest.approx({"accuracy": 2 / 3, "accuracy_question_color": 1, "accuracy_question_animal": 0.5,
                                    "chance": (0.5 + 1 / 3 + 0.5) / 3, "agg_metrics": 2 / 3})
    assert predictions[1] == {"question_id": 11, "answer": "dog", "choice": 1, "scores": [-9, -1, -9]}
    assert len(predictions[0]["scores"]) == 2  # what pads a shorter list is left out
    samples, candidates, options = model.asked[0]
    assert samples["prompt"][0] == "Q: a? O: (a) red (b) blue A:" and "text_input" not in samples
    assert candidates == OPTIONS and options == {"n_segments": 2, "normalise": "sum"}
    assert task.summary(scores) == "accuracy 0.667 (chance 0.444)"
    shown = task.report(gathered(task.predict(model, Split().batch())), Split(), "val")
    assert [(one.rank, one.right, one.scores["accuracy"]) for one in shown] == [
        (1, True, 1), (2, False, 0), (1, True, 1)]
    assert shown[1].scores == {"accuracy": 0, "accuracy_question_animal": 0}  # for the intervals of `compare`
    assert [one.text for one in shown[1].candidates] == ["dog", "cat", "cow"] and shown[1].candidates[1].right
    assert sum(one.share for one in shown[0].candidates) == pytest.approx(1)


def test_scores_that_a_subclass_adds_are_told() -> None:
    scores = {"accuracy": 0.5, "accuracy_question_art": 0.5, "chance": 0.25, "agg_metrics": 0.5, "ece": 0.125}
    assert make("ranking").summary(scores) == "accuracy 0.500 (chance 0.250), ece 0.125"
    assert make("vqa").summary({"accuracy": 0.5, "accuracy_answer_yes": 1.0, "agg_metrics": 0.5, "mine": 2.0}).endswith(
        "accuracy 0.500, mine 2")


def test_an_option_that_is_there_twice_is_right_in_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The label is 1, and the first of equally likely candidates is chosen."""
    monkeypatch.setattr(f"{__name__}.OPTIONS", [["blue", "blue", "red"], *OPTIONS[1:]])
    scores, _ = evaluate(make("ranking"), Split(), Scorer({"blue": -1.0, "cat": -1.0, "yes": -1.0}))
    assert scores["accuracy"] == 1.0 and scores["chance"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)


def test_history_and_context_stand_in_front_where_no_instruction_holds_them() -> None:
    task, model, split = make("ranking"), Scorer({}), Split()
    task.before_evaluation(split, "val")
    task.predict(model, {**split.batch(), "context": ["c"] * 3, "history": ["h"] * 3})
    asked = model.asked[0][0]
    assert (asked["context"], asked["history"], asked["prompt"]) == (["c"] * 3, ["h"] * 3, ["a?", "b?", "c?"])


def test_the_model_is_told_which_questions_share_a_picture() -> None:
    model, rows = Scorer({}, ["a", "b", "c"]), torch.tensor([0, 1, 0])
    batch = {**Split().batch(), "image": torch.zeros(2, 3, 2, 2), "image_rows": rows}
    for name in ("ranking", "vqa"):
        task = make(name, vqa_rule="exact") if name == "vqa" else make(name)
        task.before_evaluation(Split(), "val")
        assert [row["id"] for row in task.predict(model, batch)] == [10, 11, 12]
    assert [torch.equal(asked[0]["image_rows"], rows) for asked in model.asked] == [True, True]


def test_shared_candidates_come_from_the_run_or_from_the_answer_list() -> None:
    model = Scorer({"red": -3, "blue": -1, "yes": -2})
    scores, predictions = evaluate(make("multimodal_classification"), Split(own=False), model)
    assert [row["answer"] for row in predictions] == ["blue"] * 3
    assert scores["accuracy"] == pytest.approx(1 / 3) and scores["answerable"] == pytest.approx(2 / 3)
    assert "0.667 of the answers are listed" in make("ranking").summary(scores)
    assert evaluate(make("ranking", num_ans_candidates=2), Split(own=False), model)[1][0]["answer"] == "yes"
    with pytest.raises(DataError, match=r"file.json:2: its answer 'cat' is not in run.candidates"):
        evaluate(make("ranking", candidates=["blue", "yes"]), Split(own=False), model)


def test_two_classes_have_an_area_under_the_curve() -> None:
    split = Split(own=False, answers=[["yes"], ["no"], ["yes"]])
    task = make("ranking", candidates=["no", "yes"], positive="yes")
    scores, predictions = evaluate(task, split, Scorer({"yes": -1.0, "no": -1.0}))
    assert scores["auc"] == scores["agg_metrics"] == 0.5 and predictions[0]["proba"] == pytest.approx(0.5)
    assert "AUC 0.500" in task.summary(scores)


def test_faults_of_candidates() -> None:
    lost = Split()
    lost.labels = [1, 0, 2]
    with pytest.raises(DataError, match=r"file.json:3: its right answer \(label 2\) is not among its 2 candidates"):
        evaluate(make("ranking"), lost, Scorer({}))
    bare = Split(own=False)
    bare.answer_list = []
    with pytest.raises(DataError, match=r"its rows have no candidates to rank"):
        make("ranking").before_evaluation(bare, "val")
    task = make("ranking")
    task.before_evaluation(Split(), "val")
    with pytest.raises(DataError, match="question_id 11 has no candidates"):
        task.predict(Scorer({}), {**Split().batch(), "candidates": [["a"], [], ["b"]]})
    with pytest.raises(DataError, match="question_id 11 has an empty candidate"):
        task.predict(Scorer({}), {**Split().batch(), "candidates": [["a"], ["c", ""], ["b"]]})
    with pytest.raises(DataError, match="cannot evaluate SimpleNamespace, which lacks the protocol Choices .no "):
        make("ranking").before_evaluation(SimpleNamespace(), "val")
    with pytest.raises(ConfigError, match="cannot evaluate Linear, which has no score_candidates"):
        task.check_model(torch.nn.Linear(1, 1))
    with pytest.raises(DataError, match="run.positive='maybe' is not among the candidates"):
        evaluate(make("ranking", positive="maybe"), Split(), Scorer({}))


@pytest.mark.parametrize(("keys", "words"), [
    ({"candidates": ["yes"]}, "at least two different texts"),
    ({"candidates": ["yes", "no"], "positive": "yse"}, "did you mean 'yes'"),
    ({"submission": "hatefulmemes"}, "submission: hatefulmemes needs run.positive"),
    ({"submission": "hatefulmems"}, "did you mean 'hatefulmemes'"),
])
def test_impossible_settings(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make("ranking", **keys)


# dialogues ------------------------------------------------------------------------------------------------------------
class Rounds(Split):
    """The same as rounds of a dialogue, one of them with dense annotations."""

    extras = ("history", "caption")

    def question(self, index: int) -> dict[str, Any]:
        row = super().question(index) | {"candidates": OPTIONS[index]}
        return {**row, "relevance": [0.0, 0.5, 1.0]} if index == 1 else row

    def batch(self) -> dict[str, Any]:
        return {**super().batch(), "question_id": ["7-1", "7-2", "x9-1"]}


def test_questions_that_are_no_rounds_are_refused_before_anything_is_predicted() -> None:
    with pytest.raises(DataError, match="questions without a dialogue"):
        make("dialogue").before_evaluation(Split(), "val")


def test_dialogues_are_scored_by_the_rank_of_the_right_answer() -> None:
    model = Scorer({"blue": -1, "dog": -1, "cow": -2, "yes": -1})
    scores, predictions = evaluate(make("dialogue"), Rounds(), model)
    gain = (0.5 + 1.0 / 1.5849625) / (1.0 + 0.5 / 1.5849625)
    assert scores == pytest.approx({"r1": 2 / 3, "r5": 1, "r10": 1, "mean_rank": 5 / 3, "mrr": (1 + 1 + 1 / 3) / 3,
                                    "ndcg": gain, "agg_metrics": (1 + 1 + 1 / 3) / 3})
    assert predictions[1]["ranks"] == [3, 1, 2] and predictions[1]["answer"] == "dog"
    assert predictions[2]["image_id"] == "x9"
    task = make("dialogue")
    task.before_evaluation(Rounds(), "val")
    shown = task.report(gathered(task.predict(model, Rounds().batch())), Rounds(), "val")
    assert sum(one.scores["mrr"] for one in shown) / 3 == pytest.approx(scores["mrr"])
    assert make("dialogue").summary(scores).startswith("MRR 0.778, R@1 0.667, mean rank 1.7, NDCG")


def test_dialogues_without_labels_are_written_for_the_server() -> None:
    task = make("dialogue")
    scores, predictions = evaluate(task, Rounds(answered=False), Scorer({"blue": -1}))
    assert predictions.content[0] == {"image_id": 7, "round_id": 1, "ranks": [2, 1]}
    assert scores == {"predictions": 3.0} and task.summary(scores).endswith("format of the Visual Dialog server")


# answers with a benchmark's own rules ---------------------------------------------------------------------------------
def test_gqa_is_exact_after_the_official_cleaning() -> None:
    scores, _ = evaluate(make("gqa"), Split(own=False), Scorer({}, ["Blue.", "dog", "the yes"]))
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_a_okvqa_goes_by_the_data_set() -> None:
    direct = Split(own=False, answers=[["blue"] * 2 + ["red"] * 8, ["cat"] * 10, ["yes"] * 10])
    scores, _ = evaluate(make("aok_vqa"), direct, Scorer({}, ["blue", "Cat", "yes"]))
    assert scores["accuracy"] == pytest.approx((2 / 3 + 0 + 1) / 3)  # as written: the benchmark cleans nothing
    scores, predictions = evaluate(make("aok_vqa"), Split(), Scorer({"blue": -1, "cat": -1, "no": -1}))
    assert scores["accuracy"] == pytest.approx(2 / 3) and predictions[2]["choice"] == 1


def test_videos_of_several_annotators_count_halves() -> None:
    split = Split(own=False, answers=[["blue", "navy", "red"], ["cat"] * 5, ["yes"] * 5])
    scores, _ = evaluate(make("video_qa", vqa_rule="halves"), split, Scorer({}, ["Blue", "dog", "yes"]))
    assert scores["accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "keys", "row"), [
    ("vqa", {}, {"question_id": 10, "answer": "a"}), ("gqa", {}, {"questionId": "10", "prediction": "a"}),
    ("vqa", {"submission": "vizwiz"}, {"image": "picture0.jpg", "answer": "a"}),
    ("vqa_reading_comprehension", {}, {"question_id": 10, "answer": "a"}),
])
def test_splits_without_answers_are_written_for_their_server(name: str, keys: dict, row: dict) -> None:
    task, split = make(name, **keys), Split(own=False, answered=False)
    split.extras = ("ocr_tokens",)
    scores, predictions = evaluate(task, split, Scorer({}, ["a", "b", "c"]))
    assert predictions.content[0] == row and scores == {"predictions": 3.0} and predictions.suffix == ".json"
    assert task.summary(scores).startswith("3 predictions written, not scored (the split has no labels); the file has")
    assert task.summary(scores).endswith(" server")


def test_a_okvqas_file_has_both_kinds_of_answers() -> None:
    task, model = make("aok_vqa"), Scorer({"blue": -1}, ["a", "b", "c"])
    assert evaluate(task, Split(own=False, answered=False), model)[1].content["10"] == {"direct_answer": "a"}
    _, predictions = evaluate(task, Split(answered=False), model)
    assert predictions.content["10"] == {"direct_answer": "a", "multiple_choice": "blue"}
    assert predictions.name == "predictions_val.json"
    assert json.loads(predictions.text())["12"] == {"direct_answer": "c", "multiple_choice": "yes"}


def test_questions_too_difficult_for_a_direct_answer_do_not_count() -> None:
    split = Split(own=False, answers=[["blue"] * 10, ["cat"] * 10, ["yes"] * 10])
    split.difficult = {1}
    task, model = make("aok_vqa").part_for(split), Scorer({}, ["blue", "dog", "yes"])
    scores, predictions = evaluate(task, split, model)
    assert scores["accuracy"] == 1 and scores["left_out"] == 1 and len(predictions) == 3
    assert task.summary(scores).endswith("; 1 difficult questions were left out, as A-OKVQA's own evaluation does")
    shown = task.report(gathered(task.predict(model, split.batch())), split, "val")
    assert [one.right for one in shown] == [True, None, True] and shown[1].scores == {}


def test_hateful_memes_go_to_the_server_as_a_table() -> None:
    keys = {"candidates": ["no", "yes"], "positive": "yes", "submission": "hatefulmemes"}
    task = make("multimodal_classification", **keys)
    scores, predictions = evaluate(task, Split(own=False, answered=False), Scorer({"yes": 0.0, "no": 0.0}))
    assert predictions.text() == "id,proba,label\n10,0.5,0\n11,0.5,0\n12,0.5,0\n"
    assert task.summary(scores).endswith("format of the Hateful Memes server")


def test_options_without_labels_are_written_plainly() -> None:
    task = make("ranking")
    scores, predictions = evaluate(task, Split(answered=False), Scorer({"blue": -1}))
    assert predictions.content[0] == {"question_id": 10, "answer": "blue", "choice": 1, "scores": [-9, -1]}
    assert "no server takes this format" in task.summary(scores)


def test_reading_puts_tokens_into_the_prompt() -> None:
    split = Split(own=False, answers=[["blue"] * 10, ["cat"] * 10, ["yes"] * 10])
    with pytest.raises(DataError, match="has no OCR tokens"):
        make("vqa_reading_comprehension").before_evaluation(split, "val")
    split.extras = ("ocr_tokens",)
    task, model = make("vqa_reading_comprehension"), Scorer({}, ["blue"] * 3)
    task.before_evaluation(split, "val")
    task.predict(model, {**split.batch(), "ocr_tokens": [["STOP"]] * 3})
    task.predict(model, split.batch())  # the instruction holds them
    assert model.asked[0][2]["prompt"] == "OCR tokens: {}. Question: {} Short answer:"
    assert model.asked[1][2]["prompt"] == ""


# instruction tuning ---------------------------------------------------------------------------------------------------
def test_instruction_tuning_evaluates_every_set_as_what_it_is() -> None:
    task = make("instruction_tuning", caption_metrics=["scene"], max_caption_len=44)
    single, many = Split(own=False), Split(own=False, answers=[["blue"] * 10, ["cat"] * 10, ["yes"] * 10])
    model = Scorer({"blue": -1, "cat": -1, "yes": -1}, ["blue", "dog", "yes"])
    assert evaluate(task, Split(), model)[0]["accuracy"] == 1.0
    assert evaluate(task, Rounds(), model)[0]["mrr"] == 1.0
    assert evaluate(task, single, model)[0]["accuracy"] == evaluate(task, many, model)[0]["accuracy"]
    assert model.asked[-1][2]["max_len"] == 10
    images = SimpleNamespace(captions=[["small red star top"]], has_text=True, references=list)
    part = task.part_for(images)
    part.before_evaluation(images, "val")
    model.generate = lambda samples, **options: [f"red star {options['max_length']}"]
    batch = {"image": torch.zeros(1, 3, 2, 2), "index": torch.tensor([0]), "image_id": torch.tensor([5])}
    assert part.predict(model, batch) == [{"id": 5, "index": 0, "caption": "red star 44"}]
    assert task.takes(images) and not task.takes(SimpleNamespace())
    with pytest.raises(DataError, match="instruction_tuning cannot evaluate SimpleNamespace"):
        task.part_for(SimpleNamespace()).before_evaluation(SimpleNamespace(), "val")
    assert task.summary({"a/accuracy": 1.0, "a/agg_metrics": 1.0, "b/predictions": 3.0, "agg_metrics": 1.0}) == (
        "mean 1\n  a: accuracy 1\n  b: 3 predictions written, not scored")


def test_a_router_whose_evaluation_would_not_be_called_is_refused() -> None:
    class Mine(InstructionTuningTask):
        def score(self, *arguments: Any) -> dict[str, float]:
            return {"mine": 1.0}

    class Own(Mine):
        def part_for(self, dataset: Any) -> BaseTask:
            return self

    cfg = InstructionTuningTask.config_class()
    with pytest.raises(ContractError, match="Mine overrides score, which an evaluation calls on the parts"):
        Mine(cfg)  # type: ignore[arg-type]
    assert Own(cfg).score() == {"mine": 1.0}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ranking", "instruction_tuning", "aok_vqa", "vqa_reading_comprehension"])
def test_training_reads_the_prompt_of_the_evaluation(name: str) -> None:
    seen: list[Any] = []

    def model(samples: dict[str, Any]) -> Any:
        seen.append(samples["text_input"])
        return SimpleNamespace(loss=torch.tensor(1.0), losses=lambda: {})

    make(name, prompt="Q: {} A:").train_step(model, {"text_input": ["a?"], "text_output": ["b"]})
    assert seen == [["Q: a? A:"]]
