"""`python -m lavis_lite data COMMAND ...`: work on data sets outside of a run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from lavis_lite.errors import ConfigError, did_you_mean

COMMANDS = {
    "list": "list the data sets of the package, and which of their files are on this machine",
    "card": "describe a data set: its splits, files, layout, samples, and how to get it",
    "prepare": "download a data set; list what must be downloaded by hand",
    "check": "check a data set or a file of annotations: rows, files, texts, sizes",
    "shard": "pack a data set into tars with an index",
    "index": "write the index of tars that another program packed",
    "capfilt": "write captions of images with a model and keep the best",
    "cache-features": "save the frozen vision encoder's outputs, so that training need not compute them",
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
