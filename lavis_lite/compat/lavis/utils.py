"""LAVIS' small tools: ranks, paths and downloads, frames of videos, meters for logs."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import random
import re
import shutil
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.compat.lavis.paths import ROOTS
from lavis_lite.datasets.files.archives import unpack
from lavis_lite.datasets.media.video import open_video
from lavis_lite.device import pick_device
from lavis_lite.io import files
from lavis_lite.process.launch import launch_from_environment
from lavis_lite.processors.video import SAMPLINGS


# lavis.common.dist_utils ----------------------------------------------------------------------------------------------
def get_dist_info() -> tuple[int, int]:
    """(rank, world size)."""
    return distributed.rank(), distributed.world_size()


def is_dist_avail_and_initialized() -> bool:
    """Whether there is a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def main_process(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the function does its work on rank 0, and nothing (None) elsewhere."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if distributed.is_main() else None

    return wrapper


def init_distributed_mode(args: Any) -> None:
    """Join the other processes of a launcher, if any; sets rank, world_size, gpu and distributed of `args`."""
    launch = launch_from_environment()
    if launch.world_size > 1 and not is_dist_avail_and_initialized():
        distributed.init(pick_device(str(args.get("device", "auto")), launch.local_rank))
        atexit.register(distributed.shutdown)
    args.rank, args.world_size, args.gpu = launch.rank, launch.world_size, launch.local_rank
    args.distributed = launch.world_size > 1


# lavis.common.utils ---------------------------------------------------------------------------------------------------
def now() -> str:
    """The time, as the name of a job."""
    return time.strftime("%Y%m%d%H%M%S")


def is_url(url_or_filename: str) -> bool:
    """Whether a name is an address of the web."""
    return re.match(r"^https?://", str(url_or_filename)) is not None


def get_cache_path(rel_path: str) -> str:
    """A path relative to the cache, as an absolute one."""
    return str(Path(ROOTS["cache_root"]) / Path(rel_path).expanduser())


def makedir(dir_path: str) -> bool:
    """Make a folder and its parents; whether it is there then."""
    Path(dir_path).mkdir(parents=True, exist_ok=True)
    return True


def cleanup_dir(dir: str) -> bool:
    """Remove a folder and what it holds; whether it was there."""
    found = Path(dir).exists()
    shutil.rmtree(dir, ignore_errors=not found)
    return found


def is_convertible_to_int(value: Any) -> bool:
    """Whether a text is a whole number."""
    return re.fullmatch(r"-?\d+", str(value)) is not None


def load_json(filename: str) -> Any:
    """The content of a JSON file."""
    return json.loads(Path(filename).read_text(encoding="utf-8"))


def load_file(filename: str, **unused: Any) -> Any:
    """The content of a JSON, JSON-lines, YAML or text file, by its ending."""
    kind, text = Path(filename).suffix, Path(filename).read_text(encoding="utf-8")
    if kind == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if kind in (".yaml", ".yml"):
        return load_yaml(filename)
    return json.loads(text) if kind == ".json" else text


def get_file_size(filename: str) -> float:
    """Size of a file in MB."""
    return Path(filename).stat().st_size / 2**20


def load_yaml(filename: str) -> Any:
    """The content of a YAML file."""
    return OmegaConf.to_container(OmegaConf.load(filename))


def download_url(url: str, root: str, filename: str | None = None, md5: str | None = None) -> None:
    """Fetch a URL into a folder."""
    files.fetch(url, md5=md5, to=Path(root) / (filename or url.rsplit("/", 1)[-1]))


def download_and_extract_archive(url: str, download_root: str, extract_root: str | None = None,
                                 filename: str | None = None, md5: str | None = None, **unused: Any) -> None:
    """Fetch an archive into a folder, and unpack it there or in another one."""
    download_url(url, download_root, filename, md5)
    extract_archive(str(Path(download_root) / (filename or url.rsplit("/", 1)[-1])), extract_root or download_root)


# lavis.datasets.data_utils --------------------------------------------------------------------------------------------
MAX_INT = sys.maxsize


def load_video(video_path: str | Path, n_frms: int = MAX_INT, height: int = -1, width: int = -1,
               sampling: str = "uniform") -> Tensor:
    """float32[3,T,H,W] with values 0 to 255, T at most n_frms.

    Args:
        video_path: the file.
        n_frms: frames.
        height, width: in pixels; -1: the video's own.
        sampling: uniform | headtail.
    """
    reader = open_video(video_path)
    numbers = SAMPLINGS[sampling](len(reader), min(n_frms, len(reader)), random.Random(random.getrandbits(32)))
    clip = torch.from_numpy(np.stack(list(reader.frames(numbers)))).permute(0, 3, 1, 2).float()
    if height > 0 and width > 0:
        clip = F.interpolate(clip, size=(height, width), mode="bilinear", align_corners=False).clamp(0, 255)
    return clip.transpose(0, 1)


def extract_archive(from_path: str, to_path: str | None = None, overwrite: bool = False) -> list[str]:
    """Unpack a zip or tar archive; no member may leave its folder. The paths of the files in the folder."""
    folder = Path(to_path or Path(from_path).parent)
    unpack(Path(from_path), folder)
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]


