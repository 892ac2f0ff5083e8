"""What all ranks know of finished steps: mean losses, and the steps that were skipped because they were not finite."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.errors import LavisLiteError

PATIENCE = 5
"""Non-finite steps in a row after which a run stops."""
FP16_ALLOWANCE = 16
"""With fp16 the loss scale starts at 2**16 and may have to be halved that often."""
PATIENCE_FP16 = PATIENCE + FP16_ALLOWANCE
WINDOW = 100
"""newest steps among which `run.max_skipped_share` counts"""
YOUNG = 20
"""steps that a younger run is taken to have, so that its first few do not stop it"""


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


class DivergedError(LavisLiteError):
    """Loss or gradients were not finite too often; the weights are those of the last finite step."""

    same_on_all_ranks = True


class Asked(IntEnum):
    """What hooks ask of the run; the end includes a checkpoint."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Vote(NamedTuple):
    """What all ranks know of a 0-based step."""

    step: int
    bad: bool
    """loss or gradient was not finite on some rank"""
    exit_code: int
    """of a signal that asks to leave; 0: none"""
    asked: Asked
    """the largest request of any rank's hooks"""


class Votes:
    """Per step, the maximum over ranks of (step was not finite, exit code of a signal, what a hook asks).

    On a GPU a vote is read one step late, when it is there already, so that the host never waits for the device. All
    ranks read the same votes in the same step, so they act in unison.
    """

    def __init__(self, device: torch.device) -> None:
        self.lag = 1 if device.type == "cuda" else 0
        self._pending: list[tuple[int, Tensor, Any]] = []

    def cast(self, step: int, bad: Tensor, exit_code: int, asked: Asked = Asked.NOTHING) -> Tensor:
        """Vote; the result, float[3], is on the device already when the update needs it."""
        vote = torch.stack([bad.float(), *(torch.full_like(bad, value, dtype=torch.float32)
                                           for value in (exit_code, asked))])
        if distributed.world_size() > 1:
            dist.all_reduce(vote, dist.ReduceOp.MAX)
        event = None
        if vote.is_cuda:
            host = vote.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            host = vote
        self._pending.append((step, host, event))
        return vote

    def read(self, flush: bool) -> list[Vote]:
        """The votes that are due; `flush` waits for all."""
        due = []
        while len(self._pending) > (0 if flush else self.lag):
            step, host, event = self._pending.pop(0)
            if event is not None:
                event.synchronize()
            bad, exit_code, asked = host.tolist()
            due.append(Vote(step, bad > 0, int(exit_code), Asked(int(asked))))
        return due


class SkipCounter:
    """Counts skipped steps and judges when there are too many.

    Args:
        max_share: `run.max_skipped_share`.
        fp16: the loss is scaled, so the first steps may overflow while the scale is found.

    Attributes:
        skipped: in all. in_a_row: up to the newest step. recent: 0-based skipped steps among the newest `WINDOW`.
    """

    def __init__(self, max_share: float, fp16: bool) -> None:
        self.max_share = max_share
        self.patience, self.allowance = (PATIENCE_FP16, FP16_ALLOWANCE) if fp16 else (PATIENCE, 0)
        self.skipped = self.in_a_row = 0
        self.recent: list[int] = []

    def count(self, step: int, bad: bool) -> None:
        """Count the 0-based step `step`."""
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if bad:
            self.skipped += 1
            self.recent = [one for one in self.recent if one > step - WINDOW] + [step]

    def check(self, step: int) -> None:
        """Judge after the step `step` was skipped.

        Raises:
            DivergedError: too many in a row, or too large a share of the newest steps.
        """
        if self.in_a_row >= self.patience:
            raise DivergedError(f"loss or gradients were not finite in {self.in_a_row} steps in a row, up to step "
                                f"{step + 1}; none of them changed the weights. {_ADVICE}")
        steps = min(step + 1, WINDOW)
        if len(self.recent) > self.max_share * max(steps, YOUNG) + self.allowance:
            raise DivergedError(
                f"loss or gradients were not finite in {len(self.recent)} of the last {steps} steps, up to step "
                f"{step + 1}; none of them changed the weights. That is more than run.max_skipped_share="
                f"{self.max_share:g} allows. {_ADVICE}")

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "recently_skipped": list(self.recent)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.recent = list(state.get("recently_skipped", []))


_ADVICE = ("log.jsonl lists the samples and losses of each. Try a lower run.init_lr, run.max_grad_norm=1.0 or "
           "run.amp_dtype=fp32, and look at these samples.")
