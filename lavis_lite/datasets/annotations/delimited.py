"""CSV and TSV files -> rows. Whatever is guessed of a file (delimiter, quoting, header) is checked row by row.

Cells separated by a tab have no quotation marks around them, unless every cell that begins with one is a whole quoted
cell. Other cells may be quoted as RFC 4180 says, with line breaks in them. A cell is text, unless it is a list or an
object, as JSON or as Python (pandas) writes it.
"""

from __future__ import annotations

import ast
import csv
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lavis_lite.datasets.annotations.text_files import (
    DECODER,
    BadRow,
    DuplicateKeyError,
    FileFormat,
    NumberedRow,
    lines_of,
)
from lavis_lite.errors import ConfigError, DataError, counted

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
"""delimiter -> its name in messages"""
_SPELLED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_BLANK_BEFORE_QUOTE = re.compile(r'\s+".*"\s*', re.DOTALL)
_FILE_NAME = re.compile(r'[^\s"]+(\.\w{2,5})')
_SEP_LINE = re.compile(r'"?sep=([,;|\t])"?(?=[\r\n])', re.IGNORECASE)
_MOST_CELL = 16_000_000
"""characters of one quoted cell that are read before the row check refuses it"""
_MEDIA_FILE = re.compile(r".+\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|avi|mkv|webm|mov)", re.IGNORECASE)


def table_rows(path: Path, content: str, form: FileFormat) -> Iterator[NumberedRow]:
    """(the row's first line, {column: cell}) of every row; a row that does not fit the header is a BadRow.

    Empty lines are not rows. Excel's first line `sep=;` names the delimiter.

    Raises:
        DataError: no usable header, unpaired quotation marks, or an ambiguous delimiter.
        ConfigError: `form.delimiter` is not one character.
    """
    found = _SEP_LINE.match(content)
    if found is not None and content[found.end():].strip():  # the line stays, empty, so that lines keep their numbers
        content, form = content[found.end():], replace(form, delimiter=form.delimiter or found.group(1))
    delimiter = find_delimiter(path, content, form)
    if form.quoting == "none" or (form.quoting == "auto" and delimiter == "\t"):
        records = _unquoted_records(content, delimiter, form.quoting == "auto" and _quotes_are_whole_cells(content))
        first = next(record for record in records if any(record.cells))
        header = Header(path, first.line, first.cells, delimiter)
        return _unquoted_rows(header, records, doubt=form.quoting == "auto")
    return _quoted_rows(path, content, delimiter, doubt=form.quoting == "auto")


def find_delimiter(path: Path, content: str, form: FileFormat) -> str:
    """The delimiter: what `form` names, else the suffix's own if the header has it, else the one that it has.

    Raises:
        DataError: several are possible, or the header does not have the one that is named.
        ConfigError: the one that is named is not one character.
    """
    header = next(line for line in lines_of(content) if line.strip())
    bare = _QUOTED.sub("", header)
    present = [mark for mark in DELIMITERS if mark in bare]
    if form.delimiter is not None:
        named = _SPELLED.get(form.delimiter, form.delimiter)
        if len(named) != 1 or named in '"\r\n':
            raise ConfigError(f"delimiter {form.delimiter!r}: must be one character, such as ';', or 'tab'.")
        if named not in bare and present:
            raise DataError(f"{path}: the header {header.strip()[:80]!r} does not have "
                            f"{DELIMITERS.get(named, repr(named))}, which `delimiter` names, but "
                            f"{DELIMITERS[present[0]]}.")
        return named
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    if usual in present or not present:
        return usual
    if len(present) > 1:
        raise DataError(f"{path}: what separates the columns of {header.strip()[:80]!r}? Set `delimiter` in the data "
                        "set's section.")
    return present[0]


