"""JPEG files of 640x480 pixels to training views and batches, against PIL, torchvision and torch's DataLoader.

Views: decoding, a random crop resized to 224, mirror, normalisation, with the same crops on both sides. Loaders: rows,
views, collation, transport from one worker and normalisation, epochs long enough that starting the worker hardly
counts. The peer `views` is what a GPU leaves to the CPU: views as bytes, without any loader. With one worker it is
measured over few and over many batches: the difference tells a batch's cost from that of the start. Shards: a loader of
two workers that reads tars, and the tokens of its captions.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lavis_lite.bench.options import Options
from lavis_lite.bench.timing import Case, Side
from lavis_lite.bench.twins.images import PlainTrainView
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.annotations.rows import Field, file_name, read_table, text
from lavis_lite.datasets.caption import CaptionDataset
from lavis_lite.datasets.loading.loader import train_loader
from lavis_lite.datasets.loading.sampler import GlobalSampler
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.shards.cache import LocalShards
from lavis_lite.datasets.shards.dataset import ShardImages
from lavis_lite.datasets.shards.writer import make_plan, write_shards
from lavis_lite.device import to_device
from lavis_lite.errors import DataError
from lavis_lite.models.text_tokens import MINI, TextTokenizer
from lavis_lite.processors.image import Blip2ImageTrain
from lavis_lite.processors.pixels import keep_pixels
from lavis_lite.processors.text import BlipCaption

SIZE = (640, 480)
PICTURES, BATCH, EPOCHS, LONG = 48, 16, 6, 30
CPU = torch.device("cpu")


def case(options: Options, device: torch.device, seed: int) -> list[Case]:
    """The comparisons: views, and whole loaders in the process and with one worker."""
    paths = pictures(Path(options.images_from)) if options.images_from else generated()
    kind = "photographs" if options.images_from else "generated pictures"
    data = captions(paths)
    return [_views(paths, f"views of {kind}"),
            *(_loaders(data, paths, workers, f"loader, {kind}, {workers} workers") for workers in (0, 1)),
            _bytes(data, paths, 0, 1, f"bytes of {kind}, 0 workers"),
            _bytes(data, paths, 1, EPOCHS, f"bytes of {kind}, 1 workers"),
            _bytes(data, paths, 1, LONG, f"bytes of {kind}, 1 workers, {LONG // EPOCHS} times as many batches"),
            _shards(data, len(paths), f"shards and tokens, {kind}, 2 workers")]


def _views(paths: Sequence[Path], name: str) -> Case:
    folder, processor, plain = ImageFolder(paths[0].parent), Blip2ImageTrain(224), PlainTrainView()

    def ours(seed: int) -> None:
        for item, path in enumerate(paths):
            folder.view(path.name, processor, random.Random(seed + item))

    def theirs(seed: int) -> None:
        for item, path in enumerate(paths):
            plain(path, random.Random(seed + item))

    return Case(name, {"ours": lambda: Side(ours), "plain": lambda: Side(theirs)}, lambda number: 1000 * number,
                len(paths), counted=False)


def _loaders(data: CaptionDataset, paths: Sequence[Path], workers: int, name: str) -> Case:
    epochs = EPOCHS if workers else 1
    steps = epochs * len(paths) // BATCH

    def ours(number: int) -> None:
        _read(to_device(batch, CPU) for batch in _batches(data, workers, number, steps))

    def theirs(number: int) -> None:
        torch.manual_seed(number)
        loader = DataLoader(PlainCaptions(paths, epochs), BATCH, shuffle=True, num_workers=workers, drop_last=True)
        _read(loader)

    return Case(name, {"ours": lambda: Side(ours), "plain": lambda: Side(theirs)}, lambda number: number, steps * BATCH,
                counted=False)


def _bytes(data: CaptionDataset, paths: Sequence[Path], workers: int, epochs: int, name: str) -> Case:
    steps = epochs * len(paths) // BATCH

    def ours(number: int) -> None:
        _read(_batches(data, workers, number, steps))

    def views(number: int) -> None:
        with keep_pixels():
            for item in range(epochs * len(paths)):
                data.folder.view(paths[item % len(paths)].name, data.vis_processor, random.Random(item))

    return Case(name, {"ours": lambda: Side(ours), "views": lambda: Side(views)}, lambda number: number, steps * BATCH,
                counted=False)


def _shards(data: CaptionDataset, images: int, name: str) -> Case:
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    index = write_shards(make_plan(data.table, data.folder, Path(folder.name), BATCH), "", log=lambda line: None)
    shown = ShardImages(index, LocalShards(index.folder, index.shards))
    sharded = CaptionDataset(data.table, shown, data.vis_processor, data.text_processor)
    tokenizer, steps = TextTokenizer(MINI), EPOCHS * images // BATCH

    def ours(number: int) -> None:
        _read(tokenizer(batch["text_input"]) for batch in _batches(sharded, 2, number, steps))

    return Case(name, {"ours": lambda: Side(ours)}, lambda number: number, steps * BATCH, counted=False)


def _batches(data: CaptionDataset, workers: int, seed: int, steps: int) -> Iterator[dict[str, Any]]:
    run = RunConfig(batch_size_train=BATCH, num_workers=workers, device="cpu", seed=0)
    return iter(train_loader([data], GlobalSampler([len(data)], seed, BATCH), run, 0, 1, 0, steps))


def _read(batches: Any) -> None:
    for _ in batches:
        continue


def with_loaded_images(make: Callable[[int], dict[str, Any]], options: Options) -> Callable[[int], dict[str, Any]]:
    """Batches by number, their images from a loader of `options.workers` processes, if there is to be one.

    Args:
        make: number -> a batch of this size.
        options: of the training steps.
    """
    if options.workers is None:
        return make
    paths = pictures(Path(options.images_from)) if options.images_from else generated()
    data = captions(paths, options.dimensions.image_size)
    run = RunConfig(batch_size_train=options.images, num_workers=options.workers, device="cpu", seed=0)
    steps = options.warmup + options.steps
    loader = iter(train_loader([data], GlobalSampler([len(data)], 0, options.images), run, 0, 1, 0, steps))
    texts = [make(number) for number in range(steps)]  # before the clock runs
    return lambda number: texts[number] | {"image": next(loader)["image"]}


class PlainCaptions(Dataset[dict[str, Any]]):
    """Pictures and captions as LAVIS' data sets read them, `epochs` times."""

    def __init__(self, paths: Sequence[Path], epochs: int) -> None:
        self.paths, self.epochs, self.view = paths, epochs, PlainTrainView()

    def __len__(self) -> int:
        return len(self.paths) * self.epochs

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index % len(self.paths)]
        return {"image": self.view(path, random.Random(index)), "text_input": f"picture {path.stem}"}


