"""`python -m lavis_lite data check NAME|FILE`: what is wrong with a data set, before it is trained on."""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from lavis_lite.cli.console import program
from lavis_lite.config.compose import compose, compose_dataset
from lavis_lite.config.named import dataset_names
from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.annotations.readers import FileFormat, check_suffix
from lavis_lite.datasets.annotations.text_files import Quoting
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.doctor.examine import Thoroughness, examine
from lavis_lite.datasets.doctor.guess import guess
from lavis_lite.datasets.doctor.recipe import Goal, write_recipe
from lavis_lite.errors import ConfigError, DataError, Faults, did_you_mean
from lavis_lite.registry import registry

SOMETHING_WRONG = 1
_PROCESSOR: dict[str, dict[str, Any]] = {
    "images": {"name": "blip_image_eval", "image_size": 224},
    "videos": {"name": "alpro_video_eval"},
}
"""never run here; a builder wants one"""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = argparse.ArgumentParser(program("data check"), description="Read every row of a data set, look for "
                                        "its files, decode some of them, and say what is wrong, by file and row.")
    arguments.add_argument("target", metavar="NAME|FILE|DIR",
                           help="a data set of the package or of --cfg-path; a JSON, JSONL, CSV or TSV file; or a "
                                "folder of tars that have an index")
    arguments.add_argument("--type", help="of a data set of the package")
    arguments.add_argument("--cfg-path", metavar="YAML", help="a run's configuration that has the data set's section")
    arguments.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE")
    arguments.add_argument("--splits", nargs="+", metavar="SPLIT", help="by default all")
    arguments.add_argument("--image-root", type=Path, metavar="DIR", help="of a FILE; by default its folder")
    arguments.add_argument("--columns", nargs="+", default=[], metavar="KEY=NAME",
                           help="of a FILE, where they are not guessed right: image, caption, question, answer ...")
    arguments.add_argument("--delimiter", metavar="MARK",
                           help="of a CSV or TSV FILE, if it cannot be found out: , ; | tab")
    arguments.add_argument("--quoting", choices=get_args(Quoting), default="auto",
                           help="of a CSV or TSV FILE; none: quotation marks belong to the texts")
    arguments.add_argument("--encoding", metavar="NAME", help="of a FILE that is not UTF-8, such as cp1252")
    arguments.add_argument("--images", type=int, default=1000, metavar="N", help="files of a split that are decoded")
    arguments.add_argument("--tokenizer", default="mini", help="mini, bert-base-uncased or a folder")
    arguments.add_argument("--max-tokens", type=int, default=32, metavar="N", help="what the Q-Former reads of a text")
    arguments.add_argument("--sheet", type=Path, metavar="PNG", help="draw samples with their texts")
    arguments.add_argument("--samples", type=int, default=12, metavar="N", help="of each split on the sheet")
    arguments.add_argument("--write-yaml", type=Path, metavar="YAML",
                           help="of a FILE or DIR: write the recipe that trains on it")
    arguments.add_argument("--goal", choices=get_args(Goal),
                           help="of --write-yaml: what to learn; by default captioning, or vqa for questions")
    arguments.add_argument("--json", action="store_true", help="the report as one JSON object")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Print the report; 1 where something is wrong.

    Raises:
        LavisLiteError: no such data set, file, split or tokenizer.
    """
    chosen = parser().parse_args(list(argv))
    if chosen.images < 0 or chosen.samples < 1:
        raise ConfigError("--images must be at least 0 and --samples at least 1.")
    how = thoroughness(chosen)
    name, section, notes, training = chosen_section(chosen)
    report = examine(chosen.target, builder_of(name, section), how, chosen.splits, notes, training)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=True) if chosen.json else report)
    if chosen.sheet is not None and not chosen.json:
        print(f"samples: {chosen.sheet}")
    if chosen.write_yaml is not None:
        if not is_file(chosen):
            raise ConfigError("--write-yaml goes with a FILE or DIR; a data set of the package has recipes already.")
        if not report.healthy:
            print(f"{chosen.write_yaml} was not written: fix the problems above first.")
            return SOMETHING_WRONG
        print(write_recipe(chosen.write_yaml, chosen.target, name, section, partial(builder_of, name), chosen.goal))
    return 0 if report.healthy else SOMETHING_WRONG


def builder_of(name: str, section: DatasetConfig) -> BaseDatasetBuilder:
    """The builder of a section, with an image processor if the section has none."""
    builder: BaseDatasetBuilder = registry.get_builder_class(section.builder or name)(
        name, with_processors(copy.deepcopy(section)))
    return builder


def is_file(chosen: argparse.Namespace) -> bool:
    """Whether the target is a file or a folder, and not the name of a data set."""
    path = Path(chosen.target).expanduser()
    return chosen.cfg_path is None and chosen.target not in dataset_names() and bool(path.suffix or path.exists())


def thoroughness(chosen: argparse.Namespace) -> Thoroughness:
    """How much is looked at, with the tokenizer loaded."""
    from lavis_lite.models.text_tokens import TextTokenizer

    tokenizer = TextTokenizer(chosen.tokenizer)
    tokenizer.lengths(["a"])  # one that is not here is told of now
    return Thoroughness(tokenizer.lengths, chosen.tokenizer, chosen.max_tokens, chosen.images, chosen.sheet,
                        chosen.samples)


def chosen_section(chosen: argparse.Namespace) -> tuple[str, DatasetConfig, list[str], list[str] | None]:
    """(name, section, notes, splits to train on, if a run says so) of what the command names.

    Raises:
        LavisLiteError: there is no such data set or file, or its section is faulty.
    """
    path = Path(chosen.target).expanduser()
    if is_file(chosen):
        if not path.is_dir():
            check_suffix(path)
        if not path.exists():
            raise DataError(f"{path}: there is no such annotation file.")
        form = FileFormat(chosen.delimiter, chosen.quoting, chosen.encoding)
        section, notes = guess(path, chosen.image_root, named_columns(chosen.columns), form)
        return identifier_of(path.stem), section, notes, None
    name, section, training = named_section(chosen)
    return name, section, [], training


def named_section(chosen: argparse.Namespace) -> tuple[str, DatasetConfig, list[str] | None]:
    """(name, section, splits to train on, if a run says so) of a data set of the package or of --cfg-path.

    Raises:
        LavisLiteError: there is no such data set, or its section is faulty.
    """
    name, options = chosen.target, list(chosen.options)
    if chosen.type:
        options.append(f"datasets.{name}.type={chosen.type}")
    composition = compose(chosen.cfg_path, options) if chosen.cfg_path else compose_dataset(name, options)
    if composition.faults:
        raise Faults(f"{chosen.cfg_path or name} cannot be used:", composition.faults)
    sections = composition.config.datasets
    if name not in sections:
        raise ConfigError(f"{chosen.cfg_path} has no data set {name!r}; {did_you_mean(name, sections)}")
    return name, sections[name], composition.config.run.train_splits if chosen.cfg_path else None


def identifier_of(stem: str) -> str:
    """A file's name as the name of a data set: letters, digits and underscores."""
    return re.sub(r"\W+", "_", stem).strip("_") or "data"


def named_columns(words: Sequence[str]) -> dict[str, str]:
    """KEY=NAME words as a mapping.

    Raises:
        ConfigError: a word without "=".
    """
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--columns {word}: write KEY=NAME, for example image=file_name.")
    return {key: name for key, _, name in (word.partition("=") for word in words)}


def with_processors(section: DatasetConfig) -> DatasetConfig:
    """The section, with an image processor where it has none."""
    media = "videos" if "video" in section.data_type else "images"
    for mode in ("train", "eval"):
        if not (getattr(section.vis_processor, mode) or {}).get("name"):
            setattr(section.vis_processor, mode, dict(_PROCESSOR[media]))
    return section
