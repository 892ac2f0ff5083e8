"""`python -m lavis_lite data COMMAND ...`: what is done to data sets outside of a run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from lavis_lite.errors import ConfigError, did_you_mean

COMMANDS = {
    "list": "the data sets of the package, and what of them is on this machine",
    "prepare": "bring a data set here, or say what has to be put where",
    "check": "look through a data set or a file of annotations: rows, files, texts, sizes",
    "shard": "pack a data set into tars with an index",
    "index": "write the index of tars that somebody else packed",
    "capfilt": "write captions of images and keep the best, by models",
    "cache-features": "keep the frozen vision encoder's outputs, so that training need not compute them",
}
"""command -> what it does; each is lavis_lite/cli/data_<command>.py"""


def main(argv: Sequence[str]) -> int:
    """Run one of the commands.

    Raises:
        ConfigError: there is no such command.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m lavis_lite data COMMAND ...\n")
        print("\n".join(f"  {name:15} {what}" for name, what in COMMANDS.items()))
        return 0
    if argv[0] not in COMMANDS:
        raise ConfigError(f"unknown command 'data {argv[0]}': {did_you_mean(argv[0], COMMANDS)}")
    module = importlib.import_module(f"lavis_lite.cli.data_{argv[0].replace('-', '_')}")
    return int(module.main(argv[1:]))
