"""From 640x480 JPEG files to batches, per core: this package against PIL and torchvision (`benchmarks.plain_images`).

    OMP_NUM_THREADS=1 python -m benchmarks.image_pipeline [--images FOLDER] [--repeats 15]

Three questions, each answered by medians over repeats in which the variants take turns, in CPU time of the process (the
machine may be shared):

1. decode + random resized crop to 224 + normalise, the same crops in both;
2. the pixels of both: greatest difference in grey levels (against the order of passes of Pillow up to 12, which LAVIS
   ran on, and against the installed Pillow's);
3. what the loader adds to one sample (rows, random numbers, checks, collation; with a worker also its transport).

Pictures: those of 640x480 pixels in --images, by default the shared COCO photographs; where there are none, 48
generated ones.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from benchmarks.plain_images import PlainTrainView, RowsFirstView
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.annotations.rows import Field, file_name, read_table, text
from lavis_lite.datasets.caption import CaptionDataset
from lavis_lite.datasets.loading.loader import train_loader
from lavis_lite.datasets.loading.randomness import sample_rng
from lavis_lite.datasets.loading.sampler import GlobalSampler
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.processors.image import STD, Blip2ImageTrain
from lavis_lite.processors.text import BlipCaption

SIZE = (640, 480)
REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LAVIS_LITE_SHARED", REPOSITORY.parent / "shared"))
BATCH = 16
BLOCK = 12
"""pictures that one variant reads before the other does"""


def pictures(folder: Path, most: int = 48) -> list[Path]:
    """Files of 640x480 pixels in a folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = []
    for path in files:
        with Image.open(path) as image:
            if image.size == SIZE:
                found.append(path)
    return found[:most]


def generate(folder: Path, count: int = 48) -> list[Path]:
    """Pictures of smooth tones with edges, quality 85, 4:2:0: about 60 KB each."""
    y, x = np.mgrid[:SIZE[1], :SIZE[0]].astype(np.float32)
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        tones = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
        for _ in range(40):
            fx, fy, phase = rng.uniform(0.005, 0.25), rng.uniform(0.005, 0.25), rng.uniform(0, 6)
            tones += np.sin(fx * x + fy * y + phase)[..., None] * rng.normal(0, 14, 3)
        tones += 60 * ((x // rng.integers(20, 90) + y // rng.integers(20, 90)) % 2)[..., None]
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(tones + 100, 0, 255).astype(np.uint8)).save(paths[-1], quality=85)
    return paths


def interleaved(variants: Sequence[Callable[[int], object]], items: int, repeats: int) -> list[list[float]]:
    """CPU seconds per item of every variant and repeat; the variants take turns every BLOCK items."""
    times: list[list[float]] = [[] for _ in variants]
    for repeat in range(repeats + 1):
        spent = [0.0] * len(variants)
        for block in range(0, items, BLOCK):
            order = list(range(len(variants)))
            for place in order if (repeat + block // BLOCK) % 2 else reversed(order):
                start = time.process_time()
                for item in range(block, min(block + BLOCK, items)):
                    variants[place](item)
                spent[place] += time.process_time() - start
        if repeat:  # the first fills caches
            for place, seconds in enumerate(spent):
                times[place].append(seconds / items)
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of paired ratios."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def speed(paths: Sequence[Path], repeats: int) -> list[str]:
    """Question 1."""
    folder, processor, plain = ImageFolder(paths[0].parent), Blip2ImageTrain(224), PlainTrainView()
    slow, fast = interleaved([lambda item: plain(paths[item], random.Random(item)),
                              lambda item: folder.view(paths[item].name, processor, random.Random(item))],
                             len(paths), repeats)
    lines = [f"{name}: {1e3 * statistics.median(times):.2f} ms, {1 / statistics.median(times):.0f} images/s per core"
             for name, times in (("PIL + torchvision", slow), ("this package", fast))]
    spread = [a / b for a, b in zip(slow, fast, strict=True)]
    return [*lines, f"ratio: {ratio(slow, fast):.2f} ({min(spread):.2f} to {max(spread):.2f}, {len(spread)} repeats)"]


def differences(paths: Sequence[Path]) -> list[str]:
    """Question 2."""
    folder, processor = ImageFolder(paths[0].parent), Blip2ImageTrain(224)
    lines = []
    for name, plain in (("Pillow's order up to 12", RowsFirstView()), (f"Pillow {PIL.__version__}", PlainTrainView())):
        levels = torch.cat([
            ((folder.view(path.name, processor, random.Random(item)) - plain(path, random.Random(item)))
             * torch.tensor(STD).view(3, 1, 1) * 255).abs().round().flatten() for item, path in enumerate(paths)])
        share = (levels > 1).float().mean().item()
        lines.append(f"grey levels against {name}: at most {int(levels.max())}, mean {levels.mean():.4f}, "
                     f"{share:.1e} of the values differ by more than 1")
    return lines


def loader_cost(paths: Sequence[Path], repeats: int) -> list[str]:
    """Question 3: all batches of an epoch by the loader, against their views alone, taking turns."""
    dataset = captions(paths)
    order, steps = GlobalSampler([len(dataset)], 0, BATCH), len(paths) // BATCH
    lines = []
    for workers, epochs, where in ((0, 1, "in the process"), (1, 12, "with one worker")):
        run = RunConfig(batch_size_train=BATCH, num_workers=workers, device="cpu", seed=0)

        def loaded(item: int, run: RunConfig = run) -> None:
            for _ in train_loader([dataset], order, run, 0, 1, 0, steps * item):
                pass

        def alone(item: int) -> None:
            for index in range(steps * item * BATCH):
                place = index % len(dataset)
                dataset.folder.view(paths[place].name, dataset.vis_processor, sample_rng(0, 0, 0, place))

        shares = []
        for _ in range(max(3, repeats // 3)):
            # one epoch is taken from the longer run: the loader's start is paid once
            costs = [cpu(work, 1 + epochs) - cpu(work, 1) for work in (loaded, alone)]
            shares.append(costs[0] / costs[1] - 1)
        lines.append(f"loader, {where}: {100 * statistics.median(shares):.1f}% beyond decoding and processing "
                     f"({100 * min(shares):.1f} to {100 * max(shares):.1f})")
    return lines


def cpu(work: Callable[[int], None], epochs: int) -> float:
    """CPU seconds of this process and of the workers that ended in it."""
    start = _cpu_of_all()
    work(epochs)
    return _cpu_of_all() - start


def _cpu_of_all() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def captions(paths: Sequence[Path]) -> CaptionDataset:
    """The pictures as a caption data set."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps([{"image": path.name, "caption": f"Picture {path.stem}."} for path in paths]))
        table = read_table([file], [Field("image", file_name), Field("caption", text)])
    return CaptionDataset(table, ImageFolder(paths[0].parent), Blip2ImageTrain(224), BlipCaption())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=SHARED / "data" / "coco_photos" / "images")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(arguments.images)
        kind = "photographs" if paths else "generated pictures"
        paths = paths or generate(Path(folder))
        size = statistics.mean(path.stat().st_size for path in paths) / 1e3
        print(f"{datetime.date.today()}  {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}  "
              f"python {platform.python_version()}  torch {torch.__version__}  Pillow {PIL.__version__}  "
              f"{len(paths)} {kind} of 640x480, {size:.0f} KB on average")
        for line in (*speed(paths, arguments.repeats), *differences(paths), *loader_cost(paths, arguments.repeats)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
