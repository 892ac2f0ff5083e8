"""Every kind of bad annotation file is one report in words, the same whoever reads it; what is only odd is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_lite.cli.main import run_command
from lavis_lite.config.schema import BuildInfo, FileConfig, StorageConfig
from lavis_lite.datasets.builders.custom import CustomBuilder, CustomConfig
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.errors import DataError

EVAL = {"name": "blip_image_eval", "image_size": 16}
GOOD = {"image": "0.png", "caption": "a dog"}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def caption(**changes: Any) -> str:
    return lines(GOOD, {**GOOD, **changes})


def question(**changes: Any) -> str:
    good = {"image": "0.png", "question": "what?", "answer": "dog"}
    return lines({**good, "question_id": 1}, {**good, "question_id": 2, **changes})


BAD = {
    "wrong type": ("a.jsonl", caption(caption=3), ":2: field 'caption' must be text, not a number"),
    "null": ("a.jsonl", caption(image=None), ":2: field 'image' must be text, not null"),
    "NaN": ("a.jsonl", caption(caption=float("nan")), ":2: field 'caption' must be text, not a number"),
    "row is a list": ("a.jsonl", lines(GOOD, [1]), ":2: must be an object of named fields, not a list"),
    "empty file": ("a.jsonl", "", "the file is empty"),
    "empty with BOM": ("a.jsonl", "\ufeff", "the file is empty"),
    "half a surrogate pair": ("a.jsonl", caption(caption="\ud83d"), ":2: field 'caption' has half of a surrogate pair"),
    "10 MB caption": ("a.jsonl", caption(caption="x" * 10_000_000), ":2: field 'caption' has 10000000 characters"),
    "10 MB cell": ("a.csv", f"image,caption\n0.png,{'x' * 10_000_000}\n", ":2: field 'caption' has 10000000 char"),
    "path up": ("a.jsonl", caption(image="../0.png"), ":2: field 'image' leads out of its folder: '../0.png'"),
    "path up inside": ("a.jsonl", caption(image="x/../../0.png"), ":2: field 'image' leads out of its folder"),
    "path up, Windows": ("a.jsonl", caption(image="..\\0.png"), ":2: field 'image' leads out of its folder"),
    "absolute path": ("a.jsonl", caption(image="/etc/passwd"), ":2: field 'image' leads out of its folder"),
    "2000 deep, JSONL": ("a.jsonl", lines(GOOD) + '{"image": ' + "[" * 2000 + "]" * 2000 + "}", ":2: "),
    "2000 deep, JSON": ("a.json", f'[{json.dumps(GOOD)}, {"[" * 2000 + "]" * 2000}]', ":2: "),
    "broken lines": ("a.jsonl", lines(GOOD) + "{\n" + lines(GOOD) + "no\n", "2 faulty annotation rows"),
    "second broken line": ("a.jsonl", lines(GOOD) + "{\n" + lines(GOOD) + "no\n", ":4: not JSON"),
    "UTF-16 without a mark": ("a.jsonl", lines(GOOD).encode("utf-16-le"), ":1: has null characters; it looks like"),
    "Windows-1252": ("a.jsonl", lines(GOOD, {**GOOD, "caption": "x"}).replace("x", "\u00e9").encode("cp1252"),
                     ":2: is not UTF-8 text (byte "),
    "key twice": ("a.jsonl", lines(GOOD) + '{"image": "0.png", "caption": "a", "caption": "b"}\n',
                  ":2: key 'caption' appears twice in one object"),
    "two images": ("a.jsonl", caption(image=["0.png", "1.png"]), ":2: field 'image' names 2 files; a row has one"),
    "a list named JSONL": ("a.jsonl", f"[{json.dumps(GOOD)}]", "Name it .json if it is one list of objects"),
    "null character": ("a.jsonl", caption(caption="a\0b"), ":2: field 'caption' has a null character"),
    "question null": ("q.jsonl", question(question=None), ":2: field 'question' must be text, not null"),
    "duplicate question_id": ("q.jsonl", question(question_id=1), ":2: question_id 1 was there before"),
    "answer NaN": ("q.jsonl", question(answer=float("nan")), ":2: field 'answer' is nan, which is not a number"),
    "answer null": ("q.jsonl", question(answer=None), ":2: field 'answer' must be text, not null"),
    "answers with Infinity": ("q.jsonl", question(answer=["a", float("inf")]), ":2: field 'answer' [1] is inf"),
    "question path up": ("q.jsonl", question(image="../0.png"), ":2: field 'image' leads out of its folder"),
    "question absolute path": ("q.jsonl", question(image="/etc/passwd"), ":2: field 'image' leads out of its folder"),
    "question broken line": ("q.jsonl", question() + "{\n", ":3: not JSON"),
}


def build(path: Path, split: str = "train", **columns: str) -> Any:
    """The data set as the API makes it."""
    info = BuildInfo(annotations={split: FileConfig(storage=str(path))}, images=StorageConfig(storage=str(path.parent)))
    if path.stem == "q":
        cfg: Any = ImageQAConfig(builder="image_qa", build_info=info)
    else:
        cfg = CustomConfig(builder="custom", build_info=info, **columns)  # type: ignore[arg-type]
    cfg.vis_processor.train = cfg.vis_processor.eval = dict(EVAL)
    builder = (ImageQABuilder if path.stem == "q" else CustomBuilder)(path.stem, cfg)
    return builder.build(split, training=split == "train")


def write(folder: Path, name: str, content: str | bytes) -> Path:
    Image.new("RGB", (8, 6)).save(folder / "0.png")
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize("kind", BAD)
def test_one_report_the_same_from_the_api_and_the_command(kind, tmp_path, capsys):
    name, content, words = BAD[kind]
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        build(path)
    message = str(caught.value)
    assert str(path) in message and words in message and len(message) < 2000
    assert run_command("data", ["check", str(path)]) in (2, 3)
    shown = "".join(capsys.readouterr())
    assert "Traceback" not in shown
    assert all(line.strip() in shown for line in message.splitlines())


ODD = {
    "BOM": "\ufeff" + caption(),
    "UTF-16": caption().encode("utf-16"),
    "UTF-16, big-endian": b"\xfe\xff" + caption().encode("utf-16-be"),
    "UTF-32": caption().encode("utf-32"),
    "line ends of old Macs": caption().replace("\n", "\r"),
    "a list of one image": caption(image=["0.png"]),
    "CRLF": caption().replace("\n", "\r\n"),
    "U+2028": "".join(json.dumps({**GOOD, "caption": text}, ensure_ascii=False) + "\n" for text in ("a\u2028b", "c")),
    "right to left, emoji": caption(caption="\u05db\u05dc\u05d1 \U0001f415"),
    "empty lines": caption().replace("\n", "\n\n"),
    "absolute name inside": "{folder}",
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_only_odd_is_read(kind, tmp_path, capsys):
    content: Any = ODD[kind]
    if content == "{folder}":
        content = caption(image=str(tmp_path / "0.png"))
    path = write(tmp_path, "a.jsonl", content)
    dataset = build(path)
    assert len(dataset) == 2 and dataset.sample(1)["image"].shape == (3, 16, 16)
    assert run_command("data", ["check", str(path)]) == 0
    assert "2 rows, " in capsys.readouterr().out


def test_an_id_of_several_images_is_refused_for_evaluation_and_told_by_the_check(tmp_path, capsys):
    rows = [{**GOOD, "image_id": 5}, {"image": "1.png", "caption": "a cat", "image_id": 5}]
    path = write(tmp_path, "a.jsonl", lines(*rows, {**rows[0], "caption": "again"}))
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    words = f"{path}:2: field 'image_id' is 5 for 1.png, but at {path}:1 for 0.png"
    with pytest.raises(DataError) as caught:
        build(path, "val", id_column="image_id")
    assert words in str(caught.value)
    assert run_command("data", ["check", str(path)]) == 3
    assert words in capsys.readouterr().out


def test_train_says_the_same(tmp_path, capsys):
    path = write(tmp_path, "a.jsonl", lines(*4 * [{**GOOD, "image": "../0.png"}]))
    run = tmp_path / "run.yaml"
    root = Path(__file__).resolve().parents[3]
    run.write_text(f"base: {root}/projects/blip2/stage1.yaml\ndatasets:\n  mini_world_caption: null\n  own:\n"
                   f"    builder: custom\n    build_info: {{annotations: {{train: {{storage: {path}}}}}}}\n"
                   f"run: {{output_dir: {tmp_path / 'out'}, valid_splits: [], test_splits: [], max_iters: 1, "
                   "num_workers: 0, tensorboard: false}\n")
    assert run_command("train", ["--cfg-path", str(run)]) == 2
    with pytest.raises(DataError) as caught:
        build(path)
    assert str(caught.value).startswith("4 faulty annotation rows:")
    assert str(caught.value) in capsys.readouterr().err
