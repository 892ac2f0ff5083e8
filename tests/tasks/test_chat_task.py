"""The task of conversations: mean loss per token, answers to last questions, LLaVA-Bench's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_lite.checkpoints.weights import build_model
from lavis_lite.cli.main import run_command
from lavis_lite.config.compose import compose
from lavis_lite.config.schema import BuildInfo, FileConfig, StorageConfig
from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.datasets.builders.chat import ChatBuilder, ChatConfig
from lavis_lite.models.vision_language.config import VisionLanguageConfig
from lavis_lite.preflight import check
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.base import unmet_needs
from lavis_lite.tasks.chat import ChatTask, chosen, summed_loss, until_last_question
from lavis_lite.tasks.config import ChatRunConfig
from tests.datasets.conftest import pair
from tests.datasets.test_column_files import files_of

ROOT = Path(__file__).resolve().parents[2]
BENCH = [{"question_id": number, "image": f"{number}.png", "text": f"What is in picture {number}?", "category": "conv"}
         for number in range(3)]
PLAIN = {"user": "{} ", "assistant": "{}</s>"}


def said(*turns: str, answer: str | None = "a red circle") -> Conversation:
    """A picture, then user and assistant in turns, the last one learned."""
    roles = [Turn("user" if number % 2 == 0 else "assistant", ((Picture(0), text) if number == 0 else (text,)))
             for number, text in enumerate(turns)]
    return Conversation((*roles, *([Turn("assistant", (answer,), True)] if answer else [])), 1)


class Talks(list[Conversation]):
    """A data set in memory."""

    def conversation(self, index: int) -> Conversation:
        return self[index]

    def facts(self, index: int) -> dict[str, Any]:
        return {"question_id": f"q{index}", "category": "conv"} if index else {}

    def batch(self, rows: list[int]) -> dict[str, Any]:
        pictures = torch.randn(len(self), 3, 64, 64, generator=torch.Generator().manual_seed(1))
        return {"conversation": [self[row] for row in rows], "picture_counts": [1] * len(rows),
                "image": pictures[rows], "index": rows}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build_model(VisionLanguageConfig(
        arch="vision_language", vit_model="mini", vit_layer=-1, image_size=64, vit_precision="fp32",
        llm_model="mini/opt", load_pretrained=False, connector={"type": "mlp"}, template=PLAIN)).eval()


@pytest.fixture
def talks() -> Talks:
    return Talks([said("what is it?", answer="a small red circle at the top left"), said("what?"),
                  said("what is it?", "a square", "which colour?", answer="blue"), said("what?", answer=None)])


def scored(model: Any, talks: Talks, size: int) -> tuple[list[dict[str, Any]], dict[str, float], ChatTask]:
    task = ChatTask(ChatRunConfig(max_len=4, model_id="mini"))
    rows = [row for start in range(0, len(talks), size)
            for row in task.predict(model, talks.batch(list(range(len(talks)))[start:start + size]))]
    return rows, task.score(model, rows, talks, "test"), task


def test_scores_do_not_depend_on_the_batches(model: Any, talks: Talks) -> None:
    (rows, scores, task), (whole, together, _) = scored(model, talks, 1), scored(model, talks, 4)
    assert [row["answer"] for row in rows] == [row["answer"] for row in whole]
    assert scores["loss"] == pytest.approx(together["loss"], rel=1e-5)
    losses, tokens = zip(*(summed_loss(model, talks.batch([row])) for row in range(3)), strict=True)
    assert scores["loss"] == pytest.approx(sum(losses) / sum(tokens), rel=1e-6)
    assert scores["agg_metrics"] == -scores["loss"] and scores["exact"] == 0.0
    answered = [row | {"answer": "blue"} for row in rows]
    assert task.score(model, answered, talks, "test")["exact"] == pytest.approx(1 / 3)


def test_the_last_answer_is_not_shown_and_earlier_ones_are(talks: Talks) -> None:
    assert until_last_question(talks[2]).turns == talks[2].turns[:3] and until_last_question(talks[3]) == talks[3]
    two = Conversation((Turn("user", (Picture(0), "a")), Turn("assistant", ("b", Picture(1)), True)), 2)
    samples = {"conversation": [two, two], "picture_counts": [2, 2], "image": torch.arange(4.0).reshape(4, 1)}
    asked = chosen(samples, {1: until_last_question(two)})
    assert asked["picture_counts"] == [1] and asked["image"].tolist() == [[2.0]]


def test_answers_have_the_layout_of_llava_bench(model: Any, talks: Talks) -> None:
    rows, _, task = scored(model, talks, 4)
    found = task.predictions(rows, talks)
    written = [json.loads(line) for line in found.text().splitlines()]
    assert found.suffix == ".jsonl" and [row["question_id"] for row in written] == [0, "q1", "q2", "q3"]
    assert written[2] == {"question_id": "q2", "prompt": "which colour?", "text": rows[2]["answer"],
                          "answer_id": written[2]["answer_id"], "model_id": "mini", "metadata": {"category": "conv"}}
    assert len({row["answer_id"] for row in written}) == 4


def test_llava_bench_is_answered_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    files_of(tmp_path / "images", 3)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BENCH))
    monkeypatch.chdir(ROOT)
    options = ["run.control=wrong_image", "run.amp=false", "run.max_len=3", "model.model_type=mini",
               "model.load_pretrained=false",
               f"datasets.llava_bench.build_info.annotations.test.storage={tmp_path}/questions.jsonl",
               f"datasets.llava_bench.build_info.images.storage={tmp_path}/images", f"run.output_dir={tmp_path}/out",
               "run.num_workers=0", "run.allow_untrained=true"]
    assert check(compose("projects/llava/llava_bench.yaml", options)) == []
    assert run_command("evaluate", ["--cfg-path", "projects/llava/llava_bench.yaml", "--options", *options]) == 0
    (path,) = tmp_path.glob("out/*/results/*_predictions.jsonl")
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["question_id"], one["prompt"], one["metadata"]) for one in answers] == [
        (row["question_id"], row["text"], {"category": "conv"}) for row in BENCH]
    assert {one["model_id"] for one in answers} == {"vision_language/mini"}
    out = capsys.readouterr().out
    assert "with other samples' images" in out and "LLaVA-Bench" in out
    page = next(tmp_path.glob("out/*/results/report.html")).read_text()
    samples = json.loads(next(tmp_path.glob("out/*/results/*_samples.json")).read_text())["samples"]
    assert all(row["text"] in page for row in BENCH) and page.count("/9j/") >= 3  # three thumbnails, JPEGs in base64
    assert [(one["prompt"], one["group"], "references" in one) for one in samples] == [
        (row["text"], "conv", False) for row in BENCH]
    with_training = ["run.evaluate=false", "run.train_splits=[test]", "run.max_iters=1", "run.test_splits=[]"]
    assert run_command("train", ["--cfg-path", "projects/llava/llava_bench.yaml", "--options", *options,
                                 *with_training]) != 0
    assert "questions.jsonl:1: has no answer to learn" in capsys.readouterr().err


def test_a_page_shows_the_turns_before_and_all_pictures(tmp_path: Path) -> None:
    files_of(tmp_path / "images", 2)
    rows = [{"system": "Be brief.", "image": ["0.png", "1.png"], "conversations": [
                {"from": "human", "value": "<image>or<image>?"}, {"from": "gpt", "value": "Both."},
                {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]},
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."},
                               {"from": "human", "value": "Bye"}]}]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    info = BuildInfo(annotations={"test": FileConfig(storage=str(tmp_path / "talks.json"))},
                     images=StorageConfig(storage=str(tmp_path / "images")))
    eyes = {"name": "blip_image_eval", "image_size": 16}
    dataset = ChatBuilder("talks", ChatConfig(builder="chat", build_info=info, vis_processor=pair(eyes, eyes))).build(
        "test", False)
    found = [{"id": 0, "index": 0, "answer": "Yes.", "loss": 1.0, "tokens": 2.0},
             {"id": 1, "index": 1, "answer": "Bye", "loss": 1.0, "tokens": 2.0}]
    for control, shown in (("none", "0.png | 1.png"), ("wrong_image", "1.png | 0.png"), ("blind", None)):
        task = ChatTask(ChatRunConfig(control=control))
        first, second = task.report(found, dataset, "test")
        assert first == ReportSample(0, "Yes.", "Sure?", ["Yes."], {"exact": 1.0}, True, first.picture,
                                     context="system: Be brief.\nuser: or?\nassistant: Both.")
        assert (first.picture and first.picture.name) == shown
        assert second.references == [] and second.right is None and second.picture is None and not second.scores
        assert task.score(None, found, dataset, "test") == {"loss": 0.5, "exact": 1.0, "agg_metrics": -0.5}
        if first.picture is not None:
            image = first.picture.load()
            assert isinstance(image, Image.Image) and image.width > 1.9 * image.height


def test_a_model_without_conversations_is_named_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (error,) = unmet_needs(compose("projects/llava/llava_bench.yaml", [
        "model.arch=blip2_opt", "model.model_type=mini"]).config)
    assert "which has no chat_batch. Models that it can evaluate: " in error and "vision_language" in error
