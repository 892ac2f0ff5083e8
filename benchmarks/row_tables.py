"""10^6 caption rows in a mapped table and in an Arrow file: opening, rows by index, all rows, memory of workers.

    python -m benchmarks.row_tables             (needs pyarrow, which the package does not)
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.tables import MappedTable, RowTable

PART = 10_000
Row = dict[str, Any]
Opened = tuple[Callable[[int], Row], Callable[[], Iterator[Row]]]
"""(row by index, all rows)"""


def rows(count: int) -> Iterator[Row]:
    """Rows like those of COCO captions: every fifth has five captions."""
    for number in range(count):
        captions = [f"a photo of thing number {number} with caption {one} and some more words"
                    for one in range(1 if number % 5 else 5)]
        yield {"image": f"train2014/COCO_train2014_{number:012d}.jpg", "image_id": number, "caption": captions}


def write_table(path: Path, count: int) -> None:
    """This package's file."""
    RowTable(((0, number, row) for number, row in enumerate(rows(count), 1)), ["a.json"]).save(path)


def open_table(path: Path) -> Opened:
    """This package's reader."""
    table = MappedTable(path)
    return table.__getitem__, table.skim


def write_arrow(path: Path, count: int) -> None:
    """An Arrow IPC file of record batches."""
    import pyarrow as pa

    schema = pa.schema([("image", pa.string()), ("image_id", pa.int64()), ("caption", pa.list_(pa.string()))])
    every = rows(count)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, count, PART):
            part = [next(every) for _ in range(min(PART, count - start))]
            writer.write(pa.RecordBatch.from_pylist(part, schema))


def open_arrow(path: Path) -> Opened:
    """The Arrow file, mapped."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    batches, names = table.to_batches(), table.column_names

    def row(index: int) -> Row:
        columns = batches[index // PART].columns
        return {name: column[index % PART].as_py() for name, column in zip(names, columns, strict=True)}

    return row, lambda: (row for batch in batches for row in batch.to_pylist())


def _work(row: Callable[[int], Row], count: int, found: Any) -> None:
    """Read every 50th row; sends the process' resident and proportional memory, MiB."""
    for index in range(0, count, 50):
        row(index)
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    found.put([int(lines[name].split()[0]) // 1024 for name in ("Rss", "Pss")])


def measure(name: str, opener: Callable[[Path], Opened], path: Path, count: int) -> str:
    """A dated line of numbers."""
    start = time.perf_counter()
    row, every = opener(path)
    opened = time.perf_counter() - start
    indices = [random.Random(0).randrange(count) for _ in range(20_000)]
    start = time.perf_counter()
    for index in indices:
        row(index)
    by_index = len(indices) / (time.perf_counter() - start)
    start = time.perf_counter()
    total = sum(1 for _ in every())
    scan = time.perf_counter() - start
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    workers = [context.Process(target=_work, args=(row, count, found)) for _ in range(2)]
    for worker in workers:
        worker.start()
    memory = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
    return (f"{time.strftime('%Y-%m-%d')} {name}: opened in {opened * 1000:.1f} ms, {by_index:,.0f} rows/s by index, "
            f"all {total:,} rows in {scan:.1f} s, workers' RSS and PSS {memory} MiB, {path.stat().st_size:,} bytes")


def main() -> None:
    """Write both files, then measure them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, arrow = Path(folder) / "rows.safetensors", Path(folder) / "rows.arrow"
        write_table(table, chosen.rows)
        write_arrow(arrow, chosen.rows)
        for _ in range(chosen.rounds):
            print(measure("table", open_table, table, chosen.rows), flush=True)
            print(measure("arrow", open_arrow, arrow, chosen.rows), flush=True)


if __name__ == "__main__":
    main()
