"""Texts of an evaluation that the model has no room for: found before it begins, left out and counted on request."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, PreprocessConfig
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.loading.loader import eval_loader
from lavis_lite.datasets.qa import QAEvalDataset
from lavis_lite.device import Precision
from lavis_lite.engine import check_lengths
from lavis_lite.errors import DataError
from lavis_lite.evaluation.evaluator import Evaluator
from lavis_lite.models.blip2.llm import OPT, T5, Blip2LLM
from lavis_lite.runners.standard_hooks import BadSamples
from lavis_lite.tasks.ranking import RankingRunConfig, RankingTask
from lavis_lite.tasks.vqa import VQARunConfig, VQATask
from lavis_lite.tasks.writing import long_texts, without_rows
from lavis_lite.tracking.tracker import Tracker
from tests.models.test_blip2_llm import model_of

CPU = torch.device("cpu")
LONG = (3, 90, 91)
"""rows with questions that the tiny language models (256 positions) have no room for"""


class Pictures:
    """A folder of pictures in memory."""

    key = "image"

    def view(self, name: str, vis: Any, rng: Any = None) -> torch.Tensor:
        return torch.full((3, 4, 4), float(name))


def still(picture: Any) -> Any:
    return picture


still.is_random = False  # type: ignore[attr-defined]


def plain(text: str, rng: Any = None) -> str:
    return text


def questions(**extras: Any) -> QAEvalDataset:
    """100 questions about 25 pictures."""
    rows = [{"image": str(number // 4), "question": "why? " * (60 if number in LONG else number % 7 + 1),
             "question_id": number, "answers": ["yes"], "counts": [1], **extras} for number in range(100)]
    table = RowTable(((0, number + 1, row) for number, row in enumerate(rows)), ["questions.json"])
    return QAEvalDataset(table, Pictures(), still, plain, candidates=["yes", "no"])  # type: ignore[arg-type]


def run(policy: str, **more: Any) -> VQARunConfig:
    return VQARunConfig(batch_size_eval=8, num_workers=0, on_bad_sample=policy, max_bad_fraction=0.5, evaluate=True,
                        valid_splits=[], test_splits=["test"], num_beams=1, max_len=2, vqa_rule="exact", **more)


def blind(model: Blip2LLM, monkeypatch: pytest.MonkeyPatch) -> Blip2LLM:
    """A model that must not look at a picture."""
    monkeypatch.setattr(model, "encode_image", lambda image: pytest.fail("a picture was looked at"))
    return model


@pytest.mark.parametrize("task", [VQATask(run("raise")), VQATask(run("raise", inference_method="rank")),
                                  RankingTask(RankingRunConfig())])
def test_they_are_found_before_the_first_picture(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model = questions(), blind(model_of("opt", OPT), monkeypatch)
    found = long_texts(task, model, dataset, "test")
    assert found is not None and sorted(found.rows) == list(LONG) and found.total == 100
    assert str(found).startswith("split 'test': 3 of 100 samples have texts that are too long for the language model, "
                                 "the first at questions.json:4. 3 of 64 prompts are too long")
    with pytest.raises(DataError, match="split 'test': 3 of 100 .*Or set run.on_bad_sample=skip"):
        check_lengths(task, {"q": {"test": dataset}}, model, run("raise"))
    assert long_texts(task, model_of("t5", T5), dataset, "test") is None, "T5 has room for any text"
    assert long_texts(task, SimpleNamespace(), dataset, "test") is None, "a model that cannot measure is not asked"


def test_texts_that_all_fit_cost_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model = questions(), blind(model_of("opt", OPT), monkeypatch)
    monkeypatch.setattr(dataset, "longest_first", lambda: [row for row in range(100) if row not in LONG])
    task, calls = VQATask(run("raise")), list[int]()
    monkeypatch.setattr(task, "predict", lambda model, batch: calls.append(len(batch["index"])))
    assert long_texts(task, model, dataset, "test") is None and calls == [64]


def test_a_row_without_words_is_another_checks_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model = questions(), blind(model_of("opt", OPT), monkeypatch)
    table = dataset.table
    dataset.table = RowTable(((0, row + 1, {**table[row], "question": "" if row == 7 else table[row]["question"]})
                              for row in range(100)), ["questions.json"])
    found = long_texts(VQATask(run("raise")), model, dataset, "test")
    assert found is not None and sorted(found.rows) == list(LONG)
    dataset.table = RowTable(((0, row + 1, {**table[row], "question": ""}) for row in range(100)), ["questions.json"])
    assert long_texts(VQATask(run("raise")), model, dataset, "test") is None


def test_they_are_noted_where_they_are_to_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    task, model = VQATask(run("skip")), model_of("opt", OPT)
    check_lengths(task, {"q": {"test": questions()}}, model, run("skip"))
    assert capsys.readouterr().out.startswith("note: split 'test': 3 of 100 samples have texts that are too long")


def evaluator(folder: Path, cfg: VQARunConfig) -> Evaluator:
    config = Config(ModelConfig(), PreprocessConfig(), {"q": DatasetConfig()}, cfg)

    def loader(*given: Any, **more: Any) -> Any:
        return eval_loader(*given, **more, share_pictures=True)

    return Evaluator(VQATask(cfg), model_of("opt", OPT), config, CPU, Precision.from_run(cfg, CPU), loader,
                     BadSamples(cfg, folder), folder, Tracker())


def test_they_are_left_out_and_counted(tmp_path: Path) -> None:
    found = evaluator(tmp_path, run("skip"))
    found.split({"q": questions()}, "test", 0)
    answered = {row["question_id"] for row in found.predictions["q"]}
    assert answered == set(range(100)) - set(LONG)
    noted = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted(row["row"] for row in noted) == ["questions.json:4", "questions.json:91", "questions.json:92"]
    assert all(row["reason"] == "has a text of 301 tokens, too long for the language model" for row in noted)
    assert (found.bad_samples.log.read, found.bad_samples.log.bad) == (100, 3), "read = used + reported"
    alone = evaluator(tmp_path / "alone", run("skip"))
    others = questions()
    rows = [row for row in range(100) if row not in LONG]
    others.table = RowTable(((0, row + 1, others.table[row]) for row in rows), ["questions.json"])
    (tmp_path / "alone").mkdir()
    alone.split({"q": others}, "test", 0)
    assert alone.predictions["q"] == found.predictions["q"], "the others' answers are what they are without them"


def test_they_stop_an_evaluation_by_default(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"questions.json:\d+: \d of 8 prompts .*Or set run.on_bad_sample=skip"):
        evaluator(tmp_path, run("raise")).split({"q": questions()}, "test", 0)


def test_a_batch_without_some_rows() -> None:
    batch = {"index": torch.tensor([5, 6, 7]), "image": torch.zeros(2, 3, 4, 4), "image_rows": torch.tensor([0, 0, 1]),
             "text_input": ["a", "b", "c"], "uniform": torch.rand(3, 2)}
    rest = without_rows(batch, {1: 300})
    assert rest["index"].tolist() == [5, 7] and rest["image_rows"].tolist() == [0, 1] and len(rest["image"]) == 2
    assert rest["text_input"] == ["a", "c"] and torch.equal(rest["uniform"], batch["uniform"][[0, 2]])
    assert without_rows(batch, dict.fromkeys(range(3), 9)) == {}
    own = {"index": torch.arange(2), "video": torch.zeros(2, 3, 1, 4, 4)}
    assert without_rows(own, {0: 9})["video"].shape == (1, 3, 1, 4, 4)


def test_rows_of_conversations_leave_with_their_pictures() -> None:
    batch = {"index": [5, 6, 7], "picture_counts": [1, 0, 2], "conversation": ["a", "b", "c"],
             "image": torch.arange(3.0)}
    left = without_rows(batch, {0: 9})
    assert left["index"] == [6, 7] and left["picture_counts"] == [0, 2] and left["image"].tolist() == [1.0, 2.0]
