"""Losses since the last log line, summed on the device, so that only a log step waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lavis_lite import distributed


class LossMeter:
    """Means over steps and ranks; steps that were skipped are left out and counted.

    Sums are kept in float64: sums of float32 losses are then exact in any order. A run that is resumed between two log
    lines logs the numbers of the uninterrupted one.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[tuple[str, ...], Tensor] = {}
        """names of a step's values -> their sums and the number of such steps, float[K+1]"""
        self._skipped = self._zero()

    def _zero(self) -> Tensor:
        return torch.zeros(1, dtype=self._dtype, device=self.device)

    def add(self, values: Mapping[str, Tensor], bad: Tensor) -> None:
        """One step's values of this rank.

        Args:
            values: name -> float[].
            bad: float[], above 0 if the step was skipped; equal on all ranks.
        """
        names = tuple(sorted(values))
        good = bad == 0
        row = torch.stack([values[name].detach().to(self._dtype) for name in names] + [good.to(self._dtype)])
        row = torch.where(good, row, torch.zeros_like(row))  # not a product: NaN times 0 is NaN
        self._sums[names] = self._sums[names] + row if names in self._sums else row
        self._skipped = self._skipped + (~good).to(self._dtype)

    def take(self) -> tuple[dict[str, float], int]:
        """Means since the last call, and the number of skipped steps; called by all ranks together.

        A mean is NaN if every step was skipped.
        """
        state = self.state()
        self._sums, self._skipped = {}, self._zero()
        means = {name: total / count if count else float("nan") for name, (total, count) in state["sums"].items()}
        return means, state["skipped"]

    def state(self) -> dict[str, Any]:
        """Sums of all ranks for a checkpoint, as plain values; called by all ranks together."""
        groups = sorted(self._sums)
        flat = torch.cat([*(self._sums[names] for names in groups), self._skipped])
        found = distributed.all_reduce_sum(flat).tolist()
        pairs: dict[str, list[float]] = {}
        for names in groups:
            *sums, count = found[:len(names) + 1]
            found = found[len(names) + 1:]
            for name, value in zip(names, sums, strict=True):
                total, steps = pairs.get(name, (0.0, 0.0))
                pairs[name] = [total + value, steps + count]
        return {"sums": pairs, "skipped": round(found[0] / distributed.world_size())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave, on any number of ranks: rank 0 has the sums of all."""
        own = float(distributed.rank() == 0)
        self._sums = {(name,): torch.tensor(pair, dtype=self._dtype, device=self.device) * own
                      for name, pair in state["sums"].items()}
        self._skipped = self._zero() + state["skipped"]
