"""Runs benchmarks: builds the sides of each case, lets them take turns, and makes a row of results per peer."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from lavis_lite.bench.cases import cases
from lavis_lite.bench.counters import Counts, count, peak_flops
from lavis_lite.bench.memory import peak_of
from lavis_lite.bench.options import Options
from lavis_lite.bench.timing import Case, Seconds, Side, WaitTimer, interleave, machine, ratios
from lavis_lite.bench.training import OurStep
from lavis_lite.costs.scaling import RANKS


@dataclass
class Row:
    """One measurement; None: does not apply.

    Attributes:
        name: what was measured. against: the peer.
        ratio_cpu, ratio_wall: the peer's time / this package's, medians of paired turns. spread_cpu: the smallest and
            the largest of them.
        cpu_s, wall_s: medians of this package's turns, per rank.
        peak_mb, peer_peak_mb: most memory of either, in MiB.
        images_per_s, tokens_per_s: of all ranks, by the clock.
        gflop: of matrix products in one turn. mfu: their share of the machine's peak; by processor time on a CPU.
        host_reads, collective_bytes: of one turn. padding: share of text columns that would be
            padding if a batch were as wide as its longest text.
        phases: seconds of the parts of a step. scaling: number of ranks -> predicted efficiency, see `costs.scaling`.
        data_wait: share of the time that a step waits for its batch.
        load: other processes that wanted to run.
    """

    name: str
    against: str | None = None
    ratio_cpu: float | None = None
    ratio_wall: float | None = None
    spread_cpu: tuple[float, float] | None = None
    cpu_s: float | None = None
    wall_s: float | None = None
    peak_mb: int | None = None
    peer_peak_mb: int | None = None
    images_per_s: float | None = None
    tokens_per_s: float | None = None
    gflop: float | None = None
    mfu: float | None = None
    host_reads: int | None = None
    collective_bytes: dict[str, int] = field(default_factory=dict)
    padding: float | None = None
    data_wait: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)
    steps: int = 0
    precision: str = ""
    ranks: int = 1
    threads: int = 1
    load: float = 0.0
    machine: str = ""
    torch: str = ""
    date: str = ""
    command: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain containers, numbers rounded to four digits."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def run(options: Options, command: str, ranks: int = 1, rank: int = 0, local_rank: int = 0) -> list[Row]:
    """Measure; called by all ranks together.

    Args:
        options: checked.
        command: that a reader can repeat.
        ranks, rank, local_rank: this process among all.

    Raises:
        ConfigError: options that cannot be.
    """
    peers, device = options.peers(ranks), options.torch_device(local_rank)
    shared = Row("", precision=str(options.amp(device).dtype).removeprefix("torch."), ranks=ranks,
                 threads=torch.get_num_threads(), machine=machine(device), torch=torch.__version__,
                 date=datetime.date.today().isoformat(), command=command)
    rows = []
    for number, case in enumerate(cases(options, device, rank)):
        rows += _rows_of(case, number, options, [peer for peer in peers if peer in case.sides], device, shared)
    return rows


def _rows_of(case: Case, number: int, options: Options, peers: Sequence[str], device: torch.device,
             shared: Row) -> list[Row]:
    names, peaks = ("ours", *peers), dict[str, int | None]()
    if options.memory and shared.ranks == 1:  # first, since a GPU may not have room for two processes
        peaks = {name: peak_of(options, number, name, shared.threads) for name in names}
    sides = {name: case.build(name) for name in names}
    case.check(sides)
    load = os.getloadavg()[0]
    batches = WaitTimer(case.batch, options.warmup + options.steps)
    seconds = interleave(sides, batches, options.warmup, device)
    row = _own_numbers(case, seconds["ours"], shared)
    row = replace(row, load=load, peak_mb=peaks.get("ours"))
    if case.counted:
        row = _counted(row, sides["ours"], batches.last, device)
    if isinstance(step := sides["ours"].turn, OurStep) and shared.ranks == 1:
        scaling = step.scaling(batches.last, case.images)
        row = replace(row, phases=asdict(scaling.phases), scaling={many: scaling.efficiency(many) for many in RANKS})
    if options.workers is not None and row.wall_s is not None:
        wait = statistics.median(batches.seconds[options.warmup:])
        row = replace(row, data_wait=wait / (wait + row.wall_s), images_per_s=case.images * shared.ranks / (
            wait + row.wall_s))
    compared = [_compared(row, peer, seconds, peaks.get(peer)) for peer in peers]
    return compared or [row]


def _own_numbers(case: Case, seconds: Sequence[Seconds], shared: Row) -> Row:
    """Times of this package."""
    cpu, wall = (statistics.median(values) for values in zip(*((turn.cpu, turn.wall) for turn in seconds), strict=True))
    per_second = shared.ranks / wall
    return replace(shared, name=case.name, cpu_s=cpu, wall_s=wall, steps=len(seconds), padding=case.padding,
                   images_per_s=case.images * per_second if case.images else None,
                   tokens_per_s=case.tokens * per_second if case.tokens else None)


def _counted(row: Row, ours: Side, batch: Any, device: torch.device) -> Row:
    """The row with the counts of one more turn of this package, and its share of the machine's peak."""
    counts: Counts = count(lambda: ours.turn(batch), device)
    flops = counts.flops * ours.scale(batch)
    dtype = torch.bfloat16 if row.precision == "bfloat16" else torch.float32
    peak = peak_flops(device, row.machine, dtype)
    busy = (row.cpu_s or 0.0) / row.threads if device.type == "cpu" else row.wall_s or 0.0
    return replace(row, gflop=flops / 1e9, mfu=flops / busy / peak if peak and busy else None,
                   host_reads=counts.host_reads, collective_bytes=counts.collective_bytes)


def _compared(row: Row, peer: str, seconds: dict[str, list[Seconds]], peak: int | None) -> Row:
    """The row with a peer's numbers beside."""
    cpu, wall = (ratios([getattr(turn, kind) for turn in seconds[peer]],
                        [getattr(turn, kind) for turn in seconds["ours"]]) for kind in ("cpu", "wall"))
    return replace(row, against=peer, ratio_cpu=cpu[0], ratio_wall=wall[0], spread_cpu=cpu[1:], peer_peak_mb=peak)
