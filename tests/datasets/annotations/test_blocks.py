"""Rows that are checked and written in blocks are those that are checked one by one; so are the errors."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.datasets.annotations import readers, tables, text_files
from lavis_lite.datasets.annotations.kinds import Field, file_name, identifier, text, texts
from lavis_lite.datasets.annotations.readers import read_rows
from lavis_lite.datasets.annotations.rows import RowErrors, checked, checked_blocks, numbered_rows
from lavis_lite.datasets.annotations.tables import Block, RowTable
from lavis_lite.datasets.annotations.text_files import DECODER, decoded, decoded_lines, decoded_objects
from lavis_lite.errors import DataError

FIELDS = [Field("image", file_name, "a%s"), Field("caption", texts), Field("image_id", identifier, required=False),
          Field("domain", text, required=False)]
ODD: dict[str, list[Any]] = {
    "a%s": ["a..b", "../a", "./a", "b//a", "a./b", "data:image/png;base64,//./",
            "a/b.jpg", ["a"], "", None, "x" * 20_001, "ü"],
    "caption": ["a: b", "['a', 'b']", ' ["a"]', "[a]", " ", ["one", "two"], [], 7, "\ud800",
                "日本", "\0", 'quo"te\\', "\n x"],
    "image_id": [7, -2**63, 2**63, 3.0, 2.5, True, "000.0", "a", "1.2E+5", "a,b", None],
    "domain": ["in", "", None, 3]}


def one(rng: random.Random, odd: float) -> Any:
    """A row; each value is odd with a probability."""
    row: dict[str, Any] = {"a%s": "a.jpg", "caption": "a dog", "image_id": rng.randrange(9), "domain": "near"}
    for key, values in ODD.items():
        if rng.random() < odd:
            row[key] = rng.choice(values)
        elif rng.random() < odd / 4:
            del row[key]
    return row if rng.random() > odd / 4 else rng.choice([None, [], "a", 3])


@pytest.mark.parametrize("explode", [None, "caption"])
def test_blocks_hold_the_same_rows_and_find_the_same_errors(explode: str | None,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavis_lite.datasets.annotations.rows.BLOCK", 3)
    rng, blocks, bad = random.Random(0), 0, 0
    for _ in range(300):
        rows = [(rng.randrange(2), number, one(rng, rng.choice([0, 0, 0.05, 0.3])))
                for number in range(rng.randrange(9))]
        each, made = RowErrors(), RowErrors()
        plain = RowTable(checked(rows, ["f", "g"], FIELDS, each, explode), ["f", "g"])
        found = list(checked_blocks(rows, ["f", "g"], FIELDS, made, explode))
        table = RowTable(found, ["f", "g"])
        blocks, bad = blocks + sum(isinstance(item, Block) for item in found), bad + bool(each.count)
        assert (each.count, each.shown) == (made.count, made.shown)
        if not each.count:
            assert all(table.arrays()[key].tolist() == value.tolist() for key, value in plain.arrays().items())
    assert blocks > 200 and bad > 50


@pytest.mark.parametrize("content", [
    '{"a": 1, "b": "c:d"}', '{"a": {"b": 1}}', '{"a" : 1, "a" :2}', '{"a:b": 1, "a": 2, "a": 3}', "{}", "[1, 2]", "3",
    '{"a": {"b": 1, "b": 2}}', '{"a": 1', "", '{"a": 1, "a": 2, "b"', '{"a": ":", "b": [":"]} rest'])
def test_json_is_as_strict_as_with_every_pair_looked_at(content: str) -> None:
    def outcome(decode: Any) -> Any:
        try:
            return decode(content, 0)
        except ValueError as error:
            return type(error), str(error)

    assert outcome(decoded) == outcome(DECODER.raw_decode)


def test_lists_may_be_laid_out_in_any_way(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in ('[{"a": 1},{"a": 2}]', '[\n  {"a": 1}\t,\r\n {"a": 2} ]\n', '[ {"a":1} , {"a":2}\n]  '):
        path.write_bytes(content.encode())
        assert list(read_rows(path)) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_file_of_plain_rows_is_read_in_blocks_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"a%s": f"{at}.jpg", "caption": "a: b", "image_id": at}) + "\n"
                            for at in range(2 * tables.BLOCK)))
    found = list(checked_blocks(numbered_rows([path]), [path], FIELDS, RowErrors(), "caption"))
    assert len(found) == 2 and all(isinstance(item, Block) for item in found)


LINES = ['{"a": 1, "b": "x"}', '{"a": 2}', '{"a": "c: d"}', '{"a": "smile :)"}', '{"a": null}', '{"a": NaN}',
         '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 2}}', '{"a" : "\\u007d"}', '{"a": [{"x": 1}', '{"y": 2}]}', "{}", "",
         '{"a": 1}, NaN, {"b": 2}', '"\\u004eaN"', '{"a": 1},NaN,{"b": 2}', " ", '{"a": 1} ', "[1]", "3", '{"a": "',
         '"}', '{"a": -Infinity}', '{"a": "}, {"}', '{"a": 1}, {"b": 2}']


def test_a_list_that_goes_on_in_the_next_line_is_no_row(tmp_path: Path) -> None:
    assert decoded_lines(['{"a": [1]}', '{"a": 2}']) == [{"a": [1]}, {"a": 2}]
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": [1\n2]}\n')
    assert [(number, type(row).__name__) for number, row in read_rows(path)] == [(1, "BadRow"), (2, "BadRow")]


def rows_of(path: Path) -> list[str]:
    """Rows in their order, or the error, as text: NaN differs from itself."""
    try:
        return [repr(row) for row in read_rows(path)]
    except DataError as error:
        return [str(error)]


@pytest.mark.parametrize("layout", ["lines", "list", "loose list"])
def test_files_decoded_in_blocks_are_those_decoded_one_by_one(layout: str, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 4)
    rng, whole = random.Random(0), 0
    path = tmp_path / ("a.jsonl" if layout == "lines" else "a.json")
    between = {"lines": "\n", "list": ", ", "loose list": " ,\n  "}[layout]
    for _ in range(400):
        odd = rng.choice([0, 0.1, 0.4])
        text = between.join(rng.choice(LINES) if rng.random() < odd else rng.choice(LINES[:3]) for _ in range(14))
        path.write_text(text if layout == "lines" else f"[{text}]")
        found = []
        for chunk, after in ((60, 0), (60, 2), (0, 0)):
            monkeypatch.setattr(text_files, "CHUNK", chunk)
            for module in (readers, text_files):
                monkeypatch.setattr(module, "ONE_BY_ONE", after)
            if not chunk:
                monkeypatch.setattr(readers, "decoded_lines", lambda lines: None)
                monkeypatch.setattr(text_files, "decoded_objects", lambda content: None)
            found.append(rows_of(path))
        monkeypatch.setattr(readers, "decoded_lines", decoded_lines)
        monkeypatch.setattr(text_files, "decoded_objects", decoded_objects)
        assert found[0] == found[1] == found[2]
        whole += len(found[0]) == 14
    assert 100 < whole < 390
