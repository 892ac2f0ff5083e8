"""A run is a thing to use: train, evaluate, generate, load and compare without naming a checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lavis_lite.cli.main import main
from tests.end_to_end.conftest import SMALL, Train

SCENE = "lavis_lite/assets/mini/scene.jpg"
BRIEF = ["run.max_iters=2", "run.test_splits=[test]", "run.num_beams=1", "run.max_len=8"]
QUESTIONS = [option.replace("mini_world_caption", "mini_world_vqa") for option in SMALL if "k_test" not in option]
CAPTIONS = [option for option in SMALL if "k_test" not in option]
TRAININGS = {
    "stage1": ("projects/blip2/stage1.yaml", SMALL, BRIEF[:2], "random start"),
    "stage2_opt": ("projects/blip2/stage2_opt.yaml", CAPTIONS, BRIEF, "mini/stage1"),
    "stage2_t5": ("projects/blip2/stage2_t5.yaml", CAPTIONS, BRIEF, "mini/stage1"),
    "mini_opt": ("projects/instructblip/mini_opt.yaml", QUESTIONS, BRIEF[:3], "mini/stage1 + mini/stage2_opt"),
}


def only(folder: Path, pattern: str) -> Path:
    """The one path that matches."""
    (path,) = folder.glob(pattern)
    return path


def result(path: Path) -> dict[str, Any]:
    """A results file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def use(train_here: Train, capsys: pytest.CaptureFixture[str], output: Path, start: str) -> None:
    """Evaluate, generate and compare the one run under `output`, whose two steps began from `start`."""
    trained = only(output, "*/results/*_step2.json")
    assert result(trained)["weights"].startswith(start) and result(trained)["weights"].endswith("2 steps here")
    assert main(["evaluate", "--run", str(output)]) == 0
    printed = capsys.readouterr().out
    again = only(output, "*/evaluations/*/results/*_step2.json")
    assert result(again)["metrics"] == result(trained)["metrics"]
    checkpoint = only(output, "*/checkpoints/step_00000002")
    for text in (result(again)["weights"], printed, (again.parent / "report.html").read_text()):
        assert str(checkpoint) in text and "step 2, sha256 " in text and start in text
    assert main(["generate", "--run", str(output), "--image", SCENE, "--num-beams", "1", "--max-new-tokens", "3"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{SCENE}: ") and f"generating with {checkpoint}" in told.err
    assert main(["compare", str(output), str(trained.parent)]) == 0
    told = capsys.readouterr()
    assert "The configurations are the same." in told.out and "Every sample has the same score in both." in told.out
    assert f"A weights: {checkpoint}" in told.out and f"B weights: {result(trained)['weights']}" in told.out


@pytest.mark.parametrize("name", TRAININGS)
def test_train_evaluate_generate_compare(name: str, train_here: Train, capsys: pytest.CaptureFixture[str],
                                         tmp_path: Path) -> None:
    recipe, common, options, start = TRAININGS[name]
    done = train_here(*options, f"run.output_dir={tmp_path}", cfg=recipe, common=common)
    assert done.returncode == 0, done.stderr
    run = next(tmp_path.iterdir())
    ending = done.stdout[done.stdout.index("report: "):]
    for words in (f"report: {run}/results/report.html", f"curves: {run}/curves.png",
                  f"checkpoint: {run}/checkpoints/step_00000002 (last)", f"evaluate --run {run}"):
        assert words in ending
    assert (run / "curves.png").is_file()
    use(train_here, capsys, tmp_path, start)


def test_train_evaluate_generate_compare_on_a_csv(train_here: Train, capsys: pytest.CaptureFixture[str],
                                                  tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rows = [(f"{number}.png", f"a field of colour {number}") for number in range(12)]
    for number, (name, _) in enumerate(rows):
        Image.new("RGB", (40, 40), (20 * number, 90, 30)).save(pictures / name)
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    own = {"builder": "custom", "image_column": "image", "caption_column": "caption", "val_fraction": 0.34,
           "build_info": {"annotations": {"train": {"storage": str(tmp_path / "captions.csv")}},
                          "images": {"storage": str(pictures)}}}
    recipe = {"base": str(Path("projects/blip2/stage1.yaml").absolute()),
              "datasets": {"mini_world_caption": None, "my_photos": own},
              "run": {"output_dir": str(tmp_path / "out"), "max_iters": 2, "test_splits": ["val"], "num_workers": 0,
                      "batch_size_train": 4, "k_test": 2, "log_freq": 1, "tensorboard": False}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    done = train_here(cfg=str(tmp_path / "mine.yaml"), common=["run.seed=42"])
    assert done.returncode == 0, done.stderr
    use(train_here, capsys, tmp_path / "out", "random start")
