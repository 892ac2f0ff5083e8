"""Data sets by name, outside of runs: LAVIS' `load_dataset` and its list of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lavis_lite.config.compose import compose_dataset
from lavis_lite.config.layers import read_yaml
from lavis_lite.config.named import dataset_names, dataset_rows
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.errors import ConfigError, DataError, ErrorList, did_you_mean
from lavis_lite.registry import registry

TYPES = ("images", "videos", "features")


def load_dataset(name: str, cfg_path: str | Path | None = None, vis_path: str | Path | None = None,
                 data_type: str | None = None) -> dict[str, BaseDataset]:
    """The splits of a data set, as LAVIS gives them: {"train": training samples, "val": evaluation samples, ...}.

    Samples hold PIL images and texts as they are written, unless the row names processors (videos do).

    Args:
        name: of `dataset_zoo`.
        cfg_path: a YAML file with a section that overrides the package's row: LAVIS' {datasets: {name: section}}, or
            {default: section}.
        vis_path: folder of the images (or videos), instead of the row's.
        data_type: key of build_info that `vis_path` is for: images, videos or features. None: the row's own.

    Raises:
        ConfigError: unknown name or data type. ErrorList: a section that does not fit.
        DataError: annotation files are missing and cannot be fetched, or faulty.
    """
    if cfg_path is None and name not in dataset_names():
        raise ConfigError(f"load_dataset: there is no data set {name!r}; {did_you_mean(name, dataset_names())}")
    if data_type is not None and data_type not in TYPES:
        raise ConfigError(f"load_dataset: data_type={data_type!r} is none of {', '.join(TYPES)}.")
    section = {} if cfg_path is None else _section_of(Path(cfg_path), name)
    composition = compose_dataset(name, section=section)
    if composition.errors:
        raise ErrorList(f"{cfg_path or name}:", composition.errors)
    cfg = composition.config.datasets[name]
    if vis_path is not None:
        getattr(cfg.build_info, data_type or cfg.data_type).storage = str(vis_path)
    _own_processors_only(cfg, composition.tree["datasets"][name])
    builder = registry.get_builder_class(cfg.builder or name)(name, cfg)
    builder.as_written = True
    made = ((split, builder.build(split, split.startswith("train"))) for split in builder.splits())
    built = {split: dataset for split, dataset in made if dataset is not None}
    if not built:
        raise DataError(f"{name}: has no splits; set build_info.annotations.")
    return built


def _section_of(path: Path, name: str) -> dict[str, Any]:
    """The section of a data set in a file of LAVIS' layout or of the package's."""
    content = read_yaml(path)
    found = content.get("datasets", content)
    if "datasets" in content:
        if name not in found:
            raise ConfigError(f"{path}: has no section datasets.{name}; {did_you_mean(name, found)}")
        return dict(found[name] or {})
    return dict(content.get("default") or {})


def _own_processors_only(cfg: Any, section: Mapping[str, Any]) -> None:
    """Remove the processors that come from a model, not from the section itself."""
    for kind in ("vis_processor", "text_processor"):
        for mode in ("train", "eval"):
            own = (section.get(kind) or {}).get(mode) or {}
            if "name" not in own:
                setattr(getattr(cfg, kind), mode, None)


class DatasetZoo:
    """All data sets that ship: iterate over (name, [types]), print it, take its length."""

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        for name in dataset_names():
            yield name, list(dataset_rows(name))

    def __len__(self) -> int:
        return len(dataset_names())

    def __str__(self) -> str:
        return "\n".join(f"{name:<34} {', '.join(types)}" for name, types in self)

    def get_names(self) -> dict[str, list[str]]:
        """Name -> types."""
        return dict(self)


dataset_zoo = DatasetZoo()
