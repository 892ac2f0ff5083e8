"""`python -m lavis_lite data shard`: a data set of loose files -> tars with an index."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lavis_lite.cli.console import program
from lavis_lite.config.compose import compose, compose_dataset
from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.protocols import ImageTable
from lavis_lite.errors import ConfigError, DataError, Faults, did_you_mean
from lavis_lite.registry import registry


def main(argv: Sequence[str]) -> int:
    """Pack a split; run again, it goes on where it was stopped.

    Raises:
        LavisLiteError: no such data set or split, or files of it that are missing or unreadable.
    """
    arguments = argparse.ArgumentParser(program("data shard"), description="Pack a split of a data set into tars "
                                        "(webdataset's layout) with an index.")
    arguments.add_argument("--dataset", metavar="NAME", help="a data set of the package, or one of those in --cfg-path")
    arguments.add_argument("--cfg-path", metavar="YAML", help="a run's configuration that has the data set's section")
    arguments.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE")
    arguments.add_argument("--split", default="train")
    arguments.add_argument("--out", required=True, type=Path, metavar="DIR")
    arguments.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="images of a tar")
    arguments.add_argument("--workers", type=int, default=1, metavar="N", help="processes that write")
    arguments.add_argument("--skip-bad", action="store_true", help="leave unreadable images out, and list them")
    chosen = arguments.parse_args(list(argv))
    if chosen.samples_per_shard < 1 or chosen.workers < 1:
        raise ConfigError("--samples-per-shard and --workers must be at least 1.")
    name, section = chosen_dataset(chosen.dataset, chosen.cfg_path, chosen.options)
    dataset = build_split(name, section, chosen.split)
    from lavis_lite.datasets.shards.writer import make_plan, write_shards

    chosen.out.mkdir(parents=True, exist_ok=True)
    plan = make_plan(dataset.table, dataset.folder, chosen.out, chosen.samples_per_shard, chosen.skip_bad)
    index = write_shards(plan, getattr(dataset, "space", "") or name, chosen.workers)
    total = sum(shard.bytes for shard in index.shards) / 1e6
    print(f"{index.samples} samples in {len(index.shards)} shards, {total:.1f} MB: {chosen.out}")
    print(f"to train on them: --options datasets.{name}.build_info.annotations.{chosen.split}.storage={chosen.out}")
    return 0


def chosen_dataset(name: str | None, cfg_path: str | None, options: Sequence[str]) -> tuple[str, DatasetConfig]:
    """The data set that the command names, and its checked section.

    Raises:
        ConfigError: none is named, or there is no such one.
    """
    if cfg_path is None and name is None:
        raise ConfigError("name a data set: --dataset NAME, or --cfg-path YAML.")
    composition = compose(cfg_path, options) if cfg_path else compose_dataset(str(name), options)
    if composition.faults:
        raise Faults(f"{cfg_path or name} cannot be used:", composition.faults)
    sections = composition.config.datasets
    if name is None and len(sections) == 1:
        name = next(iter(sections))
    if name not in sections:
        raise ConfigError(f"--dataset: {cfg_path} has {len(sections)} data sets; {did_you_mean(name or '', sections)}")
    return name, sections[name]


def build_split(name: str, section: DatasetConfig, split: str) -> ImageTable:
    """A split with `table` and `folder`: with one row per caption where it is for training.

    Raises:
        DataError: there is no such split, or its data set has no table of rows.
    """
    builder = registry.get_builder_class(section.builder or name)(name, section)
    if split not in builder.splits():
        raise DataError(f"--split: {name} has no split {split!r}; {did_you_mean(split, builder.splits())}")
    dataset = builder.build(split, training=split.startswith("train"))
    if not isinstance(dataset, ImageTable):
        raise DataError(f"{name}: data sets of the builder {section.builder or name!r} have no table of rows and "
                        "folder of images, so they cannot be packed.")
    return dataset
