"""The connectors of BLIP-2, InstructBLIP, LLaVA, MiniGPT-4, mPLUG-Owl, Flamingo and Frozen over one language model.

    python -m benchmarks.connectors run [--steps N] [--rows LLaVA Frozen] [--out output/connectors]
    python -m benchmarks.connectors table          # the Markdown table of docs/evidence/results.md, from what was run

The runs are the ablation `connectors.yaml` beside this file, run as `python -m lavis_lite lab` runs it: trainings share
saved features of the frozen vision encoder, and what was stopped continues with the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lavis_lite.checkpoints.weights import build_model
from lavis_lite.cli.data_cache_features import write_all
from lavis_lite.cli.main import run_command
from lavis_lite.io import atomic
from lavis_lite.lab import execute
from lavis_lite.lab.ablation import find
from lavis_lite.lab.plan import Job, plan
from lavis_lite.models.blip2.base import ImageBatch

ABLATION = find(str(Path(__file__).with_suffix(".yaml")))
RECORDS = Path(__file__).with_name("results") / "connectors.json"
SCORE, BLIND = ABLATION.scores
Row = dict[str, Any]


def sizes(job: Job) -> Row:
    """Parameters that a run trains, and vectors that one picture takes among the language model's words."""
    model: Any = build_model(job.composition().config.model)
    return {"trained": sum(value.numel() for value in model.parameters() if value.requires_grad),
            "vectors": model.soft_prompt_length(ImageBatch(torch.empty(1, 3, 1, 1)))}


def run(steps: int | None, rows: Sequence[str], out: Path, records: Path = RECORDS) -> None:
    """Run what has not run yet, and write every row that has, one after the other.

    Args:
        steps: optimizer steps of each training; None: the ablation's.
        rows: variants of the ablation.
        out: folder of the runs.
        records: the file of the rows.
    """
    cells = plan(ABLATION, out.absolute(), ABLATION.seeds, steps)
    for cell in [cell for cell in cells if cell[0] in rows]:
        execute.run({cell: cells[cell]}, write_all, lambda words: run_command(words[0], words[1:]),
                    log=lambda line: print(line, flush=True))
        done = execute.rows_of(ABLATION, cells)
        found = [{**row, **sizes(cells[row["variant"], row["seed"]]["captions"])} for row in done]
        records.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(records, json.dumps(found, indent=1) + "\n")


def table(records: Path = RECORDS) -> str:
    """Markdown: a row per system, in the ablation's order."""
    lines = ["| system | trained parameters | vectors per picture | attribute F1 | another scene's picture | time |",
             "|---|---|---|---|---|---|"]
    for row in json.loads(records.read_text(encoding="utf-8")):
        score, blind = (row["scores"][name][-1][1] for name in (SCORE, BLIND))
        seconds = row["seconds"]["captions"]
        lines.append(f"| {row['variant']} | {row['trained']:,} | {row['vectors']} | {score:.3f} | {blind:.3f} | "
                     f"{'-' if seconds is None else f'{seconds:.0f} s'} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--steps", type=int, help="optimizer steps of each training (default: those of the ablation)")
    parser.add_argument("--rows", nargs="+", choices=list(ABLATION.variants), default=list(ABLATION.variants))
    parser.add_argument("--out", type=Path, default=Path("output/connectors"), help="folder of the runs")
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.steps, arguments.rows, arguments.out)
    else:
        print(table())


if __name__ == "__main__":
    main()
