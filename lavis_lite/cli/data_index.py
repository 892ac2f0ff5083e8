"""`python -m lavis_lite data index DIR`: the index of shards that another program packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lavis_lite.cli.console import command_parser
from lavis_lite.datasets.shards import scan as shard_scan
from lavis_lite.datasets.shards.members import Dots
from lavis_lite.errors import ConfigError, DataError, counted


def main(argv: Sequence[str]) -> int:
    """Write DIR/index.json and DIR/index.safetensors.

    Raises:
        LavisLiteError: see `scan.index_folder`.
    """
    arguments = command_parser("data index", "Read the headers of all tars in a folder (webdataset's layout, as "
                               "img2dataset writes it) and write their index.", ["laion_shards --keep url --workers 8"])
    arguments.add_argument("folder", type=Path, metavar="DIR")
    arguments.add_argument("--keep", nargs="+", default=[], metavar="FIELD",
                           help="fields of the samples' JSON to keep in the rows, besides the caption")
    arguments.add_argument("--skip-bad", action="store_true", help="skip samples with errors and list them")
    arguments.add_argument("--dots", choices=get_args(Dots), default="auto",
                           help="the dot in a member's name that ends its sample's key: first (webdataset), last or "
                                "auto. auto takes the last if a picture and a text then share a key")
    arguments.add_argument("--again", action="store_true", help="write the index again")
    arguments.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read")
    chosen = arguments.parse_args(list(argv))
    if not chosen.folder.is_dir():
        raise DataError(f"{chosen.folder}: there is no such folder.")
    if chosen.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {chosen.workers}.")
    if not shard_scan.needs_index(chosen.folder, chosen.again):
        print(f"{chosen.folder} has an index; --again replaces it")
        return 0
    index = shard_scan.index_folder(chosen.folder, chosen.keep, chosen.skip_bad, chosen.workers, dots=chosen.dots)
    print(f"{counted(index.samples, 'sample')} in {counted(len(index.shards), 'shard')}: {chosen.folder}")
    return 0
