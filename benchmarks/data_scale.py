"""What data sets of the paper's size cost before the first sample: opening, seeking, memory per loader worker, shares.

    python -m benchmarks.data_scale [--rows 1000000] [--large 10000000] [--folder DIR]

Rows are generated. "Opening" of rows is what a run does (`read_table`); "private" is the anonymous memory of a loader
worker that has read every row once, over that of a worker with ten rows (Linux). Cost: about four minutes and 4 GB of
disk with the default sizes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lavis_lite.datasets.annotations.rows import Field, file_name, identifier, read_table, texts
from lavis_lite.datasets.annotations.tables import MappedTable, RowTable
from lavis_lite.datasets.files.mapped import write_arrays
from lavis_lite.datasets.loading.sampler import GlobalSampler
from lavis_lite.datasets.shards.index import PARTS, Part, Shard, ShardIndex, write_index

FIELDS = [Field("image", file_name), Field("caption", texts), Field("image_id", identifier, required=False)]
SHARDS, PER_SHARD = 1000, 10_000
GLOBAL_BATCH = 1680
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What work returns, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def memory(*names: str) -> dict[str, float]:
    """Megabytes of this process by /proc/self/smaps_rollup."""
    found = dict.fromkeys(names, 0.0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name = line.split(":")[0]
        if name in found:
            found[name] = int(line.split()[1]) / 1024
    return found


class EveryRow(Dataset[dict[str, float]]):
    """Reads each row of a table once; the last item is the memory that the worker has then."""

    def __init__(self, table: RowTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return 2

    def __getitem__(self, item: int) -> dict[str, float]:
        if item == 0:
            for index in range(len(self.table)):
                self.table[index]
        return memory("Private_Dirty", "Private_Clean", "Pss")


def worker_memory(table: RowTable) -> dict[str, float]:
    """Memory of one loader worker that has read the whole table."""
    loader = DataLoader(EveryRow(table), batch_size=None, num_workers=1, generator=torch.Generator())
    return list(loader)[-1]


def say(what: str, result: str) -> None:
    """One line of the record."""
    print(f"{datetime.date.today()}  {what:66}  {result}", flush=True)


def caption_rows(folder: Path, count: int) -> None:
    """A million captions: opening and memory."""
    path = folder / "captions.jsonl"
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            caption = f"a photo of {draw.randrange(10**6)} small things beside a large one"
            file.write(json.dumps({"image": f"train/{number:09d}.jpg", "caption": caption, "image_id": number}) + "\n")
    table, first = timed(lambda: read_table([path], FIELDS, "caption"))
    again, later = timed(lambda: read_table([path], FIELDS, "caption"))
    say(f"{count:,} rows ({path.stat().st_size / 1e6:.0f} MB of JSON lines), opening", f"first {first:.1f} s, then "
        f"{later * 1000:.1f} ms ({type(again).__name__})")
    assert again[count - 1] == table[count - 1]
    small = worker_memory(RowTable(((0, row, {"image": "a"}) for row in range(10)), [path]))
    for kind, held in (("mapped", again), ("in memory", RowTable(table.items(), [path]))):
        whole = worker_memory(held)
        more = {name: whole[name] - small[name] for name in whole}
        say(f"  a worker that read all rows, over one with ten rows, {kind}",
            ", ".join(f"{name} {value:+.1f} MB" for name, value in more.items()))
    say("  the same worker with ten rows", ", ".join(f"{name} {value:.1f} MB" for name, value in small.items()))


def many_rows(folder: Path, count: int) -> None:
    """Ten million rows: opening reads none of them."""
    path, size = folder / "many.safetensors", 1000
    part = RowTable(((0, row, {"image": f"train/{row:09d}.jpg", "caption": f"caption number {row}"})
                     for row in range(size)), ["many"]).arrays()
    times = count // size
    ends = (part["ends"][1:][None] + (np.arange(times) * part["ends"][-1])[:, None]).reshape(-1)
    write_arrays(path, {"data": [part["data"]] * times, "ends": np.concatenate([[0], ends]).astype(np.int64),
                        "places": [part["places"]] * times}, {"files": '["many"]', "kinds": "{}"})
    before = memory("Anonymous")["Anonymous"]
    table, seconds = timed(lambda: MappedTable(path))
    grown = memory("Anonymous")["Anonymous"] - before
    places = [random.Random(1).randrange(count) for _ in range(10_000)]
    _, reading = timed(lambda: [table[place] for place in places])
    say(f"{len(table):,} rows ({path.stat().st_size / 1e9:.1f} GB) mapped, opening",
        f"{seconds * 1000:.1f} ms, {grown:+.1f} MB; a random row {reading / len(places) * 1e6:.0f} us")


def shard_index(folder: Path, shards: int) -> None:
    """The index of a thousand shards: opening, finding, seeking."""
    (folder / PARTS).mkdir()
    images = [(f"{row:09d}.jpg", 1024 * row, 500, row) for row in range(PER_SHARD)]
    rows: list[tuple[int, dict[str, Any]]] = [
        (row + 1, {"image": name, "caption": ["one caption"]}) for row, (name, _, _, _) in enumerate(images)]
    part = Part(Shard("", 10**9, PER_SHARD, "0" * 64), images, rows, {"image": "file_name", "caption": "texts"})
    own, names = part.arrays["hash"].copy(), [f"{number:06d}.tar" for number in range(shards)]
    for number, name in enumerate(names):
        part.shard = Shard(name, 10**9, PER_SHARD, "0" * 64)
        part.arrays["hash"] = own + np.uint64(number)  # other names
        part.save(folder)
    _, writing = timed(lambda: write_index(folder, names, "bench"))
    (index, table), opening = timed(lambda: (lambda found: (found, found.exploded(found.table(names))))(
        ShardIndex(folder)))
    _, finding = timed(lambda: [index.find(images[row][0]) for row in range(0, PER_SHARD, 10)])
    say(f"index of {shards:,} shards x {PER_SHARD:,} samples, joining", f"{writing:.1f} s")
    say("  opening", f"{opening * 1000:.1f} ms; finding an image {finding / PER_SHARD * 10 * 1e6:.0f} us; "
                     f"{len(table):,} rows")


def seeking(size: int, shards: int) -> None:
    """From a checkpoint to the samples of its step."""
    step = size // GLOBAL_BATCH - 1
    _, free = timed(lambda: GlobalSampler([size], 0, GLOBAL_BATCH)(step))
    blocks = [[size // shards] * shards]
    _, window = timed(lambda: GlobalSampler([size], 0, GLOBAL_BATCH, None, blocks, 100_000)(step))
    _, ratio = timed(lambda: GlobalSampler([size, 500_000], 0, 1, [3, 1])(10**7))
    say(f"seeking to sample {(step + 1) * GLOBAL_BATCH:,} of {size:,} in {shards:,} shards",
        f"{free:.2f} s; with a window of 100,000: {window * 1000:.1f} ms; ratio mixing to step 10^7: {ratio:.2f} s")


def shares(draws: int) -> None:
    """Observed shares of mixed data sets against their probabilities."""
    sizes = {"coco": 566_747, "vqa": 443_757, "ocr": 1_000_000, "okvqa": 9_009, "llava": 58_000}
    weights = [math.sqrt(size) for size in sizes.values()]
    order = GlobalSampler(list(sizes.values()), 42, 8, weights)
    counts = Counter(order(step)[0].dataset for step in range(draws))
    for place, (name, weight) in enumerate(zip(sizes, weights, strict=True)):
        p = weight / sum(weights)
        sigma = (counts[place] - draws * p) / math.sqrt(draws * p * (1 - p))
        say(f"share of {name} over {draws:,} draws, p = {p:.4f}", f"{counts[place] / draws:.4f} ({sigma:+.1f} sigma)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--large", type=int, default=10**7)
    parser.add_argument("--draws", type=int, default=10**5)
    parser.add_argument("--folder", help="where the generated files go for the time of the measurement")
    chosen = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, numpy {np.__version__}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        os.environ["LAVIS_LITE_CACHE"] = f"{folder}/cache"
        shards = max(chosen.large // PER_SHARD, 1)
        seeking(chosen.large, min(SHARDS, shards))
        shares(chosen.draws)
        caption_rows(Path(folder), chosen.rows)
        many_rows(Path(folder), chosen.large)
        (Path(folder) / "shards").mkdir()
        shard_index(Path(folder) / "shards", min(SHARDS, shards))


if __name__ == "__main__":
    main()
