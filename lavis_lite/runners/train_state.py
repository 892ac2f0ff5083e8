"""What a training run is made of, built from its configuration."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.config.mixing import mixing_lines, mixing_ratios
from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.datasets.base import pictures_of
from lavis_lite.datasets.loading.loader import PICTURES, train_loader
from lavis_lite.datasets.loading.sampler import GlobalSampler, hash64
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.protocols import Hashed, ImageTable
from lavis_lite.datasets.shards.dataset import shard_sizes
from lavis_lite.device import Precision
from lavis_lite.errors import ConfigError
from lavis_lite.processors.pixels import Pixels
from lavis_lite.registry import registry
from lavis_lite.runners import optim
from lavis_lite.runners.ranks import wrap_for_ranks
from lavis_lite.runners.schedules import TrainSchedule
from lavis_lite.runners.step import TrainStep
from lavis_lite.tasks.base import BaseTask

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

Datasets = Mapping[str, Mapping[str, Any]]


class TrainState:
    """What training needs and evaluation does not: order of samples, schedules, optimizer and step.

    Args:
        cfg: the whole configuration.
        task: gives the losses.
        model: on its device already; it is wrapped for several ranks.
        datasets: data set name -> split -> data set.
        schedule_of: steps per epoch -> length of the run.
        device, precision: where and in which dtype.
    """

    def __init__(self, cfg: Config, task: BaseTask, model: BaseModel, datasets: Datasets,
                 schedule_of: Callable[[int], TrainSchedule], device: torch.device, precision: Precision) -> None:
        self.run = run = cfg.run
        self.names, self.datasets = names, _ = training_sets(run, datasets)
        sizes = [len(dataset) for dataset in self.datasets]
        self.micro_batch = distributed.world_size() * run.batch_size_train
        global_batch = self.micro_batch * run.accum_grad_iters
        ratios = mixing_ratios(cfg, names, sizes)
        if ratios is None:
            refuse_lost_targets(names, self.datasets)
        blocks = None if run.shuffle_window is None else [shard_sizes(dataset) for dataset in self.datasets]
        self.order = GlobalSampler(sizes, run.seed, global_batch, ratios, blocks, run.shuffle_window or 0)
        self.fingerprint: dict[str, Any] = {"sizes": sizes, "seed": run.seed, "global batch": global_batch,
                                            "ratios": ratios, "annotations": annotation_hashes(names, self.datasets),
                                            "pictures": [picture_sizes(dataset) for dataset in self.datasets]}
        if blocks is not None:
            sizes_of_blocks = [size for own in blocks for size in own or [0]]
            self.fingerprint["shuffle window"] = [run.shuffle_window, hash64(*sizes_of_blocks)]
        self.mixing = mixing_lines(names, sizes, ratios)
        self.schedule = schedule_of(self.order.steps_per_epoch)
        self.lr_schedule = registry.get_lr_scheduler_class(run.lr_sched).from_run(run, self.schedule.total,
                                                                                  self.schedule.interval)
        self.optimizer = optim.build_optimizer(model, run)
        wrapped = wrap_for_ranks(model, device, run)
        self.train_step = TrainStep(task, wrapped, self.optimizer, self.lr_schedule, run, device, precision)
        self.speed = Speed(global_batch)

    def batches(self, start: int, end: int) -> Generator[dict[str, Any], None, None]:
        """This rank's micro-batches of steps [start, end); close it to end the loader's workers."""
        loader = train_loader(self.datasets, self.order, self.run, distributed.rank(), distributed.world_size(), start,
                              end)
        return staged(iter(loader), self.train_step.device)


def training_sets(run: RunConfig, datasets: Datasets) -> tuple[list[str], list[Any]]:
    """Names and data sets of all training splits, in the order of the configuration."""
    found = [(name, splits[split]) for name, splits in datasets.items()
             for split in run.train_splits if split in splits]
    if not found:
        present = sorted({split for splits in datasets.values() for split in splits})
        raise ConfigError(f"run.train_splits is {run.train_splits}, but the data sets have {present}.")
    return [name for name, _ in found], [dataset for _, dataset in found]


def refuse_lost_targets(names: Sequence[str], datasets: Sequence[object]) -> None:
    """Refuse sets that shuffled together would lose their targets: a batch keeps the keys that all samples have.

    Raises:
        ConfigError: some sets have text_output, and others do not.
    """
    keys = {name: getattr(dataset, "sample_keys", ()) for name, dataset in zip(names, datasets, strict=True)}
    with_target = [name for name, own in keys.items() if "text_output" in own]
    without = [name for name, own in keys.items() if own and "text_output" not in own]
    if with_target and without:
        raise ConfigError(f"samples of {', '.join(with_target)} have a text_output to learn after their text_input; "
                          f"those of {', '.join(without)} have none. Shuffled together, all would be learned as "
                          "captions. Give every step one data set: run.sampling=size, or run.train_dataset_ratios. Or "
                          f"give {without[0]} an instruction, as its *_instruct twin has.")


def annotation_hashes(names: list[str], datasets: list[Any]) -> list[list[Any]]:
    """[name, hash of the rows] of each training set; no `content_hash`: no hash."""
    return [[name, dataset.content_hash() if isinstance(dataset, Hashed) else None]
            for name, dataset in zip(names, datasets, strict=True)]


def picture_sizes(dataset: object, most: int = 64) -> list[int]:
    """Bytes of `most` of a data set's media files, evenly spread over its rows; [] if it has no table and folder."""
    if not isinstance(dataset, ImageTable) or not isinstance(dataset.folder, ImageFolder):
        return []
    last = len(dataset.table) - 1
    rows = (dataset.table[number] for number in sorted({last * part // (most - 1) for part in range(most)}))
    return [dataset.folder.file_size(name) for row in rows for name in pictures_of(row)[:1]]


class Speed:
    """Images per second of training alone, without validation and saving, and what it waited for."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step, self.steps, self._since = images_per_step, 0, time.monotonic()
        self._waited = 0.0

    def lap(self) -> dict[str, float]:
        """Since the last lap: images_per_second, and data_wait, the share of the time spent waiting for batches."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        rate, share = self.steps * self.images_per_step / seconds, min(self._waited / seconds, 1.0)
        self.steps, self._since, self._waited = 0, now, 0.0
        return {"images_per_second": round(rate, 2), "data_wait": round(share, 4)}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time spent inside was spent waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside does not count."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began


# --- pictures on their way to a GPU -----------------------------------------------------------------------------------
Batches = Generator[dict[str, Any], None, None]


def staged(batches: Batches, device: torch.device, cuda: Any = torch.cuda) -> Batches:
    """The batches, their pictures copied to a GPU on a stream of its own; elsewhere the batches as they are.

    The copy of a batch begins as soon as the loader has it. The stream that computes waits for the copy, the host does
    not. So a GPU holds the pictures of one step more; they stay bytes until the step begins.

    Args:
        batches: closed with the result.
        device: of the run.
        cuda: makes streams, as torch.cuda does.
    """
    with closing(batches):
        if device.type != "cuda":
            yield from batches
            return
        copies = cuda.Stream(device)
        for batch in batches:
            with cuda.stream(copies):
                moved = {key: _moved(batch[key], device) for key in PICTURES if isinstance(batch.get(key), Tensor)}
            computes = cuda.current_stream(device)
            computes.wait_stream(copies)
            for tensor in moved.values():  # its memory may be used again only after the step
                (tensor.raw if isinstance(tensor, Pixels) else tensor).record_stream(computes)
            yield {**batch, **moved}


def _moved(picture: Tensor, device: torch.device) -> Tensor:
    return picture.staged(device) if isinstance(picture, Pixels) else picture.to(device, non_blocking=True)
