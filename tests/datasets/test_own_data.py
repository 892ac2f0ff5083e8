"""Files of a user's own: read by `custom`, and from `data check --write-yaml` to a trained and scored model."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lavis_lite.cli.data_check import builder_of
from lavis_lite.cli.main import run_command
from lavis_lite.config.schema import BuildInfo, FileConfig, ProcessorPair
from lavis_lite.datasets.annotations.readers import guess_columns, split_values
from lavis_lite.datasets.builders.custom import CustomBuilder, CustomConfig
from lavis_lite.datasets.builders.questions import ImageDialogueBuilder, ImageDialogueConfig
from lavis_lite.datasets.validate.recipe import guess
from lavis_lite.errors import ConfigError, DataError

COLORS = ("red", "green", "blue", "yellow")
EVAL = {"name": "blip_image_eval", "image_size": 16}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 24 pictures."""
    (tmp_path / "pics").mkdir()
    for number in range(24):
        Image.new("RGB", (64, 64), (10 * number, 90, 30)).save(tmp_path / "pics" / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def build(path: Path, split: str = "train", training: bool = True, **keys: Any) -> Any:
    processors = ProcessorPair(train=dict(EVAL), eval=dict(EVAL))
    cfg = CustomConfig(builder="custom", build_info=BuildInfo(annotations={"train": FileConfig(storage=str(path))}),
                       vis_processor=processors, **keys)
    return CustomBuilder("mine", cfg).build(split, training)


# custom ---------------------------------------------------------------------------------------------------------------


def test_questions_train_as_captions_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(folder / "a.csv", [{"img_path": "pics/0.jpg", "Question": "what color?", "answer": "red",
                                         "qid": "q7"}])
    dataset = build(path)
    sample = dataset[0]
    assert (sample["text_input"], sample["text_output"], sample["question_id"]) == ("what color?", "red", "q7")
    assert "columns of a.csv: image = 'img_path', question = 'Question', answer = 'answer'" in capsys.readouterr().out
    evaluation = build(path, training=False)
    assert evaluation.has_answers and evaluation.question(0)["answers"] == ["red"]


@pytest.mark.parametrize(("row", "keys", "answers"), [
    ({"answers": ["red", "crimson"]}, {}, ["red", "crimson"]),
    ({"a1": "red", "a2": "crimson"}, {"answer_column": ["a1", "a2"]}, ["red", "crimson"]),
    ({"says": "red"}, {"answer_column": "says"}, ["red"]),
    ({"answer": 3}, {}, ["3"]),
])
def test_answers_in_one_column_a_list_or_several(row: dict[str, Any], keys: dict[str, Any], answers: list[str],
                                                 folder: Path) -> None:
    path = folder / "a.json"
    path.write_text(json.dumps([{"image": "pics/0.jpg", "question": "what?", **row}]))
    assert build(path, training=False, **keys).question(0)["answers"] == answers
    assert build(path, **keys)[0]["text_output"] == answers[0]


def test_choices_are_the_samples_own(folder: Path) -> None:
    path = folder / "a.json"
    row = {"image": "pics/0.jpg", "question": "what?", "answer": "red", "options": ["red", "blue"]}
    path.write_text(json.dumps([row]))
    assert build(path, choices_column="options")[0]["choices"] == ["red", "blue"]


def test_a_file_with_captions_and_questions_is_one_of_questions_unless_told(folder: Path) -> None:
    path = write_csv(folder / "a.csv", [{"image": "pics/0.jpg", "caption": "a field", "question": "what?",
                                         "answer": "a field"}])
    assert build(path)[0]["text_output"] == "a field"
    assert build(path, caption_column="caption")[0]["text_input"] == "a field"
    with pytest.raises(ConfigError, match="caption_column and question_column exclude each other"):
        build(path, caption_column="caption", question_column="question")


def test_what_cannot_be_guessed_is_asked_for_by_its_key(folder: Path) -> None:
    path = write_csv(folder / "a.csv", [{"a": "pics/0.jpg", "b": "x"}])
    with pytest.raises(DataError, match="no column looks like image or caption; it has: a, b. Set datasets.mine"
                                        ".image_column and datasets.mine.caption_column to the column's name"):
        build(path)
    assert build(path, image_column="a", caption_column="b")[0]["text_input"] == "x"


def test_questions_have_held_out_images(folder: Path) -> None:
    path = write_csv(folder / "a.csv", [{"image": f"pics/{n % 24}.jpg", "question": f"what {n}?", "answer": "x"}
                                        for n in range(48)])
    train = {build(path, val_fraction=0.3).table[n]["image"] for n in range(len(build(path, val_fraction=0.3)))}
    val = build(path, "val", False, val_fraction=0.3)
    held = {val.table[n]["image"] for n in range(len(val))}
    assert len(train) + len(held) == 24 and not train & held and held


@pytest.mark.parametrize("row", [
    {"task_type": "llava_sft", "text": "Be brief.\nHuman: <image>\nHuman: what?\nAI: a field", "image": ["pics/0.jpg"]},
    {"image": "pics/0.jpg", "images": ["pics/1.jpg"], "conversations": [{"from": "human", "value": "<image>\nwhat?"},
                                                                       {"from": "gpt", "value": "a field"}]}])
def test_transcripts_and_rows_of_two_columns_of_pictures_are_read_as_conversations(folder: Path, row: Any) -> None:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert guess(folder / "rows.jsonl")[0].builder == "chat"


@pytest.mark.parametrize("names", ["{}/metadata.jsonl", "{}.jsonl", "annotations/captions_{}2014.json"])
def test_a_folder_of_splits_is_found_and_each_reads_its_own_images(names: str, folder: Path) -> None:
    """Splits of an imagefolder call their pictures alike: 0.png is another one in each."""
    for split, grey in (("test", 200), ("train", 10)):
        path = folder / "data" / names.format(split)
        pictures = path.parent if names.startswith("{}/") else folder / "data"
        pictures.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        prefix = "" if names.startswith("{}/") else split
        Image.new("L", (8, 8), grey).save(pictures / f"{prefix}0.png")
        path.write_text(json.dumps({"file_name": f"{prefix}0.png", "text": split}) if path.suffix == ".jsonl" else
                        json.dumps([{"file_name": f"{prefix}0.png", "text": split}]))
    section, notes = guess(folder / "data")
    assert "splits: test, train" in notes
    for split, grey in (("test", 200), ("train", 10)):
        data = builder_of("mine", section).build(split, False)
        assert data.references(0) == [split] and data.folder.load(data.image[0]).getpixel((0, 0)) == (grey,) * 3


def test_one_split_in_two_folders_needs_a_folder_of_images(folder: Path) -> None:
    for name in ("valid", "validation"):
        (folder / name).mkdir()
        write_csv(folder / name / "metadata.csv", [{"file_name": "0.jpg", "text": "a"}])
    section, _ = guess(folder, None)
    with pytest.raises(DataError, match=r"in several folders .*where are its images\? Set build_info.images.storage"):
        builder_of("mine", section).build("val", False)


def test_files_that_tell_no_split_are_named(folder: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write_csv(folder / name, [{"file_name": "0.jpg", "text": "a"}])
    with pytest.raises(DataError, match=r"no name tells a split: a.csv, b.csv. Name one file"):
        guess(folder)


def test_other_columns_that_would_fit_are_named(folder: Path) -> None:
    path = write_csv(folder / "a.csv", [{"image": "x", "text": "y", "title": "z"}])
    assert guess_columns(path).describe() == "image = 'image', caption = 'text' (caption could also be 'title')"


def test_split_columns_are_those_with_names_of_splits(folder: Path) -> None:
    rows = [{"image": "x", "split": name} for name in ("train", "validation", "test")]
    path = write_csv(folder / "a.csv", rows)
    found = {"train": "train", "val": "validation", "test": "test"}
    assert split_values(path, "split") == (found, {})
    more = [*rows, *({"image": "x", "split": name} for name in ("other", "Train", "restval", "other"))]
    path = write_csv(folder / "b.csv", more)  # rows of the test are not trained on, whatever else is there
    assert split_values(path, "split") == ({**found, "train": ["train", "Train", "restval"]}, {"other": 2})
    assert split_values(write_csv(folder / "c.csv", [rows[0], more[3]]), "split") == ({}, {})


def test_a_split_may_have_several_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("train", "restval", "test", "x")
    path = write_csv(folder / "a.csv", [{"image": f"{name}.png", "caption": name, "split": name} for name in names])
    section, notes = guess(path)
    assert section.split_values == {"train": ["train", "restval"], "test": "test"}
    assert "rows of no split, which are not used: 1 with 'x'; split_values may name them" in notes
    built = build(path, split_column="split", split_values=section.split_values)
    assert [row["caption"] for row in built.table.skim()] == ["train", "restval"]
    assert "set split_column" not in capsys.readouterr().out and len(build(path)) == 4
    assert "all rows of a.csv are used; to choose among them by its column 'split' set split_column" in (
        capsys.readouterr().out)


# dialogues ------------------------------------------------------------------------------------------------------------


def dialogue(*turns: str, image: str = "pics/0.jpg") -> dict[str, Any]:
    speakers = ("human", "gpt")
    return {"id": image, "image": image,
            "conversations": [{"from": speakers[n % 2], "value": text} for n, text in enumerate(turns)]}


def dialogues(path: Path, **keys: Any) -> ImageDialogueBuilder:
    cfg = ImageDialogueConfig(
        builder="image_dialogue", build_info=BuildInfo(annotations={"train": FileConfig(storage=str(path))}),
        vis_processor=ProcessorPair(train=dict(EVAL), eval=dict(EVAL)), **keys)
    return ImageDialogueBuilder("talk", cfg)


def test_a_turn_keeps_its_history(folder: Path) -> None:
    path = folder / "a.json"
    path.write_text(json.dumps([dialogue("what is it?", "a field", "what color?", "green")]))
    for training in (True, False):
        dataset = dialogues(path).build("train", training)
        assert [dataset[n]["text_input"] for n in range(2)] == [
            "what is it?", "Q: what is it? A: a field\nwhat color?"]
        assert "history" not in dataset[0]
    named = dialogues(path, instruction=ProcessorPair(train={"name": "instruction", "templates": ["{} ({history})"]}))
    assert named.build("train", True)[1]["text_input"] == "what color? (Q: what is it? A: a field)"


# from a file to a trained model ---------------------------------------------------------------------------------------


def captions_csv(folder: Path) -> str:
    write_csv(folder / "a.csv", [{"file_name": f"pics/{n}.jpg", "text": f"a {COLORS[n % 4]} field"} for n in range(24)])
    return "a.csv"


def image_folder(folder: Path) -> str:
    rows = [{"file_name": f"{n}.jpg", "text": f"a {COLORS[n % 4]} field"} for n in range(24)]
    (folder / "pics" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "pics/metadata.jsonl"


def coco(folder: Path) -> str:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(24)]
    captions = [{"id": n, "image_id": n % 24, "caption": f"a {COLORS[n % 4]} field"} for n in range(48)]
    (folder / "pics" / "coco.json").write_text(json.dumps({"info": {}, "images": images, "annotations": captions}))
    return "pics/coco.json"


def questions_tsv(folder: Path) -> str:
    lines = ["image_path\tquery\tanswers", *(f"pics/{n}.jpg\twhat color is it?\t{COLORS[n % 4]}" for n in range(24))]
    (folder / "q.tsv").write_text("\n".join(lines) + "\n")
    return "q.tsv"


def questions_with_splits(folder: Path) -> str:
    parts = ["train"] * 16 + ["val"] * 8
    rows = [{"image": f"pics/{n}.jpg", "question": "what?", "answer": [COLORS[n % 4]] * 10, "split": part}
            for n, part in enumerate(parts)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "q.jsonl"


def conversations(folder: Path) -> str:
    rows = [dialogue("<image>\nwhat is it?", "a field", "what color?", COLORS[n % 4], image=f"pics/{n}.jpg")
            for n in range(24)]
    (folder / "talk.json").write_text(json.dumps(rows))
    return "talk.json"


def tars(folder: Path) -> str:
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "00000.tar", "w") as tar:
        for number in range(24):
            picture = (folder / "pics" / f"{number}.jpg").read_bytes()
            for name, data in ((f"{number:04d}.jpg", picture), (f"{number:04d}.txt", b"a field")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert run_command("data", ["index", "tars"]) == 0
    return "tars"


@pytest.mark.parametrize(("make", "score"), [
    (captions_csv, "CIDEr"), (image_folder, "CIDEr"), (coco, "CIDEr"), (questions_tsv, "accuracy"),
    (questions_with_splits, "accuracy"), (conversations, "accuracy"), (tars, "CIDEr"),
], ids=lambda value: getattr(value, "__name__", None))
def test_a_file_becomes_a_trained_and_scored_model(make: Callable[[Path], str], score: str | None, folder: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    source = make(folder)
    assert run_command("data", ["check", source, "--write-yaml", "recipe.yaml"]) == 0
    assert "Train with: python -m lavis_lite train recipe.yaml" in capsys.readouterr().out
    quick = ["run.max_iters=2", "run.num_workers=0", "run.tensorboard=false", "run.warmup_steps=1", "run.max_len=4",
             "run.batch_size_train=4"]
    assert run_command("train", ["--cfg-path", "recipe.yaml", "--options", *quick]) == 0
    (run,) = folder.glob("output/*/2*")
    assert list(run.glob("checkpoints/*/model.safetensors"))
    results = [json.loads(path.read_text()) for path in run.glob("results/*_step2.json")]
    assert len(results) == (score is not None)
    if score is not None:
        assert score in results[0]["metrics"] and list(run.glob("results/*report.html"))


def test_recipes_are_written_once_and_for_what_the_file_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions, questions = captions_csv(folder), questions_tsv(folder)
    assert run_command("data", ["check", captions, "--goal", "pretrain", "--write-yaml", "a.yaml"]) == 0
    recipe = yaml.safe_load((folder / "a.yaml").read_text())
    assert recipe["model"]["arch"] == "blip2" and recipe["run"]["task"] == "image_text_pretrain"
    assert recipe["datasets"]["a"]["val_fraction"] == 0.1 and recipe["run"]["test_splits"] == ["val"]
    for words, message in [(["check", captions, "--write-yaml", "a.yaml"], "there is such a file already"),
                           (["check", questions, "--goal", "captioning", "--write-yaml", "b.yaml"], "choose vqa"),
                           (["check", "coco_caption", "--write-yaml", "b.yaml"], "needs a FILE or DIR")]:
        with pytest.raises(ConfigError, match=message):
            from lavis_lite.cli.data_check import main

            main(words[1:])
    (folder / "bad.csv").write_text("image,caption\npics/99.jpg,a field\n")
    assert run_command("data", ["check", "bad.csv", "--write-yaml", "c.yaml"]) == 3
    assert not (folder / "c.yaml").exists() and "was not written" in capsys.readouterr().out
