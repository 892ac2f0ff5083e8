"""LAVIS' data sets: the base classes for those of a project, and the adapter by which the package reads them."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset as TorchConcat
from torch.utils.data import Dataset

from lavis_lite.compat.lavis.processors import seeded
from lavis_lite.datasets.base import BaseDataset as CoreDataset
from lavis_lite.datasets.loading.loader import collate
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.errors import DataError, UndefinedMethodError


class BaseDataset(Dataset[Any]):
    """A data set written for LAVIS: rows in `annotation`, samples by `__getitem__`, batches by `collater`.

    Args:
        vis_processor, text_processor: what samples go through.
        vis_root: folder of the images.
        ann_paths: JSON files; a list of rows, a dictionary of lists, or one of rows, where the key becomes sample_id.
    """

    def __init__(self, vis_processor: Any = None, text_processor: Any = None, vis_root: Any = None,
                 ann_paths: Sequence[str] = ()) -> None:
        self.vis_root, self.vis_processor, self.text_processor = vis_root, vis_processor, text_processor
        self.annotation: list[Any] = []
        for path in ann_paths:
            self.annotation.extend(read_rows(path))
        self._add_instance_ids()

    def __len__(self) -> int:
        return len(self.annotation)

    def __getitem__(self, index: int) -> Any:
        raise UndefinedMethodError.of(self, "__getitem__")

    def collater(self, samples: Sequence[Any]) -> Any:
        """The batch of some samples: numbers and tensors become tensors, everything else stays a list."""
        return collate([sample for sample in samples if sample is not None])

    def set_processors(self, vis_processor: Any, text_processor: Any) -> None:
        """Exchange the processors."""
        self.vis_processor, self.text_processor = vis_processor, text_processor

    def _add_instance_ids(self, key: str = "instance_id") -> None:
        for number, row in enumerate(self.annotation):
            if isinstance(row, dict):
                row[key] = str(number)


def read_rows(path: str | Path) -> list[Any]:
    """The rows of a JSON or JSON-lines file.

    Raises:
        DataError: there is no such file, or it is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = ([json.loads(line) for line in text.splitlines() if line.strip()] if str(path).endswith(".jsonl")
                 else json.loads(text))
    except OSError as error:
        raise DataError(f"annotations {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise DataError(f"annotations {path}: not JSON ({error}).") from error
    if isinstance(found, list):
        return found
    lists = [row for rows in found.values() if isinstance(rows, list) for row in rows]
    return lists or [{"sample_id": name, **(row if isinstance(row, dict) else {"data": row})}
                     for name, row in found.items()]


class ConcatDataset(TorchConcat[Any]):
    """Several data sets as one; its batches hold the keys that all their samples share."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        super().__init__(datasets)

    def collater(self, samples: Sequence[Any]) -> Any:
        """The batch by the first data set's `collater`, of the keys that all samples have."""
        usable = [sample for sample in samples if sample is not None]
        shared = set.intersection(*(set(sample) for sample in usable)) if usable else set()
        first: Any = self.datasets[0]
        return first.collater([{key: sample[key] for key in sample if key in shared} for sample in usable])


WRITTEN = "written"
"""key of a sample that is not a dictionary, on its way to the data set's own collater"""


def collate_written(collater: Any, samples: Sequence[dict[str, Any]]) -> Any:
    """The batch of a project's collater, from its own samples."""
    return collater([sample[WRITTEN] if sample.keys() == {WRITTEN} else sample for sample in samples])


class DatasetAdapter(CoreDataset):
    """A data set of LAVIS, or any map-style one, as the package reads it.

    A sample is what `__getitem__` gives, drawn by the sample's own randomness; None is an unusable sample. Batches are
    made by the data set's `collater`, if that is its own.
    """

    def __init__(self, written: Any, name: str) -> None:
        self.written, self.name = written, name
        collater = getattr(written, "collater", None)
        if collater is not None and getattr(collater, "__func__", None) is not BaseDataset.collater:
            self.collater = functools.partial(collate_written, collater)

    def __len__(self) -> int:
        return len(self.written)

    def sample(self, index: int, rng: random.Random | None = None) -> dict[str, Any]:
        """Sample of a row.

        Raises:
            BadSample: the data set gives None.
            DataError: it gives something else than a dictionary, and has no `collater` for that.
        """
        with seeded(rng):
            found = self.written[index]
        if found is None:
            raise BadSample(f"sample {index} of {self.name}", "could not be made: its data set gave None")
        if isinstance(found, dict):
            return found
        if "collater" not in self.__dict__:
            raise DataError(f"{self.name}: sample {index} is of type {type(found).__name__}; a data set gives "
                            "dictionaries, or has a `collater` of its own.")
        return {WRITTEN: found}

    def location(self, index: int) -> str:
        """The row, for messages."""
        return f"{self.name}, row {index}"

    def content_hash(self) -> str | None:
        """Hash of the rows in `annotation`, if the data set has them as plain values."""
        rows = getattr(self.written, "annotation", None)
        if not isinstance(rows, list):
            return None
        import hashlib

        return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()

    def __getattr__(self, name: str) -> Any:
        if name in ("written", "collater") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.written, name)