class Header:
    """The names of the columns.

    A column without a name has empty cells, or is the first one and numbers the rows, as pandas writes it.

    Args:
        path: the file. line: of the header. cells: its cells.
        delimiter: for messages.

    Raises:
        DataError: a name appears twice, or the first line looks like a row.
    """

    def __init__(self, path: Path, line: int, cells: list[str], delimiter: str) -> None:
        self.delimiter = delimiter
        self.names = [cell.strip() for cell in cells]
        named = [name for name in self.names if name]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}:{line}: column {twice!r} appears twice in the header; give each its own name.")
        file = next((name for name in named if _MEDIA_FILE.fullmatch(name)), None)
        if file is not None:
            raise DataError(f"{path}:{line}: {file!r} looks like a file of a row, not like the name of a column; begin "
                            f"the file with a header, such as image{delimiter}caption.")
        self._fewest = max(number for number, name in enumerate(self.names, 1) if name)

    def row(self, cells: list[str]) -> dict[str, Any] | BadRow:
        """{column: cell} of a row's cells."""
        if len(cells) > len(self.names):
            return BadRow(f"{counted(len(cells) - len(self.names), 'more cell')} than the header has; "
                          + self._advice([cell for cell in cells[len(self.names):] if cell.strip()] == []))
        if len(cells) < self._fewest:
            return BadRow(f"{counted(self._fewest - len(cells), 'fewer cell')} than the header has; it has "
                          f"{len(self.names)}: {', '.join(map(repr, self.names[:8]))}")
        if [cell.strip() for cell in cells] == self.names:
            return BadRow("is the header once more, as if two files were joined")
        row: dict[str, Any] = {}
        for index, (name, cell) in enumerate(zip(self.names, cells, strict=False)):
            if name:
                try:
                    row[name] = cell_value(cell)
                except ValueError as error:
                    return BadRow(f"field {name!r} {error}")
            elif cell.strip() and not (index == 0 and cell.strip().isdigit()):
                return BadRow(f"column {index + 1} has no name in the header, but {cell[:80]!r} in this row; name the "
                              f"column, or {self._advice(False)}")
        return row

    def _advice(self, only_empty: bool) -> str:
        if only_empty:
            return "the last are empty: end the header with the same delimiter, or remove it from the rows"
        mark = DELIMITERS.get(self.delimiter, repr(self.delimiter)).removeprefix("a ")
        if self.delimiter == "\t":
            return f"a text may hold no {mark}"
        others = [name for other, name in DELIMITERS.items()
                  if other != self.delimiter and other in "".join(self.names)]
        hint = f". If {others[0]} separates the columns, set `delimiter`" if others else ""
        return f"quote texts that hold a {mark}{hint}"


# --- cells without quotation marks around them -----------------------------------------------------------------------
class Record(NamedTuple):
    """The cells of a row and the number of its first line."""

    line: int
    cells: list[str]


def _unquoted_records(content: str, delimiter: str, unquote: bool) -> Iterator[Record]:
    for number, line in enumerate(lines_of(content), 1):
        cells = line.split(delimiter)
        yield Record(number, [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell
                              for cell in cells] if unquote else cells)


def _quotes_are_whole_cells(content: str) -> bool:
    """Whether every cell that begins with a quotation mark is a quoted cell, of one line and without a tab."""
    return all(_QUOTED.fullmatch(cell) for line in lines_of(content) if '"' in line
               for cell in line.split("\t") if cell.startswith('"'))


def _opens(cell: str) -> bool:
    """Whether a cell begins a quotation that it does not end."""
    return cell.startswith('"') and cell.count('"') % 2 == 1


def _unquoted_rows(header: Header, records: Iterator[Record], doubt: bool) -> Iterator[NumberedRow]:
    before, reported = Record(0, []), 0
    for record in records:
        if not any(record.cells):
            continue
        value: Any = header.row(record.cells)
        line = record.line
        if doubt and isinstance(value, BadRow):
            if before.line == record.line - 1 and any(map(_opens, before.cells)):
                line = before.line  # the row is the rest of a cell that began there
            if line != record.line or any(map(_opens, record.cells)):
                value = BadRow("a quoted cell that begins in this line does not end in it; a cell of such a file may "
                               "hold no line break and no tab, unless you set `quoting: minimal`")
        elif doubt and _tab_in_quotes(record.cells):
            value = BadRow("a quoted cell seems to hold a tab; set `quoting: minimal` if the cells are quoted, or "
                           "`quoting: none` if the quotation marks belong to the texts")
        before = record
        if not isinstance(value, BadRow) or line > reported:
            yield line, value
            reported = line if isinstance(value, BadRow) else reported


def _tab_in_quotes(cells: list[str]) -> bool:
    opened = [index for index, cell in enumerate(cells) if _opens(cell)]
    return bool(opened) and any(cell.endswith('"') and cell.count('"') % 2 == 1 and not cell.startswith('"')
                                for cell in cells[opened[0] + 1:])


