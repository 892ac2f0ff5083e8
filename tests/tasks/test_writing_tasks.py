"""Captioning and question answering on models that say what they are told: prompts, rows, scores, files."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_lite import distributed
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.evaluation.evaluator import gathered
from lavis_lite.evaluation.results import where_unscored, write_predictions
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.tasks.captioning import CaptioningRunConfig, CaptioningTask
from lavis_lite.tasks.config import Submission
from lavis_lite.tasks.vqa import VQARunConfig, VQATask


class Speaker(torch.nn.Module):
    """Answers and captions from a list by index; keeps what it was asked."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts, self.asked = texts, []

    def predict_answers(self, samples: dict[str, Any], **options: Any) -> list[str]:
        self.asked.append((samples["text_input"], options))
        return [self.texts[index] for index in samples["index"].tolist()]

    def generate(self, samples: dict[str, Any], **options: Any) -> list[str]:
        self.asked.append((samples.get("prompt"), options))
        return self.texts[:len(samples["image"])]

    def forward(self, samples: dict[str, Any]) -> ModelOutput:
        self.asked.append((samples["text_input"], samples["text_output"]))
        return ModelOutput(torch.tensor(1.0))


class Questions:
    """Three questions in memory."""

    has_answers = True
    rows = [{"question": "what color?", "answers": ["red"] * 10, "question_type": "color", "answer_type": "other"},
            {"question": "is it?", "answers": ["yes"] * 10, "question_type": "existence", "answer_type": "yes/no"},
            {"question": "is it?", "answers": ["no"] * 10, "question_type": "existence", "answer_type": "yes/no"}]
    answer_list = ["yes", "red"]
    pairs = [("is it?", "yes"), ("what color?", "blue"), ("who?", "yes")]

    def __len__(self) -> int:
        return len(self.rows)

    def question(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def majority_pairs(self) -> list[tuple[str, str]]:
        return self.pairs


def vqa(**keys: Any) -> VQATask:
    return VQATask(VQARunConfig(**keys))


def batch(*indices: int) -> dict[str, Any]:
    return {"image": torch.zeros(len(indices), 3, 2, 2), "index": torch.tensor(indices),
            "question_id": torch.tensor([30 - index for index in indices]),
            "text_input": [Questions.rows[index]["question"] for index in indices]}


def answer_all(task: VQATask, dataset: Any, answers: list[str]) -> tuple[dict[str, float], list[dict], Speaker]:
    model = Speaker(answers)
    task.before_evaluation(dataset, "val")
    rows = gathered(task.predict(model, batch(0, 1)) + task.predict(model, batch(2)))
    return task.score(model, rows, dataset, "val"), task.predictions(rows, dataset), model


def test_answers_are_scored_by_type_beside_the_majority() -> None:
    scores, predictions, model = answer_all(vqa(num_beams=2), Questions(), ["red", " yes ", "yes"])
    assert scores == pytest.approx({
        "accuracy": 2 / 3, "agg_metrics": 2 / 3, "accuracy_answer_other": 1, "accuracy_answer_yes_no": 0.5,
        "accuracy_question_color": 1, "accuracy_question_existence": 0.5, "majority": 1 / 3,
        "majority_by_question": 1 / 3})
    assert predictions == [{"question_id": 28, "answer": "yes"}, {"question_id": 29, "answer": "yes"},
                           {"question_id": 30, "answer": "red"}]
    asked, options = model.asked[0]
    assert asked == ["what color?", "is it?"]
    assert options == {"num_beams": 2, "inference_method": "generate", "max_len": 10, "min_len": 1, "prompt": "",
                       "num_ans_candidates": 128, "answer_list": []}
    assert vqa().summary(scores) == "VQA accuracy 0.667 (majority 0.333, by question 0.333)"
    assert "other samples' images" in vqa(control="wrong_image").summary(scores)


def test_the_prompt_of_training_is_that_of_evaluation() -> None:
    from lavis_lite.models.blip2.prompts import question_prompts

    task, model = vqa(prompt="Question: {} Short answer:"), Speaker(["a"] * 3)
    samples = {**batch(0, 1), "text_output": ["red", "yes"]}
    task.train_step(model, samples)
    (trained, learned), = model.asked
    assert learned == ["red", "yes"] and samples["text_input"] == ["what color?", "is it?"]
    task.predict(model, batch(0, 1))
    _, options = model.asked[1]
    assert trained == question_prompts(batch(0, 1), options["prompt"], 2) == [
        "Question: what color? Short answer:", "Question: is it? Short answer:"]


def test_ranking_takes_the_data_sets_answers_and_options_reach_the_model() -> None:
    task = vqa(inference_method="rank", num_ans_candidates=7, length_penalty=-1.0, repetition_penalty=1.2, max_len=4)
    *_, model = answer_all(task, Questions(), ["red", "yes", "no"])
    options = model.asked[0][1]
    assert options["answer_list"] == ["yes", "red"] and options["num_ans_candidates"] == 7
    assert (options["length_penalty"], options["repetition_penalty"], options["max_len"]) == (-1.0, 1.2, 4)
    bare = Questions()
    bare.answer_list = []
    with pytest.raises(DataError, match="rank needs candidates"):
        task.before_evaluation(bare, "val")


def test_without_answers_there_are_predictions_only() -> None:
    bare = Questions()
    bare.has_answers = False
    for task, dataset in ((vqa(), bare), (vqa(report_metric=False), Questions())):
        scores, predictions, _ = answer_all(task, dataset, ["a", "b", "c"])
        rows = predictions if dataset.has_answers else predictions.content
        assert scores == {"predictions": 3.0} and len(rows) == 3
        assert task.summary(scores).startswith("3 predictions written, not scored")
    assert task.summary(scores).endswith("(the run names no metric)")


def test_without_training_answers_there_is_no_majority() -> None:
    bare = Questions()
    bare.pairs = []
    scores, *_ = answer_all(vqa(), bare, ["red", "yes", "no"])
    assert scores["accuracy"] == 1 and "majority" not in scores
    assert vqa().summary(scores) == "VQA accuracy 1.000"
    assert "majority" not in answer_all(vqa(baselines=False), Questions(), ["a", "b", "c"])[0]


@pytest.mark.parametrize(("keys", "words"), [
    ({"prompt": "no place"}, "has no {} for the question"), ({"num_beams": 0}, "run.num_beams: must be at least 1"),
    ({"min_len": 12}, "run.min_len: 12 is above run.max_len=10"),
    ({"repetition_penalty": 0.0}, "repetition_penalty: must be above 0"),
])
def test_impossible_settings(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        vqa(**keys)


def test_one_answer_per_question_needs_the_exact_rule() -> None:
    single = Questions()
    single.rows = [{**row, "answers": row["answers"][:1]} for row in Questions.rows]
    with pytest.raises(DataError, match="Set run.vqa_rule=exact"):
        vqa(vqa_rule="official").before_evaluation(single, "val")
    by_default, *_ = answer_all(vqa(), single, ["Red.", "no", "no"])
    assert by_default["accuracy"] == pytest.approx(2 / 3)
    scores, *_ = answer_all(vqa(vqa_rule="exact"), single, ["Red.", "no", "no"])
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_similarity_to_the_nearest_answer_besides_accuracy() -> None:
    task = vqa(vqa_metrics=["anls", "accuracy"], vqa_rule="exact", baselines=False)
    scores, *_ = answer_all(task, Questions(), ["read", "", "no"])
    assert scores["anls"] == scores["agg_metrics"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert scores["accuracy"] == pytest.approx(1 / 3) and scores["empty_answers"] == 1
    assert task.summary(scores) == "accuracy 0.333, ANLS 0.583; 1 answers were empty"
    shown = task.report([{"id": 1, "index": 0, "answer": "read"}], Questions(), "val")
    assert shown[0].scores == {"anls": 0.75, "accuracy": 0, "accuracy_answer_other": 0, "accuracy_question_color": 0}
    assert shown[0].right is True
    single = Questions()
    single.rows = [{**row, "answers": row["answers"][:1]} for row in Questions.rows]
    assert answer_all(vqa(vqa_metrics=["anls"]), single, ["red", "yes", "x"])[0]["agg_metrics"] == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="no metric 'anl'; did you mean 'anls'"):
        vqa(vqa_metrics=["anl"])


def test_answers_that_are_sentences_are_scored_as_captions() -> None:
    told = Questions()
    told.rows = [{**row, "answers": ["the red ball is on the left", "it is a red ball"]} for row in Questions.rows]
    task = vqa(vqa_metrics=["cider", "bleu", "accuracy"], vqa_rule="exact", baselines=False)
    scores, *_ = answer_all(task, told, ["the red ball is on the left"] * 3)
    assert scores["Bleu_4"] == pytest.approx(1) and scores["accuracy"] == 1
    assert scores["agg_metrics"] == scores["CIDEr"] + scores["Bleu_4"]
    assert task.summary(scores).startswith("accuracy 1.000, ") and "Bleu_4 1.000" in task.summary(scores)
    worse, *_ = answer_all(vqa(vqa_metrics=["bleu"]), told, ["a cat"] * 3)
    assert worse["Bleu_4"] < 0.1 and "accuracy" not in worse
    shown = task.report([{"id": 1, "index": 0, "answer": "it is a red ball"}], told, "val")
    assert shown[0].right is True
    assert vqa(vqa_metrics=["cider"]).report([{"id": 1, "index": 0, "answer": "x"}], told, "val")[0].right is None


def test_data_sets_and_models_that_do_not_fit() -> None:
    assert (vqa().takes(Questions()), vqa().takes(IMAGES), captioning().takes(IMAGES)) == (True, False, True)
    with pytest.raises(DataError, match="SimpleNamespace, which lacks the protocol Questions .no question.*image_qa"):
        vqa().before_evaluation(SimpleNamespace(), "val")
    with pytest.raises(DataError, match="which lacks the protocol Captions .no captions, references.*image_caption"):
        captioning().before_evaluation(SimpleNamespace(), "val")
    with pytest.raises(ConfigError, match="cannot evaluate Linear, which has no predict_answers"):
        vqa().check_model(torch.nn.Linear(1, 1))
    assert vqa().predict(Speaker([]), {}) == captioning().predict(Speaker([]), {}) == []


# captions -------------------------------------------------------------------------------------------------------------
def captioning(**keys: Any) -> CaptioningTask:
    return CaptioningTask(CaptioningRunConfig(**keys))


class Images:
    """Two images in memory; their captions are also known as the annotations have them."""

    has_text = True
    captions = [["small red star top"], ["large blue box left, tiny red disc top"]]

    def __init__(self, *domains: str) -> None:
        self.domains = domains or ("", "")

    def references(self, index: int) -> list[str]:
        return [f"{caption.capitalize()}." for caption in self.captions[index]]

    def domain(self, index: int) -> str:
        return self.domains[index]


IMAGES = Images()
PICTURES = {"image": torch.zeros(2, 3, 2, 2), "index": torch.tensor([0, 1]), "image_id": torch.tensor([70, 60])}


def test_captions_are_scored_by_the_metrics_that_are_asked_for() -> None:
    task, model = captioning(caption_metrics=["scene"]), Speaker(["little red star top", "large blue square left"])
    task.before_evaluation(IMAGES, "val")
    rows = gathered(task.predict(model, PICTURES))
    scores = task.score(model, rows, IMAGES, "val")
    assert scores["agg_metrics"] == scores["attribute_f1"] == pytest.approx(2 * 10 / 25)
    assert scores["exact_1"] == 1 and scores["exact_2"] == 0
    assert task.predictions(rows, IMAGES)[0] == {"image_id": 60, "caption": "large blue square left"}
    assert model.asked == [(None, {"num_beams": 5, "max_length": 30, "min_length": 1, "length_penalty": 0.0,
                                   "repetition_penalty": 1.15})]
    line = "attribute F1 0.800, exact scenes 0.500 (1 objects 1.00, 2 objects 0.00)"
    assert task.summary(scores) == line and task.summary({**scores, "mean_words": 4.0}) == f"{line}, mean_words 4"


def test_captions_are_scored_against_the_annotations_captions_and_by_domain() -> None:
    rows = [{"id": 60, "index": 1, "caption": ""}, {"id": 70, "index": 0, "caption": "Small red star top!"}]
    scores = captioning().score(None, rows, Images("in-domain", "out-domain"), "val")
    names = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert list(scores) == [*names, *(f"{name}_{domain}" for domain in ("in-domain", "out-domain") for name in names),
                            "empty_captions", "agg_metrics"]
    assert scores["Bleu_4_in-domain"] == pytest.approx(1) and scores["Bleu_4_out-domain"] == pytest.approx(0)
    assert scores["ROUGE_L"] == pytest.approx(0.5) and scores["empty_captions"] == 1
    assert scores["agg_metrics"] == scores["CIDEr"] + scores["Bleu_4"]
    assert captioning().summary(scores).endswith("1 captions were empty and score 0")
    both = captioning(caption_metrics=["rouge_l", "scene"]).score(None, rows, IMAGES, "val")
    assert both["agg_metrics"] == both["ROUGE_L"] + both["attribute_f1"] and "Bleu_1" not in both


def test_prompts_of_captions() -> None:
    model = Speaker(["a", "b"])
    captioning().predict(model, {**PICTURES, "prompt": ["one", "two"]})
    captioning(prompt="a photo of").predict(model, {**PICTURES, "prompt": ["one", "two"]})
    captioning(use_nucleus_sampling=True, top_p=0.5, length_penalty=2.0).predict(model, PICTURES)
    assert [asked for asked, _ in model.asked] == [["one", "two"], "a photo of", None]
    assert model.asked[2][1] == {"num_beams": 5, "max_length": 30, "min_length": 1, "use_nucleus_sampling": True,
                                 "top_p": 0.5, "temperature": 1.0, "length_penalty": 2.0,
                                 "repetition_penalty": 1.15}


class NamedImages(Images):
    """Their annotations call them by texts."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {}

    def ids(self, index: int) -> tuple[str, ...]:
        return (("a_1.avi",), ("b_2.avi",))[index]


def test_only_images_that_the_run_names_count_and_results_have_their_ids() -> None:
    task, named = captioning(img_ids=["b_2.avi", "c.avi"]), NamedImages()
    task.before_evaluation(named, "val")
    rows = task.predict(Speaker(["one", "two"]), PICTURES)
    assert task.predictions(rows, named) == [{"image_id": "b_2.avi", "caption": "two"}]
    assert [row["id"] for row in captioning(img_ids=[60, "70"]).predict(Speaker(["one", "two"]), PICTURES)] == [70, 60]
    with pytest.raises(DataError, match=r"names 1 images, but none of the 2 of this split. Its first ids: a_1.avi"):
        captioning(img_ids=[60]).before_evaluation(named, "val")


def test_captions_without_references_or_metrics_are_written_only() -> None:
    rows = [{"id": 1, "index": 0, "caption": "x"}]
    bare = SimpleNamespace(has_text=False, captions=[[]])
    assert captioning(caption_metrics=["scene"]).score(None, rows, bare, "test") == {"predictions": 1.0}
    assert captioning(caption_metrics=[]).score(None, rows, IMAGES, "test") == {"predictions": 1.0}
    assert captioning(report_metric=False).score(None, rows, IMAGES, "test") == {"predictions": 1.0}
    assert captioning().score(None, [], IMAGES, "test") == {"predictions": 0.0}
    with pytest.raises(ConfigError, match="no metric 'scenes'; did you mean 'scene'"):
        captioning(caption_metrics=["scenes"])


def test_captions_for_some_images_only_are_refused_before_anything_is_predicted(tmp_path: Any) -> None:
    class Partly(Images):
        bare, has_text = [1], False
        __len__ = lambda self: 2  # noqa: E731
        location = lambda self, index: f"file.json:{index + 1}"  # noqa: E731

    with pytest.raises(DataError, match="1 of 2 images have no reference caption; the first is file.json:2"):
        captioning().before_evaluation(Partly(), "val")
    task = captioning(report_metric=False)
    task.before_evaluation(Partly(), "test2014")
    rows = [{"id": 60, "index": 1, "caption": "a \u2028 dog"}]
    submission = task.predictions(rows, Partly())
    (path,) = write_predictions(tmp_path, "test2014", 7, {"coco": submission})
    assert path.name == "captions_test2014_lavis-lite_results.json"
    assert json.loads(path.read_text()) == [{"image_id": 60, "caption": "a \u2028 dog"}]
    more = Submission("coco", [], submission.name)  # of another data set with the same split
    first, second = write_predictions(tmp_path, "test2014", 7, {"coco": submission, "mine": more})
    assert (first, second.name) == (path, "test2014_step7_mine_predictions.json") and "dog" in first.read_text()
    scores = task.score(None, rows, Partly(), "test2014")
    assert task.summary(scores).endswith("no labels); the file has the format of the COCO captions server")
    assert captioning(submission="nocaps").predictions(rows, Partly()).name == ""


def test_captions_are_scored_as_coco_does() -> None:
    task = captioning(caption_metrics=["coco"])
    rows = [{"id": 70, "index": 0, "caption": "Small red star, top."}, {"id": 60, "index": 1, "caption": "a dog"}]
    scores = task.score(None, rows, IMAGES, "val")
    assert scores["agg_metrics"] == pytest.approx(scores["CIDEr"] + scores["Bleu_4"]) and scores["CIDEr"] > 1
    assert {"Bleu_1", "ROUGE_L"} <= scores.keys()


# rows of all ranks ----------------------------------------------------------------------------------------------------
def test_rows_come_in_the_order_of_their_ids_each_once(tmp_path: Any) -> None:
    assert [row["id"] for row in gathered([{"id": name} for name in ("b", 10, 9, "a")])] == [9, 10, "a", "b"]
    with pytest.raises(DataError, match="has the id 9 twice"):
        gathered([{"id": 9}, {"id": 9}])
    (one,) = write_predictions(tmp_path, "val", 3, {"a": [{"image_id": 1, "caption": "x\u2028y"}]})
    assert one.name == "val_step3_predictions.json" and one.read_text().count("\n") == 3
    assert where_unscored({"accuracy": 1.0}, {"a": []}, [one]) == ""
    assert where_unscored({"predictions": 1.0}, {"a": []}, [one]) == f" ({one})"
    parts = {"a": [], "b": Submission("gqa", [])}
    both = write_predictions(tmp_path, "val", 3, parts)
    assert [path.name for path in both] == ["val_step3_a_predictions.json", "val_step3_b_predictions.json"]
    scores = {"a/accuracy": 1.0, "b/predictions": 4.0, "agg_metrics": 1.0}
    assert where_unscored(scores, parts, both) == f" ({both[1]}; the file has the format of the GQA server)"
    assert vqa().summary(scores) == "mean 1\n  a: accuracy 1\n  b: 4 predictions written, not scored"


def test_rows_of_all_ranks_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    other = [{"id": 5}, {"id": 1}]
    monkeypatch.setattr(distributed, "all_gather_object", lambda rows: [rows, other])
    assert [row["id"] for row in gathered([{"id": 3}, {"id": 2}])] == [1, 2, 3, 5]


def test_vizwiz_is_scored_by_its_records_and_scienceqa_by_options() -> None:
    sure = Questions()
    sure.rows = [{**row, "confidences": ["yes"] * 6 + ["no"] * 4} for row in Questions.rows]
    scores, *_ = answer_all(vqa(vqa_rule="vizwiz", baselines=False), sure, ["red", "yes", "yes"])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(DataError, match=r"run\.vqa_rule=vizwiz: the rule vizwiz needs annotations with"):
        vqa(vqa_rule="vizwiz").before_evaluation(Questions(), "val")
    options = Questions()
    options.rows = [{**row, "answers": ["yes"], "choices": ["no", "yes"], "label": 1} for row in Questions.rows]
    task = vqa(vqa_rule="scienceqa", baselines=False)
    scores, *_ = answer_all(task, options, ["The answer is B.", "(a)", "Yes."])
    assert scores["accuracy"] == pytest.approx(2 / 3) and task.line(scores) == "accuracy 0.667"
    with pytest.raises(DataError, match="Set run.vqa_rule=scienceqa for written options"):
        vqa(vqa_rule="official").before_evaluation(options, "val")
    with pytest.raises(DataError, match="the rule scienceqa needs options, but the question has none"):
        vqa(vqa_rule="scienceqa").before_evaluation(Questions(), "val")