# data_utils -----------------------------------------------------------------------------------------------------------
def apply_to_sample(function: Any, sample: Any) -> Any:
    """A function applied to every tensor of nested dictionaries and lists."""
    if isinstance(sample, torch.Tensor):
        return function(sample)
    if isinstance(sample, dict):
        return {key: apply_to_sample(function, value) for key, value in sample.items()}
    if isinstance(sample, list):
        return [apply_to_sample(function, value) for value in sample]
    return sample


def move_to_cuda(sample: Any) -> Any:
    """A batch on the GPU."""
    return apply_to_sample(lambda tensor: tensor.cuda(), sample)


def prepare_sample(samples: Any, cuda_enabled: bool = True) -> Any:
    """A batch where the model is; batches of this package's loaders are there already."""
    return move_to_cuda(samples) if cuda_enabled and torch.cuda.is_available() else samples


def concat_datasets(datasets: dict[str, Any]) -> dict[str, Any]:
    """Split -> one data set, where a split has several."""
    return {split: ConcatDataset(found) if isinstance(found, list) and len(found) > 1
            else found[0] if isinstance(found, list) else found for split, found in datasets.items()}


def reorg_datasets_by_split(datasets: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """{name: {split: data set}} -> {split: [data sets]}."""
    found: dict[str, list[Any]] = {}
    for splits in datasets.values():
        for split, dataset in splits.items():
            found.setdefault(split, []).append(dataset)
    return found


# dataloader_utils -----------------------------------------------------------------------------------------------------
class IterLoader:
    """A loader that begins again when it ends; `use_distributed` is kept for LAVIS' sake."""

    def __init__(self, dataloader: Any, use_distributed: bool = False) -> None:
        self.loader, self.epoch = dataloader, 0
        self._batches = iter(dataloader)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> IterLoader:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except StopIteration:
            self.epoch += 1
            self._batches = iter(self.loader)
            return next(self._batches)


class MultiIterLoader:
    """Batches of several loaders, each drawn with its ratio."""

    def __init__(self, loaders: Sequence[Any], ratios: Sequence[float] | None = None) -> None:
        self.loaders = [loader if hasattr(loader, "__next__") else IterLoader(loader) for loader in loaders]
        self.ratios = list(ratios or [1.0] * len(self.loaders))

    def __iter__(self) -> MultiIterLoader:
        return self

    def __next__(self) -> Any:
        return next(random.choices(self.loaders, self.ratios)[0])


class PrefetchLoader:
    """A loader that gives its batches on the GPU, if there is one."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        return (prepare_sample(batch) for batch in self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)