# --- cells that may be quoted ----------------------------------------------------------------------------------------
def _quoted_rows(path: Path, content: str, delimiter: str, doubt: bool) -> Iterator[NumberedRow]:
    csv.field_size_limit(_MOST_CELL)
    lines: list[str] = []  # of the current record

    def noted() -> Iterator[str]:
        for line in lines_of(content, keep_ends=True):
            lines.append(line)
            yield line

    reader = csv.reader(noted(), delimiter=delimiter, strict=True)
    header: Header | None = None
    while True:
        lines.clear()
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what = ("a quoted cell that begins in this row never ends" if "unexpected end" in str(error) else
                    f"not a readable table ({error})")
            raise DataError(f"{path}:{first}: {what}. A quotation mark within a quoted cell is written twice; set "
                            "`quoting: none` if the quotation marks belong to the texts.") from error
        if cells is None:
            return
        if not any(cells):
            continue
        if header is None:
            header = Header(path, first, cells, delimiter)
            continue
        yield first, _doubted(header, cells, lines) if doubt else header.row(cells)


def _doubted(header: Header, cells: list[str], lines: list[str]) -> dict[str, Any] | BadRow:
    """The row, unless its quotation marks may have joined or split what belongs elsewhere."""
    if len(lines) > 1 and _are_rows(lines, header.delimiter):
        more = ("1 more line that looks like a row" if len(lines) == 2 else
                f"{len(lines) - 1} more lines that look like rows")
        return BadRow(f"a quoted cell that begins in this row holds {more}; set `quoting: none` if the quotation marks "
                      "belong to the texts, or `quoting: minimal` if the line breaks do")
    if any(map(_BLANK_BEFORE_QUOTE.fullmatch, cells)):
        return BadRow("a cell has a blank before its quotation mark, so that it is not a quoted cell; remove the "
                      "blank, or set `quoting: none`")
    return header.row(cells)


def _are_rows(lines: list[str], delimiter: str) -> bool:
    """Whether the lines of one quoted row are rows themselves: numbers or file names in the same columns."""
    first, *others = (line.rstrip("\r\n").split(delimiter) for line in lines)
    if all(len(first) == len(other) and any(one.strip().isdigit() and two.strip().isdigit()
                                            for one, two in zip(first, other, strict=True)) for other in others):
        return True
    for column in range(-len(first), len(first)):
        suffix = _suffix(first, column)
        if suffix and any(_suffix(other, column) == suffix for other in others):
            return True
    return False


def _suffix(cells: list[str], column: int) -> str | None:
    """The suffix of the file name in a column."""
    found = _FILE_NAME.fullmatch(cells[column].strip()) if -len(cells) <= column < len(cells) else None
    return found and found.group(1)


# --- cells that are lists or objects ---------------------------------------------------------------------------------
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_LIST_OF_TEXTS = re.compile(r"""\[\s*['"].*\]|\(\s*['"].*['"]\s*,?\s*\)""", re.DOTALL)


def cell_value(cell: str) -> Any:
    """The cell's text, or the list or object that is written in it.

    `["a dog", "a cat"]`, `['a dog', 'a cat']` and `('a dog', 'a cat')` are lists; `[sic]` and `(a dog)` are texts.

    Raises:
        ValueError: a list that cannot be read for certain; the message is a clause.
    """
    bare = cell.strip()
    if not bare or _CLOSING.get(bare[0]) != bare[-1]:
        return cell
    try:
        found = DECODER.decode(bare)
    except DuplicateKeyError:
        raise
    except (ValueError, RecursionError):
        found = _python_value(bare)
    if found is None and _LIST_OF_TEXTS.fullmatch(bare):
        raise ValueError(f'looks like a list, but is none: {bare[:80]!r}. Write it as JSON: ["one text", "another"]')
    return cell if found is None else found


def _python_value(bare: str) -> Any:
    """A list, a tuple of texts or a dictionary as Python prints it; None for anything else."""
    try:
        value = ast.literal_eval(bare)
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(bare).readline)
                 if token.type not in (tokenize.NL, tokenize.NEWLINE)]
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        return None
    if isinstance(value, set):
        raise ValueError("is a Python set, which has no order; write a JSON list")
    # Python joins two texts that follow each other
    if isinstance(value, list | tuple) and any(pair == (tokenize.STRING, tokenize.STRING)
                                               for pair in zip(kinds, kinds[1:], strict=False)):
        raise ValueError(f"is a list without commas, as NumPy prints it: {bare[:80]!r}; write a JSON list")
    if isinstance(value, tuple):
        return list(value) if value and all(isinstance(item, str) for item in value) else None
    return value if isinstance(value, list | dict) else None
