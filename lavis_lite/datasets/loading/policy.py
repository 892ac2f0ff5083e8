"""Samples that cannot be used: named, counted, never ignored silently.

`raise` stops the run with the file and the row. `skip` replaces the sample by another of the same set in training,
leaves it out in evaluation, and puts a record into the batch, which the runner writes to a file and counts.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from torch.utils.data import Dataset

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import Sample, location_of
from lavis_lite.datasets.loading.sampler import SampleKey, negative_uniforms, replacement, sample_rng
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.datasets.protocols import MapDataset, SeededSamples, SwappableImages
from lavis_lite.errors import DataError, TextTooLongError
from lavis_lite.io import disk
from lavis_lite.processors.pixels import keep_pixels
from lavis_lite.redaction import mask_all
from lavis_lite.registry import need

_MOST_ATTEMPTS = 20
IMAGE_ROWS = "image_rows"
"""sample key: index of its picture among the different pictures of its batch"""


class BadRecord(TypedDict):
    """One unusable sample."""

    file: str
    row: str
    """`annotation file:row`"""
    reason: str


@dataclass(frozen=True)
class Failure:
    """A data error that a loader worker sends to the main process; an exception would arrive wrapped in a traceback."""

    message: str


def reader_of(dataset: MapDataset) -> Callable[[int, random.Random], Sample]:
    """(row, rng) -> sample: the data set's own `sample`; any other map-style data set is simply indexed."""
    return dataset.sample if isinstance(dataset, SeededSamples) else partial(_indexed, dataset)


def _indexed(dataset: MapDataset, index: int, rng: random.Random) -> Sample:
    return dataset[index]


def _record(dataset: MapDataset, index: int, error: BadSample) -> BadRecord:
    return {"file": error.path, "row": location_of(dataset, index), "reason": error.reason}


def _failure(record: BadRecord) -> Failure:
    return Failure(f"{record['row']}: {record['file']} {record['reason']}. Fix or remove it, or set "
                   "run.on_bad_sample=skip to leave such samples out (they are counted and listed).")


class DrawnSamples(list[Any]):
    """The samples of a micro-batch; `dataset` is the number of the first one's data set."""

    def __init__(self, samples: Iterable[Any], dataset: int) -> None:
        super().__init__(samples)
        self.dataset = dataset


class TrainingSamples(Dataset[Sample | Failure]):
    """The training loader's data set: SampleKey -> sample with its augmentation and its negatives' random numbers.

    Adds `uniform` float64[2] (see `negative_uniforms`) and, if a sample was replaced, `bad_samples`.

    Args:
        datasets: `SampleKey.dataset` is an index into them.
        seed: `run.seed`.
        on_bad_sample: raise | skip.
        mixed: whether a batch may have samples of several sets; then only the keys that all sets have are kept.
    """

    def __init__(self, datasets: Sequence[Any], seed: int, on_bad_sample: str = "raise", mixed: bool = True) -> None:
        self.datasets, self.seed, self.on_bad_sample = list(datasets), seed, on_bad_sample
        self._readers = [reader_of(dataset) for dataset in self.datasets]
        keys = [set(dataset.sample_keys) for dataset in self.datasets if getattr(dataset, "sample_keys", ())]
        self.keys = set.intersection(*keys) if mixed and len(keys) == len(self.datasets) > 1 else None

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitems__(self, keys: Sequence[SampleKey]) -> DrawnSamples:
        """The samples of a micro-batch; loaders call this in place of one key after another."""
        with keep_pixels():
            return DrawnSamples(map(self._sample, keys), keys[0].dataset)

    def __getitem__(self, key: SampleKey) -> Sample | Failure:
        return self.__getitems__([key])[0]

    def _sample(self, key: SampleKey) -> Sample | Failure:
        sample = self._read(key)
        if isinstance(sample, Failure):
            return sample
        if self.keys is not None:
            sample = {name: value for name, value in sample.items() if name in self.keys or name == "bad_samples"}
        sample["uniform"] = negative_uniforms(self.seed, key.position)
        return sample

    def _read(self, key: SampleKey) -> Sample | Failure:
        dataset, read, index, bad = self.datasets[key.dataset], self._readers[key.dataset], key.index, []
        for attempt in range(_MOST_ATTEMPTS):
            try:
                sample = dict(read(index, sample_rng(self.seed, key.epoch, key.dataset, index)))
            except BadSample as error:
                bad.append(_record(dataset, index, error))
                if self.on_bad_sample == "raise":
                    return _failure(bad[0])
                index = replacement(self.seed, key.epoch, key.dataset, key.index, attempt, len(dataset))
            else:
                return {**sample, "bad_samples": bad} if bad else sample
        first = bad[0]
        return Failure(f"{_MOST_ATTEMPTS} samples in a row cannot be used, the first is {first['row']}: "
                       f"{first['file']} {first['reason']}. Is build_info.images.storage the right folder?")


