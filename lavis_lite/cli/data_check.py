"""`python -m lavis_lite data check NAME|FILE`: find the errors of a data set before training on it."""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from lavis_lite.cli.console import add_config, command_parser, new_file
from lavis_lite.cli.sections import dataset_section, with_processors
from lavis_lite.config.named import dataset_names
from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.annotations.readers import FileFormat, check_suffix
from lavis_lite.datasets.annotations.text_files import Quoting
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.validate.checks import CheckOptions, examine
from lavis_lite.datasets.validate.recipe import Goal, guess, write_recipe
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.process import exits
from lavis_lite.registry import registry


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser("data check", "Read every row of a data set, look for its files, decode some of them, "
                               "and report errors by file and row.",
                               ["coco_caption", "captions.csv --image-root photos --write-yaml recipe.yaml"])
    arguments.add_argument("target", metavar="NAME|FILE|DIR",
                           help="a data set of the package or of --cfg-path. Or a file (JSON, JSONL, CSV, TSV, Parquet "
                                "or Arrow), a folder of such files, or a folder of tars with an index")
    arguments.add_argument("--type", help="of a data set of the package")
    add_config(arguments)
    arguments.add_argument("--splits", nargs="+", metavar="SPLIT", help="by default all")
    arguments.add_argument("--image-root", type=Path, metavar="DIR", help="of a FILE; by default its folder")
    arguments.add_argument("--columns", nargs="+", default=[], metavar="KEY=NAME",
                           help="of a FILE, if they are not guessed right: image, caption, question, answer ...")
    arguments.add_argument("--delimiter", metavar="MARK",
                           help="of a CSV or TSV FILE, if it is not detected: , ; | tab")
    arguments.add_argument("--quoting", choices=get_args(Quoting), default="auto",
                           help="of a CSV or TSV FILE; none: quotation marks belong to the texts")
    arguments.add_argument("--encoding", metavar="NAME", help="of a FILE that is not UTF-8, such as cp1252")
    arguments.add_argument("--images", type=int, default=1000, metavar="N", help="files of a split that are decoded")
    arguments.add_argument("--tokenizer", default="mini", help="mini, bert-base-uncased or a folder")
    arguments.add_argument("--max-tokens", type=int, default=32, metavar="N", help="tokens read by the Q-Former")
    arguments.add_argument("--sheet", type=new_file, metavar="PNG", help="draw samples with their texts")
    arguments.add_argument("--samples", type=int, default=12, metavar="N", help="of each split on the sheet")
    arguments.add_argument("--write-yaml", type=new_file, metavar="YAML",
                           help="of a FILE or DIR: write the recipe that trains on it")
    arguments.add_argument("--goal", choices=get_args(Goal),
                           help="what to learn; by default captioning, vqa for questions, or chat for conversations")
    arguments.add_argument("--json", action="store_true", help="the report as one JSON object")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Print the report; returns `exits.PROBLEMS` if it has errors.

    Raises:
        LavisLiteError: no such data set, file, split or tokenizer.
    """
    chosen = parser().parse_args(list(argv))
    if chosen.images < 0 or chosen.samples < 1 or chosen.max_tokens < 1:
        raise ConfigError("--images must be at least 0, --samples and --max-tokens at least 1.")
    if chosen.sheet is not None and chosen.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--sheet {chosen.sheet}: the sheet is a picture; its name ends in .png, .jpg or .jpeg.")
    if chosen.write_yaml is not None and not is_file(chosen):
        raise ConfigError("--write-yaml needs a FILE or DIR; a data set of the package has recipes already.")
    how = check_options(chosen)
    name, section, notes, training = chosen_section(chosen)
    report = examine(chosen.target, builder_of(name, section), how, chosen.splits, notes, training)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=True) if chosen.json else report)
    if chosen.sheet is not None and not chosen.json:
        print(f"samples: {chosen.sheet}")
    if chosen.write_yaml is not None:
        if not report.healthy:
            print(f"{chosen.write_yaml} was not written: fix the problems above first.")
            return exits.PROBLEMS
        print(write_recipe(chosen.write_yaml, chosen.target, name, section, partial(builder_of, name), chosen.goal))
    return exits.SUCCESS if report.healthy else exits.PROBLEMS


def builder_of(name: str, section: DatasetConfig) -> BaseDatasetBuilder:
    """The builder of a section, with an image processor if the section has none."""
    builder: BaseDatasetBuilder = registry.get_builder_class(section.builder or name)(
        name, with_processors(copy.deepcopy(section)))
    return builder


def is_file(chosen: argparse.Namespace) -> bool:
    """Whether the target is a file or a folder, and not the name of a data set."""
    path = Path(chosen.target).expanduser()
    return chosen.cfg_path is None and chosen.target not in dataset_names() and bool(path.suffix or path.exists())


def check_options(chosen: argparse.Namespace) -> CheckOptions:
    """How much is looked at, with the tokenizer loaded."""
    from lavis_lite.models.text_tokens import TextTokenizer

    tokenizer = TextTokenizer(chosen.tokenizer)
    tokenizer.lengths(["a"])  # reports a missing one now
    return CheckOptions(tokenizer.lengths, chosen.tokenizer, chosen.max_tokens, chosen.images, chosen.sheet,
                        chosen.samples)


def chosen_section(chosen: argparse.Namespace) -> tuple[str, DatasetConfig, list[str], list[str] | None]:
    """(name, section, notes, training splits of a run) of what the command names.

    Raises:
        LavisLiteError: there is no such data set or file, or its section has errors.
    """
    path = Path(chosen.target).expanduser()
    if is_file(chosen):
        if not path.is_dir():
            check_suffix(path)
        if not path.exists():
            raise DataError(f"{path}: there is no such annotation file.")
        form = FileFormat(chosen.delimiter, chosen.quoting, chosen.encoding)
        section, notes = guess(path, chosen.image_root, named_columns(chosen.columns), form, chosen.goal)
        return identifier_of(path.stem), section, notes, None
    name, section, training = dataset_section(chosen.target, chosen.cfg_path, chosen.options, chosen.type)
    return name, section, [], training if chosen.cfg_path else None


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
