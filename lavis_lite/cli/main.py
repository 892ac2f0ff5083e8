"""`python -m lavis_lite COMMAND ...` and the one place where errors become words and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from lavis_lite.errors import LavisLiteError, did_you_mean
from lavis_lite.process import exits, limits
from lavis_lite.redaction import masked_output

TRACEBACK = "--traceback"
"""understood by every command"""

COMMANDS = {
    "train": "train a model from a YAML",
    "evaluate": "score a model on the splits a YAML names",
    "fetch": "download the annotations, weights and tokenizers a YAML needs",
    "data": "list, prepare, check and pack data sets, keep frozen features",
    "generate": "write captions of pictures, or answers about them",
    "models": "list models and their types",
    "convert": "turn a checkpoint into transformers', LAVIS' or this project's format",
    "compare": "two runs side by side: what changed, scores with confidence intervals, samples that flipped",
    "zoo": "what every model type is, where its weights come from, whether it runs offline",
}
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m lavis_lite COMMAND ...\n")
        print("\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items()))
        print(f"\n{TRACEBACK} with any of them shows where an error comes from.")
        return exits.SUCCESS
    if words[0] not in COMMANDS:
        print(f"error: unknown command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}", file=sys.stderr)
        return exits.USER_ERROR
    return run_command(words[0], words[1:])


def entry() -> NoReturn:
    """The program: as `main`, and it ends the process."""
    exits.leave(main())


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command; whatever happens ends in one message on stderr and a documented exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    with_traceback = TRACEBACK in words
    exits.report_to(None)
    with masked_output(), exits.stop_signals_raise():
        try:
            return _called(name, [word for word in words if word != TRACEBACK])
        except (Exception, KeyboardInterrupt, exits.Terminated) as fault:
            with exits.stop_signals_ignored():
                return _ended(name, exits.cause_of(fault), with_traceback)


def _called(name: str, words: list[str]) -> int:
    with limits.explained():
        command: Callable[[Sequence[str]], int] = importlib.import_module(f"lavis_lite.cli.{name}").main
        return command(words)


def _ended(name: str, fault: BaseException, with_traceback: bool) -> int:
    """Say how a command ended; returns its exit code."""
    if with_traceback:
        traceback.print_exception(fault)
    if isinstance(fault, (KeyboardInterrupt, exits.Terminated)):
        _say(f"\nstopped{f' by {fault}' if str(fault) else ''}.")
        return getattr(fault, "exit_code", exits.INTERRUPTED)
    if isinstance(fault, BrokenPipeError) and name not in ("train", "evaluate"):  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.UNREAD
    code, message = _described(fault)
    if not _told_by_another(fault):
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
        _say(f"{f'[rank {rank}] ' if rank else ''}error: {message}")
    return code


def _described(fault: BaseException) -> tuple[int, str]:
    if isinstance(fault, LavisLiteError):
        return getattr(fault, "exit_code", exits.USER_ERROR), str(fault)
    if isinstance(fault, ModuleNotFoundError) and not str(fault.name).startswith("lavis_lite"):
        return exits.USER_ERROR, (
            f"Python package {fault.name!r} is not installed in this environment ({sys.prefix}). Install with "
            "`bash run_scripts/setup_env.sh` and use its Python: `source .venv/bin/activate`.")
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    return exits.UNEXPECTED, exits.describe_unexpected(fault, rank)


def _told_by_another(fault: BaseException) -> bool:
    """Whether another rank tells of it: of the same error on this node, or of the one that was the cause of this."""
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if getattr(fault, "same_on_all_ranks", False):
        return local_rank != "0"
    return bool(getattr(fault, "told_elsewhere", False))


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone
        print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    entry()
