"""The doctor's counts, problems and contact sheets, on folders made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_lite.cli.main import run_command
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.validate.checks import CheckOptions, Names, absent, examine
from lavis_lite.datasets.validate.recipe import guess
from lavis_lite.datasets.validate.report import Problem, Summary
from lavis_lite.errors import ConfigError, DataError
from tests.datasets.annotations.test_rows import builder_of, put
from tests.datasets.row_files import CASES


def make(folder: Path, rows: list[dict[str, Any]], name: str = "a.jsonl") -> Path:
    (folder / "sub").mkdir(exist_ok=True)
    for number in range(4):
        Image.new("RGB", (20 + 10 * number, 30), (60 * number, 90, 30)).save(folder / "sub" / f"{number}.png")
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    status = run_command("data", ["check", *words, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_healthy_file(tmp_path, capsys):
    path = make(tmp_path, [{"File_Name": f"sub/{n % 4}.png", "Text": "a red circle " * (1 + 30 * (n == 1))}
                           for n in range(6)])
    status, report = check(capsys, str(path))
    (split,) = report["splits"]
    assert status == 0 and report["healthy"] and "image = 'File_Name', caption = 'Text'" in report["notes"][0]
    assert (split["rows"], split["images"], split["opened"], split["repeated"]) == (6, 4, 4, 1)
    assert split["texts"] == {"caption": 6} and split["over"] == {"caption": 1}
    assert split["tokens"]["caption"]["min"] == 5 and split["tokens"]["caption"]["max"] == 31 * 3 + 2
    assert split["sizes"]["width"] == {"count": 4, "min": 20, "median": 35, "mean": 35, "p95": 48.5, "max": 50}


def test_questions_are_known_by_their_columns(tmp_path, capsys):
    path = make(tmp_path, [{"img": "sub/0.png", "query": "what?", "label": ["a dog", "dog"], "qid": n}
                           for n in range(2)])
    status, report = check(capsys, str(path), "--images", "0")
    (split,) = report["splits"]
    assert status == 0 and split["texts"] == {"question": 2, "answer": 4} and split["opened"] == 0


def test_missing_and_broken_files_are_named_with_their_rows(tmp_path, capsys):
    names = ["sub/0.png", "sub/9.png", "nowhere/0.png", "sub/1.png", *(f"no{number}.png" for number in range(30))]
    path = make(tmp_path, [{"image": name, "caption": f"picture {name}"} for name in names])
    (tmp_path / "sub" / "1.png").write_bytes(b"no picture")
    status, report = check(capsys, str(path))
    missing, broken = report["splits"][0]["problems"]
    assert status == 3 and missing["count"] == 32 and len(missing["lines"]) == 20
    assert missing["lines"][0] == f"{path}:2: field 'image': sub/9.png is not in {tmp_path}"
    assert broken["lines"] == [f"{path}:4: field 'image': {tmp_path}/sub/1.png is not an image of a known format"]
    assert run_command("data", ["check", str(path)]) == 3
    shown = capsys.readouterr().out
    assert "PROBLEM: missing files: 32" in shown and "and 12 more" in shown and "2 problems, see above." in shown


def test_links_are_followed_but_not_to_system_files_and_not_into_the_void(tmp_path, capsys):
    inside = tmp_path / "in"
    inside.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "blob", "PNG")
    for name, target in (("x.png", "../blob"), ("hosts.png", "/etc/hosts"), ("gone.png", "../annex/nothing")):
        (inside / name).symlink_to(target)
    path = make(inside, [{"image": name, "caption": name} for name in ("x.png", "hosts.png", "gone.png")])
    status, report = check(capsys, str(path))
    missing, broken = report["splits"][0]["problems"]
    assert status == 3 and report["splits"][0]["opened"] == 1
    assert missing["lines"] == [f"{path}:3: field 'image': gone.png is a link to ../annex/nothing, which is not here; "
                                "fetch the content that links stand for (git-annex, DVC)"]
    assert "is a symbolic link to /etc/hosts; links to system files are not followed" in broken["lines"][0]


def test_the_sheet_is_the_same_every_time_and_shows_what_is_broken(tmp_path, capsys):
    path = make(tmp_path, [{"image": f"sub/{n}.png", "caption": "one two " * 40} for n in range(4)])
    (tmp_path / "sub" / "2.png").write_bytes(b"no")
    sheets = [tmp_path / "sheets" / f"{n}.png" for n in range(2)]
    for sheet in sheets:
        check(capsys, str(path), "--sheet", str(sheet), "--samples", "3")
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    with Image.open(sheets[0]) as image:
        assert image.size == (3 * 208, 192 + 66 + 16)
        found = {color for _, color in image.getcolors(1 << 20)}
    assert {(0, 90, 30), (60, 90, 30), (255, 0, 0)} <= found  # two pictures, and the frame of the broken one


def test_columns_can_be_named_and_are_asked_for(tmp_path, capsys):
    path = make(tmp_path, [{"a": "sub/0.png", "b": "x"}])
    with pytest.raises(DataError, match="no column looks like image or caption; it has: a, b. Say which: --columns im"):
        guess(path)
    status, report = check(capsys, str(path), "--columns", "image=a", "caption=b")
    assert status == 0 and report["splits"][0]["rows"] == 1
    with pytest.raises(ConfigError, match="no such column; did you mean 'caption'"):
        guess(path, None, {"captoin": "b"})


def test_images_that_training_has_too_are_counted(coco_section, coco_folder):
    rows = [{"image": f"./{number}.png", "caption": "a"} for number in (6, 7, 8)]
    (coco_folder / "captions_val.json").write_text(json.dumps(rows))
    report = examine("tiny", ImageCaptionBuilder("tiny", coco_section), CheckOptions(lambda texts: [3] * len(texts)))
    assert [split.learned for split in report.splits] == [0, 2] and report.healthy
    assert "images that a training split has too, so that scores are no test of new ones: 2" in str(report)


def test_official_coco_captions_are_read(coco_folder, capsys):
    captions, images = coco_folder / "captions_train.json", coco_folder / "images"
    status, report = check(capsys, str(captions), "--image-root", str(images))
    assert status == 0 and report["splits"][0]["rows"] == 16 and report["splits"][0]["images"] == 8


@pytest.mark.parametrize(("words", "message"), [
    (["nowhere.json"], "nowhere.json: there is no such annotation file"),
    (["nowhere.xlsx"], "annotation files end in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .feather, not in "
                       "'.xlsx'. Convert it, for example with: python -c \"import pandas; pandas.read_excel("),
    (["nowhere.parquet"], "nowhere.parquet: there is no such annotation file"),
    ([str(Path(__file__).resolve().parents[2] / "README.md")], "README.md: annotation files end in .json, .jsonl"),
    (["coco_captoin"], "did you mean 'coco_caption'"),
    (["coco_caption", "--type", "other"], "no type 'other'"),
    (["coco_caption", "--splits", "dev"], "has no split 'dev'; it has train, val, test"),
    (["coco_caption", "--images", "-1"], "--images must be at least 0"),
    (["coco_caption", "--tokenizer", "/nowhere"], "neither a folder with a tokenizer"),
])
def test_mistakes_in_words(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_command("data", ["check", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_fault_is_told_once(tmp_path, capsys):
    path = make(tmp_path, [{"image": ["sub/0.png", "sub/1.png"], "question": "what?", "answer": "x"} for _ in range(3)])
    assert run_command("data", ["check", str(path)]) == 3
    told = capsys.readouterr().out
    assert told.count("a.jsonl:2: ") == 1 and "3 faulty annotation rows" in told
    assert "a.jsonl:2: field 'image' names 2 files; a row has one" in told


def test_a_file_is_read_as_the_command_says(tmp_path, capsys):
    path = make(tmp_path, [])
    path = path.with_name("a.csv")
    path.write_bytes("image#caption\nsub/0.png#\"caf\u00e9\" noir\n".encode("cp1252"))
    words = ["--delimiter", "#", "--quoting", "none", "--encoding", "cp1252"]
    status, report = check(capsys, str(path), *words)
    assert status == 0 and report["splits"][0]["rows"] == 1
    assert run_command("data", ["check", str(path)]) == 2
    assert "a.csv:2: is not UTF-8 text" in capsys.readouterr().err


def test_what_is_not_here_is_said_per_split(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    status, report = check(capsys, "coco_caption", "--splits", "val")
    assert status == 3 and len(report["splits"]) == 1
    assert "coco_karpathy_val.json is not here" in report["splits"][0]["problems"][0]["what"]


def test_names_are_spread_evenly():
    names = Names({str(n): n for n in range(10)})
    assert names.spread(3) == ["0", "3", "6"] and names.spread(10) == names.spread(99) == list(map(str, range(10)))
    assert names.spread(0) == []


def test_absent_lists_each_folder_once(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    import lavis_lite.datasets.files.image_paths as media

    asked, scan = [], media.os.scandir
    monkeypatch.setattr(media.os, "scandir", lambda folder: asked.append(folder) or scan(folder))
    assert list(absent(ImageFolder(tmp_path), ["a/x", "a/y", "a/z"])) == ["a/y", "a/z"] and len(asked) == 1


def test_summaries_and_problems():
    assert Summary.of([]) is None
    assert str(Summary.of([1, 2, 9])).startswith("1 - 9, median 2, mean 4.0")
    assert str(Problem("all is lost", 1)) == "all is lost"


@pytest.mark.parametrize("case", CASES)
def test_published_layouts_of_the_rows_are_healthy(case, tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    kind, files, images, splits = CASES[case]
    put(tmp_path, files, images)
    how = CheckOptions(lambda texts: [len(text.split()) for text in texts], "words")
    report = examine(case, builder_of(case.split(" ")[0], kind), how, list(splits))
    assert report.healthy, str(report)
    assert [split.rows > 0 and split.opened == split.images for split in report.splits] == [True] * len(splits)
    (tmp_path / images[0]).unlink()
    assert not examine(case, builder_of(case.split(" ")[0], kind), how).healthy


def test_what_a_file_has_besides_is_named(tmp_path, capsys):
    rows = [{"image": "sub/0.png", "question": "q?", "answer": "x", "choices": ["x", "y"], "split": name}
            for name in ("train", "extra")]
    code, report = check(capsys, str(make(tmp_path, rows[:1])))
    assert code == 0 and report["notes"][-1] == "columns that are not read: 'choices'"
    code, report = check(capsys, str(make(tmp_path, rows)))
    assert report["notes"][-2].startswith("column 'split' holds other values than train, val and test, so that rows of "
                                          "all of them are used;")


def test_one_row_is_no_rows(tmp_path, capsys):
    assert run_command("data", ["check", str(make(tmp_path, [{"image": "sub/0.png", "caption": "a dog"}]))]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "  1 row, 1 image" in told and "  1 caption" in told and "  1 image opened" in told
