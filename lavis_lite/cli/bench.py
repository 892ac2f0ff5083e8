"""`python -m lavis_lite bench`: how fast this machine trains, generates, re-ranks and loads, beside plain twins."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_lite.cli.console import columns, command_parser, new_file, print_once
from lavis_lite.errors import ConfigError

if TYPE_CHECKING:
    from lavis_lite.bench.options import Options
    from lavis_lite.bench.run import Row

WHAT = ("stage1", "stage2", "generate", "retrieval", "loader", "all")
USES_LLM = ("stage2", "generate")


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser(
        "bench", "Measure training steps, generation, re-ranking or loading with random weights, in turns with peers "
        "on the same machine. Prints a table; --json saves all numbers.", [
            "stage1", "stage2 --llm t5 --against transformers --batch 105",
            "all --size mini --steps 2 --no-memory", "stage1 --size vitg --json bench.jsonl   # on a GPU",
            "stage2 --size vitg --ranks 8"])
    arguments.add_argument("what", choices=WHAT)
    arguments.add_argument("--against", nargs="+", metavar="PEER",
                           help="plain (the way LAVIS computes it), transformers, or fp32 (with --precision bf16); "
                                "default: all that there are")
    arguments.add_argument("--size", choices=("mini", "medium", "vitg"), default="medium",
                           help="mini: seconds; medium: for a CPU; vitg: the paper's sizes, for a GPU "
                                "(default: medium)")
    arguments.add_argument("--llm", choices=("opt", "t5"), help="of stage2 and generate (default: opt; all: both)")
    arguments.add_argument("--batch", type=int, help="images per step and rank (default: the size's own)")
    arguments.add_argument("--steps", type=int, default=6, help="timed turns of each side (default: 6)")
    arguments.add_argument("--warmup", type=int, default=1, help="turns before these (default: 1)")
    arguments.add_argument("--ranks", type=int, default=1,
                           help="number of processes of this machine for training, with DDP; without peers")
    arguments.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1")
    arguments.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                           help="of training steps; auto: bf16 on a GPU, fp32 on a CPU")
    arguments.add_argument("--threads", type=int, help="CPU threads of torch (default: torch's own)")
    arguments.add_argument("--full", action="store_true", help="texts of 32 tokens: batches without padding")
    arguments.add_argument("--instruct", action="store_true",
                           help="stage2: InstructBLIP; its Q-Former reads prompts, too, of 5 to 32 tokens")
    arguments.add_argument("--workers", type=int, help="training steps get their images from a loader with this many "
                                                       "processes; without peers")
    arguments.add_argument("--images", metavar="FOLDER",
                           help="JPEG files of 640x480 pixels for loader and --workers (default: generated ones)")
    arguments.add_argument("--no-memory", action="store_true", help="leave peak memory out, which takes a process each")
    arguments.add_argument("--json", metavar="FILE", type=new_file, help="append every row as a line of JSON")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Measure and print.

    Raises:
        ConfigError: options that exclude each other, before anything is built.
        DataError: a folder without pictures, likewise.
    """
    chosen = parser().parse_args(list(argv))
    import torch

    from lavis_lite import distributed
    from lavis_lite.bench.loader import pictures
    from lavis_lite.bench.run import run
    from lavis_lite.process.launch import launch_from_environment

    launch = launch_from_environment()
    asked = benchmarks(chosen)
    for options in asked:
        options.check()
        options.peers(max(chosen.ranks, launch.world_size))
    if chosen.images is not None:
        pictures(Path(chosen.images))
    for rank in range(chosen.ranks if launch.world_size == 1 else 0):  # before any process is started
        asked[0].torch_device(rank)
    if chosen.ranks > 1 and launch.world_size == 1:
        return _start_ranks(chosen.ranks, argv)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    command = f"python -m lavis_lite bench {shlex.join(argv)}"
    with distributed.group(asked[0].torch_device(launch.local_rank)):
        for number, options in enumerate(asked):
            rows = run(options, command, launch.world_size, launch.rank, launch.local_rank)
            if launch.rank == 0:
                report(rows, chosen.json, with_head=number == 0)
    return 0


