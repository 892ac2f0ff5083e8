"""The prediction of weak scaling follows from seconds and bytes."""

from __future__ import annotations

import pytest

from lavis_lite.costs.scaling import MIB, Network, Phases, Scaling
from lavis_lite.models.base import Exchange

PHASES = Phases(frozen=0.04, forward=0.02, backward=0.06, update=0.01)
NOTHING = Exchange()
NETWORK = Network(node=8, inside=400e9, outside=25e9, busy=0.5, latency=0.0)


def scaling(gradients: int = 0, overlap: bool = False, micro_batches: int = 1,
            exchange: Exchange = NOTHING) -> Scaling:
    return Scaling(PHASES, gradients, lambda ranks: exchange, 1e12, micro_batches, overlap, NETWORK)


def test_nothing_to_exchange_scales_perfectly() -> None:
    assert scaling().efficiency(1024) == 1.0


def test_gradients_hide_behind_half_of_the_backward_pass() -> None:
    """A ring of 16 ranks sends 2 x 15/16 of the bytes, at half of 8 x 25 GB/s."""
    small, large = scaling(1600 * 10**6), scaling(16000 * 10**6)
    assert small.added(16) == pytest.approx(2 * 25 * MIB * 15 / 16 / 100e9)  # the last bucket
    assert large.added(16) == pytest.approx(2 * 16e9 * 15 / 16 / 100e9 - 0.03)
    assert large.efficiency(16) == pytest.approx(0.13 / (0.13 + large.added(16)))


def test_overlap_hides_gradients_behind_the_frozen_encoder_too() -> None:
    assert scaling(1600 * 10**6, overlap=True).added(16) == 0.0
    assert scaling(16000 * 10**6, overlap=True).added(16) == pytest.approx(0.3 - 0.03 - 0.04)


def test_objectives_are_exchanged_in_every_micro_batch() -> None:
    given = Exchange(all_gather=10**9, reduce_scatter=10**9, all_to_all=10**9, flops=10**9)
    once, twice = scaling(exchange=given), scaling(exchange=given, micro_batches=2)
    assert once.added(16) == pytest.approx(15 / 16 * (2e9 / 100e9 + 1e9 / 12.5e9) + 1e-3)
    assert twice.added(16) == pytest.approx(2 * once.added(16))
    assert twice.efficiency(16) == pytest.approx(once.efficiency(16))


def test_latency_grows_with_the_logarithm() -> None:
    slow = Scaling(PHASES, 0, lambda ranks: Exchange(calls=3), 1e12, network=Network(latency=1e-3))
    assert slow.added(8) == pytest.approx(5 * 3e-3) and slow.added(1024) == pytest.approx(5 * 10e-3)
