"""The one authority on the order of samples: step -> which samples, whatever the number of ranks and workers.

Two ways to mix several data sets: *concat* shuffles all of them together, epoch by epoch; *ratio* lets every step
draw its whole global batch from one set, chosen by its probability at that step. Each set goes through its own epochs,
and the last incomplete batch of an epoch is dropped. Everything is a pure function of (seed, step), without a position
to save.

Random numbers are pure functions of counters, without a state to save or to replay. The mixing function is SplitMix64's
finaliser (Steele, Lea, Flood 2014). It is written out here because a resumed run needs the same numbers, and NumPy does
not promise them for its next release.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavis_lite.config.mixing import Ratio, check_ratios, shares_at, turning_points, weights_at
from lavis_lite.errors import ConfigError, DataError

_MASK = (1 << 64) - 1
_CHUNK = 1 << 16
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# one tag per use: each has its own stream
ORDER, MIX, AUGMENT, NEGATIVES, REPLACEMENT = range(1, 6)
_BLOCK = 1 << 16
"""steps whose data set is chosen at once in ratio mixing"""


class SampleKey(NamedTuple):
    """One sample of one step, as it travels to a loader worker."""

    dataset: int
    """index of its data set"""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """row in that set"""
    epoch: int
    """pass over the set (ratio) or over all sets (concat), from 0; seeds the augmentation"""
    position: int
    """global count of samples before it in the run: step * global batch + place in the global batch"""


class GlobalSampler:
    """Step -> its global batch.

    Args:
        sizes: samples of each data set.
        seed: `run.seed`.
        global_batch: samples per optimizer step over all ranks and micro-batches.
        ratios: one probability weight per data set (any scale, perhaps by step) for ratio mixing; None: concat.
        blocks: per data set the sizes of its shards, or None if it has none; absent: samples are shuffled freely.
        window: samples; with `blocks`, the order is a `ShardShuffle`.

    Raises:
        DataError: a data set (concat: all together) has fewer samples than one global batch.
        ConfigError: ratios that are negative, all zero, or not one per data set.
    """

    def __init__(self, sizes: Sequence[int], seed: int, global_batch: int,
                 ratios: Sequence[Ratio] | None = None, blocks: Sequence[Sequence[int] | None] | None = None,
                 window: int = 0) -> None:
        self.sizes, self.seed, self.global_batch = list(sizes), seed, global_batch
        self._ratios = None if ratios is None else self._checked(ratios)
        self._check_sizes()
        self._starts = np.cumsum([0, *self.sizes])
        self._mix = _MixCounts(hash64(MIX, seed), self._ratios) if self._ratios is not None else None
        self._blocks = None if blocks is None else [_blocks(own, size) for own, size in zip(blocks, sizes, strict=True)]
        self._window = window
        self._shuffled: dict[int, tuple[int, Shuffle]] = {}

    def _checked(self, ratios: Sequence[Ratio]) -> Sequence[Ratio]:
        if len(ratios) != len(self.sizes):
            raise ConfigError(f"{len(self.sizes)} training data sets have {len(ratios)} ratios.")
        check_ratios(ratios)
        return ratios

    def _check_sizes(self) -> None:
        pools = {"the training data": sum(self.sizes)}
        if self._ratios is not None:
            steps = turning_points(self._ratios)
            used = [dataset for dataset, ratio in enumerate(self._ratios) if weights_at(ratio, steps).max() > 0]
            pools = {f"training data set number {dataset + 1}": self.sizes[dataset] for dataset in used}
        for name, size in pools.items():
            if size < self.global_batch:
                raise DataError(
                    f"one optimizer step needs {self.global_batch} samples (run.batch_size_train x number of processes "
                    f"x run.accum_grad_iters), but {name} has {size}. Lower run.batch_size_train or "
                    "run.accum_grad_iters, or add data.")

    @property
    def by_ratio(self) -> bool:
        """Whether every step draws from one data set."""
        return self._ratios is not None

    @property
    def steps_per_epoch(self) -> int:
        """Steps that draw as many samples as the data sets have, the incomplete batch dropped."""
        return sum(self.sizes) // self.global_batch

    def __call__(self, step: int) -> list[SampleKey]:
        """The `global_batch` samples of a step (from 0), in their order."""
        return self.part(step, 0, self.global_batch)

    def part(self, step: int, first: int, end: int) -> list[SampleKey]:
        """Samples [first, end) of a step's global batch; costs nothing for the others."""
        if self._mix is None:
            epoch, rows = self._draw(-1, sum(self.sizes), step, first, end)
            sets = np.searchsorted(self._starts, rows, side="right") - 1
            rows = rows - self._starts[sets]
        else:
            dataset, draw = self._mix(step)
            epoch, rows = self._draw(dataset, self.sizes[dataset], draw, first, end)
            sets = np.full(len(rows), dataset)
        position = step * self.global_batch + first
        return [SampleKey(dataset, index, epoch, position + number)
                for number, (dataset, index) in enumerate(zip(sets.tolist(), rows.tolist(), strict=True))]

    def _draw(self, pool: int, size: int, draw: int, first: int, end: int) -> tuple[int, NDArray[np.int64]]:
        """Of the `draw`-th global batch (from 0) of a pool of samples: its epoch and rows int64[end - first]."""
        epoch, batch = divmod(draw, size // self.global_batch)
        held = self._shuffled.get(pool)
        if held is None or held[0] != epoch:
            held = self._shuffled[pool] = (epoch, self._shuffle(pool, size, hash64(ORDER, self.seed, pool, epoch)))
        start = batch * self.global_batch
        return epoch, held[1](start + first, start + end)

    def _shuffle(self, pool: int, size: int, base: int) -> Shuffle:
        if self._blocks is None:
            shuffled = permutation(base, size)
            return lambda first, end: shuffled[first:end]
        sizes = self._blocks[pool] if pool >= 0 else [block for own in self._blocks for block in own]
        return ShardShuffle(base, sizes, self._window)


Shuffle = Callable[[int, int], NDArray[np.int64]]
"""(first, end) -> the rows at these positions of the epoch"""
_LOOSE_BLOCK = 1024
"""rows of a data set without shards that move together"""


def _blocks(own: Sequence[int] | None, size: int) -> list[int]:
    if own is not None:
        return list(own)
    return [min(_LOOSE_BLOCK, size - start) for start in range(0, size, _LOOSE_BLOCK)]


class ShardShuffle:
    """One epoch's order in which neighbours come from few shards.

    The shards are shuffled and laid end to end; this line is cut into windows, and each window is shuffled. So the
    samples of a window come from few shards, any part costs the same, and no position is saved.

    Args:
        base: names the epoch's stream, a `hash64`.
        sizes: samples of each shard, in the order of the rows.
        window: samples that are shuffled among each other.
    """

    def __init__(self, base: int, sizes: Sequence[int], window: int) -> None:
        self.base, self.window = base, window
        shards = permutation(hash64(base, 0), len(sizes))
        lengths = np.asarray(sizes, np.int64)
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[shards]
        """first row of each shard, in the shuffled order"""
        self.ends = np.cumsum(lengths[shards])
        """end of each on the line"""
        self.shift = self.starts - (self.ends - lengths[shards])
        self.size = int(self.ends[-1])
        self._held: tuple[int, NDArray[np.int64]] | None = None

    def __call__(self, first: int, end: int) -> NDArray[np.int64]:
        """Rows at positions [first, end): int64[end - first]."""
        parts = []
        while first < end:
            number = first // self.window
            start = number * self.window
            stop = min(end, start + self.window)
            parts.append(start + self._window(number)[first - start:stop - start])
            first = stop
        positions = np.concatenate(parts)
        return positions + self.shift[np.searchsorted(self.ends, positions, side="right")]

    def _window(self, number: int) -> NDArray[np.int64]:
        if self._held is None or self._held[0] != number:
            size = min(self.window, self.size - number * self.window)
            self._held = number, permutation(hash64(self.base, 1, number), size)
        return self._held[1]


class _MixCounts:
    """Ratio mixing: step -> (data set, how many earlier steps drew from that set).

    The choice of a step is a function of its number. The counts before each block of steps and the choices of the
    newest block are kept, so that starting at step 10^7 costs a second.
    """

    def __init__(self, base: int, ratios: Sequence[Ratio]) -> None:
        self.base, self.ratios = base, ratios
        self.before = [np.zeros(len(ratios), np.int64)]
        self.block = -1
        self.choices: list[int] = []
        self.earlier: list[int] = []

    def _choose(self, block: int) -> NDArray[np.int64]:
        steps = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
        bounds = np.cumsum(shares_at(self.ratios, steps), axis=1)
        bounds[bounds >= bounds[:, -1:]] = 1.0  # rounding must not reach a set of weight 0
        return np.sum(bounds <= uniforms(self.base, steps.astype(np.uint64))[:, None], axis=1)

    def __call__(self, step: int) -> tuple[int, int]:
        block, index = divmod(step, _BLOCK)
        if block != self.block:
            self._enter(block)
        return self.choices[index], self.earlier[index]

    def _enter(self, block: int) -> None:
        while len(self.before) <= block:
            counts = np.bincount(self._choose(len(self.before) - 1), minlength=len(self.ratios))
            self.before.append(self.before[-1] + counts)
        choices = self._choose(block)
        earlier = np.empty(_BLOCK, np.int64)
        for dataset, start in enumerate(self.before[block]):
            chosen = choices == dataset
            earlier[chosen] = start + np.arange(chosen.sum())
        self.block, self.choices, self.earlier = block, choices.tolist(), earlier.tolist()


class RankBatches(Iterable[list[SampleKey]]):
    """This rank's micro-batches of steps [start_step, end_step): the batch sampler of the training loader.

    The global batch of a step is laid out as [accum][rank][batch_size]; the rank yields its `accum` micro-batches one
    after another. So ranks x accumulation may change at a fixed global batch without changing what a step sees.

    Raises:
        ConfigError: batch_size * world_size * accum is not the order's global batch.
    """

    def __init__(self, order: GlobalSampler, rank: int, world_size: int, batch_size: int, accum: int,
                 start_step: int, end_step: int) -> None:
        if batch_size * world_size * accum != order.global_batch:
            raise ConfigError(
                f"the order of samples was made for {order.global_batch} samples per optimizer step, but "
                f"run.batch_size_train={batch_size} x {world_size} processes x run.accum_grad_iters={accum} is "
                f"{batch_size * world_size * accum}.")
        self.order, self.rank, self.world_size = order, rank, world_size
        self.batch_size, self.accum = batch_size, accum
        self.start_step, self.end_step = start_step, end_step

    def __len__(self) -> int:
        return max(0, self.end_step - self.start_step) * self.accum

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.start_step, self.end_step):
            for micro in range(self.accum):
                first = (micro * self.world_size + self.rank) * self.batch_size
                yield self.order.part(step, first, first + self.batch_size)


