"""Opening a Parquet file of many captions: processor time until the first row, by column and row by row.

    python -m benchmarks.parquet_rows [--rows 1000000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

from lavis_lite.datasets.annotations import rows as annotations
from lavis_lite.datasets.annotations.rows import Field, file_name, identifier, read_table, texts

FIELDS = [Field("image", file_name), Field("caption", texts), Field("image_id", identifier)]


def write(path: Path, count: int) -> None:
    """A file of captions of about 50 characters."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    numbers = range(count)
    parquet.write_table(pa.table({
        "image": [f"train/{number // 1000:05d}/{number:09d}.jpg" for number in numbers],
        "caption": [f"A photo of object {number} beside object {number * 7 % 1000}, at noon." for number in numbers],
        "image_id": list(numbers)}), path)


def seconds(path: Path) -> float:
    """Processor time to open the file and read its last row."""
    before = time.process_time()
    table = read_table([path], FIELDS, "caption")
    assert table[len(table) - 1]["image_id"] == len(table) - 1
    return time.process_time() - before


def main() -> None:
    """Print both times."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    count = arguments.parse_args().rows
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(annotations, "cache_root", lambda: Path(folder)):
        path = Path(folder) / "captions.parquet"
        write(path, count)
        seconds(path)  # imports
        print(f"{count:,} rows, {path.stat().st_size / 1e6:.0f} MB; by column: {seconds(path):.2f} s, ", end="")
        with mock.patch.object(annotations, "open_columns", lambda *arguments: None):
            print(f"row by row: {seconds(path):.2f} s, from the cache: {seconds(path):.2f} s (processor time)")


if __name__ == "__main__":
    main()
