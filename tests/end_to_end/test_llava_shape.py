"""LLaVA's shape is a YAML: it trains on captions and on conversations, and its captions are scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lavis_lite.cli.main import main
from tests.end_to_end.conftest import ROOT, Train

RECIPE = """
base: {base}
model: {{arch: vision_language, model_type: mini_mlp, load_pretrained: false, pretrained: null}}
run: {{max_iters: 8, batch_size_train: 8, valid_splits: [], test_splits: [test], num_workers: 0, max_len: 4}}
"""
TALKS = """
base: {base}
datasets:
  mini_world_caption: null
  talks:
    builder: chat
    build_info: {{annotations: {{train: {{storage: {rows}}}}}, images: {{storage: {images}}}}}
run: {{task: image_text_pretrain, test_splits: []}}
"""


def test_captions_and_conversations(tmp_path: Path, train_here: Train, cache: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "captions.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(base=ROOT / "projects/blip2/stage2_opt.yaml"))
    done = train_here(f"run.output_dir={out}", "run.init_lr=5e-3", cfg=str(recipe))
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in out.iterdir() if (path / "log.jsonl").exists())
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    loss = [row["loss"] for row in rows if "loss" in row and "split" not in row]
    assert loss[-1] < loss[0] - 1
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    assert set(load_file(checkpoint / "model.safetensors")) == {
        f"connector.layers.{number}.{leaf}" for number in (0, 2) for leaf in ("weight", "bias")}
    assert (run / "results/test_step8.json").is_file()
    capsys.readouterr()

    (tmp_path / "images").mkdir()
    made = sorted((cache / "mini_world").rglob("*.*g"))[:8]
    images = [Path(shutil.copy(image, tmp_path / "images")) for image in made]
    assert main(["generate", "--run", str(run), "--image", str(images[0])]) == 0
    assert capsys.readouterr().out.strip()

    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a red circle"}]
    rows_of_talks = [{"image": image.name, "conversations": talk} for image in images]
    rows_of_talks[3:4] = [{"conversations": [{**talk[0], "value": "hello"}, talk[1]]}]  # a row without a picture
    (tmp_path / "talks.json").write_text(json.dumps(rows_of_talks))
    second = tmp_path / "talks.yaml"
    second.write_text(TALKS.format(base=recipe, rows=tmp_path / "talks.json", images=tmp_path / "images"))
    options = [f"run.output_dir={tmp_path / 'talks'}", f"model.pretrained={checkpoint}", "model.load_pretrained=true",
               "run.max_iters=2", "run.batch_size_train=4", "run.num_workers=0", "run.log_freq=1"]
    done = train_here(*options, cfg=str(second), common=())
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "talks").glob("*/log.jsonl")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line] == [1, 2]
