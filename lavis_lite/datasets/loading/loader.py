"""Loaders: an order of samples and data sets -> batches, the same bit for bit with any number of workers."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.loading.collate import Batch, collate
from lavis_lite.datasets.loading.policy import EvaluationSamples, Failure, TrainingSamples
from lavis_lite.datasets.loading.remaining import Remaining
from lavis_lite.datasets.loading.sampler import EvalBatches, RankBatches, SampleOrder
from lavis_lite.errors import DataError


class Loader(DataLoader[Any]):
    """A DataLoader that turns a worker's `Failure` into a DataError without the worker's traceback."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                raise DataError(batch.message)
            yield batch


def train_loader(datasets: Sequence[Any], order: SampleOrder, run_cfg: RunConfig, rank: int, world_size: int,
                 start_step: int, end_step: int) -> Loader:
    """Micro-batches of this rank for optimizer steps [start_step, end_step), `run.accum_grad_iters` per step.

    Args:
        datasets: one per entry of `order.sizes`.
        order: who decides what a step sees.
        run_cfg: batch_size_train, accum_grad_iters, num_workers, seed, on_bad_sample and device are used.
        rank, world_size: this process among all.
        start_step: first step, from 0; resuming is starting at another one.
        end_step: the step after the last.
    """
    samples = TrainingSamples(datasets, run_cfg.seed, run_cfg.on_bad_sample, mixed=not order.by_ratio)
    batches = RankBatches(order, rank, world_size, run_cfg.batch_size_train, run_cfg.accum_grad_iters, start_step,
                          end_step)
    return Loader(samples, batch_sampler=batches, persistent_workers=run_cfg.num_workers > 0, **_settings(run_cfg))


def eval_loader(dataset: Any, run_cfg: RunConfig, rank: int = 0, world_size: int = 1,
                share_pictures: bool = False, done: Container[int] = ()) -> Loader:
    """This rank's batches of an evaluation data set: each row on exactly one rank, in the data set's own order.

    Its `batch_sampler` is a `Remaining`, which knows the batches' numbers.

    Args:
        dataset: a `BaseDataset`, or any map-style data set, whose rows are taken as they stand.
        run_cfg: batch_size_eval, num_workers, seed, on_bad_sample and device are used.
        rank, world_size: this process among all.
        share_pictures: a batch brings the picture of several of its rows once; see `EvaluationSamples`.
        done: numbers of batches that are left out.
    """
    samples = EvaluationSamples(dataset, run_cfg.seed, run_cfg.on_bad_sample, share_pictures)
    order = dataset.evaluation_order() if hasattr(dataset, "evaluation_order") else None
    batches = Remaining(EvalBatches(len(samples), run_cfg.batch_size_eval, order=order), done, rank, world_size)
    return Loader(samples, batch_sampler=batches, **_settings(run_cfg))


def _settings(run_cfg: RunConfig) -> dict[str, Any]:
    """What both loaders share."""
    return {"num_workers": run_cfg.num_workers, "collate_fn": collate, "worker_init_fn": _one_thread,
            "pin_memory": _on_gpu(run_cfg.device),
            "generator": torch.Generator()}  # its own: the state of torch's global one is part of a checkpoint


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _one_thread(worker: int) -> None:
    """Workers are the parallelism: torch's own threads in each would only fight over the cores."""
    torch.set_num_threads(1)
