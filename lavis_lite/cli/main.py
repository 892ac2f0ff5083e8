"""`python -m lavis_lite COMMAND ...`: runs a command, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from lavis_lite import __version__
from lavis_lite.errors import LavisLiteError, did_you_mean
from lavis_lite.io import disk
from lavis_lite.process import exits
from lavis_lite.process.launch import named_rank
from lavis_lite.redaction import masked_output

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""a disk that is full, limited or read-only"""
PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""a path that the system refuses"""
TRACEBACK = "--traceback"
"""an option of every command"""

COMMANDS = {
    "train": "train a model from a YAML",
    "evaluate": "score a model on the splits a YAML names",
    "fetch": "download the annotations, weights and tokenizers that a YAML names",
    "data": "list, prepare, check and pack data sets; save frozen features",
    "generate": "write captions of pictures, or answers about them",
    "chat": "talk about pictures with a model",
    "demo": "open a page to try models on pictures",
    "serve": "answer chat completions over HTTP",
    "recipes": "list the recipes of the package; copy one to change it",
    "new-project": "write a project of your own: a recipe, a class and a test that train at once",
    "doctor": "show what this machine has, and what a recipe still needs",
    "completion": "print a script that completes commands, options and recipes in a shell",
    "models": "list models and their types",
    "convert": "convert a checkpoint to transformers', LAVIS' or this project's format",
    "bench": "measure speed and memory beside plain twins and transformers",
    "compare": "compare two runs: changed settings, scores with confidence intervals, samples that flipped",
    "lab": "run the papers' ablations at mini scale, with seeds, confidence intervals and figures",
    "zoo": "describe every model type: size, weights, whether it runs offline",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, *others = arguments or ["--help"]
    if command not in COMMANDS and command not in ABOUT:
        print(f"error: unknown command {command!r}; {did_you_mean(command, COMMANDS)}", file=sys.stderr)
        return exits.USER_ERROR
    return run_command(command, others)


def _print_help(argv: Sequence[str]) -> int:
    print("usage: python -m lavis_lite COMMAND ...\n")
    print("\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items()))
    print(f"\n{TRACEBACK} with any of them shows where an error comes from; --version shows the version.")
    return exits.SUCCESS


def _print_version(argv: Sequence[str]) -> int:
    print(f"lavis_lite {__version__}")
    return exits.SUCCESS


ABOUT = {"-h": _print_help, "--help": _print_help, "-V": _print_version, "--version": _print_version}
"""options in the place of a command"""


def entry() -> NoReturn:
    """Run `main` and end the process with its exit status."""
    exits.leave(main())


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command. Any error ends in one message on stderr and a documented exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with_traceback = TRACEBACK in arguments
    exits.report_to(None)
    exits.open_closed_streams()
    with masked_output(), rare_full_collections(), exits.stop_signals_raise():
        try:
            exits.interrupts_raise()
            exits.need_working_folder()
            with exits.explained():
                command: Callable[[Sequence[str]], int] = ABOUT.get(name) or _module(name).main
                return command([argument for argument in arguments if argument != TRACEBACK])
        except (Exception, KeyboardInterrupt, exits.Terminated) as error:
            with exits.stop_signals_ignored():
                return _report(name, exits.cause_of(error), with_traceback)


@contextlib.contextmanager
def rare_full_collections() -> Iterator[None]:
    """Context manager: inside it the garbage collector looks at old objects a tenth as often.

    The imports of a model make a million objects that stay, and every look at them finds nothing.
    """
    youngest, middle, oldest = gc.get_threshold()
    gc.set_threshold(youngest, middle, 10 * oldest)
    try:
        yield
    finally:
        gc.set_threshold(youngest, middle, oldest)


def _module(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"lavis_lite.cli.{name.replace('-', '_')}")


def _report(name: str, error: BaseException, with_traceback: bool) -> int:
    """Print why a command ended; returns its exit code."""
    if with_traceback:
        traceback.print_exception(error)
    if isinstance(error, (KeyboardInterrupt, exits.Terminated)):
        _print_error(f"\nstopped{f' by {error}' if str(error) else ''}.")
        return getattr(error, "exit_code", exits.INTERRUPTED)
    if isinstance(error, BrokenPipeError) and name not in ("train", "evaluate"):  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.UNREAD
    code, message = _code_and_message(error)
    if not _reported_by_another(error):
        _print_error(f"{f'[rank {named_rank()}] ' if named_rank() else ''}error: {message}")
    return code


def _code_and_message(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LavisLiteError):
        return getattr(error, "exit_code", exits.USER_ERROR), str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("lavis_lite"):
        return exits.USER_ERROR, (
            f"Python package {error.name!r} is not installed in this environment ({sys.prefix}). Install with "
            "`bash run_scripts/setup_env.sh` and use its Python: `source .venv/bin/activate`.")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return exits.USER_ERROR, (disk.cannot_write(Path(error.filename), error) if isinstance(error.filename, str)
                                  else f"the output cannot be written: {error.strerror}.")
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and not _is_own(error.filename):
        return exits.USER_ERROR, f"{error.filename}: {error.strerror}. {TRACEBACK} shows which step needs this path."
    return exits.UNEXPECTED, exits.describe_unexpected(error, int(named_rank() or 0))


def _is_own(filename: object) -> bool:
    """Whether a file is the package's, or unknown: then an error with it is a defect."""
    return not isinstance(filename, str) or Path(filename).absolute().is_relative_to(exits.PACKAGE)


def _reported_by_another(error: BaseException) -> bool:
    """Whether another rank reports the error: the same one on this node, or the one that caused this."""
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if getattr(error, "same_on_all_ranks", False):
        return local_rank != "0"
    return bool(getattr(error, "reported_elsewhere", False))


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError):  # no terminal any more
        print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    entry()
