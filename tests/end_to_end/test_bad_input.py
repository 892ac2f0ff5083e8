"""Every mistake ends in one clear error: what, where, what to do; exit code not 0, nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from lavis_lite.cli.main import main, run_command

CUSTOM = """
model: {{arch: blip2, model_type: mini, load_pretrained: false}}
datasets:
  mine:
    builder: custom
    build_info:
      annotations: {{train: {{storage: {annotations}}}}}
run: {{max_iters: 2, batch_size_train: 2, num_workers: 0, output_dir: {output}, tensorboard: false}}
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """No launcher's variables, no network, the session's cache."""
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") or name.startswith("SLURM"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(cache))
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")


def picture(path: Path) -> str:
    """A small JPEG."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    return path.name


def project(tmp_path: Path, rows: object) -> Path:
    """A YAML with the custom builder on `rows`."""
    annotations = tmp_path / "rows.json"
    annotations.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    path = tmp_path / "run.yaml"
    path.write_text(CUSTOM.format(annotations=annotations, output=tmp_path / "out"))
    return path


def fails(capsys: pytest.CaptureFixture[str], path: object, *options: str) -> str:
    """Run train.py on a YAML that must fail cleanly; the message."""
    code = run_command("train", ["--cfg-path", str(path), *(["--options", *options] if options else [])])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_good_rows_train(tmp_path: Path) -> None:
    rows = [{"image": picture(tmp_path / f"{number}.jpg"), "caption": ["a red square", "red"]} for number in range(3)]
    assert run_command("train", ["--cfg-path", str(project(tmp_path, rows))]) == 0
    assert list((tmp_path / "out").glob("*/checkpoints/step_00000002/manifest.json"))


def test_annotations_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project(tmp_path, [])
    (tmp_path / "rows.json").unlink()
    message = fails(capsys, path)
    assert str(tmp_path / "rows.json") in message
    assert "datasets.mine.build_info.annotations.train" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rows", "words"), [
    ("[{", "rows.json"),
    ([{"image": "0.jpg"}], "caption"),
    ([{"caption": "x"}], "image"),
    ([{"image": 3, "caption": "x"}], "image"),
    ([], "rows.json"),
])
def test_annotation_rows_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: object, words: str) -> None:
    picture(tmp_path / "0.jpg")
    assert words in fails(capsys, project(tmp_path, rows))


@pytest.mark.parametrize("content", [None, b"", b"<html>not a picture</html>", b"\xff\xd8\xff\xe0 cut"])
def test_a_bad_image_stops_or_is_skipped_as_the_policy_says(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                            content: bytes | None) -> None:
    rows = [{"image": picture(tmp_path / f"{number}.jpg"), "caption": "red"} for number in range(8)]
    (tmp_path / "3.jpg").unlink()
    if content is not None:
        (tmp_path / "3.jpg").write_bytes(content)
    path = project(tmp_path, rows)
    message = fails(capsys, path, "run.max_iters=4")
    assert "3.jpg" in message
    assert "on_bad_sample" in message
    assert run_command("train", ["--cfg-path", str(path), "--options", "run.on_bad_sample=skip", "run.max_iters=4",
                                 "run.max_bad_fraction=0.5", f"run.output_dir={tmp_path / 'skip'}"]) == 0
    (log,) = (tmp_path / "skip").glob("*/bad_samples.jsonl")
    assert "3.jpg" in log.read_text()
    assert "fraction" in fails(capsys, path, "run.on_bad_sample=skip", "run.max_bad_fraction=0.001", "run.max_iters=4")


def test_a_batch_larger_than_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": picture(tmp_path / "0.jpg"), "caption": "red"}]
    message = fails(capsys, project(tmp_path, rows))
    assert "batch_size_train" in message
    assert "1" in message


def test_a_checkpoint_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": picture(tmp_path / f"{number}.jpg"), "caption": "red"} for number in range(3)]
    path = project(tmp_path, rows)
    assert run_command("train", ["--cfg-path", str(path)]) == 0
    (saved,) = (tmp_path / "out").glob("*/checkpoints/step_00000002")
    message = fails(capsys, path, "model.embed_dim=16", "model.load_pretrained=true", f"model.pretrained={saved}")
    assert "vision_proj.weight" in message
    assert "[64, 128] in the file" in message
    assert "[16, 128] in the model" in message


def test_resuming_from_nothing_or_from_a_torn_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": picture(tmp_path / f"{number}.jpg"), "caption": "red"} for number in range(3)]
    path = project(tmp_path, rows)
    assert run_command("train", ["--cfg-path", str(path), "--resume", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_unknown_command_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert "did you mean 'blip2'" in fails(capsys, "projects/blip2/stage1.yaml", "model.arch=blpi2")


def test_paper_scale_names_everything_missing_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "projects/blip2/stage1_vitg.yaml")
    for words in ("eva_vit_g.pth", "bert-base-uncased", "coco_caption", "vg_caption", "sbu_caption",
                  "python -m lavis_lite fetch --cfg-path projects/blip2/stage1_vitg.yaml"):
        assert words in message
