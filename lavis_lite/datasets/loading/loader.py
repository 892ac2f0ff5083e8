"""Loaders: an order of samples and data sets -> batches, the same bit for bit with any number of workers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.loading.policy import IMAGE_ROWS, DrawnSamples, EvaluationSamples, Failure, TrainingSamples
from lavis_lite.datasets.loading.sampler import GlobalSampler, RankBatches
from lavis_lite.datasets.loading.transport import JOIN, SMALL, Sender
from lavis_lite.datasets.protocols import MapDataset, Ordered
from lavis_lite.errors import ConfigError, ContractError, DataError, LavisLiteError, WorkerError
from lavis_lite.process import children, exits
from lavis_lite.process.children import worker_context
from lavis_lite.processors.pixels import stack

# --- samples -> batch ------------------------------------------------------------------------------------------------
Batch = dict[str, Any]
Collate = Callable[[Sequence[Any]], "Batch | Failure"]
OWN_KEYS = ("uniform", "bad_samples")
"""keys that the loader adds to samples"""
PICTURES = ("image", "video")


def collate(samples: Sequence[Any]) -> Batch | Failure:
    """Batch of the keys that all samples share.

    Ints become int64[B], floats float32[B], bools bool[B]; arrays and tensors of equal shape are stacked, so `image`
    is float32[B, 3, H, W] and `uniform` float64[B, 2]; strings, lists and dicts stay lists of length B.
    `bad_samples`, the records of unusable samples, is there only when there are some. A batch of which nothing was
    usable has no other key. Samples with `image_rows` share pictures: `image` (or `video`) is then float32[U, 3, H, W],
    every different picture once, and image_rows int64[B] says which one each sample has.

    Raises:
        DataError: tensors of unequal shape under one key.
    """
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
    records = [record for sample in samples for record in sample.get("bad_samples", [])]
    usable = [sample for sample in samples if any(key != "bad_samples" for key in sample)]
    batch: Batch = {}
    if usable:
        keys = [key for key in usable[0] if key != "bad_samples" and all(key in sample for sample in usable)]
        batch = {key: _join(key, [sample[key] for sample in _holders(key, usable)]) for key in keys}
    if records:
        batch["bad_samples"] = records
    return batch


def collate_of(dataset: object) -> Collate:
    """The function that makes batches of a data set's samples: its own `collater`, if it has one, else `collate`.

    `collater(samples) -> batch` is LAVIS' name. It gets the samples as the data set made them, unusable ones left out.
    """
    own = getattr(dataset, "collater", None)
    return collate if own is None else partial(_collate_by, own)


def _collate_by(collater: Callable[[list[Any]], Batch], samples: Sequence[Any]) -> Batch | Failure:
    """As `collate`, but for what a data set does itself."""
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
    added = collate([{key: sample[key] for key in OWN_KEYS if key in sample} for sample in samples])
    usable = [plain for sample in samples
              if (plain := {key: value for key, value in sample.items() if key not in OWN_KEYS})]
    batch = collater(usable) if usable else {}
    if not isinstance(batch, dict):
        raise ContractError(f"{collater.__qualname__} must return a dict, the batch, not {type(batch).__name__}.")
    return {**added, **batch} if isinstance(added, dict) else added


def _holders(key: str, samples: list[Any]) -> list[Any]:
    """The samples whose value of `key` goes into the batch: of shared pictures the first of each, else all."""
    if key not in PICTURES or IMAGE_ROWS not in samples[0]:
        return samples
    first: dict[int, Any] = {}
    for sample in samples:
        first.setdefault(sample[IMAGE_ROWS], sample)
    return [first[number] for number in sorted(first)]


def _join(key: str, values: list[Any]) -> Any:
    if all(isinstance(value, bool | Number) for value in values):
        kind = torch.float32 if any(isinstance(value, float | np.floating) for value in values) else None
        return torch.tensor(values, dtype=kind)
    if all(isinstance(value, np.ndarray | Tensor) for value in values):
        tensors = [torch.as_tensor(value) for value in values]
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(shapes) > 1:
            raise DataError(f"samples of one batch have {key!r} of different shapes: {', '.join(map(str, shapes))}. "
                            "Give the data sets that are mixed the same vis_processor image_size.")
        held = stack(tensors, JOIN.get())
        if held is None and len(tensors) * tensors[0].nbytes <= SMALL:  # goes by value, needs no shared memory
            return torch.stack(tensors)
        return default_collate(tensors) if held is None else held
    return values


# --- batches of an evaluation -----------------------------------------------------------------------------------------
class EvalBatches(list[list[int]]):
    """Evaluation: each row exactly once, nothing padded.

    Args:
        size: rows.
        batch_size: rows of a batch; the last one may have fewer.
        order: all rows in the order of evaluation; None: the data set's.
    """

    def __init__(self, size: int, batch_size: int, order: Sequence[int] | None = None) -> None:
        rows = range(size) if order is None else order
        super().__init__(list(rows[start:start + batch_size]) for start in range(0, size, batch_size))


class PendingBatches(Iterable[list[int]]):
    """This rank's part of the batches that are not done: the i-th of them goes to rank i % world_size.

    A batch keeps its number, whichever rank computes it and whatever was done before.

    Args:
        batches: all batches of the split, rows each, in their order.
        done: numbers of those that are finished.
        rank, world_size: this process among all.

    Attributes:
        numbers: this rank's batches, as numbers among all.
        samples: number of rows of the split.
        done_samples: number of rows of the finished batches.
    """

    def __init__(self, batches: Iterable[list[int]], done: Container[int] = (), rank: int = 0,
                 world_size: int = 1) -> None:
        batches_by_number = list(enumerate(batches))
        pending = [(number, rows) for number, rows in batches_by_number if number not in done]
        mine = pending[rank::world_size]
        self.numbers = [number for number, _ in mine]
        self.samples = sum(len(rows) for _, rows in batches_by_number)
        self.done_samples = self.samples - sum(len(rows) for _, rows in pending)
        self._batches = [rows for _, rows in mine]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


# --- loaders ---------------------------------------------------------------------------------------------------------
SHARED = ("torch", __name__)
"""modules that the workers of a fork server share"""
CHECK_SECONDS = 1.0
"""between looks at whether all workers are still there; mostly the system tells at once"""


class WorkerIterator(_MultiProcessingDataLoaderIter):
    """torch's iterator over loader workers, whose end waits for nobody.

    Attributes of torch's class that have an underscore are used here and nowhere else.
    """

    def __init__(self, loader: Any) -> None:
        import numpy.random  # noqa: F401  # each worker seeds it, and would import it

        try:
            super().__init__(loader)
        except BaseException:  # the third of four workers could not be started
            self.kill()
            raise

    def _try_get_data(self, timeout: float = CHECK_SECONDS) -> Any:
        return super()._try_get_data(timeout)

    def explain(self, error: BaseException) -> LavisLiteError | None:
        """A clearer error than the one that torch raised for a worker; None if it is clear enough.

        torch puts a worker's traceback into the message, and does not say how a worker died.
        """
        if isinstance(error, LavisLiteError) and str(error).startswith("Caught "):
            name = f"{type(error).__module__}.{type(error).__qualname__}: "
            return type(error)(str(error).rpartition(name)[2].strip())
        if isinstance(error, (RuntimeError, OSError, EOFError)):  # the latter two: it died while it handed over
            for worker in self._workers:
                worker.join(0.0 if isinstance(error, RuntimeError) else 0.2)
                if worker.exitcode:
                    return WorkerError(children.describe_death(worker.pid or 0, worker.exitcode))
        return None

    def kill(self) -> None:
        """End the workers now, and leave torch nothing to wait for.

        torch itself waits five seconds for each worker that does not answer, and for ever on a lock that a killed
        worker held. So nothing that is shared with the workers is touched.
        """
        if getattr(self, "_worker_pids_set", False):  # else torch takes the kill for a failure
            signal_handling._remove_worker_pids(id(self))  # type: ignore[attr-defined]
            self._worker_pids_set = False
        self._shutdown = True
        if hasattr(self, "_pin_memory_thread_done_event"):
            self._pin_memory_thread_done_event.set()
        for name in ("_index_queues", "_worker_result_queue"):
            queues = getattr(self, name, [])
            for queue in queues if isinstance(queues, list) else [queues]:
                queue.cancel_join_thread()
        for worker in getattr(self, "_workers", []):
            worker.kill()
        for worker in getattr(self, "_workers", []):
            worker.join()
            children.remove_shared_memory_of(worker.pid or 0)

    def __del__(self) -> None:
        if not self._shutdown:
            super().__del__()


class Loader(DataLoader[Any]):
    """A DataLoader whose workers end with the reader of the batches, and whose errors are this package's.

    Workers follow the rules of `lavis_lite.process.children`. They are killed if the iterator is closed or an exception
    passes through it: torch would wait for a worker that hangs.

    Args:
        dataset: map-style.
        workers: loader processes; 0: the batches are made in this process.
        start_method: fork | spawn | forkserver; None: the platform's default.
        settings: of `DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], workers: int = 0, start_method: str | None = None,
                 **settings: Any) -> None:
        if workers:
            usual = default_convert if settings.get("batch_size", 1) is None else default_collate  # as torch chooses
            settings["collate_fn"] = Sender(settings.get("collate_fn", usual), self)
        with exits.explained():
            super().__init__(dataset, num_workers=workers, worker_init_fn=_prepare,
                             multiprocessing_context=worker_context(start_method, SHARED) if workers else None,
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
            with exits.explained():
                iterator = super().__iter__()
                for batch in iterator:
                    if isinstance(batch, Failure):
                        raise DataError(batch.message)
                    yield batch
        except BaseException as error:
            clearer = iterator.explain(error) if isinstance(iterator, WorkerIterator) else None
            if isinstance(iterator, WorkerIterator):
                iterator.kill()
            if clearer is not None:
                raise clearer from error
            raise

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        return WorkerIterator(self)


class CollateDrawn:
    """Makes each training batch by the data set that its samples come from, see `collate_of`.

    Args:
        datasets: of the run.
        mixed: whether a batch may hold samples of several of them; they must then make batches alike.

    Raises:
        ConfigError: data sets that are mixed have different `collater`s.
    """

    def __init__(self, datasets: Sequence[Any], mixed: bool) -> None:
        self.datasets = datasets
        collaters = [getattr(dataset, "collater", None) for dataset in datasets]
        own = {getattr(collater, "__func__", collater) for collater in collaters}
        if mixed and len(own) > 1:
            names = ", ".join(dict.fromkeys(type(dataset).__name__ for dataset in datasets))
            raise ConfigError(f"run.sampling: a batch would mix data sets that have different collaters ({names}). "
                              "Set run.sampling=size: each step then draws from one data set.")

    def __call__(self, samples: DrawnSamples) -> Batch | Failure:
        """The batch of one micro-batch's samples."""
        return collate_of(self.datasets[samples.dataset])(samples)


def train_loader(datasets: Sequence[Any], order: GlobalSampler, run_cfg: RunConfig, rank: int, world_size: int,
                 start_step: int, end_step: int) -> Loader:
    """Micro-batches of this rank for optimizer steps [start_step, end_step), `run.accum_grad_iters` per step.

    Args:
        datasets: one per entry of `order.sizes`.
        order: decides which samples a step has.
        run_cfg: batch_size_train, accum_grad_iters, num_workers, seed, on_bad_sample and device are used.
        rank, world_size: this process among all.
        start_step: first step, from 0; resuming is starting at another one.
        end_step: the step after the last.
    """
    samples = TrainingSamples(datasets, run_cfg.seed, run_cfg.on_bad_sample, mixed=not order.by_ratio)
    batches = RankBatches(order, rank, world_size, run_cfg.batch_size_train, run_cfg.accum_grad_iters, start_step,
                          end_step)
    return Loader(samples, batch_sampler=batches, persistent_workers=run_cfg.num_workers > 0,
                  collate_fn=CollateDrawn(datasets, mixed=not order.by_ratio), **_settings(run_cfg))


def eval_loader(dataset: MapDataset, run_cfg: RunConfig, rank: int = 0, world_size: int = 1,
                share_pictures: bool = False, done: Container[int] = ()) -> Loader:
    """This rank's batches of an evaluation data set: each row on exactly one rank, in the data set's own order.

    Its `batch_sampler` is a `PendingBatches`, which knows the batches' numbers.

    Args:
        dataset: a `BaseDataset`, or any map-style data set, whose rows are taken as they stand.
        run_cfg: batch_size_eval, num_workers, seed, on_bad_sample and device are used.
        rank, world_size: this process among all.
        share_pictures: a batch brings the picture of several of its rows once; see `EvaluationSamples`.
        done: numbers of batches that are left out.
    """
    samples = EvaluationSamples(dataset, run_cfg.seed, run_cfg.on_bad_sample, share_pictures)
    order = dataset.evaluation_order() if isinstance(dataset, Ordered) else None
    batches = PendingBatches(EvalBatches(len(samples), run_cfg.batch_size_eval, order), done, rank, world_size)
    return Loader(samples, batch_sampler=batches, collate_fn=collate_of(dataset), **_settings(run_cfg))


def _settings(run_cfg: RunConfig) -> dict[str, Any]:
    """What both loaders share."""
    ahead = {"prefetch_factor": run_cfg.prefetch_factor} if run_cfg.num_workers else {}
    return {"workers": run_cfg.num_workers, "start_method": run_cfg.worker_start_method,
            "pin_memory": run_cfg.device.startswith("cuda") or run_cfg.device == "auto" and torch.cuda.is_available(),
            **ahead}


def _prepare(worker: int) -> None:
    """First call in a worker."""
    torch.set_num_threads(1)  # workers are the parallelism: threads in each would only fight over the cores
    gc.freeze()  # else the first full collection copies every page of objects that a fork shares with its parent
