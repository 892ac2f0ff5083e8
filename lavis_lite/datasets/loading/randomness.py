"""Random numbers as pure functions of counters, without a state to save or to replay.

The mixing function is SplitMix64's finaliser (Steele, Lea, Flood 2014), written out here because NumPy does not promise
that its generators give the same numbers in its next release, and a resumed run must.
"""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_CHUNK = 1 << 16
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# one tag per use: each has its own stream
ORDER, MIX, AUGMENT, NEGATIVES, REPLACEMENT = range(1, 6)


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
