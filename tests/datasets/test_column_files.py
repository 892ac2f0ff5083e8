"""Parquet, Arrow and saved data sets: the same rows as JSON lines, pictures in cells, and folders of files."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from lavis_lite.config.schema import BuildInfo, FileConfig, StorageConfig
from lavis_lite.datasets.annotations import rows as annotations
from lavis_lite.datasets.annotations.column_tables import ColumnTable
from lavis_lite.datasets.annotations.rows import Field, file_name, identifier, read_table, text, texts
from lavis_lite.datasets.annotations.tables import ExplodedTable
from lavis_lite.datasets.builders.chat import ChatBuilder, ChatConfig
from lavis_lite.datasets.builders.custom import CustomBuilder, CustomConfig
from lavis_lite.datasets.files import columnar
from lavis_lite.datasets.files.locate import splits_in, table_files
from lavis_lite.errors import DataError, MissingExtraError
from tests.datasets.conftest import pair, picture

FIELDS = [Field("image", file_name), Field("caption", texts), Field("image_id", identifier, required=False),
          Field("domain", text, required=False)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, rows: list[dict[str, Any]], group: int = 3) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=group)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        make = pa.ipc.new_stream if path.name.startswith("data-") else pa.ipc.new_file  # as `datasets`, as pandas
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return path


def captions(count: int) -> list[dict[str, Any]]:
    return [{"image": f"{n}.png", "caption": f"Picture {n}, é.", "image_id": 100 + n} for n in range(count)]


def plain(files: list[Path], monkeypatch: pytest.MonkeyPatch, explode: str | None) -> Any:
    """The table that is read row by row."""
    monkeypatch.setattr(annotations, "open_columns", lambda *arguments: None)
    return read_table(files, FIELDS, explode)


@pytest.mark.parametrize("explode", [None, "caption"])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "data-00000.arrow"])
def test_columns_give_the_rows_of_json_lines(tmp_path, monkeypatch, name, listed, explode):
    rows = captions(10)
    if listed:
        rows = [{**row, "caption": [row["caption"], "Again."][:1 + number % 2]} for number, row in enumerate(rows)]
    files = [write(tmp_path / name, rows), write(tmp_path / f"b{Path(name).suffix}", rows[:4])]
    table = read_table(files, FIELDS, explode)
    assert isinstance(table, ExplodedTable if explode else ColumnTable)
    twin, lines = plain(files, monkeypatch, explode), plain([write(tmp_path / "a.jsonl", rows)], monkeypatch, explode)
    every = range(len(twin))
    assert [table[index] for index in every] == list(table.skim()) == [twin[index] for index in every]
    assert [twin[index] for index in range(len(lines))] == [lines[index] for index in range(len(lines))]
    assert [table.location(index) for index in every] == [twin.location(index) for index in every]
    assert table.file_sizes() == twin.file_sizes()
    again = pickle.loads(pickle.dumps(table))
    assert [again[index] for index in every] == [twin[index] for index in every]
    if explode is None:
        assert table.content_hash() == twin.content_hash() == again.content_hash()


@pytest.mark.parametrize("odd", [
    {"caption": " "}, {"caption": None}, {"image": "../0.png"}, {"image": None}, {"caption": "x" * 20_001},
    {"caption": "a\0b"}, {"caption": "\x1c"}, {"image": "/etc/passwd.png"}])
def test_odd_rows_are_read_one_by_one_and_named(tmp_path, monkeypatch, odd):
    rows = captions(7)
    rows[4] |= odd
    file = write(tmp_path / "a.parquet", rows)
    try:
        expected = [plain([file], monkeypatch, None)[index] for index in range(7)]
    except DataError as error:
        expected = str(error)
        assert "a.parquet:5: field" in expected and error.args[0].startswith("1 faulty annotation row")
    monkeypatch.undo()
    try:
        table = read_table([file], FIELDS)
        found: Any = [table[index] for index in range(7)]
    except DataError as error:
        found = str(error)
    assert found == expected


def custom(file: str | list[str], images: Path | None = None) -> CustomBuilder:
    info = BuildInfo(annotations={"train": FileConfig(storage=file)},
                     images=StorageConfig(storage=None if images is None else str(images)))
    cfg = CustomConfig(builder="custom", build_info=info)
    cfg.vis_processor = pair(*2 * [{"name": "blip_image_eval", "image_size": 16}])
    cfg.text_processor = pair(*2 * [{"name": "blip_caption"}])
    return CustomBuilder("own", cfg)


def files_of(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("bare", [False, True])
def test_pictures_in_cells(tmp_path, name, bare):
    images = files_of(tmp_path / "images", 5)
    rows = captions(5)
    loose = custom(str(write(tmp_path / "loose.jsonl", rows)), images).build("train", True)
    held = [{**row, "image": png(n) if bare else {"bytes": png(n), "path": row["image"]}}
            for n, row in enumerate(rows)]
    packed = custom(str(write(tmp_path / name, held, 2))).build("train", True)
    assert isinstance(packed.table, ExplodedTable)  # no row was made while it was opened
    for index in range(5):
        one, other = loose[index], packed[index]
        assert torch.equal(one["image"], other["image"]) and one["text_input"] == other["text_input"]
    again = pickle.loads(pickle.dumps(packed))
    assert torch.equal(again[4]["image"], packed[4]["image"])


def test_a_cell_without_bytes_names_a_file(tmp_path):
    images = files_of(tmp_path / "images", 2)
    rows = [{"image": {"bytes": png(7), "path": "7.png"}, "caption": "Held."},
            {"image": {"bytes": None, "path": "1.png"}, "caption": "Named."}]
    dataset = custom(str(write(tmp_path / "a.parquet", rows)), images).build("train", True)
    assert [dataset.table[index]["image"] for index in range(2)] == ["cell:0:0:image:", "1.png"]
    assert not torch.equal(dataset[0]["image"], dataset[1]["image"])


def test_conversations_of_the_hub(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": "This."}],
             "images": [{"bytes": png(number), "path": None}]} for number in range(3)]
    rows.append({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
                 "images": []})
    file = write(tmp_path / "a.parquet", rows, 2)
    cfg = ChatConfig(builder="chat", build_info=BuildInfo(annotations={"train": FileConfig(storage=str(file))}))
    cfg.vis_processor = pair(*2 * [{"name": "blip_image_eval", "image_size": 16}])
    dataset = ChatBuilder("own", cfg).build("train", True)
    batch = dataset.collater([dataset[index] for index in range(4)])
    assert batch["picture_counts"] == [1, 1, 1, 0] and batch["image"].shape == (3, 3, 16, 16)
    assert [dataset.table[index]["media"] for index in (1, 3)] == [[["image", "cell:0:1:images:0"]], []]
    bad = [*rows, {**rows[0], "images": []}]
    cfg.build_info.annotations["train"].storage = str(write(tmp_path / "b.parquet", bad))
    with pytest.raises(DataError, match=r"b\.parquet:5: has 1 mark <image> and no images"):
        ChatBuilder("own", cfg).build("train", True)


# --- folders ---------------------------------------------------------------------------------------------------------
def saved(folder: Path, rows: list[dict[str, Any]], **state: Any) -> Path:
    """A folder as `datasets` saves it."""
    folder.mkdir(parents=True)
    write(folder / "data-00000-of-00002.arrow", rows[:2])
    write(folder / "data-00001-of-00002.arrow", rows[2:])
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train", **state}))
    return folder


def test_saved_data_sets(tmp_path):
    rows = [{**row, "image": {"bytes": png(n), "path": None}} for n, row in enumerate(captions(5))]
    folder = saved(tmp_path / "all" / "train", rows)
    saved(tmp_path / "all" / "validation", rows)
    dataset = custom(str(folder)).build("train", True)
    assert len(dataset) == 5 and dataset.location(3).endswith("data-00001-of-00002.arrow:2")
    assert dataset[4]["image"].shape == (3, 16, 16)
    assert list(splits_in(tmp_path / "all")) == ["train", "val"]
    with pytest.raises(DataError, match=r"has several splits \(train, val\)"):
        custom(str(tmp_path / "all")).build("train", True)
    selected = saved(tmp_path / "some", rows, _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        table_files(selected)


@pytest.mark.parametrize("metadata", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_imagefolder(tmp_path, metadata):
    folder = files_of(tmp_path / "birds", 3)
    rows = [{"file_name": row["image"], "text": row["caption"]} for row in captions(3)]
    if metadata.endswith("csv"):
        (folder / metadata).write_text("file_name,text\n" + "".join(
            f'{row["file_name"]},"{row["text"]}"\n' for row in rows))
    else:
        write(folder / metadata, rows)
    dataset = custom(str(folder)).build("train", True)
    assert len(dataset) == 3 and dataset[2]["text_input"] == "picture 2, é"


@pytest.mark.parametrize(("names", "splits"), [
    (["train.jsonl", "val.jsonl"], {"train": ["train.jsonl"], "val": ["val.jsonl"]}),
    (["train.csv", "test.csv", "classes.csv"], {"train": ["train.csv"], "test": ["test.csv"]}),
    (["annotations/captions_train2014.json", "annotations/captions_val2014.json", "annotations/instances_val2014.json"],
     {"train": ["annotations/captions_train2014.json"], "val": ["annotations/captions_val2014.json"]}),
    (["training/rows.json", "dev/rows.json", "images/sizes.json"],
     {"train": ["training/rows.json"], "val": ["dev/rows.json"]}),
    (["captions.tsv"], {"train": ["captions.tsv"]}), (["a.csv", "b.csv"], {}), (["train.json", "index.json"], {}),
    (["0.tar", "train.json"], {})])
def test_text_files_with_the_usual_names_of_splits(tmp_path, names, splits):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert splits_in(tmp_path) == {split: [tmp_path / name for name in own] for split, own in splits.items()}


def test_text_files_of_several_kinds_are_not_one_split(tmp_path):
    for name in ("train_questions.json", "train_answers.json"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"several kinds: train_answers.json, train_questions.json. Name a file"):
        splits_in(tmp_path)


def test_parquet_files_of_the_hub(tmp_path):
    (tmp_path / "repo" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        write(tmp_path / "repo" / "data" / f"{name}.parquet", captions(2))
    found = splits_in(tmp_path / "repo")
    assert {split: len(files) for split, files in found.items()} == {"train": 2, "val": 1}
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").touch()
    write(tmp_path / "tars" / "0.parquet", captions(1))
    assert splits_in(tmp_path / "tars") == {}  # img2dataset writes a table beside each tar


@pytest.mark.parametrize(("names", "splits"), [
    (["train", "validation", "test"], {"train": ["train"], "val": ["validation"], "test": ["test"]}),
    (["flickr_test", "flickr_train_0", "flickr_train_1"],
     {"train": ["flickr_train_0", "flickr_train_1"], "test": ["flickr_test"]}),
    (["captions_train2014", "captions_val2014"], {"train": ["captions_train2014"], "val": ["captions_val2014"]}),
    (["part-0", "part-1"], {"train": ["part-0", "part-1"]}),
    (["data", "test"], {"train": ["data"], "test": ["test"]}),
    (["more", "train", "val"], {"more": ["more"], "train": ["train"], "val": ["val"]}),
    (["latest"], {"train": ["latest"]}), (["train_val"], {"train": ["train_val"]})])
def test_files_of_other_splits_are_not_trained_on(tmp_path, names, splits):
    for name in names:
        write(tmp_path / f"{name}.parquet", captions(1))
    assert splits_in(tmp_path) == {split: [tmp_path / f"{name}.parquet" for name in own]
                                   for split, own in splits.items()}
    if len(splits) > 1:
        with pytest.raises(DataError, match="has several splits"):
            custom(str(tmp_path)).build("train", True)


# --- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_files(tmp_path, name):
    file = write(tmp_path / name, captions(5))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{name}: cannot be read; it is damaged"):
        read_table([file], FIELDS)
    with pytest.raises(DataError, match="there is no such annotation file"):
        read_table([tmp_path / "b.parquet"], FIELDS)


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for read in (lambda: read_table([tmp_path / "a.parquet"], FIELDS),
                 columnar.Cells([tmp_path / "a.parquet"]).prepared):  # builders open these first
        with pytest.raises(MissingExtraError, match=r"needs pyarrow.* pip install 'lavis_lite\[parquet\]'"):
            read()


def test_folders_of_one_split_are_read_together(tmp_path):
    for name in ("valid", "validation"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("file_name,text\n")
    assert splits_in(tmp_path) == {"val": [tmp_path / name / "metadata.csv" for name in ("valid", "validation")]}


def test_pictures_of_a_file_that_was_replaced_are_the_new_ones(tmp_path):
    for name in ("red", "blue"):
        path = write(tmp_path / "a.parquet", [{"image": png(1), "caption": name.ljust(4)}])
        os.utime(path, (1, 1))  # and as many bytes
        (batch,) = columnar.batches_of(path, ["caption"])
        assert batch.column("caption").to_pylist() == [name.ljust(4)]


def test_names_of_cells_open_no_other_file(tmp_path):
    cells = columnar.Cells([write(tmp_path / "a.parquet", [{"image": png(1)}])])
    assert cells.read("cell:0:0:image:") == png(1)
    for name in ("cell:1:0:image:", "cell:0:5:image:", "cell:0:0:other:", "cell:0:0:image:3", "cell:x"):
        assert cells.read(name) is None
