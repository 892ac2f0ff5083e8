"""A model of another project goes the whole way: it trains, is evaluated, writes, is converted, and is shared out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lavis_lite.checkpoints.convert import convert
from lavis_lite.cli.main import main
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.registry import registry
from lavis_lite.runners.placement import move_to_device
from tests.end_to_end.conftest import ROOT, Train

RECIPE = """
base: {base}
imports: [linear_projector]
model: {{arch: linear_projector, vit_model: mini, load_pretrained: false}}
preprocess:
  vis_processor:
    train: {{name: blip_image_eval, image_size: 64}}
    eval: {{name: blip_image_eval, image_size: 64}}
run: {{max_iters: 2, batch_size_train: 4, valid_splits: [], test_splits: [test], num_workers: 0, max_len: 4,
       num_beams: 1}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A folder with the models' files and a recipe; the models' names are free again afterwards."""
    for file in ("examples/extending/linear_projector.py", "tests/helpers/outside/llava_like.py"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "projector.yaml").write_text(RECIPE.format(base=ROOT / "projects/blip2/stage2_opt.yaml"))
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))
    for name in ("llava_like", "linear_projector"):
        sys.modules.pop(name, None)
        registry.model._classes.pop(name, None)


def test_a_model_of_another_project_goes_the_whole_way(project: Path, train_here: Train, cache: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = str(project / "projector.yaml"), project / "out"
    done = train_here(f"run.output_dir={out}", cfg=recipe)
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in out.iterdir() if (path / "log.jsonl").exists())
    assert (run / "results/test_step2.json").is_file()
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    assert set(load_file(checkpoint / "model.safetensors")) == {"projector.weight", "projector.bias"}
    capsys.readouterr()

    image = str(sorted((cache / "mini_world").rglob("*.*g"))[0])
    assert main(["generate", "--run", str(run), "--image", image, "--num-beams", "1"]) == 0
    written = capsys.readouterr()
    assert written.out.startswith(image) and f"generating with {checkpoint}" in written.err

    lite = project / "lite.safetensors"
    assert "2 tensors" in str(convert(checkpoint, "lite", lite))
    again = load_file(lite)
    assert {name: (value - again[name]).abs().max() for name, value in load_file(
        checkpoint / "model.safetensors").items()} == {"projector.weight": 0, "projector.bias": 0}
    for to, package in (("hf", "transformers"), ("lavis", "LAVIS")):
        with pytest.raises(CheckpointError, match=f"{package} has no such class as LinearProjector.*--to lite"):
            convert(checkpoint, to, project / "other.pth")


def test_the_blocks_of_its_language_model_are_shared_among_ranks(project: Path) -> None:
    __import__("llava_like")
    cls = registry.get_model_class("llava_like")
    model = cls.from_config(cls.config_class(vit_weights="random"))
    blocks = model.blocks_to_shard()
    assert len(blocks) == model.language_model.config.num_hidden_layers
    model.language_model.requires_grad_(True)
    assert model.blocks_to_shard() == blocks
    model.blocks_to_shard = list
    with pytest.raises(ConfigError, match=r"run.fsdp=llm: LlavaLike has no transformer blocks .*blocks_to_shard"):
        move_to_device(model, RunConfig(fsdp="llm"), torch.device("cpu"))