def benchmarks(chosen: argparse.Namespace) -> list[Options]:
    """The benchmarks that the command line asks for.

    Raises:
        ConfigError: --llm or --ranks for a benchmark that has no use for it, or --against for all of them.
    """
    from lavis_lite.bench.options import TRAINING, Options

    for name in ("ranks", "threads"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            raise ConfigError(f"--{name} is {getattr(chosen, name)}, but must be at least 1.")
    if chosen.ranks > 1 and chosen.what not in TRAINING:
        raise ConfigError(f"--ranks {chosen.ranks}: only stage1 and stage2 train on several ranks.")
    if chosen.llm and chosen.what not in (*USES_LLM, "all"):
        raise ConfigError(f"--llm {chosen.llm}: {chosen.what} has no language model; leave --llm out.")
    if chosen.against and chosen.what == "all":
        raise ConfigError("--against: benchmarks have different peers; leave it out with all.")
    shared = Options("stage1", tuple(chosen.against) if chosen.against else None, chosen.size, chosen.llm or "opt",
                     chosen.batch, chosen.steps, chosen.warmup, chosen.device, chosen.precision, chosen.full,
                     chosen.instruct, chosen.workers, chosen.images, not chosen.no_memory)
    if chosen.what != "all":
        return [replace(shared, what=chosen.what)]
    llms = [chosen.llm] if chosen.llm else ["opt", "t5"]
    return [replace(shared, what=what, llm=llm).without_unused() for what in WHAT[:-1]
            for llm in (llms if what in USES_LLM else llms[:1])]


def _start_ranks(ranks: int, argv: Sequence[str]) -> int:
    """Run the same command as `ranks` processes; returns torchrun's exit status."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run([*launcher, "-m", "lavis_lite", "bench", *argv], check=False).returncode


HEAD = ("measured", "against", "cpu", "wall", "cpu s", "wall s", "images/s", "tokens/s", "MFU", "MiB", "peer MiB",
        "reads", "padding", "wait")


def report(rows: Sequence[Row], file: Path | None, with_head: bool = True) -> None:
    """Print rows as a table; append them to a file."""
    if with_head:
        first = rows[0]
        print_once(f"{first.machine}, {first.threads} threads, {first.ranks} ranks, torch {first.torch}, "
                   f"{first.precision}, load {first.load:.1f}. cpu, wall: the peer's time / this package's, medians of "
                   f"{first.steps} turns.")
    print_once("\n".join(columns(HEAD, [cells(row) for row in rows])))
    for row in rows:
        if row.collective_bytes:
            sizes = ", ".join(f"{name} {size:,}" for name, size in sorted(row.collective_bytes.items()))
            print_once(f"bytes per step and rank: {sizes}")
    for row in {row.name: row for row in rows if row.phases}.values():
        print_once(f"{row.name}: " + ", ".join(f"{name} {took:.3g} s" for name, took in row.phases.items()))
        print_once("predicted weak scaling: " + ", ".join(f"{share:.2f} at {many:,}" for many, share
                                                          in row.scaling.items()) +
                   " ranks like this one, with NVLink in nodes of 8 and 400 Gbit/s per GPU between them")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row.as_json()) + "\n" for row in rows)


def cells(row: Row) -> list[str]:
    """A line of the table."""
    spread = "" if row.spread_cpu is None else f" ({row.spread_cpu[0]:.2f}-{row.spread_cpu[1]:.2f})"
    return [row.name, row.against or "-", _shown(row.ratio_cpu, "{:.2f}") + spread, _shown(row.ratio_wall, "{:.2f}"),
            _shown(row.cpu_s, "{:.3g}"), _shown(row.wall_s, "{:.3g}"), _shown(row.images_per_s, "{:.3g}"),
            _shown(row.tokens_per_s, "{:.3g}"), _shown(row.mfu, "{:.0%}"), _shown(row.peak_mb, "{}"),
            _shown(row.peer_peak_mb, "{}"), _shown(row.host_reads, "{}"), _shown(row.padding, "{:.0%}"),
            _shown(row.data_wait, "{:.0%}")]


def _shown(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
