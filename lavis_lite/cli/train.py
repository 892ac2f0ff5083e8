"""`train.py`: from a YAML to a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavis_lite.cli.console import add_config, command_parser, print_once
from lavis_lite.config.compose import Composition, compose, to_yaml
from lavis_lite.errors import ConfigError, ErrorList
from lavis_lite.preflight import check, fetch_hint, missing


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


def add_common(arguments: argparse.ArgumentParser) -> None:
    """Add `--print-config` and `--traceback`, which training and evaluation share."""
    arguments.add_argument("--print-config", action="store_true",
                           help="show every setting and the layer that set it, and stop")
    arguments.add_argument("--traceback", action="store_true", help="show where an error comes from")


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


def carry_out(composition: Composition, arguments: argparse.Namespace, cfg_path: str) -> int:
    """Check a composed run; then, by the arguments, print its configuration, try it, or run it.

    Args:
        composition: the run.
        arguments: with `print_config`, `dry_run`, `resume` and `start_over`.
        cfg_path: name of the configuration in messages.

    Raises:
        LavisLiteError: any mistake in the input, before work starts.
    """
    errors = check(composition)
    if arguments.print_config:
        print(to_yaml(composition, with_layers=True), end="")
    if not errors and not arguments.print_config:
        from lavis_lite.tasks.base import unmet_needs  # imports torch: not before everything else is right

        errors = unmet_needs(composition.config)
    needs = [] if arguments.print_config else missing(composition.config)
    raise_errors(cfg_path, errors, [] if arguments.dry_run else needs)
    if arguments.print_config:
        return 0
    return _run(composition, arguments, needs, cfg_path)


def raise_errors(cfg_path: str, errors: list[str], needs: list[str]) -> None:
    """Raise one error that lists every mistake and everything that is missing; nothing if both lists are empty."""
    if errors or needs:
        error = ErrorList(f"{cfg_path} cannot run:", [*errors, *(f"missing: {need}" for need in needs)])
        if needs:
            error.args = (f"{error.args[0]}\nfetch what can be fetched with: {fetch_hint(cfg_path)}",)
        error.same_on_all_ranks = True  # type: ignore[attr-defined]
        raise error


def _run(composition: Composition, arguments: argparse.Namespace, needs: list[str], cfg_path: str) -> int:
    if arguments.dry_run:  # what follows imports torch: only when there is work
        from lavis_lite.dry_run import dry_run

        dry_run(composition, needs, fetch_hint(cfg_path), getattr(arguments, "gpus", None))
        return 0
    from lavis_lite import engine

    for note in composition.config.notes:
        print(f"note: {note}", flush=True)
    engine.main(composition, resume=arguments.resume, start_over=arguments.start_over)
    return 0
