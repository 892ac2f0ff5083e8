"""Projects in LAVIS' shape, their classes as written for LAVIS: trained, resumed and evaluated from YAML.

The dialogue tutorial of LAVIS' documentation; a MiniGPT-4-like with its own builder and keys; a video Q-Former with a
memory bank, a subclass of Blip2VicunaInstruct. All in tests/compat/projects, in tiny sizes.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lavis_lite.cli.main import main, run_command
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.compat import made_data
from tests.end_to_end.conftest import environment, read_log
from tests.helpers.processes import in_fork, run_as_main, run_processes

PROJECTS = Path(__file__).parent / "projects"
QUIET = ["run.tensorboard=false", "run.log_freq=1", "run.report=false"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start from, as a project's own: recipes and tiny data in it, the classes on the path."""
    ensure_torchvision()
    for name, value in environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(PROJECTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(recipe: str, *options: str, resume: Path | None = None) -> Path:
    """Train, and return the run's folder."""
    words = ["--cfg-path", str(PROJECTS / recipe / "train.yaml"), *(["--resume", str(resume)] if resume else [])]
    assert run_command("train", [*words, "--options", *QUIET, "run.output_dir=out", *options]) == 0
    (run,) = [path for path in Path("out").iterdir() if path.is_dir()]
    return run


def checks(recipe: str, split: str, steps: int) -> tuple[Path, dict[str, Any]]:
    """Train; resume from the middle: the same weights to the bit; evaluate the run: the scores of the training."""
    options = [f"run.save_every={steps // 2}", "run.keep_checkpoints=9"]
    run = train(recipe, *options)
    last, middle = (run / "checkpoints" / f"step_{number:08d}" for number in (steps, steps // 2))
    trained = [row for row in read_log(Path("out")) if row.get("split") == split and row["step"] == steps][0]
    wanted = load_file(last / "model.safetensors")
    shutil.rmtree(last)
    assert train(recipe, *options, resume=middle) == run
    found = load_file(last / "model.safetensors")
    assert found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in found)

    assert main(["evaluate", "--run", str(run), "--checkpoint", "last", "--options", *QUIET,
                 f"run.valid_splits=[{split}]", "run.test_splits=[]"]) == 0
    (results,) = run.glob(f"evaluations/*/results/{split}_step{steps}.json")
    scores = json.loads(results.read_text())["metrics"]
    assert {name: trained[name] for name in scores} == pytest.approx(scores)
    return run, scores


@pytest.mark.slow
def test_a_chat_model_with_its_own_builder_and_keys(workplace: Path) -> None:
    made_data.make_align(workplace / "data" / "align")
    run, scores = checks("minigpt4ish", "val", 8)
    assert scores["rows"] == 4 and scores["loss"] == pytest.approx(-scores["agg_metrics"])
    kept = load_file(run / "checkpoints" / "step_00000008" / "model.safetensors")
    assert set(kept) == {"llama_proj.weight", "llama_proj.bias"}  # frozen parts are named, not copied
    losses = [row["loss"] for row in read_log(Path("out")) if "split" not in row and "loss" in row]
    assert losses[-1] < losses[0]
    assert len(json.loads((run / "result" / "val_epoch8.json").read_text())) == 4


@pytest.mark.slow
def test_a_video_q_former_with_a_memory_bank(workplace: Path) -> None:
    made_data.make_bank(workplace / "data" / "bank")
    run, scores = checks("bank_video", "test", 4)
    assert scores["answered"] == 4
    kept = load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")
    assert "image_pe.weight" in kept and "Qformer.bert.encoder.layer.0.attention.self.query.weight" in kept
    assert not [name for name in kept if name.startswith(("llm_model.", "visual_encoder."))]


@pytest.mark.slow
def test_a_stage_1_with_learned_prompts_and_a_runner_of_its_own(workplace: Path) -> None:
    made_data.make_views(workplace / "cache" / "views")
    run, scores = checks("prompted_search", "val", 4)
    assert set(scores) == {"txt_r1", "txt_r2", "agg_metrics"}
    assert len((run / "evaluate.txt").read_text().splitlines()) == 3  # steps 2, 4, and 4 resumed
    assert len(json.loads((run / "result" / "val_4.json").read_text())) == 4
    kept = load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")
    assert "prompt_tokens" in kept and not [name for name in kept if "Qformer" in name or "visual" in name]
    rates = [row["lr"] for row in read_log(Path("out")) if "lr" in row]
    assert rates[:4] == pytest.approx([1e-6, (1e-3 + 1e-6) / 2, 1e-5, 1e-5])  # the runner's own: warm up, hold, drop


@pytest.mark.slow
def test_a_t5_that_counts_with_a_loop_of_evaluation_of_its_own(workplace: Path) -> None:
    made_data.make_count(workplace / "cache" / "count")
    run, scores = checks("counting_t5", "val", 4)
    assert scores["answered"] == 4 and scores["acc"] == scores["agg_metrics"]
    answers = {row["answer"] for row in json.loads((run / "result" / "val_vqa_result.json").read_text())}
    assert answers <= {"0", "1", "2"}  # of the list that build_datasets found
    kept = load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")
    assert {"gate", "count_head.weight", "t5_proj.weight"} <= kept.keys()


@pytest.mark.slow
def test_the_dialogue_tutorial(workplace: Path) -> None:
    made_data.make_gpt2(workplace / "gpt2")
    made_data.make_avsd(workplace / "data" / "avsd")
    run, scores = checks("avsd_tutorial", "val", 6)
    assert scores["agg_metrics"] == pytest.approx(-scores["avg_loss"])
    assert len((run / "evaluate.txt").read_text().splitlines()) == 3  # by the task itself: steps 3, 6, and 6 resumed


def train_as_rank(words: list[str], env: dict[str, str]) -> int:
    """In a process that has torchrun's variables and the search path of this one."""
    os.environ.update(env)
    return run_command("train", words)


@pytest.mark.slow
def test_two_ranks_see_what_one_sees(workplace: Path) -> None:
    made_data.make_align(workplace / "data" / "align")
    alone = train("minigpt4ish", "run.max_iters=1", "run.valid_splits=[]")
    words = ["--cfg-path", str(PROJECTS / "minigpt4ish" / "train.yaml"), "--options", *QUIET, "run.output_dir=two",
             "run.batch_size_train=2", "run.max_iters=1"]
    assert run_processes(train_as_rank, 2, words, environment(workplace), timeout=240) == [0, 0]
    one, two = (json.loads((next(Path(folder).iterdir()) / "log.jsonl").read_text().splitlines()[0])["loss"]
                for folder in (alone.parent, "two"))
    assert two == pytest.approx(one, rel=0.1)  # each rank draws its own prompt
    (results,) = Path("two").glob("*/result/val_epoch1.json")
    assert [row["image_id"] for row in json.loads(results.read_text())] == [12, 13, 14, 15]  # in the data set's order


SCRIPT = """
import argparse

import lavis_lite.compat.lavis
import lavis.tasks as tasks
import minigpt4ish
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.datasets.builders import *
from lavis.models import *
from lavis.processors import *
from lavis.runners import *
from lavis.tasks import *

parser = argparse.ArgumentParser()
parser.add_argument("--cfg-path")
parser.add_argument("--options", nargs="+")
args = parser.parse_args()
cfg = Config(args)
init_distributed_mode(cfg.run_cfg)
setup_logger()
cfg.pretty_print()
task = tasks.setup_task(cfg)
datasets = task.build_datasets(cfg)
model = task.build_model(cfg)
runner_cls = registry.get_runner_class(cfg.run_cfg.get("runner", "runner_base"))
runner = runner_cls(cfg=cfg, job_id=now(), task=task, model=model, datasets=datasets)
runner.train()
"""


@pytest.mark.slow
def test_a_training_script_written_for_lavis(workplace: Path) -> None:
    made_data.make_align(workplace / "data" / "align")
    (workplace / "train_lavis.py").write_text(SCRIPT)
    words = ["train_lavis.py", "--cfg-path", str(PROJECTS / "minigpt4ish" / "train.yaml"), "--options", *QUIET,
             "run.output_dir=out", "run.max_iters=2", "run.iters_per_inner_epoch=2"]
    assert in_fork(lambda: run_as_main(runpy.run_path, words)) == 0
    rows = read_log(Path("out"))
    assert [row["step"] for row in rows if row.get("split") == "val"] == [2]


@pytest.mark.parametrize(("options", "words"), [
    (["model.promt_path=x"], "unknown key model.promt_path; did you mean 'prompt_path'"),
    (["model.model_type=pretrian"], "mini_gpt4ish has no type 'pretrian'; did you mean 'pretrain'?"),
    (["datasets.cc_sbu_alignish.vis_processor.train.image_sice=3"], "has no such parameter; did you mean 'image_size'"),
    (["run.task=minigpt4ish_aligm"], "unknown task 'minigpt4ish_aligm': did you mean 'minigpt4ish_align'?"),
])
def test_mistakes_are_named_before_anything_is_built(workplace: Path, options: list[str], words: str,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("train", ["--cfg-path", str(PROJECTS / "minigpt4ish" / "train.yaml"), "--options",
                                 *options]) == 2
    assert words in capsys.readouterr().err
    assert os.listdir(workplace) in ([], ["cache"])


def test_a_file_that_a_builder_lacks_is_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("train", ["--cfg-path", str(PROJECTS / "minigpt4ish" / "train.yaml")]) == 2
    said = capsys.readouterr().err
    assert "datasets.cc_sbu_alignish: AlignBuilder.build_datasets" in said and "data/align/train_cap.json" in said
