"""`train.py`: from a YAML to a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavis_lite.cli.console import add_common, add_config, carry_out, command_parser, print_once
from lavis_lite.config.compose import compose
from lavis_lite.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """The arguments of train.py."""
    arguments = command_parser("train", "Train what a YAML file describes.", [
        "--cfg-path projects/blip2/stage1.yaml",
        "--cfg-path projects/blip2/stage1.yaml --options run.max_iters=200",
        "--cfg-path projects/blip2/stage1.yaml --resume auto"])
    add_config(arguments, required=True, positional=True)
    add_common(arguments)
    arguments.add_argument("--dry-run", action="store_true",
                           help="build everything, run one step and stop; on the meta device if files are missing")
    arguments.add_argument("--gpus", type=int, metavar="N",
                           help="with --dry-run: show the costs per GPU of a run on N GPUs")
    arguments.add_argument("--resume", metavar="auto|PATH",
                           help="continue from a checkpoint folder; auto: from the newest good one under "
                                "run.output_dir")
    arguments.add_argument("--start-over", action="store_true",
                           help="with --resume auto: begin at step 0 if every checkpoint is damaged")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Compose, check, and run.

    Raises:
        LavisLiteError: any mistake in the input, before work starts.
    """
    arguments = parser().parse_args(list(argv))
    if arguments.gpus is not None and not (arguments.dry_run and arguments.gpus > 0):
        raise ConfigError(f"--gpus {arguments.gpus}: it says for how many GPUs --dry-run counts the costs, at least 1. "
                          "Add --dry-run; to train on several GPUs, start with torchrun --nproc_per_node=N.")
    composition = compose(arguments.cfg_path, arguments.options)
    if composition.config.run.evaluate:
        from lavis_lite.runs import resume_evaluation

        composition, arguments.resume = resume_evaluation(composition, arguments.resume, print_once), None
    return carry_out(composition, arguments, arguments.cfg_path)
