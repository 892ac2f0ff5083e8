"""Parquet and Arrow files: rows in order, and pictures within them by row, without reading the rest.

A picture in a cell is bytes, or Hugging Face's `{bytes, path}`. In the row it becomes a name, `cell:file:row:column:`,
with a number after it in a list of pictures. `Cells.read` gives its bytes.

Arrow files are mapped. A Parquet file with pictures is copied to the cache once in Arrow's layout, because single rows
of a Parquet file cannot be read.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_lite.datasets.files.locate import file_state, is_columnar
from lavis_lite.errors import DataError, MissingExtraError
from lavis_lite.io import atomic
from lavis_lite.io.files import cache_root, check_regular

if TYPE_CHECKING:
    import pyarrow as pa

CELL = "cell:"
"""begins the name of a picture in a cell"""
_ROWS_AT_ONCE = 4096
_OPEN_FILES = 64


def require_pyarrow(path: Path) -> Any:
    """The package pyarrow.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading Parquet and Arrow files needs pyarrow. Install it with: pip install "
                                "'lavis_lite[parquet]'") from error
    return pyarrow


def column_rows(path: Path, file: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a file; pictures are names.

    Args:
        path: a Parquet or Arrow file.
        file: its number among the files of a split, for the names of pictures.

    Raises:
        DataError: missing, unreadable, damaged, or with text that is not UTF-8.
    """
    start = 0
    for batch in _batches(path):
        yield from enumerate(named_rows(batch, start, file), start + 1)
        start += batch.num_rows


def named_rows(batch: pa.RecordBatch, start: int, file: int) -> Iterator[dict[str, Any]]:
    """The rows of a batch, the first of which is row `start` (from 0) of its file."""
    columns = {name: _values(batch.column(name), f"{CELL}{file}:{{}}:{name}:", start) for name in batch.schema.names}
    names = list(columns)
    return (dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _values(column: pa.Array, name: str, start: int) -> list[Any]:
    """The values of a column as Python objects; `name` is that of a picture, with a slot for the row."""
    import pyarrow as pa

    kind = column.type
    if _is_picture(kind):
        return _pictures(column, [name.format(start + row) for row in range(len(column))])
    if pa.types.is_list(kind) and _is_picture(kind.value_type):
        offsets, rows = column.offsets.to_pylist(), range(len(column))
        names = [f"{name.format(start + row)}{item}" for row in rows for item in range(offsets[row + 1] - offsets[row])]
        flat = _pictures(column.values.slice(offsets[0], offsets[-1] - offsets[0]), names)
        ends = [offset - offsets[0] for offset in offsets]
        return [flat[ends[row]:ends[row + 1]] if column[row].is_valid else None for row in rows]
    values: list[Any] = column.to_pylist()
    return values


def _is_picture(kind: pa.DataType) -> bool:
    """Whether a type is that of pictures: bytes, or an object with bytes."""
    import pyarrow as pa

    return any(is_bytes(kind) for is_bytes in (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)) or (
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _has_fields(column: Any) -> bool:
    """Whether cells are objects {bytes, path}, as `datasets` stores pictures, and not bare bytes."""
    return str(column.type).startswith("struct")


def _pictures(column: pa.Array, names: Sequence[str]) -> list[str | None]:
    """A name for every cell with bytes, else its path, else None."""
    if not _has_fields(column):
        return [name if valid else None for name, valid in zip(names, column.is_valid().to_pylist(), strict=True)]
    has_bytes = column.field("bytes").is_valid().to_pylist()
    paths = (column.field("path").to_pylist() if column.type.get_field_index("path") >= 0 else [None] * len(column))
    return [name if full else path for name, full, path in zip(names, has_bytes, paths, strict=True)]


# --- opening ---------------------------------------------------------------------------------------------------------
def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The content of a file, a part at a time."""
    pyarrow = require_pyarrow(path)
    check_regular(path)
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as parquet

            copied = has_pictures(path) and _copy_of(path).exists()  # mapped: the pictures are not read
            yield from _open(path).batches if copied else parquet.ParquetFile(path).iter_batches(_ROWS_AT_ONCE)
        else:
            yield from _mapped(path)
    except (pyarrow.ArrowException, OSError) as error:  # ArrowInvalid is a ValueError, too
        raise DataError(f"{path}: {_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: has text that is not UTF-8 ({error}).") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such annotation file."
    return f"cannot be read; it is damaged, or of another format ({str(error).splitlines()[0][:200]})."


def _mapped(path: Path) -> list[pa.RecordBatch]:
    """The batches of an Arrow file in either layout, mapped."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:  # a stream, as `datasets` writes it
        source.seek(0)
        return list(pa.ipc.open_stream(source))
    return [file.get_batch(number) for number in range(file.num_record_batches)]


class Mapped:
    """An Arrow file, or the copy of a Parquet file: any row at any time.

    Args:
        path: of the file.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        pyarrow = require_pyarrow(path)
        try:
            self.batches = [batch for batch in _mapped(_arrow_of(path)) if batch.num_rows]
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: {_reason(error)}") from error
        self.starts = [0, *accumulate(batch.num_rows for batch in self.batches)]

    def content(self, row: int, column: str, item: int | None) -> bytes:
        """The bytes of a picture; `item`: which one of a list."""
        number = bisect_right(self.starts, row) - 1
        cell = self.batches[number].column(column)[row - self.starts[number]]
        if item is not None:
            cell = cell[item]
        return (cell["bytes"] if _has_fields(cell) else cell).as_py()


def _copy_of(path: Path) -> Path:
    """The copy of a Parquet file in Arrow's layout, whether it is there or not."""
    made_of = repr((str(path.absolute()), file_state(path)))
    return cache_root() / "tables" / f"{path.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.arrow"


def _arrow_of(path: Path) -> Path:
    """The file itself, or for Parquet its copy, written now if it is not in the cache."""
    if path.suffix.lower() != ".parquet":
        return path
    copy = _copy_of(path)
    if not copy.exists():
        import pyarrow as pa
        import pyarrow.parquet as parquet

        copy.parent.mkdir(parents=True, exist_ok=True)
        file = parquet.ParquetFile(path)
        with atomic.replaced(copy) as temporary, pa.OSFile(str(temporary), "wb") as sink, \
                pa.ipc.new_file(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                writer.write_batch(batch)
    return copy


@lru_cache(_OPEN_FILES)
def _opened(path: Path, state: str) -> Mapped:
    return Mapped(path)


def _open(path: Path) -> Mapped:
    """A file, opened once as long as it stays as it is."""
    return _opened(path, file_state(path))


class Cells:
    """The pictures in the cells of a split's files.

    Args:
        files: the files, in the order that names count them.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [(path, file_state(path) if is_columnar(path) and path.is_file() else "") for path in files]

    def prepared(self) -> Cells:
        """The same, once the files with pictures are open, which writes the copies of Parquet files."""
        for path, state in self.files:
            if is_columnar(path) and has_pictures(path):
                _opened(path, state)
        return self

    def read(self, name: str) -> bytes | None:
        """The bytes of a picture by its name; None: there is no such cell."""
        try:
            file, row, rest = name.removeprefix(CELL).split(":", 2)
            column, _, item = rest.rpartition(":")
            mapped = _opened(*self.files[int(file)])
            return mapped.content(int(row), column, int(item) if item else None)
        except (ValueError, IndexError, KeyError, AttributeError, TypeError):
            return None


def has_pictures(path: Path) -> bool:
    """Whether a file has a column of pictures; errors as `schema_of`."""
    kinds = [field.type for field in schema_of(path)]
    is_list = require_pyarrow(path).types.is_list
    return any(_is_picture(kind) or (is_list(kind) and _is_picture(kind.value_type)) for kind in kinds)


def schema_of(path: Path) -> pa.Schema:
    """Names and types of a file's columns.

    Raises:
        DataError: it cannot be read.
    """
    pyarrow = require_pyarrow(path)
    check_regular(path)
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as parquet

            return parquet.read_schema(path)
        batches = _mapped(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: {_reason(error)}") from error
    return batches[0].schema if batches else pyarrow.schema([])


def batches_of(path: Path, columns: Sequence[str]) -> list[pa.RecordBatch]:
    """The content of some columns, in memory or mapped.

    Raises:
        DataError: the file cannot be read.
    """
    present = [name for name in columns if name in schema_of(path).names]
    if path.suffix.lower() != ".parquet" or has_pictures(path):
        return [batch.select(present) for batch in _open(path).batches]
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.read_table(path, columns=present, use_threads=False).to_batches()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: {_reason(error)}") from error
