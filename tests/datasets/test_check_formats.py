"""`data check` on today's formats: recognised without a key, errors by row, and a recipe that reads them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_lite.cli.main import run_command
from lavis_lite.config.compose import compose_dataset
from lavis_lite.registry import registry
from tests.datasets.test_chat import DIALECTS
from tests.datasets.test_column_files import captions, files_of, png, saved, write

NUMBER = 12


def dialect(name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        files_of(folder / "pics", 1)
        (folder / "talk.json").write_text(json.dumps([DIALECTS[name][0]] * NUMBER))
        return "talk.json --image-root pics"

    return make


def mixed(folder: Path) -> str:
    """LLaVA's mix: rows with a picture, with several, and without one."""
    files_of(folder / "pics", 3)
    rows = [DIALECTS["LLaVA"][0], DIALECTS["ShareGPT"][0],
            {"image": ["1.png", "2.png"], "conversations": [{"from": "human", "value": "<image> or <image>?"},
                                                            {"from": "gpt", "value": "Both."}]}] * 4
    (folder / "talk.json").write_text(json.dumps(rows))
    return "talk.json --image-root pics"


def parquet_captions(folder: Path) -> str:
    write(folder / "a.parquet", [{**row, "image": {"bytes": png(n), "path": None}}
                                 for n, row in enumerate(captions(NUMBER))])
    return "a.parquet"


def questions(folder: Path) -> str:
    write(folder / "q.parquet", [{"image": {"bytes": png(n), "path": None}, "question": "What?", "answer": ["red"]}
                                 for n in range(NUMBER)])
    return "q.parquet"


def bench(folder: Path) -> str:
    """LLaVA-Bench's own file: questions to be answered."""
    files_of(folder / "pics", 4)
    write(folder / "questions.jsonl", [{"question_id": n, "image": f"{n}.png", "category": "conv", "text": f"What {n}?"}
                                       for n in range(4)])
    return "questions.jsonl --image-root pics"


def unanswered(folder: Path) -> str:
    files_of(folder / "pics", 4)
    write(folder / "q.jsonl", [{"question_id": n, "image": f"{n}.png", "question": f"What {n}?"} for n in range(4)])
    return "q.jsonl --image-root pics"


def pope(folder: Path) -> str:
    files_of(folder / "pics", NUMBER)
    write(folder / "pope.jsonl", [{"question_id": n, "image": f"{n}.png", "text": f"Is there {n}?", "label": "yes"}
                                  for n in range(NUMBER)])
    return "pope.jsonl --image-root pics"


