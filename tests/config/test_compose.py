"""From a YAML file to a checked configuration, and LAVIS' own files unchanged."""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from lavis_lite.config.compose import compose, to_yaml
from lavis_lite.config.mixing import published_mixing
from lavis_lite.config.named import dataset_names
from lavis_lite.errors import ConfigError, ErrorList
from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.preflight import check
from tests.helpers.processes import run_processes

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "transformers", "timm")
SHIPPED = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "projects").rglob("*.yaml")
                 if path.parent.name != "base")  # eval/base has parts of recipes, each composed by those that name it
CONNECTORS = ("flamingo", "frozen", "llava", "minigpt4", "mplug_owl")
IMPORTING = [name for name in SHIPPED if "\nimports:" in (ROOT / name).read_text(encoding="utf-8")
             or name.split("/")[1] in CONNECTORS or "/small_" in name]
"""recipes that load modules of their own, or whose connector or encoder of timm is built on the meta device: they may
need torch"""

LAVIS_STYLE = """
 # sections, keys and spellings as LAVIS' stage-1 recipe has them
model:
  arch: blip2
  model_type: pretrain
  load_pretrained: False
  freeze_vit: True

datasets:
  coco_caption:
    vis_processor:
        train:
          name: "blip2_image_train"
          image_size: 224
    text_processor:
        train:
          name: "blip_caption"
  vg_caption:
    vis_processor:
        train:
          name: "blip_image_train"
          image_size: 224
    text_processor:
        train:
          name: "blip_caption"
    build_info:
        images:
            storage: '/data/vg/images/'

run:
  task: image_text_pretrain
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 1e-4
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 10
  batch_size_train: 100
  batch_size_eval: 64
  num_workers: 4
  warmup_steps: 5000
  seed: 42
  output_dir: "output/BLIP2/Pretrain_stage1"
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  device: "cuda"
  world_size: 1
  dist_url: "env://"
  distributed: True
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_lavis_file_composes_without_faults_and_says_what_has_no_effect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composition = compose(write(tmp_path, LAVIS_STYLE))
    assert check(composition) == []
    config = composition.config
    assert isinstance(config.model, Blip2QformerConfig)
    assert (config.model.vit_model, config.model.image_size, config.run.max_epoch) == ("eva_clip_g", 224, 10)
    assert set(config.datasets) == {"coco_caption", "vg_caption"}
    assert config.datasets["vg_caption"].build_info.images.storage == "/data/vg/images/"
    for key in ("world_size", "dist_url", "distributed"):
        assert any(f"run.{key} has no effect" in note for note in config.notes)


def faults(names):
    """Recipe -> what preflight says of it."""
    os.chdir(ROOT)
    return {name: check(compose(name)) for name in names}


@pytest.fixture(scope="module")
def shipped():
    """Recipe -> {errors, heavy}: what preflight says of it, and the heavy packages that this process had loaded."""
    code = ("import json, sys\nfrom lavis_lite.config.compose import compose\nfrom lavis_lite.preflight import check\n"
            "for name in sys.argv[1:]:\n    errors = check(compose(name))\n"
            f"    heavy = [package for package in {HEAVY!r} if package in sys.modules]\n"
            "    print(json.dumps([name, {'errors': errors, 'heavy': heavy}]))")
    command = [sys.executable, "-c", code, *(name for name in SHIPPED if name not in IMPORTING)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    [heavy] = run_processes(faults, 1, IMPORTING)  # has imported these packages already, and what it registers goes
    return dict(map(json.loads, lines)) | {name: {"errors": errors} for name, errors in heavy.items()}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_composes_and_passes_preflight_without_torch(name, shipped):
    assert shipped[name]["errors"] == []
    assert name in IMPORTING or shipped[name]["heavy"] == []


def test_there_are_shipped_recipes():
    assert "projects/blip2/stage1.yaml" in SHIPPED
    assert "projects/blip2/stage1_vitg.yaml" in SHIPPED


def test_layers_win_in_order_and_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "base.yaml").write_text(Path("projects/blip2/stage1.yaml").read_text())
    path = write(tmp_path, "base: base.yaml\nmodel: {embed_dim: 16}\nrun: {seed: 1}")
    composition = compose(path, ["run.seed=2", "model.qformer_dropout", "0.0"])
    assert composition.config.run.seed == 2
    assert composition.where("run.seed") == "--options"
    assert composition.where("model.embed_dim") == str(path)
    assert composition.where("model.pretrained") == "models/blip2/mini.yaml"
    assert composition.where("model.num_query_token") == "models/parts/mini.yaml"
    assert composition.where("run.beta1") == "default"
    shown = to_yaml(composition, with_layers=True)
    assert "run.seed: 2" in shown
    assert any(line.startswith("run.beta1: 0.9") and line.endswith("# default") for line in shown.splitlines())


def test_the_composed_yaml_composes_to_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    first = compose("projects/blip2/stage1.yaml", ["run.seed=5"])
    second = compose(write(tmp_path, to_yaml(first)))
    assert second.errors == []
    assert (second.config.model, second.config.run, second.config.datasets) == (
        first.config.model, first.config.run, first.config.datasets)


@pytest.mark.parametrize(("option", "words"), [
    ("run.max_epohc=3", "unknown key run.max_epohc; did you mean 'max_epoch'"),
    ("model.qformer_dropuot=0", "did you mean 'qformer_dropout'"),
    ("model.arch=blip3", "unknown model 'blip3': did you mean 'blip2'"),
    ("model.model_type=pretrian", "did you mean 'pretrain'"),
    ("run.task=retreival", "unknown task 'retreival': did you mean 'retrieval'"),
    ("run.runner=runner_itre", "did you mean 'runner_iter'"),
    ("run.lr_sched=cosine", "unknown lr_scheduler"),
    ("run.init_lr=fast", "run.init_lr: must be a number, not 'fast'"),
    ("run.batch_size_train=0", "run.batch_size_train: must be above 0"),
    ("run.beta2=1.0", "run.beta2: must be at least 0 and below 1"),
    ("run.max_skipped_share=1.5", "run.max_skipped_share: must be between 0 and 1"),
    ("run.amp_dtype=fp8", "'fp8' is not allowed"),
    ("run.device=gpu", "unknown device 'gpu'"),
    ("datasets.coco_captoin={}", "did you mean 'coco_caption'"),
    ("datasets.mini_world_caption.type=defualt", "no type 'defualt'; did you mean 'default'"),
    ("datasets.mini_world_caption.vis_processor.train.name=blip_image_trian", "did you mean 'blip_image_train'"),
    ("datasets.mini_world_caption.vis_processor.train.imagesize=3", "no such parameter; did you mean 'image_size'"),
    ("datasets.mini_world_caption.build_inof={}", "did you mean 'build_info'"),
    ("preprocess.vis_procesor={}", "did you mean 'vis_processor'"),
])
def test_each_mistake_is_named_with_the_nearest_choice(option, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    faults = check(compose("projects/blip2/stage1.yaml", [option]))
    assert any(words in fault for fault in faults), faults


def number_keys(section, prefix):
    """Dotted keys of all fields that take a number with a fraction."""
    hints = typing.get_type_hints(type(section))
    return [f"{prefix}.{key}" for key, hint in hints.items() if float in (hint, *typing.get_args(hint))]


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize("recipe", ["stage1", "stage2_opt"])
def test_a_number_that_is_not_finite_is_refused_in_every_key(number, recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = compose(f"projects/blip2/{recipe}.yaml", []).config
    (name, dataset), = config.datasets.items()
    keys = [*number_keys(config.run, "run"), *number_keys(config.model, "model"), *number_keys(config.preprocess, "x"),
            *number_keys(dataset, f"datasets.{name}"), f"run.train_dataset_ratios.{name}", "model.vit_args.mlp_ratio",
            f"datasets.{name}.vis_processor.train.min_scale"]
    assert {f"run.{key}" for key in ("init_lr", "weight_decay", "max_grad_norm", "max_skipped_share")} < set(keys)
    faults = check(compose(f"projects/blip2/{recipe}.yaml", [f"{key}={number}" for key in keys]))
    for key in keys:
        assert any(f" {key}: must be a finite number" in fault for fault in faults), (key, faults)


@pytest.mark.parametrize("number", [".inf", ".nan"])
def test_counts_are_finite_too(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    faults = check(compose("projects/blip2/stage1.yaml", [f"run.warmup_steps={number}", f"model.embed_dim={number}"]))
    assert len(faults) == 2 and all("must be a whole number" in fault for fault in faults)


def test_all_mistakes_are_listed_at_once(monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ["run.max_epohc=3", "model.embed_dmi=1", "run.task=x", "run.seed=a"]
    faults = check(compose("projects/blip2/stage1.yaml", options))
    assert len(faults) == 4


def test_an_unknown_section_or_a_section_that_is_none(tmp_path):
    with pytest.raises(ErrorList, match=r"unknown section 'runs'; did you mean 'run'"):
        compose(write(tmp_path, "runs: {}\nmodel: 3"))


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        compose(tmp_path / "absent.yaml")
    (tmp_path / "a.yaml").touch()
    with pytest.raises(ConfigError, match="is a folder; give a YAML file in it: a.yaml"):
        compose(tmp_path)


def test_an_evaluation_of_nothing_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.chdir(ROOT)
    [fault] = check(compose("projects/blip2/eval/mini_vqa_opt.yaml", ["run.test_splits=[]"]))
    assert "run.test_splits: nothing to evaluate" in fault


def test_imports_register_and_a_missing_module_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_tasks.py").write_text(
        "from lavis_lite.registry import registry\nfrom lavis_lite.tasks.base import BaseTask\n"
        "@registry.register_task('of_mine')\nclass OfMine(BaseTask):\n    pass\n")
    path = write(tmp_path, "imports: [my_tasks, not_there]\nmodel: {arch: blip2, model_type: mini}\n"
                           "datasets: {mini_world_caption: {}}\nrun: {task: of_mine, max_epoch: 1}")
    faults = check(compose(path))
    assert len(faults) == 1
    assert "imports: not_there" in faults[0]


def test_a_module_above_the_yaml_is_named_if_the_command_runs_elsewhere(tmp_path, monkeypatch):
    run = tmp_path / "a project" / "output" / "20260101-000000"
    run.mkdir(parents=True)
    (tmp_path / "a project" / "models_of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    path = write(run, "imports: [models_of_mine]\nmodel: {arch: blip2, model_type: mini}\n"
                      "datasets: {mini_world_caption: {}}\nrun: {max_epoch: 1}")
    fault = next(fault for fault in check(compose(path)) if "models_of_mine" in fault)
    home = tmp_path / "a project"
    assert f"{home} has models_of_mine: start the command there, or set PYTHONPATH='{home}'." in fault


def test_interpolations_resolve_but_are_not_written_out(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MY_SECRET", "hunter2")
    base = ROOT / "projects/blip2/stage1.yaml"
    path = write(tmp_path, f"base: {base}\nrun: {{wandb_project: '${{oc.env:MY_SECRET}}'}}")
    composition = compose(path)
    assert composition.config.run.wandb_project == "hunter2"
    assert "hunter2" not in to_yaml(composition)
    assert "hunter2" not in to_yaml(composition, with_layers=True)


def test_every_data_set_row_has_a_default_type_and_composes(tmp_path):
    names = dataset_names()
    assert "coco_caption" in names
    path = write(tmp_path, "model: {arch: blip2, model_type: pretrain}\nrun: {max_epoch: 1}\ndatasets:\n"
                 + "".join(f"  {name}: {{}}\n" for name in names))
    assert compose(path).errors == []


def test_launcher_variables_that_do_not_fit_are_a_fault(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    faults = check(compose("projects/blip2/stage1.yaml"))
    assert len(faults) == 1
    assert "RANK" in faults[0]
    assert "torchrun" in faults[0]


def test_an_output_folder_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("x")
    faults = check(compose("projects/blip2/stage1.yaml", [f"run.output_dir={tmp_path / 'file' / 'out'}"]))
    assert len(faults) == 1
    assert "run.output_dir" in faults[0]


def test_instruction_tuning_lists_the_thirteen_held_in_sets_with_their_probabilities():
    config = compose("projects/instructblip/vicuna13b.yaml").config
    lines = published_mixing(config)
    shares = {line.split()[0]: float(line.rpartition("=")[2]) for line in lines}
    assert len(shares) == 13 and sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares["ok_vqa_instruct"] == pytest.approx(2 * shares["okvqa_vqg_instruct"], abs=2e-4)
    assert config.model.pretrained_stage1.endswith("blip2_pretrained.pth") and config.run.warmup_lr == 1e-8
