"""How a step would grow with the number of GPUs: a prediction from the seconds of one rank's phases and its traffic.

Every GPU has the same number of samples (weak scaling). A collective takes a latency for each of its log2(ranks) turns,
and its bytes over the bandwidth (the alpha-beta model). Data is always there, and no rank is slower than another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lavis_lite.models.base import Exchange

RANKS = (8, 64, 256, 1024)
MIB = 2 ** 20


@dataclass(frozen=True)
class Network:
    """Eight GPUs a node, with NVLink inside and a link of 400 Gbit/s for every GPU.

    Attributes:
        node: GPUs that share a node.
        inside, outside: bytes per second that a GPU sends to its own node, and to others through its link.
        busy: share of these that collectives reach.
        latency: seconds of one turn of a collective.
    """

    node: int = 8
    inside: float = 450e9
    outside: float = 50e9
    busy: float = 0.8
    latency: float = 15e-6

    def ring(self, size: float, ranks: int) -> float:
        """Seconds in which every rank has `size` bytes of a gather or scatter; a node uses all its links."""
        speed = self.inside if ranks <= self.node else min(self.inside, self.node * self.outside)
        return size * (ranks - 1) / ranks / (speed * self.busy)

    def pairs(self, size: float, ranks: int) -> float:
        """Seconds in which every rank sends each other one its part of `size` bytes."""
        speed = self.inside if ranks <= self.node else self.outside
        return size * (ranks - 1) / ranks / (speed * self.busy)

    def call(self, ranks: int) -> float:
        """Seconds that a collective of hardly any bytes takes."""
        return math.ceil(math.log2(ranks)) * self.latency


@dataclass(frozen=True)
class Phases:
    """Seconds of one rank's step that exchanges nothing.

    Attributes:
        frozen: frozen encoder.
        forward: the rest of the forward pass.
        backward: with the norm of the gradients.
        update: of the weights.
    """

    frozen: float
    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.frozen + self.forward + self.backward + self.update


@dataclass(frozen=True)
class Scaling:
    """What grows with the ranks.

    Attributes:
        phases: of one micro-batch of one rank.
        gradients: bytes that DDP exchanges.
        exchange: number of ranks -> what the objectives exchange.
        flops: float32 operations per second of a GPU.
        micro_batches: of a step.
        overlap: `run.overlap_exchange`.
        network: its links.
    """

    phases: Phases
    gradients: int
    exchange: Callable[[int], Exchange]
    flops: float
    micro_batches: int = 1
    overlap: bool = False
    network: Network = Network()

    def added(self, ranks: int) -> float:
        """Seconds that a step of so many ranks takes longer.

        Gradients of shared layers are complete in the second half of the backward pass. All but the last bucket travel
        then. With `overlap` they also travel while the frozen encoder sees the next images.
        """
        more, network, phases = self.exchange(ranks), self.network, self.phases
        objectives = (network.ring(more.all_gather + more.reduce_scatter, ranks) + more.calls * network.call(ranks) +
                      network.pairs(more.all_to_all, ranks) + more.flops / self.flops)
        travel, last = (network.ring(2 * size, ranks) for size in (self.gradients, min(25 * MIB, self.gradients)))
        exposed = max(travel - phases.backward / 2, last)
        if self.overlap:
            exposed = max(exposed - phases.frozen, 0.0)
        return exposed + 2 * network.call(ranks) + self.micro_batches * objectives  # the last bucket, and a vote

    def efficiency(self, ranks: int) -> float:
        """Samples per second of each of so many ranks, as a share of those of one rank alone."""
        alone = self.micro_batches * self.phases.total
        return alone / (alone + self.added(ranks))

    def line(self) -> str:
        """The prediction for RANKS."""
        return ", ".join(f"{self.efficiency(ranks):.2f} at {ranks:,}" for ranks in RANKS)