class EvaluationSamples(Dataset[Sample | Failure]):
    """An evaluation loader's data set: row -> sample; an unusable one is only its record (`bad_samples`).

    `uniform` is a function of the row, so that validation losses of different epochs compare.

    Args:
        dataset: what is evaluated.
        seed: `run.seed`.
        on_bad_sample: raise | skip.
        share_pictures: if the data set's rows share pictures (`BaseDataset.shares_pictures`), a batch reads each of
            them once; if any is there twice, its samples have `image_rows` int, the index of their picture in it.
    """

    def __init__(self, dataset: MapDataset, seed: int, on_bad_sample: str = "raise",
                 share_pictures: bool = False) -> None:
        self.dataset, self.seed, self.on_bad_sample = dataset, seed, on_bad_sample
        own_batches = getattr(dataset, "collater", None) is not None  # its batches know nothing of shared pictures
        self.shares = share_pictures and not own_batches and bool(getattr(dataset, "shares_pictures", False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | Failure:
        return self._samples([index], reader_of(self.dataset))[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | Failure]:
        """The samples of a batch; loaders call this instead of reading rows one by one."""
        if not self.shares:
            return self._samples(indices, reader_of(self.dataset))
        album = _Album(self.dataset)
        samples = self._samples(indices, album.sample)
        numbered = [sample for sample in samples if isinstance(sample, dict) and IMAGE_ROWS in sample]
        if len(numbered) == len(album.numbers):  # all different: an ordinary batch
            for sample in numbered:
                del sample[IMAGE_ROWS]
        return samples

    def _samples(self, indices: Sequence[int], read: Callable[[int, random.Random], Sample]) -> list[Sample | Failure]:
        with keep_pixels():
            return [self._sample(index, read) for index in indices]

    def _sample(self, index: int, read: Callable[[int, random.Random], Sample]) -> Sample | Failure:
        try:
            sample = read(index, sample_rng(self.seed, 0, 0, index))
        except BadSample as error:
            record = _record(self.dataset, index, error)
            return _failure(record) if self.on_bad_sample == "raise" else {"bad_samples": [record]}
        return {**sample, "uniform": negative_uniforms(self.seed, index)}


class _Album:
    """The pictures of one batch, each read once; a bad one is bad for every row that has it."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = need(dataset, SwappableImages, "sharing pictures")
        self.numbers: dict[str, int] = {}
        """name of a usable picture -> its index, in order of appearance"""
        self._read: dict[str, Any] = {}

    def sample(self, index: int, rng: random.Random) -> Sample:
        """The row's sample with its picture's number; raises BadSample as the data set does."""
        name = self.dataset.image_name(index)
        if name not in self._read:
            self._read[name] = self._picture(index, rng)
        picture = self._read[name]
        if isinstance(picture, BadSample):
            raise BadSample(picture.path, picture.reason)
        sample = self.dataset.sample(index, rng, picture)
        return {**sample, IMAGE_ROWS: self.numbers.setdefault(name, len(self.numbers))}

    def _picture(self, index: int, rng: random.Random) -> Any:
        try:
            return self.dataset.picture(index, rng)
        except BadSample as error:
            return error


class BadSampleLog:
    """The list of unusable samples of a run, one JSON object per line, and the limit on their share.

    Args:
        path: the file; made with the first record.
        max_fraction: `run.max_bad_fraction`.
    """

    def __init__(self, path: Path | str, max_fraction: float) -> None:
        self.path, self.max_fraction = Path(path), max_fraction
        self.bad = self.read = 0

    def add(self, records: Sequence[BadRecord], samples: int, **extra: Any) -> None:
        """Count samples that were read, the bad ones among them, and write the records to the file.

        Args:
            records: `batch.pop("bad_samples", [])`.
            samples: the batch size in training, rows plus records in evaluation.
            extra: more fields for each line, such as step=12.
        """
        self.read += samples
        self.bad += len(records)
        if not records:
            return
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(mask_all({**record, **extra})) + "\n" for record in records)
        except OSError as error:  # only the counts decide; warnings of one text are shown once
            warnings.warn(f"{disk.cannot_write(self.path, error)} Bad samples are counted, not listed.", stacklevel=2)

    def check(self, final: bool = False) -> None:
        """Stop the run when too many samples were bad.

        Until `final` (the end of an epoch or of the run) three standard deviations more are allowed, so that one bad
        sample in the first batch does not stop a run whose share is far below the limit.

        Raises:
            DataError: above `max_fraction`; names the file that lists them.
        """
        expected = self.max_fraction * self.read
        if self.bad > expected + (0 if final else 3 * math.sqrt(expected)):
            raise DataError(f"{self.bad} of {self.read} samples could not be used, more than run.max_bad_fraction="
                            f"{self.max_fraction:g} allows; {self.path} lists them with the reasons.")

    def state_dict(self) -> dict[str, int]:
        """Counts, for checkpoints."""
        return {"bad": self.bad, "read": self.read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from saved counts; lines written after them are dropped from the file."""
        self.bad, self.read = state["bad"], state["read"]
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            self.path.write_text("".join(lines[:self.bad]), encoding="utf-8")


class BadSampleAccount:
    """Takes the records out of batches as they come, and shares them between ranks now and then.

    Args:
        cfg: `on_bad_sample` and `max_bad_fraction` are used; under `raise` there is nothing to share.
        run_dir: `bad_samples.jsonl` is written there.
    """

    def __init__(self, cfg: RunConfig, run_dir: Path) -> None:
        self.active = cfg.on_bad_sample == "skip"
        self.log = BadSampleLog(Path(run_dir) / "bad_samples.jsonl", cfg.max_bad_fraction)
        self.newest: tuple[list[BadRecord], int] = [], 0
        """records and samples of the batch taken last"""
        self._records: list[BadRecord] = []
        self._samples = 0

    def take(self, batch: dict[str, Any], samples: int | None = None) -> bool:
        """Remove the records from a batch; False if nothing usable is left of it.

        Args:
            batch: as the loader gave it; changed in place.
            samples: samples that were read; by default the rows that remain and the records.
        """
        records = batch.pop("bad_samples", [])
        rows = max((len(value) for value in batch.values() if isinstance(value, Sized)), default=0)
        self.add(records, rows + len(records) if samples is None else samples)
        return bool(batch)

    def add(self, records: list[BadRecord], samples: int) -> None:
        """Count samples that were read, and the records among them; they are also `newest`."""
        self.newest = records, samples
        self._records += records
        self._samples += samples

    def too_long(self, dataset: object, tokens: Mapping[int, int], error: TextTooLongError) -> None:
        """Count samples of the batch taken last that have texts too long for the model.

        Args:
            dataset: knows where its rows come from.
            tokens: row of the data set -> tokens of its text.
            error: the model's, about them.

        Raises:
            DataError: such samples are not to be left out.
        """
        where = {row: location_of(dataset, row) for row in tokens}
        if not self.active:
            raise DataError(f"{next(iter(where.values()))}: {error} Or set run.on_bad_sample=skip to leave such "
                            "samples out (they are counted and listed).") from error
        records: list[BadRecord] = [{"file": path.rpartition(":")[0], "row": path,
                                     "reason": f"has a text of {tokens[row]} tokens, too long for the language model"}
                                    for row, path in where.items()]
        self._records += records
        self.newest = [*self.newest[0], *records], self.newest[1]

    def forget(self) -> None:
        """Drop what was taken since the last `share` (an evaluation that is done again later)."""
        self._records, self._samples = [], 0

    def share(self, **extra: Any) -> None:
        """Bring all ranks' records together; called by all ranks at once.

        Args:
            extra: fields for every line, such as step=12.

        Raises:
            DataError: too large a share of all samples was unusable; raised on all ranks.
        """
        if not self.active:
            return
        gathered = distributed.all_gather_object((self._records, self._samples))
        self.forget()
        records = [record for part, _ in gathered for record in part]
        samples = sum(count for _, count in gathered)
        if distributed.is_main():
            self.log.add(records, samples, **extra)
        else:  # counts alike, so that all ranks judge alike; the file is rank 0's
            self.log.read += samples
            self.log.bad += len(records)
        self.log.check()

    def state(self) -> dict[str, int]:
        """Counts, for a checkpoint."""
        return self.log.state_dict()

    def load_state(self, state: Mapping[str, int]) -> None:
        """Continue from saved counts; rank 0 drops the lines written after them."""
        if distributed.is_main():
            self.log.load_state_dict(dict(state))
        else:
            self.log.bad, self.log.read = state["bad"], state["read"]
