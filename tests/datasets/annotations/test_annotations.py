"""Annotation files: every format, every fault named with its place, a table that workers share."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lavis_lite.datasets.annotations import rows as annotations
from lavis_lite.datasets.annotations.readers import read_rows
from lavis_lite.datasets.annotations.rows import (
    MOST_CHARACTERS,
    Field,
    RowTable,
    file_name,
    identifier,
    read_table,
    texts,
)
from lavis_lite.datasets.annotations.tables import ExplodedTable, MappedTable
from lavis_lite.datasets.files.image_paths import with_pattern
from lavis_lite.errors import DataError

FIELDS = [Field("image", file_name), Field("caption", texts), Field("image_id", identifier, required=False)]


def write(folder: Path, name: str, content: str | bytes | list | dict) -> Path:
    path = folder / name
    if isinstance(content, list | dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def faults_of(folder: Path, name: str, content: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_table([write(folder, name, content)], FIELDS, **more)
    return str(caught.value)


def rows(table: RowTable) -> list[dict]:
    return [table[index] for index in range(len(table))]


ROWS = [{"image": "a.jpg", "caption": ["one", "two"], "image_id": 1},
        {"image": "b.jpg", "caption": ["три 🙂 \u2028 x"]}]


@pytest.mark.parametrize(("name", "content"), [
    ("list.json", json.dumps(ROWS)),
    ("indented.json", json.dumps(ROWS, indent=2).replace("\n", "\r\n")),
    ("mark.json", "\ufeff" + json.dumps(ROWS, ensure_ascii=False)),
    ("wrapped.json", json.dumps({"info": 1, "data": ROWS})),
    ("lines.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
    ("windows.ndjson", "\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n"),
    ("wide.json", json.dumps(ROWS).encode("utf-16")),
    ("wider.jsonl", "\n".join(json.dumps(row) for row in ROWS).encode("utf-32")),
    ("mac.jsonl", "\r".join(json.dumps(row) for row in ROWS)),
])
def test_formats_of_json(tmp_path, name, content):
    assert rows(read_table([write(tmp_path, name, content)], FIELDS)) == ROWS


def test_official_coco_captions_are_joined_with_their_images(tmp_path, capsys):
    content = {"images": [{"id": 5, "file_name": "x/5.jpg"}, {"id": 3, "file_name": "x/3.jpg"}],
               "annotations": [{"id": 1, "image_id": 3, "caption": "c"}, {"id": 2, "image_id": 5, "caption": "a"},
                               {"id": 3, "image_id": 5, "caption": "b"}]}
    table = read_table([write(tmp_path, "coco.json", content)], FIELDS, explode="caption")
    assert rows(table) == [{"image": "x/5.jpg", "caption": "a", "image_id": 5},
                           {"image": "x/5.jpg", "caption": "b", "image_id": 5},
                           {"image": "x/3.jpg", "caption": "c", "image_id": 3}]
    assert [table.location(index).rsplit(":", 1)[1] for index in range(3)] == ["2", "3", "1"]
    assert capsys.readouterr().out == ""
    content["images"] += [{"id": 9, "file_name": "x/9.jpg"}]
    with pytest.warns(UserWarning, match=r"coco.json: 1 of its 3 images have no annotation and are left out.* id 9"):
        assert len(read_table([write(tmp_path, "coco.json", content)], FIELDS)) == 3


def test_csv_places_are_line_numbers_and_quoted_texts_may_have_line_ends(tmp_path):
    content = 'image,caption\r\na.jpg,"one, two\r\nthree"\r\nb.jpg,four\r\n'
    table = read_table([write(tmp_path, "t.csv", content)], FIELDS)
    assert rows(table)[0]["caption"] == ["one, two\r\nthree"]
    assert table.location(1).endswith("t.csv:4")


def test_explode_gives_a_row_per_caption(tmp_path):
    table = read_table([write(tmp_path, "a.json", ROWS)], FIELDS, explode="caption")
    assert [row["caption"] for row in rows(table)] == ["one", "two", "три 🙂 \u2028 x"]
    assert [table.location(index)[-2:] for index in range(3)] == [":1", ":1", ":2"]


def test_several_files_keep_their_places(tmp_path):
    paths = [write(tmp_path, "a.json", ROWS), write(tmp_path, "b.jsonl", json.dumps(ROWS[0]))]
    table = read_table(paths, FIELDS)
    assert table.location(2) == f"{paths[1]}:1" and table[2] == ROWS[0]


BAD_ROWS = [
    ({"caption": "x"}, "field 'image' is missing (it has: caption)"),
    ({"image": "a"}, "field 'caption' is missing"),
    ({"image": None, "caption": "x"}, "field 'image' must be text, not null"),
    ({"image": 3, "caption": "x"}, "field 'image' must be text, not a number"),
    ({"image": "", "caption": "x"}, "field 'image' is empty"),
    ({"image": "a\0b", "caption": "x"}, "field 'image' has a null character"),
    ({"image": "a", "caption": []}, "field 'caption' is an empty list"),
    ({"image": "a", "caption": ["x", " "]}, "field 'caption'[1] is empty"),
    ({"image": "a", "caption": ["x", {}]}, "field 'caption'[1] must be text, not an object"),
    ({"image": "a", "caption": float("nan")}, "field 'caption' must be text, not a number"),
    ({"image": "a", "caption": "\ud800"}, "has half of a surrogate pair"),
    ({"image": "a", "caption": "x" * (MOST_CHARACTERS + 1)}, f"has {MOST_CHARACTERS + 1} characters"),
    ({"image": "a", "caption": "x", "image_id": [1]}, "field 'image_id' must be a number or text, not a list"),
    ({"image": "a", "caption": "x", "image_id": True}, "field 'image_id' must be a number or text, not true or false"),
    ({"image": "a", "caption": "x", "image_id": 2**63}, "field 'image_id' is a number of more than 64 bits"),
    ("text", "must be an object of named fields, not text"),
    (None, "must be an object of named fields, not null"),
]


@pytest.mark.parametrize(("row", "words"), BAD_ROWS)
def test_each_fault_is_named_with_file_and_row(tmp_path, row, words):
    message = faults_of(tmp_path, "a.json", [ROWS[0], row])
    assert message.startswith("1 faulty annotation row:\n")
    assert f"{tmp_path / 'a.json'}:2: " in message and words in message


def test_up_to_twenty_faults_come_in_one_error(tmp_path):
    message = faults_of(tmp_path, "a.json", [{"image": "a"} for _ in range(33)])
    assert message.startswith("33 faulty annotation rows:")
    assert message.count("a.json:") == 20 and message.endswith("and 13 more")


@pytest.mark.parametrize(("given", "held"), [("007", "007"), (391895.0, 391895), ("391895.0", "391895"), ("a.0", "a.0"),
                                             (2**53 + 1, 2**53 + 1), ("1e5", "1e5"), (1e5, 100_000)])
def test_numbers_that_are_names(given, held):
    assert identifier(given) == held


@pytest.mark.parametrize(("given", "words"), [
    (1.5, "is not a whole number"), (float(2**53), "last digits may be lost"),
    ("1.23457E+14", "a spreadsheet has made of"), (float("nan"), "not a whole")])
def test_numbers_that_have_lost_digits(given, words):
    with pytest.raises(ValueError, match=words):
        identifier(given)


@pytest.mark.parametrize(("content", "words"), [
    ({"data": ROWS, "train": ROWS}, "has rows in 'data', 'train'; only data would be read"),
    ({"images": [{"id": 1, "file_name": "a"}], "annotations": [], "data": ROWS}, "only images and annotations would"),
    ({"images": [{"id": 1}, {"id": 1}]}, "images[2]: id 1 was there before, at images[1]"),
    ({"things": ROWS}, "it is an object with 'things'"), ({"data": {"rows": ROWS}}, "it is an object with 'data'"),
])
def test_lists_that_would_not_be_read_are_named(tmp_path, content, words):
    assert words in faults_of(tmp_path, "a.json", content)


@pytest.mark.parametrize("name", ["data", "annotations", "rows", "samples", "train"])
def test_a_list_may_be_wrapped(tmp_path, name):
    assert rows(read_table([write(tmp_path, "a.json", {"info": {}, "licenses": [{}], name: ROWS})], FIELDS)) == ROWS


def test_null_optional_fields_are_absent(tmp_path):
    table = read_table([write(tmp_path, "a.json", [{"image": "a", "caption": "x", "image_id": None}])], FIELDS)
    assert table[0] == {"image": "a", "caption": ["x"]}


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.json", "", "the file is empty"),
    ("a.json", "  \n", "the file is empty"),
    ("a.json", "[]", "no rows"),
    ("a.csv", "image,caption\n", "no rows"),
    ("a.json", b"\xff\xfe[\x00", "a.json:1: not JSON"),
    ("a.json", '[{"image": "a.jpg", "caption": "x"}, {"image": ]', "a.json:2: not JSON"),
    ("a.json", '[{"image": "a.jpg", "caption": "x"}', "a.json:1: after this row a ',' or ']' is expected, but"),
    ("a.json", '[{"image": "a.jpg", "caption": "x"} 3]', "a.json:1: after this row a ',' or ']' is expected, not '3'"),
    ("a.json", '[{"image": "a.jpg", "caption": "x"},]', "a.json:2: not JSON"),
    ("a.json", '[{"image": "a.jpg", "caption": "x"}] []', "text after the list's end"),
    ("a.json", '{"image": "a"}\n{"image": "b"}', "name it .jsonl"),
    ("a.json", '{"annotations": 3}', "object with 'annotations'"),
    ("a.json", "3", "must be a list of objects"),
    ("a.json", "[" * 100_000, "not JSON"),
    ("a.json", '[{"image": ' + "[" * 100_000, "nested too deeply"),
    ("a.jsonl", '{"image": "a", "caption": "x"}\n{"image"', "a.jsonl:2: not JSON"),
    ("a.csv", "image,caption\na.jpg,one, two\n", "a.csv:2: 1 more cell than the header has; quote texts that hold"),
    ("a.csv", 'image,caption\na.jpg,"one\n', "a.csv:2: a quoted cell that begins in this row never ends"),
    ("a.csv", "image,caption\na.jpg\n", "a.csv:2: 1 fewer cell than the header has; it has 2: 'image', 'caption'"),
    ("a.csv", "image,caption\na.jpg,\n", "a.csv:2: field 'caption' is empty"),
    ("a.txt", "x", "annotation files end in .json"),
    ("a.json", '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 2}]}', "image_id 2 is not among"),
    ("a.json", '{"images": [{}], "annotations": []}', "images[1]: field 'id' is missing"),
    ("a.json", '{"images": [{"id": [1]}], "annotations": []}', "images[1]: field 'id' is missing, or neither"),
    ("a.json", '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1}]}', "a.json:1: field 'image'"),
    ("a.json", '{"images": [], "annotations": []}', "no rows"),
])
def test_faulty_files_are_named(tmp_path, name, content, words):
    assert words in faults_of(tmp_path, name, content)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="there is no such annotation file"):
        read_table([tmp_path / "a.json"], FIELDS)
    (tmp_path / "b.json").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_table([tmp_path / "b.json"], FIELDS)


def test_table_survives_pickling_and_holds_little(tmp_path):
    many = [{"image": f"{n:08d}.jpg", "caption": ["a short caption of some words"]} for n in range(2000)]
    table = RowTable(((0, n, row) for n, row in enumerate(many, 1)), [tmp_path / "a.json"])
    again = pickle.loads(pickle.dumps(table))
    assert again[1999] == many[1999] and again.location(7) == table.location(7)
    assert table.nbytes() < 2000 * 100
    with pytest.raises(IndexError):
        table[2000]
    # what a worker receives by spawn: tensors, which torch hands over in shared memory, and nothing per row
    state = table.__dict__
    assert all(isinstance(value, torch.Tensor) for key, value in state.items() if key not in ("files", "kinds"))


def test_large_tables_are_mapped_from_the_second_time_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations, "CACHED_FROM", 50)
    path = write(tmp_path, "a.json", ROWS)
    calls = []
    monkeypatch.setattr(annotations, "read_rows", lambda path, *how: calls.append(path) or read_rows(path, *how))

    def opened(**more: Any) -> RowTable:
        return read_table([path], FIELDS, **more)

    first, again = opened(), opened()
    assert len(calls) == 1 and isinstance(again, MappedTable) and rows(first) == rows(again) == ROWS
    assert list(first.skim()) == list(again.skim()) == ROWS
    assert again.location(1) == f"{path}:2" and again.kinds == {"image": "file_name", "caption": "texts",
                                                           "image_id": "identifier"}
    assert rows(pickle.loads(pickle.dumps(again))) == ROWS
    assert len(opened(explode="caption")) == 3 and len(calls) == 2  # another question, another file
    (held,) = [file for file in (tmp_path / "cache" / "tables").glob("a-*") if len(MappedTable(file)) == 2]
    path.write_text(json.dumps([*ROWS, ROWS[0]]))
    assert len(opened()) == 3 and len(opened()) == 3 and len(calls) == 3  # the file has changed
    held.write_bytes(held.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="cannot be used and is rewritten"):
        assert len(opened()) == 3
    assert len(opened()) == 3 and len(calls) == 4
    times = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("b.jpg", "c.jpg"))
    os.utime(path, ns=(times, times))  # as rsync -t and tar do
    assert [row["image"] for row in rows(opened())] == ["a.jpg", "c.jpg", "a.jpg"]


def test_a_filter_needs_a_name_to_be_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations, "CACHED_FROM", 50)
    path = write(tmp_path, "a.json", ROWS)
    for name in ("a", "b"):
        table = read_table([path], FIELDS, keep=lambda row, name=name: row["image"].startswith(name), kept=name)
        assert rows(table)[0]["image"] == f"{name}.jpg" and isinstance(table, MappedTable)
    assert not isinstance(read_table([path], FIELDS, keep=lambda row: True), MappedTable)
    assert not isinstance(read_table([path], [Field("image", lambda value: value)]), MappedTable)


def test_names_made_by_a_pattern_are_those_of_the_split_and_of_the_files_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations, "CACHED_FROM", 50)
    path = write(tmp_path, "a.json", [{"image_id": number, "caption": "a dog"} for number in range(3)])

    def names(patterns: Any, split: str, *there: str) -> list[str]:
        table = read_table([path], with_pattern("s", [Field("image_id", identifier)], patterns, split,
                                                there.__contains__))
        assert isinstance(table, MappedTable) is isinstance(patterns, str)
        return [row["image"] for row in rows(table)]

    for split in ("train", "val", "train"):
        assert names("{split}/{image_id}.jpg", split) == [f"{split}/{number}.jpg" for number in range(3)]
    for folder in ("a", "b"):
        assert names(["a/{image_id}.jpg", "b/{image_id}.jpg"], "train", f"{folder}/0.jpg")[0] == f"{folder}/0.jpg"


def test_a_cache_folder_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations, "CACHED_FROM", 50)
    with pytest.warns(UserWarning, match="cannot be kept for the next time"):
        assert rows(read_table([write(tmp_path, "a.json", ROWS)], FIELDS)) == ROWS


def test_exploded_views_read_no_row_ahead():
    table = RowTable(((0, number, {"caption": [f"{number}{letter}" for letter in "abc"[:number]]})
                      for number in range(1, 4)), [Path("f")])
    view = ExplodedTable(table, "caption", np.array([0, 1, 3, 6]))
    assert [view[index]["caption"] for index in range(6)] == ["1a", "2a", "2b", "3a", "3b", "3c"]
    assert view.location(4) == "f:3" and view.file_sizes() == [6]
    assert [row["caption"] for row in view.skim()] == ["1a", "2a", "2b", "3a", "3b", "3c"]
    with pytest.raises(IndexError):
        view[6]


class Reader(Dataset):
    """Reads a table in a worker and says how much private memory that took."""

    def __init__(self, table: RowTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return 4

    def __getitem__(self, part: int) -> int:
        before = _private_kilobytes()
        for index in range(len(self.table)):
            self.table[index]
        return _private_kilobytes() - before


def _private_kilobytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux' smaps_rollup")
def test_workers_share_the_table():
    table = RowTable(((0, n, {"image": f"{n:08d}.jpg", "caption": "word " * 200}) for n in range(30_000)), [Path("a")])
    assert table.nbytes() > 30e6
    grown = [int(value) for value in DataLoader(Reader(table), batch_size=None, num_workers=2)]
    assert max(grown) < 8_000  # a list of dicts would copy all of its 30 MB by touching reference counts


def test_the_content_hash_is_that_of_the_rows(tmp_path):
    one, other = ([{"image": "a.jpg", "caption": text}, {"image": "b.jpg", "caption": "x"}] for text in ("red", "blue"))
    table = RowTable(((0, place, row) for place, row in enumerate(one)), ["one.json"])
    moved = RowTable(((0, 7 + place, row) for place, row in enumerate(one)), ["elsewhere.csv"])
    assert table.content_hash() == moved.content_hash(), "files and places do not matter"
    changed = RowTable(((0, place, row) for place, row in enumerate(other)), ["one.json"])
    assert changed.content_hash() != table.content_hash()
    assert table.content_hash() is table.content_hash(), "computed once"
    turned = RowTable(((0, place, row) for place, row in enumerate(reversed(one))), ["one.json"])
    assert turned.content_hash() != table.content_hash(), "the order does"
    table.save(tmp_path / "table")
    assert MappedTable(tmp_path / "table").content_hash() == table.content_hash()
    last = MappedTable(tmp_path / "table", first=1)
    assert last.content_hash() == RowTable([(0, 0, one[1])], []).content_hash()
    assert RowTable([], []).content_hash() == RowTable([], ["x"]).content_hash()


def test_of_a_file_with_a_known_hash_no_row_is_read(tmp_path):
    table = RowTable(((0, place, row) for place, row in enumerate(ROWS)), ["one.json"])
    table.save(tmp_path / "table")
    hashes = {MappedTable(tmp_path / "table", first=first, end=end, sha256=sha).content_hash()
              for first, end, sha in ((0, 2, "s1"), (1, 2, "s1"), (0, 1, "s1"), (0, 2, "s2"))}
    assert len(hashes) == 4
    mapped = MappedTable(tmp_path / "table", sha256="s1")
    assert pickle.loads(pickle.dumps(mapped)).content_hash() == mapped.content_hash()
    exploded = ExplodedTable(mapped, "caption", np.array([0, 2, 3]))
    assert exploded.content_hash() != mapped.content_hash()