# --- random numbers ---------------------------------------------------------------------------------------------------
def hash64(*parts: int) -> int:
    """64 well mixed bits of any integers, in their order."""
    return _added(_first_of(parts[:-1]), parts[-1]) if parts else 0


@lru_cache
def _first_of(parts: tuple[int, ...]) -> int:
    """`hash64`, kept: hashes that follow each other, of the samples of an epoch, differ in the last part."""
    state = 0
    for part in parts:
        state = _added(state, part)
    return state


def _added(state: int, part: int) -> int:
    return _scrambled(state * 3 + (part & _MASK) + _GOLDEN)


def _scrambled(state: int) -> int:
    """SplitMix64's finaliser of an integer, modulo 2^64."""
    state &= _MASK
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def hash_stream(base: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits per counter from the stream named by `base` (a `hash64`): uint64[N] -> uint64[N]."""
    state = counters.astype(np.uint64) * np.uint64(_GOLDEN) + np.full(1, base, np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return state ^ (state >> np.uint64(31))


def uniforms(base: int, counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) per counter: uint64[N] -> float64[N]."""
    return (hash_stream(base, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(base: int, size: int) -> NDArray[np.int64]:
    """A shuffle of 0 .. size-1: int64[size].

    Sorts random bits with the index in their low end: sorting values is much faster than sorting indices by key, and no
    two values are equal, so that every machine sorts them alike. 10^7 indices take half a second.
    """
    index_bits = np.uint64(max(size - 1, 1).bit_length())
    low = (np.uint64(1) << index_bits) - np.uint64(1)
    keys = np.arange(size, dtype=np.uint64)
    for start in range(0, size, _CHUNK):  # what stays in the processor's cache is computed five times faster
        part = keys[start:start + _CHUNK]
        part[:] = (hash_stream(base, part) & ~low) | part
    keys.sort()
    keys &= low
    return keys.view(np.int64)


def sample_rng(seed: int, epoch: int, dataset: int, index: int) -> random.Random:
    """The generator of one sample's augmentation: the same whichever process or worker reads the sample."""
    return random.Random(hash64(AUGMENT, seed, epoch, dataset, index))


def negative_uniforms(seed: int, position: int) -> NDArray[np.float64]:
    """float64[2] in [0, 1): which negatives (image, text) the sample at this global position draws for ITM."""
    base = hash64(NEGATIVES, seed, position)
    return np.array([(_scrambled(base + counter * _GOLDEN) >> 11) * 2.0**-53 for counter in range(2)])


def replacement(seed: int, epoch: int, dataset: int, index: int, attempt: int, size: int) -> int:
    """Index of the sample that stands in for an unreadable one."""
    return hash64(REPLACEMENT, seed, epoch, dataset, index, attempt) % size
