"""`evaluate.py`: score a run's checkpoint, or the weights that a YAML names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from lavis_lite.cli.console import add_common, add_config, carry_out, command_parser, print_once
from lavis_lite.config.compose import Composition, compose
from lavis_lite.errors import ConfigError

EXAMPLES = (
    "--run output/blip2/stage1                        the best checkpoint of the newest run there",
    "--run RUN --checkpoint last --options run.test_splits=[ood]",
    "--run RUN --cfg-path RECIPE.yaml                 the recipe's data and task, the run's model",
    "--cfg-path RECIPE.yaml                           the weights that the recipe names",
    "--cfg-path RECIPE.yaml --resume auto             the newest checkpoint under its run.output_dir",
)


def parser() -> argparse.ArgumentParser:
    """The arguments of evaluate.py."""
    arguments = command_parser("evaluate", "Score a run's checkpoint, or the weights that a YAML names.", EXAMPLES)
    arguments.add_argument("--run", "--run-dir", metavar="RUN",
                           help="a run folder, or a folder above runs: the run that saved last. Under torchrun write "
                                "--run-dir, because torchrun has an option that begins with --run")
    arguments.add_argument("--checkpoint", metavar="best|last|step_N",
                           help="which checkpoint of --run (default: best, or last if no validation chose one)")
    add_config(arguments, help_="what to evaluate; with --run its `datasets` and `run` replace the run's",
               positional=True)
    add_common(arguments)
    arguments.add_argument("--dry-run", action="store_true",
                           help="build everything, predict one batch and stop; on the meta device if files are missing")
    arguments.add_argument("--resume", metavar="auto|PATH",
                           help="with --cfg-path: use the weights of a checkpoint folder; auto: of the newest good "
                                "one under run.output_dir")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Compose, check, and evaluate. The user's --options override everything else.

    Raises:
        LavisLiteError: any mistake in the input, before work starts.
    """
    choices = parser()
    arguments = choices.parse_args(list(argv))
    if arguments.run is None and arguments.cfg_path is None:
        choices.error("give --run RUN to evaluate a run, or a recipe to evaluate the weights that it names")
    composition, cfg_path = _composed(arguments)
    arguments.resume, arguments.start_over = None, False  # the composition names the checkpoint
    return carry_out(composition, arguments, cfg_path)


def _composed(arguments: argparse.Namespace) -> tuple[Composition, str]:
    """(the composed evaluation, the name of its configuration in messages)."""
    from lavis_lite.runs import compose_evaluation, find_checkpoint, hint_at_run, resume_evaluation

    log = partial(print_once, file=sys.stderr if arguments.print_config else sys.stdout)
    if arguments.run is None:
        if arguments.checkpoint is not None:
            raise ConfigError(f"--checkpoint {arguments.checkpoint} names a checkpoint of --run, which is not given. "
                              "With --cfg-path, name a checkpoint folder with --resume.")
        composition = compose(arguments.cfg_path, ["run.evaluate=true", *arguments.options])
        if arguments.resume is None and (hint := hint_at_run(arguments.cfg_path)):
            log(hint)
        return resume_evaluation(composition, arguments.resume, log), arguments.cfg_path
    if arguments.resume is not None:
        raise ConfigError("--run and --resume exclude each other: both select the weights to evaluate.")
    chosen = find_checkpoint(arguments.run, arguments.checkpoint)
    log(f"evaluating {chosen.describe()}")
    composition = compose_evaluation(chosen, arguments.options, arguments.cfg_path)
    return composition, arguments.cfg_path or chosen.config_layer().name