def pictures(folder: Path) -> list[Path]:
    """Files of 640x480 pixels in a folder, at most PICTURES.

    Raises:
        DataError: there is no folder, or there are too few for a batch.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: there is no such folder. Without --images pictures are generated.")
    found = list(_fitting(sorted(folder.iterdir())))[:PICTURES]
    if len(found) < BATCH:
        raise DataError(f"--images {folder}: the folder has {len(found)} JPEG files of {SIZE[0]}x{SIZE[1]} pixels; at "
                        f"least {BATCH} are needed. Without --images pictures are generated.")
    return found


def _fitting(files: Sequence[Path]) -> Iterator[Path]:
    for path in files:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            with Image.open(path) as image:
                if image.size == SIZE:
                    yield path


def generated() -> list[Path]:
    """Pictures of smooth tones with edges, quality 85, 4:2:0, about 74 KB each; they are deleted at exit."""
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    y, x = np.arange(SIZE[1], dtype=np.float32)[:, None], np.arange(SIZE[0], dtype=np.float32)[:, None]
    paths = []
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        across, down, phase = rng.uniform(0.005, 0.25, 40), rng.uniform(0.005, 0.25, 40), rng.uniform(0, 6, 40)
        rows = np.concatenate([np.sin(y * down), np.cos(y * down)], 1)
        tilted = np.concatenate([np.cos(x * across + phase), np.sin(x * across + phase)], 1)  # sin(a + b), as products
        tones = np.stack([(rows * np.tile(rng.normal(0, 14, 40), 2)) @ tilted.T for _ in range(3)], -1)
        tones += 60 * ((x.T // rng.integers(20, 90) + y // rng.integers(20, 90)) % 2)[..., None]
        paths.append(Path(folder.name) / f"{number}.jpg")
        Image.fromarray(np.clip(tones + 100, 0, 255).astype(np.uint8)).save(paths[-1], quality=85)
    return paths


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""kept until the process ends"""


def captions(paths: Sequence[Path], size: int = 224) -> CaptionDataset:
    """The pictures as a caption data set, in views of `size` pixels per side."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps([{"image": path.name, "caption": f"Picture {path.stem}."} for path in paths]))
        table = read_table([file], [Field("image", file_name), Field("caption", text)])
    return CaptionDataset(table, ImageFolder(paths[0].parent), Blip2ImageTrain(size), BlipCaption())