def hub(folder: Path) -> str:
    rows = [{"messages": [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": "This."}],
             "images": [{"bytes": png(n), "path": None}]} for n in range(NUMBER)]
    (folder / "data").mkdir()
    write(folder / "data" / "train-00000-of-00001.parquet", rows)
    write(folder / "data" / "test-00000-of-00001.parquet", rows[:3])
    return "."


def datasets_folder(folder: Path) -> str:
    rows = [{"image": {"bytes": png(n), "path": None}, "text": f"Picture {n}."} for n in range(NUMBER)]
    saved(folder / "saved" / "train", rows)
    saved(folder / "saved" / "validation", rows[:4])
    return "saved"


def imagefolder(folder: Path) -> str:
    files_of(folder / "birds", NUMBER)
    write(folder / "birds" / "metadata.jsonl", [{"file_name": f"{n}.png", "text": f"Bird {n}."} for n in range(NUMBER)])
    return "birds"


MADE: dict[str, tuple[Callable[[Path], str], str, int]] = {
    "ShareGPT": (dialect("ShareGPT"), "chat", 12), "messages": (dialect("messages"), "chat", 12),
    "OpenAI": (dialect("OpenAI"), "chat", 12), "ms-swift": (dialect("ms-swift"), "chat", 12),
    "mixed": (mixed, "chat", 12), "LLaVA": (dialect("LLaVA"), "image_dialogue", 12),
    "parquet": (parquet_captions, "custom", 12), "parquet questions": (questions, "image_qa", 12),
    **{name: (dialect(name), "chat", 12) for name in ("alpaca", "pairs", "Hugging Face")},
    "LLaVA-Bench": (bench, "chat", 4), "unanswered": (unanswered, "image_qa", 4), "POPE": (pope, "image_qa", 12),
    "hub": (hub, "chat", 15), "datasets": (datasets_folder, "custom", 16), "imagefolder": (imagefolder, "custom", 12)}


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", MADE)
def test_formats_load_unmodified(name: str, work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, builder, count = MADE[name]
    source = make(work_folder).split()
    assert run_command("data", ["check", *source, "--write-yaml", "recipe.yaml", "--sheet", "sheet.png"]) == 0
    assert "nothing is wrong." in capsys.readouterr().out
    ((own, section),) = yaml.safe_load((work_folder / "recipe.yaml").read_text())["datasets"].items()
    assert section["builder"] == builder
    section["vis_processor"] = {mode: {"name": "blip_image_eval", "image_size": 16} for mode in ("train", "eval")}
    composed = compose_dataset(own, section=section)
    assert composed.errors == []
    made = registry.get_builder_class(builder)(own, composed.config.datasets[own])
    built = [dataset for split in made.splits() if (dataset := made.build(split, split == "train"))]
    assert sum(len(dataset.table) for dataset in built) == count
    assert all(dataset[0] for dataset in built)


def test_questions_without_answers_are_answered_by_their_recipe(work_folder: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    source = unanswered(work_folder).split()
    assert run_command("data", ["check", *source, "--write-yaml", "recipe.yaml"]) == 0
    assert "Answer with: python -m lavis_lite evaluate recipe.yaml" in capsys.readouterr().out
    assert run_command("evaluate", ["--cfg-path", "recipe.yaml", "--options", "run.output_dir=out",
                                    "run.num_workers=0"]) == 0, capsys.readouterr().err
    (path,) = work_folder.glob("out/*/results/*_predictions.json")
    assert [row["question_id"] for row in json.loads(path.read_text())] == [0, 1, 2, 3]
    bench(work_folder / "bench")
    asked = ["check", "bench/questions.jsonl", "--image-root", "bench/pics", "--write-yaml", "bench.yaml"]
    assert run_command("data", asked) == 0
    run = yaml.safe_load((work_folder / "bench.yaml").read_text())["run"]
    assert run["task"] == "chat" and run["evaluate"] and run["test_splits"] == ["test"] and "max_iters" not in run
    assert "evaluate bench.yaml --options model.load_pretrained=true" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mixed", "hub"])
def test_the_recipe_of_conversations_trains(name: str, work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = MADE[name][0](work_folder).split()
    assert run_command("data", ["check", *source, "--write-yaml", "recipe.yaml"]) == 0
    short = ["run.max_iters=12", "run.batch_size_train=4", "run.num_workers=0", "run.warmup_steps=2",
             "run.init_lr=3e-3", "run.log_freq=1", "run.output_dir=out", "run.save_every=null"]
    assert run_command("train", ["--cfg-path", "recipe.yaml", "--options", *short]) == 0, capsys.readouterr().err
    (log,) = work_folder.glob("out/*/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [line["loss"] for line in lines if line.get("split", "train") == "train" and "loss" in line]
    assert len(found) >= 12 and sum(found[8:12]) / 4 < 0.9 * sum(found[:2]) / 2
    assert "val: loss" in capsys.readouterr().out or name == "hub"  # hub's own split is called test


def test_conversations_have_errors_by_row(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [DIALECTS["ShareGPT"][0], {"messages": [{"role": "user", "content": "<image>"}]},
                       {"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    (work_folder / "talk.json").write_text(json.dumps(rows))
    assert run_command("data", ["check", "talk.json"]) == 3
    out = capsys.readouterr().out
    assert "talk.json:2: has 1 mark <image> and no images" in out and "talk.json:3: roles are out of order" in out
    (work_folder / "short.json").write_text(json.dumps([{**DIALECTS["LLaVA"][0], "image": "lost.png"}]))
    assert run_command("data", ["check", "short.json", "--goal", "chat"]) == 3
    assert "short.json:1: image lost.png is not in" in capsys.readouterr().out
