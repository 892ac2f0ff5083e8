"""Loaders: an order of samples and data sets -> batches, the same bit for bit with any number of workers."""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.loading.collate import collate
from lavis_lite.datasets.loading.policy import EvaluationSamples, Failure, TrainingSamples
from lavis_lite.datasets.loading.remaining import Remaining
from lavis_lite.datasets.loading.sampler import EvalBatches, RankBatches, SampleOrder
from lavis_lite.datasets.loading.workers import WorkerIterator
from lavis_lite.datasets.protocols import MapDataset, Ordered
from lavis_lite.errors import DataError
from lavis_lite.process import limits
from lavis_lite.process.children import worker_context


class Loader(DataLoader[Any]):
    """A DataLoader whose workers end with whoever reads the batches, and whose errors are this package's.

    Workers follow the rules of `lavis_lite.process.children`. They are killed, not asked to go, if the iterator is
    closed or an exception passes through it: a worker that hangs would be waited for otherwise.

    Args:
        dataset: map-style.
        workers: loader processes; 0: the batches are made in this process.
        start_method: fork | spawn | forkserver; None: the platform's default.
        settings: of `DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], workers: int = 0, start_method: str | None = None,
                 **settings: Any) -> None:
        with limits.explained():
            super().__init__(dataset, num_workers=workers, worker_init_fn=_one_thread,
                             multiprocessing_context=worker_context(start_method) if workers else None,
                             generator=torch.Generator(),  # its own: torch's global one belongs to the run
                             **settings)

    def __iter__(self) -> Generator[Any, None, None]:  # type: ignore[override]
        """The batches.

        Raises:
            DataError: a worker met a `Failure`; without the worker's traceback.
            WorkerError: a worker was killed, or the system has not enough of what workers need.
        """
        iterator: Any = None
        try:
            with limits.explained():
                iterator = super().__iter__()
                for batch in iterator:
                    if isinstance(batch, Failure):
                        raise DataError(batch.message)
                    yield batch
        except BaseException as fault:
            clearer = iterator.explain(fault) if isinstance(iterator, WorkerIterator) else None
            if isinstance(iterator, WorkerIterator):
                iterator.kill()
            if clearer is not None:
                raise clearer from fault
            raise

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        return WorkerIterator(self)


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


def eval_loader(dataset: MapDataset, run_cfg: RunConfig, rank: int = 0, world_size: int = 1,
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
    order = dataset.evaluation_order() if isinstance(dataset, Ordered) else None
    batches = Remaining(EvalBatches(len(samples), run_cfg.batch_size_eval, order=order), done, rank, world_size)
    return Loader(samples, batch_sampler=batches, **_settings(run_cfg))


def _settings(run_cfg: RunConfig) -> dict[str, Any]:
    """What both loaders share."""
    return {"workers": run_cfg.num_workers, "start_method": run_cfg.worker_start_method, "collate_fn": collate,
            "pin_memory": _on_gpu(run_cfg.device)}


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _one_thread(worker: int) -> None:
    """Workers are the parallelism: torch's own threads in each would only fight over the cores."""
    torch.set_num_threads(1)
