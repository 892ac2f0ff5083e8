"""`python -m lavis_lite COMMAND ...` and the one place where errors become words and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from lavis_lite.errors import LavisLiteError, did_you_mean
from lavis_lite.redaction import masked_output

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
INTERRUPTED, UNREAD, USER_ERROR = 130, 141, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m lavis_lite COMMAND ...\n")
        print("\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items()))
        return 0
    if words[0] not in COMMANDS:
        print(f"error: unknown command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}", file=sys.stderr)
        return USER_ERROR
    return run_command(words[0], words[1:])


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command so that a user's mistake is one message on stderr and exit status 2, and Ctrl-C is 130."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with masked_output():
            main_function: Callable[[Sequence[str]], int] = importlib.import_module(f"lavis_lite.cli.{name}").main
            return main_function(words)
    except ModuleNotFoundError as fault:
        if str(fault.name).startswith("lavis_lite"):
            raise
        print(f"error: Python package {fault.name!r} is not installed in this environment ({sys.prefix}). Install with "
              "`bash run_scripts/setup_env.sh` and use its Python: `source .venv/bin/activate`.", file=sys.stderr)
        return USER_ERROR
    except LavisLiteError as fault:
        _tell(fault)
        return getattr(fault, "exit_code", USER_ERROR)
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough; in a run it may be another pipe, and is told
        if name in ("train", "evaluate"):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD


def _tell(fault: LavisLiteError) -> None:
    """The message once per node: every rank of a node sees the same files."""
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if local_rank == "0" or not getattr(fault, "same_on_all_ranks", False):
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
        print(f"{f'[rank {rank}] ' if rank else ''}error: {fault}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
