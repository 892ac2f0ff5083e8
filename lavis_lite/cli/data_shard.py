"""`python -m lavis_lite data shard`: a data set of single files -> tars with an index."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_lite.cli.console import add_config, command_parser, new_folder
from lavis_lite.cli.sections import dataset_section, table_split
from lavis_lite.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Pack a split. A run that was stopped continues where it was.

    Raises:
        LavisLiteError: no such data set or split, or missing or unreadable files.
    """
    arguments = command_parser("data shard", "Pack a split of a data set into tars (webdataset's layout) with an "
                               "index. If it was stopped, the same command continues.",
                               ["--dataset coco_caption --out coco_shards --workers 8"])
    arguments.add_argument("--dataset", metavar="NAME", help="a data set of the package, or one of those in --cfg-path")
    add_config(arguments)
    arguments.add_argument("--split", default="train")
    arguments.add_argument("--out", required=True, type=new_folder, metavar="DIR")
    arguments.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="images per tar")
    arguments.add_argument("--workers", type=int, default=1, metavar="N", help="processes that write")
    arguments.add_argument("--skip-bad", action="store_true", help="skip unreadable images, and list them")
    chosen = arguments.parse_args(list(argv))
    if chosen.samples_per_shard < 1 or chosen.workers < 1:
        raise ConfigError("--samples-per-shard and --workers must be at least 1.")
    name, section, _ = dataset_section(chosen.dataset, chosen.cfg_path, chosen.options)
    dataset = table_split(name, section, chosen.split)
    from lavis_lite.datasets.shards.writer import make_plan, write_shards

    chosen.out.mkdir(parents=True, exist_ok=True)
    plan = make_plan(dataset.table, dataset.folder, chosen.out, chosen.samples_per_shard, chosen.skip_bad)
    index = write_shards(plan, getattr(dataset, "space", "") or name, chosen.workers)
    total = sum(shard.bytes for shard in index.shards) / 1e6
    print(f"{index.samples} samples in {len(index.shards)} shards, {total:.1f} MB: {chosen.out}")
    print(f"to train on them: --options datasets.{name}.build_info.annotations.{chosen.split}.storage={chosen.out}")
    return 0
