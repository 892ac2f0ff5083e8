"""A run is a thing to use: train, evaluate, generate, load and compare without naming a checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lavis_lite import load_model, load_model_and_preprocess
from lavis_lite.cli import data_capfilt
from lavis_lite.cli.generate import QUIET
from lavis_lite.cli.main import main
from lavis_lite.errors import CheckpointError, ConfigError, RegistryError
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


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `generate` sets for transformers ends with the test."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


def use(capsys: pytest.CaptureFixture[str], output: Path, start: str, recipe: list[str]) -> None:
    """Evaluate, generate and compare the one run under `output`, whose two steps began from `start`.

    Args:
        recipe: arguments of the training.
    """
    trained = only(output, "*/results/*_step2.json")
    assert result(trained)["weights"].startswith(start) and result(trained)["weights"].endswith("2 steps here")
    checkpoint = only(output, "*/checkpoints/step_00000002")
    for words in (["--run", str(output)], [*recipe[:2], "--resume", "auto", *recipe[2:]]):
        assert main(["evaluate", *words]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        again = max(output.glob("*/evaluations/*/results/*_step2.json"))
        assert result(again)["metrics"] == result(trained)["metrics"] and result(again)["step"] == 2
        for text in (result(again)["weights"], printed, (again.parent / "report.html").read_text()):
            assert str(checkpoint) in text and "step 2, sha256 " in text and start in text
    assert main(["generate", "--run", str(output), "--image", SCENE, "--num-beams", "1", "--max-new-tokens", "3"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{SCENE}: ") and f"generating with {checkpoint}" in told.err
    assert main(["compare", str(output), str(trained.parent)]) == 0
    told = capsys.readouterr()
    assert "The configurations are the same." in told.out and "Every sample has the same score in both." in told.out
    weights = result(trained)["weights"]
    assert f"A weights: {checkpoint}" in told.out and f"B weights: {weights}" in told.out


# five of five ---------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("curves")
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
    same = ["--cfg-path", recipe, "--options", *common, *options, f"run.output_dir={tmp_path}"]
    use(capsys, tmp_path, start, same)


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
    use(capsys, tmp_path / "out", "random start", ["--cfg-path", str(tmp_path / "mine.yaml")])


# nothing random is scored ---------------------------------------------------------------------------------------------
def test_an_evaluation_of_random_weights_is_refused(train_here: Train, tmp_path: Path) -> None:
    options = [f"run.output_dir={tmp_path}", "run.test_splits=[test]"]
    refused = train_here(*options, script="evaluate.py")
    assert refused.returncode == 2
    for words in ("query_tokens (1)", "qformer (117)", "itm_head (2)", f"--run {tmp_path}", "model.pretrained=PATH",
                  "run.allow_untrained=true"):
        assert words in refused.stderr
    assert not list(tmp_path.iterdir()), "a refused evaluation leaves no folder"
    meant = train_here(*options, "run.allow_untrained=true", script="evaluate.py")
    assert meant.returncode == 0, meant.stderr
    assert "weights: random start\n" in meant.stdout
    assert result(only(tmp_path, "*/results/test_step0.json"))["weights"] == "random start"


def test_one_part_that_no_checkpoint_has_is_enough(train_here: Train, tmp_path: Path) -> None:
    """Stage 2 begins from stage 1, which has no projection to the language model."""
    refused = train_here(f"run.output_dir={tmp_path}", cfg=TRAININGS["stage2_opt"][0], common=CAPTIONS,
                         script="evaluate.py")
    assert refused.returncode == 2
    assert "no checkpoint has 2 of the trainable tensors of Blip2OPT: language_projection (2)" in refused.stderr


def test_captions_for_training_are_not_written_by_random_weights() -> None:
    chosen = data_capfilt.parser().parse_args(["--dataset", "x", "--out", "y", "--ranker", "blip2:mini", "--checkpoint",
                                               "mini/stage1"])
    with pytest.raises(CheckpointError, match=r"language_projection \(2\)"):
        data_capfilt.load_captioner(chosen, "cpu")


def test_models_in_python_and_generate_refuse_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"language_projection \(2\).*run=RUN.*allow_untrained=True"):
        load_model("blip2_opt", "mini", is_eval=True, checkpoint="mini/stage1")
    assert load_model("blip2_opt", "mini", checkpoint="mini/stage1").training
    meant = load_model("blip2_opt", "mini", is_eval=True, checkpoint="mini/stage1", allow_untrained=True)
    assert meant.weight_record.describe() == "mini/stage1 (language_projection from a random start)"
    words = ["generate", "--model", "blip2_opt", "--checkpoint", "mini/stage1", "--image", SCENE, "--num-beams", "1",
             "--max-new-tokens", "2"]
    assert main(words) == 2 and "language_projection (2)" in capsys.readouterr().err
    assert main([*words, "--allow-untrained"]) == 0 and capsys.readouterr().out.startswith(SCENE)


# one run, used in other ways ------------------------------------------------------------------------------------------
def test_a_run_with_validation_in_every_other_way(train_here: Train, capsys: pytest.CaptureFixture[str],
                                                  tmp_path: Path) -> None:
    """One training with a model section changed by options; its best step is not its last; its folder is moved."""
    options = ["run.max_iters=3", "run.iters_per_inner_epoch=1", "run.valid_splits=[val]", "run.test_splits=[test]",
               "run.save_every=1", "run.keep_checkpoints=3", "model.embed_dim=32", "run.init_lr=0", "run.warmup_lr=0",
               "run.min_lr=0"]
    done = train_here(*options, f"run.output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    trained = next((tmp_path / "out").iterdir())
    assert f"checkpoint: {trained}/checkpoints/step_00000001 (best, val " in done.stdout
    assert result(trained / "results" / "test_step1.json")["weights"] == "random start, 1 step here"
    run = trained.rename(tmp_path / "moved")
    assert main(["evaluate", "--run", str(run), "--options", "run.valid_splits=[]"]) == 0
    again = result(only(run, "evaluations/*/results/test_step1.json"))["metrics"]
    assert again == result(run / "results" / "test_step1.json")["metrics"]  # hard negatives are drawn alike too
    for named, step in ((None, 1), ("last", 3), ("step_2", 2)):
        model, images, texts = load_model_and_preprocess(run=run, checkpoint=named, is_eval=True)
        assert not model.training and model.weight_record.step == step and model.text_proj.out_features == 32
        assert images["eval"](Image.new("RGB", (9, 9))).shape == (3, 64, 64) and texts["eval"]("A Dog!") == "a dog"
    assert load_model(run=run).training
    evaluate = ["evaluate", "--run", str(run)]
    assert main([*evaluate, "--checkpoint", "last", "--options", "run.valid_splits=[]", "run.test_splits=[ood]",
                 f"run.output_dir={tmp_path / 'elsewhere'}"]) == 0
    assert "step 3  ood: " in capsys.readouterr().out
    assert result(only(tmp_path, "elsewhere/*/results/ood_step3.json"))["split"] == "ood"
    assert main([*evaluate, "--dry-run"]) == 0 and "predicted one batch" in capsys.readouterr().out
    assert main([*evaluate, "--print-config"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load("\n".join(printed.out.splitlines())) and "step_00000001 (the best by val" in printed.err
    assert main(["train", "--cfg-path", str(run / "config.yaml"), "--resume", str(run), "--options",
                 "run.evaluate=true", "run.valid_splits=[]"]) == 0
    assert "step 1  test: " in capsys.readouterr().out


@pytest.mark.parametrize(("words", "told"), [
    (["--run", "nowhere"], "there is no run folder nowhere"),
    (["--run-dir", "nowhere"], "there is no run folder nowhere"),  # what torchrun lets pass
    (["--run", "x", "--resume", "auto"], "--run and --resume exclude each other"),
    (["--cfg-path", "x.yaml", "--checkpoint", "last"], "--checkpoint last names a checkpoint of --run"),
])
def test_what_cannot_be_meant(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *words]) == 2 and told in capsys.readouterr().err


def test_arguments_of_models_that_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="name a model and its type"):
        load_model(model_type="mini")
    with pytest.raises(ConfigError, match="'blip2_opt' needs a type too: .*mini"):
        load_model("blip2_opt")
    with pytest.raises(RegistryError, match="BLIP-2 and InstructBLIP, and not LAVIS' BLIP .* Nearest to it: blip2_opt"):
        load_model("blip_caption")
    with pytest.raises(ConfigError, match="brings its own model and type"):
        load_model("blip2_opt", "mini", run="output")
    with pytest.raises(CheckpointError, match="there is no run folder"):
        load_model(run="nowhere")
    assert main(["generate", "--run", "nowhere", "--type", "mini", "--image", SCENE]) == 2
    assert "leave --type out" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "give --run RUN" in capsys.readouterr().err


def test_commands_are_called_what_they_were_called(monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    for called, shown in (("/x/train.py", "train.py"), ("/x/bin/lavis-lite", "lavis-lite train"),
                          ("/x/lavis_lite/__main__.py", "python -m lavis_lite train")):
        monkeypatch.setattr("sys.argv", [called])
        with pytest.raises(SystemExit, match="0"):
            main(["train", "--help"])
        assert capsys.readouterr().out.startswith(f"usage: {shown} [-h]")
