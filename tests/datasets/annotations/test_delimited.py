"""CSV and TSV files: what is guessed is doubted, and faults are named with the line in which their row begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis_lite.datasets.annotations.delimited import cell_value
from lavis_lite.datasets.annotations.readers import BadRow, FileFormat, guess_columns, read_rows
from lavis_lite.errors import ConfigError, DataError

HEAD = "image\tcaption\n"
COMMAS = "image,caption\n"


def read(folder: Path, name: str, content: str | bytes, **form: Any) -> list[tuple[int, Any]]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(path, FileFormat(**form)))


def captions(folder: Path, name: str, content: str | bytes, **form: Any) -> list[Any]:
    return [row.reason if isinstance(row, BadRow) else row["caption"] for _, row in read(folder, name, content, **form)]


def fault(folder: Path, name: str, content: str | bytes, **form: Any) -> str:
    """The one row that cannot be read, as `line: reason`."""
    (found,) = [f"{line}: {row.reason}" for line, row in read(folder, name, content, **form) if isinstance(row, BadRow)]
    return found


# quoting --------------------------------------------------------------------------------------------------------------


def test_quotes_in_a_tsv_belong_to_the_texts(tmp_path):
    content = HEAD + 'p1.jpg\t"Less is more,\np2.jpg\tmore or less"\np3.jpg\ta lamp\np4.jpg\t"Best" cake\np5.jpg\t"\n'
    assert captions(tmp_path, "a.tsv", content) == ['"Less is more,', 'more or less"', "a lamp", '"Best" cake', '"']


def test_quotes_in_a_tsv_are_those_of_cells_if_all_of_them_are(tmp_path):
    content = HEAD + 'p1.jpg\t"a ""red"" ball, two"\n"p2.jpg"\tplain 5" pipe\n'
    assert captions(tmp_path, "a.tsv", content) == ['a "red" ball, two', 'plain 5" pipe']
    assert captions(tmp_path, "a.tsv", content, quoting="none")[0] == '"a ""red"" ball, two"'


@pytest.mark.parametrize(("content", "told"), [
    ('p0.jpg\tx\np1.jpg\t"one\ntwo"\np2.jpg\ty\n', "3: a quoted cell that begins in this line does not end in it"),
    ('p0.jpg\tx\np1.jpg\t"one\ttwo"\np2.jpg\ty\n', "3: a quoted cell that begins in this line does not end in it"),
    ("p0.jpg\tx\np1.jpg\tone\ttwo\n", "3: 1 more cell than the header has; a text may hold no tab"),
    ("p0.jpg\tx\np1.jpg\n", "3: 1 fewer cell than the header has; it has 2: 'image', 'caption'"),
])
def test_line_breaks_and_tabs_in_a_tsv_are_named_with_the_line_where_the_row_begins(tmp_path, content, told):
    assert fault(tmp_path, "a.tsv", HEAD + content).startswith(told)


def test_a_tab_in_quotes_is_seen_where_the_cells_seem_to_fit(tmp_path):
    content = 'image\tcaption\tnote\na.jpg\tx\ty\nb.jpg\t"left\tright"\n'
    assert fault(tmp_path, "a.tsv", content).startswith("3: a quoted cell seems to hold a tab")


def test_a_tsv_may_be_said_to_be_quoted(tmp_path):
    content = HEAD + 'p1.jpg\t"one\ntwo\tthree"\np2.jpg\tfour\n'
    assert read(tmp_path, "a.tsv", content, quoting="minimal") == [
        (2, {"image": "p1.jpg", "caption": "one\ntwo\tthree"}), (4, {"image": "p2.jpg", "caption": "four"})]


def test_a_quotation_over_two_rows_of_a_csv_is_doubted(tmp_path):
    content = COMMAS + 'p1.jpg,x\np2.jpg,"Less is more\np3.jpg,y\np4.jpg,more or less"\np5.jpg,z\n'
    assert fault(tmp_path, "a.csv", content).startswith("3: a quoted cell that begins in this row holds 2 more lines "
                                                        "that look like rows; set `quoting: none`")
    assert captions(tmp_path, "a.csv", content, quoting="none")[1:4] == ['"Less is more', "y", 'more or less"']
    assert captions(tmp_path, "a.csv", content, quoting="minimal")[1] == "Less is more\np3.jpg,y\np4.jpg,more or less"
    behind = 'caption,image\nx,p1.jpg\n"Less,p2.jpg\nmore",p3.jpg\n'
    assert "3: a quoted cell" in fault(tmp_path, "a.csv", behind)
    numbers = 'image_id,caption\n1,"Less\n2,more"\n'
    assert "2: a quoted cell" in fault(tmp_path, "a.csv", numbers)


def test_texts_of_several_lines_are_not_doubted(tmp_path):
    content = COMMAS + 'p1.jpg,"A dog, brown.\nIt is big, too.\nSee p2.jpg, left"\np2.jpg,x\n'
    assert captions(tmp_path, "a.csv", content)[0].count("\n") == 2


@pytest.mark.parametrize(("content", "told"), [
    ('p0.jpg,x\np1.jpg,"Best" cake\n', r"a.csv:3: not a readable table .* set `quoting: none`"),
    ('p0.jpg,x\np1.jpg,"one\ntwo\n', r"a.csv:3: a quoted cell that begins in this row never ends"),
])
def test_quotes_that_do_not_pair_are_named_with_the_line_where_the_row_begins(tmp_path, content, told):
    with pytest.raises(DataError, match=told):
        read(tmp_path, "a.csv", COMMAS + content)


def test_a_blank_before_a_quote_is_no_quoting(tmp_path):
    assert "has a blank before its quotation mark" in fault(tmp_path, "a.csv", COMMAS + 'p1.jpg, "a dog"\n')
    assert captions(tmp_path, "a.csv", COMMAS + 'p1.jpg, "a dog"\n', quoting="none") == [' "a dog"']


# delimiters and headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "|"), ("a.csv", "\t"), ("a.tsv", ","),
                                            ("a.tsv", ";")])
def test_the_header_says_what_separates_columns(tmp_path, name, mark):
    content = f"image{mark}caption\np1.jpg{mark}a dog\n"
    assert captions(tmp_path, name, content) == ["a dog"]


@pytest.mark.parametrize(("content", "form", "told"), [
    ("image;cap|tion\n", {}, "what separates the columns of 'image;cap|tion'"),
    ("image,caption\n", {"delimiter": ";"}, "does not have a semicolon, which `delimiter` names, but a comma"),
])
def test_a_delimiter_that_cannot_be_told(tmp_path, content, form, told):
    with pytest.raises(DataError) as caught:
        read(tmp_path, "a.csv", content, **form)
    assert told in str(caught.value)


def test_a_delimiter_can_be_named(tmp_path):
    assert captions(tmp_path, "a.csv", "image#caption\na.jpg#x, y\n", delimiter="#") == ["x, y"]
    assert captions(tmp_path, "a.csv", "image\tcaption\na.jpg\tx\n", delimiter="tab") == ["x"]
    with pytest.raises(ConfigError, match="must be one character"):
        read(tmp_path, "a.csv", COMMAS, delimiter=", ")


@pytest.mark.parametrize(("content", "told"), [
    ("p1.jpg,a dog\np2.jpg,a cat\n", "a.csv:1: 'p1.jpg' looks like a file of a row"),
    ("image,caption,caption\np1.jpg,a,b\n", "a.csv:1: column 'caption' appears twice in the header"),
])
def test_headers_that_are_none(tmp_path, content, told):
    with pytest.raises(DataError, match=told):
        read(tmp_path, "a.csv", content)


@pytest.mark.parametrize(("content", "told"), [
    (COMMAS + "a.jpg,a dog, brown\n", "2: 1 more cell than the header has; quote texts that hold a comma"),
    ("image;text,caption\na.jpg,x,y\n", "If a semicolon separates the columns, set `delimiter`"),
    (COMMAS + "a.jpg,x\nb.jpg,y,\n", "3: 1 more cell than the header has; the last are empty: end the header"),
    ("image,caption,\na.jpg,x,y\n", "2: column 3 has no name in the header, but 'y' in this row"),
    (COMMAS + "a.jpg,x\nimage,caption\n", "3: is the header once more, as if two files were joined"),
])
def test_rows_that_are_not_what_the_header_says(tmp_path, content, told):
    assert told in fault(tmp_path, "a.csv", content)


@pytest.mark.parametrize("content", [
    "image,caption,\na.jpg,x,\n", "image,caption,\na.jpg,x\n", ",image,caption\n0,a.jpg,x\n",
    " image , caption\na.jpg,x\n", "\n\nimage,caption\n\na.jpg,x\n,\n",
])
def test_what_is_only_odd_is_read(tmp_path, content):
    assert captions(tmp_path, "a.csv", content) == ["x"]


# lists in cells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "value"), [
    ('["a dog", "it\'s"]', ["a dog", "it's"]), ("['a dog', \"it's\"]", ["a dog", "it's"]), ("('a', 'b')", ["a", "b"]),
    ("[]", []), ("[1, 2]", [1, 2]), ("['a',\n 'b']", ["a", "b"]), ('[{"answer": "x"}]', [{"answer": "x"}]),
    ("{'answer': 'x'}", {"answer": "x"}), ("[sic]", "[sic]"), ("(a dog)", "(a dog)"), ("(5)", "(5)"), ("{x}", "{x}"),
    ("[image of a dog]", "[image of a dog]"), (" plain ", " plain "), ("", ""), ("007", "007"), ("1e5", "1e5"),
])
def test_cells_that_are_lists(cell, value):
    assert cell_value(cell) == value


@pytest.mark.parametrize(("cell", "told"), [
    ("['a dog' 'a cat']", "is a list without commas, as NumPy prints it"),
    ("['a' 'b' ... 'c']", "looks like a list, but is"),
    ("{'a', 'b'}", "is a Python set, which has no order"), ('["a", "b]', "looks like a list, but"),
    ('{"a": 1, "a": 2}', "key 'a' appears twice"),
])
def test_cells_that_only_look_like_lists(cell, told):
    with pytest.raises(ValueError, match=told):
        cell_value(cell)


def test_a_list_that_cannot_be_read_is_named_with_its_row(tmp_path):
    content = COMMAS + "a.jpg,\"['x', 'y']\"\nb.jpg,\"['x' 'y']\"\n"
    assert fault(tmp_path, "a.csv", content).startswith("3: field 'caption' is a list without commas")


# encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    assert captions(tmp_path, "a.csv", (COMMAS + "a.jpg,caf\u00e9\n").encode(encoding)) == ["caf\u00e9"]


def test_other_encodings_are_refused_with_line_and_command_or_named(tmp_path):
    content = (COMMAS + "a.jpg,x\nb.jpg,caf\u00e9\n").encode("cp1252")
    told = r"a.csv:3: is not UTF-8 text \(byte 31\).*`iconv -f WINDOWS-1252 -t UTF-8 a.csv > "
    with pytest.raises(DataError, match=told):
        read(tmp_path, "a.csv", content)
    assert captions(tmp_path, "a.csv", content, encoding="cp1252")[1] == "caf\u00e9"
    with pytest.raises(ConfigError, match="there is no such text encoding; did you mean 'cp1252'"):
        read(tmp_path, "a.csv", content, encoding="cp1225")
    with pytest.raises(DataError, match="a.csv:1: is not utf-16 text"):
        read(tmp_path, "a.csv", b"abc", encoding="utf-16")


@pytest.mark.parametrize(("content", "told"), [
    ((COMMAS + "a.jpg,x\n").encode("utf-16-le"), "a.csv:1: .*looks like UTF-16 .*Set `encoding: utf-16-le`"),
    ((COMMAS + "a.jpg,x\n").encode("utf-16-be"), "Set `encoding: utf-16-be`"),
    ((COMMAS + "a.jpg,x\0y\n").encode(), r"a.csv:2: has a null character.*tr -d '\\000' < a.csv > clean.csv"),
])
def test_null_characters(tmp_path, content, told):
    with pytest.raises(DataError, match=told):
        read(tmp_path, "a.csv", content)


@pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_excels_first_line_names_the_delimiter(tmp_path, line, end):
    path = tmp_path / "a.csv"
    path.write_bytes(end.join([line, "image;caption", "a.jpg;red, blue", ""]).encode())
    assert list(read_rows(path)) == [(3, {"image": "a.jpg", "caption": "red, blue"})]


def test_a_header_alone_may_begin_as_excels_line_does(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sep=,caption\nx,y\n")
    assert list(read_rows(path)) == [(2, {"sep=": "x", "caption": "y"})]


def test_rows_that_cannot_be_read_are_told_instead_of_missing_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("# made by hand\nimage,caption\na.jpg,x\n")
    with pytest.raises(DataError, match="a.csv:2: 1 more cell than the header has"):
        guess_columns(path)