# lavis.common.logger --------------------------------------------------------------------------------------------------
def setup_logger() -> None:
    """Show Python's log from INFO on, on rank 0; warnings elsewhere."""
    logging.basicConfig(level=logging.INFO if distributed.is_main() else logging.WARNING,
                        format="%(asctime)s [%(levelname)s] %(message)s", handlers=[logging.StreamHandler()])


class AttrDict(dict[str, Any]):
    """A dictionary with its keys as attributes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class SmoothedValue:
    """A series of numbers: its mean over the newest ones and over all."""

    def __init__(self, window_size: int = 20, fmt: str = "{median:.4f} ({global_avg:.4f})") -> None:
        self.deque: deque[float] = deque(maxlen=window_size)
        self.total, self.count, self.fmt = 0.0, 0, fmt

    def update(self, value: float, n: int = 1) -> None:
        """Add a number, which stands for `n` of them."""
        self.deque.append(float(value))
        self.total, self.count = self.total + float(value) * n, self.count + n

    def synchronize_between_processes(self) -> None:
        """Sum up all ranks' totals."""
        both = distributed.all_gather_object((self.total, self.count))
        self.total, self.count = sum(total for total, _ in both), sum(count for _, count in both)

    @property
    def median(self) -> float:
        """Of the newest numbers."""
        return float(torch.tensor(list(self.deque)).median()) if self.deque else 0.0

    @property
    def avg(self) -> float:
        """Mean of the newest numbers."""
        return sum(self.deque) / max(len(self.deque), 1)

    @property
    def global_avg(self) -> float:
        """Mean of all numbers."""
        return self.total / max(self.count, 1)

    @property
    def value(self) -> float:
        """The newest number."""
        return self.deque[-1]

    @property
    def max(self) -> float:
        """The largest of the newest numbers."""
        return max(self.deque)

    def __str__(self) -> str:
        return self.fmt.format(median=self.median, avg=self.avg, global_avg=self.global_avg,
                               **({"max": self.max, "value": self.value} if self.deque else {"max": 0, "value": 0}))


class MetricLogger:
    """Meters by name, and a loop that prints them."""

    def __init__(self, delimiter: str = "\t") -> None:
        self.meters: dict[str, SmoothedValue] = defaultdict(SmoothedValue)
        self.delimiter = delimiter

    def update(self, **values: Any) -> None:
        """Add a number to each meter."""
        for name, value in values.items():
            self.meters[name].update(float(value))

    def add_meter(self, name: str, meter: SmoothedValue) -> None:
        """Use a meter of another window or format for a name."""
        self.meters[name] = meter

    def global_avg(self) -> str:
        """The mean of every meter, as text."""
        return self.delimiter.join(f"{name}: {meter.global_avg:.4f}" for name, meter in self.meters.items())

    def synchronize_between_processes(self) -> None:
        """Sum up all ranks' meters."""
        for meter in self.meters.values():
            meter.synchronize_between_processes()

    def log_every(self, iterable: Iterable[Any], print_freq: int, header: str = "") -> Iterator[Any]:
        """The items of an iterable; a line with all meters after every `print_freq` of them, on rank 0."""
        began = time.monotonic()
        for number, item in enumerate(iterable):
            yield item
            if number % print_freq == 0 and distributed.is_main():
                print(f"{header} [{number}] {self} time: {time.monotonic() - began:.1f} s", flush=True)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("meters", {}):
            return self.meters[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name}: {meter}" for name, meter in self.meters.items())
