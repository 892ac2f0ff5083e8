"""Adapters of lmms-eval and VLMEvalKit answer as `evaluate` does.

Most tests use stand-ins of the harnesses' base classes. One runs the real lmms-eval and skips if it is not installed.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lavis_lite.cli.main import main
from lavis_lite.errors import DataError
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.end_to_end.conftest import ROOT, cache, environment  # noqa: F401  (a fixture)

SMALL = "datasets.mini_world_vqa.prepare_args={{train: 24, val: 8, test: {scenes}, ood: 4, seed: 3}}"
ARGUMENTS = {"arch": "blip2_opt", "model_type": "mini_instruct", "prompt": "question: {} short answer:"}


class Base:
    """As much of the harnesses' base classes as the adapters use."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *entry: self.kept.append(entry))
        self.kept: list[Any] = []
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The modules of both adapters."""
    modules = {name: ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model",
                                                   "lmms_eval.models", "lmms_eval.models.registry_v2", "vlmeval",
                                                   "vlmeval.vlm", "vlmeval.vlm.base")}
    modules["lmms_eval.api.model"].lmms = modules["vlmeval.vlm.base"].BaseModel = Base  # type: ignore[attr-defined]
    modules["lmms_eval.models.registry_v2"].ModelManifest = SimpleNamespace  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    names = ("lavis_lite.compat.lmms_eval", "lavis_lite.compat.vlmevalkit")
    yield tuple(importlib.import_module(name) for name in names)  # type: ignore[misc]
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def evaluated(request: pytest.FixtureRequest, cache: Path, tmp_path: Path,  # noqa: F811
              monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str, str]]:
    """(picture, question, answer) of every question about some scenes (12), as `evaluate` answers them."""
    small = SMALL.format(scenes=getattr(request, "param", 12))
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    assert main(["evaluate", "mini_vqa_opt", "--options", small, "run.num_workers=0", "model.model_type=mini_instruct",
                 "run.num_beams=1", f"run.output_dir={tmp_path}"]) == 0
    [samples] = tmp_path.rglob("test_step*_samples.json")
    answers = {row["id"]: row["prediction"] for row in json.loads(samples.read_text())["samples"]}
    worlds = {path: json.loads(path.read_text())["questions"]
              for path in cache.glob("mini_world/*/annotations/questions_test.json")}
    [(questions, rows)] = [(path, rows) for path, rows in worlds.items() if len(rows) == len(answers)]
    pictures = questions.parents[1] / "images" / "test"
    found = [(pictures / f"{row['image_id'] % 1_000_000:06d}.jpg", row["question"], answers[row["question_id"]])
             for row in rows]
    assert len(found) == len(answers) > 20
    return found


def test_lmms_eval_gets_the_answers_of_evaluate(adapters: tuple[Any, Any], evaluated: Any) -> None:
    module, _ = adapters
    assert module.manifest().simple_class_path == "lavis_lite.compat.lmms_eval.LavisLite"
    model = module.LavisLite(batch_size="8", max_batch_size=16, device="cpu", **ARGUMENTS)
    model.task_dict = {"mini": {"test": evaluated}}
    settings = {"until": ["\n\n"], "max_new_tokens": 10}
    requests = [SimpleNamespace(args=(question, settings, pictures_of, number, "mini", "test"))
                for number, (_, question, _) in enumerate(evaluated)]
    answers = model.generate_until(requests)
    assert answers == [answer for _, _, answer in evaluated] and len(set(answers)) > 3
    assert len(model.kept) == len(answers)
    requests = [SimpleNamespace(args=(evaluated[0][1], target, pictures_of, 0, "mini", "test"))
                for target in (answers[0], "purple zebra")]
    (likely, greedy), (unlikely, other) = model.loglikelihood(requests)
    assert likely > unlikely and greedy and not other


def pictures_of(document: tuple[Path, str, str]) -> list[Image.Image]:
    """doc_to_visual of the stand-in task."""
    return [Image.open(document[0])]


def test_vlmevalkit_gets_the_answers_of_evaluate(adapters: tuple[Any, Any], evaluated: Any) -> None:
    model = adapters[1].LavisLite(max_new_tokens=10, device="cpu", **ARGUMENTS)
    for picture, question, answer in evaluated:
        message = [{"type": "image", "value": str(picture)}, {"type": "text", "value": question}]
        assert model.generate_inner(message, dataset="mini") == answer
    with pytest.raises(DataError, match="a message of mini has 0 pictures"):
        model.generate_inner(message[1:], dataset="mini")


def test_the_adapters_are_short() -> None:
    for name in ("harness", "lmms_eval", "vlmevalkit"):
        assert len((ROOT / "lavis_lite" / "compat" / f"{name}.py").read_text().splitlines()) < 120


TASK = """
task: mini_world
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.pictures
doc_to_text: !function functions.question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 10, until: ["\\n\\n"]}
process_results: !function functions.score
metric_list: [{metric: same, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
from PIL import Image

def pictures(document):
    return [Image.open(document["picture"])]

def question(document, settings=None):
    return document["question"]

def score(document, results):
    return {"same": float(results[0] == document["answer"])}
"""


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [100], indirect=True)
def test_the_real_lmms_eval_gets_the_answers_of_evaluate(evaluated: Any, tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    ensure_torchvision()
    evaluator, tasks = (importlib.import_module(f"lmms_eval.{name}") for name in ("evaluator", "tasks"))
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "documents.jsonl").write_text("".join(
        json.dumps({"picture": str(picture), "question": question, "answer": answer}) + "\n"
        for picture, question, answer in evaluated))
    (folder / "mini_world.yaml").write_text(TASK % (folder / "documents.jsonl"))
    (folder / "functions.py").write_text(FUNCTIONS)
    found = evaluator.simple_evaluate(
        model="lavis_lite", model_args=",".join(f"{key}={value}" for key, value in ARGUMENTS.items()) + ",device=cpu",
        tasks=["mini_world"], task_manager=tasks.TaskManager(include_path=str(folder)), batch_size=8,
        limit=500, log_samples=True)
    answers = [row["filtered_resps"][0] for row in found["samples"]["mini_world"]]
    assert answers == [answer for _, _, answer in evaluated[:500]] and len(answers) == 500
