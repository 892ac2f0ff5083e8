"""`python -m lavis_lite data card NAME`: what a data set is, its files, the keys of its samples, and how to get it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lavis_lite.cli.console import command_parser
from lavis_lite.cli.data_list import Entry, comment, entries_of
from lavis_lite.config.compose import compose_dataset
from lavis_lite.config.named import dataset_names
from lavis_lite.config.schema import DatasetConfig, FileConfig
from lavis_lite.errors import DataError, did_you_mean
from lavis_lite.registry import registry

LAYOUT = ("columns", "nested", "parallel", "image_pattern", "split_column", "split_values", "answer_words", "prepare")
"""keys of a row that describe how its files are written"""


def main(argv: Sequence[str]) -> int:
    """Print a data set's card, and the first row of its annotations where they are on this machine.

    Raises:
        DataError: no such data set.
    """
    arguments = command_parser("data card", "Describe a data set: splits, files, layout, keys of its samples, and how "
                               "to get it.", ["coco_caption"])
    arguments.add_argument("name", metavar="NAME", help="a data set of the package")
    name = arguments.parse_args(list(argv)).name
    if name not in dataset_names():
        raise DataError(f"there is no data set {name!r}; {did_you_mean(name, dataset_names())}")
    entries = entries_of(name)
    print(card(name, entries))
    print("\n".join(f"On this machine ({entry.type}): {entry.state}.{example(entry)}" for entry in entries))
    return 0


def card(name: str, entries: Sequence[Entry] | None = None, level: str = "#", with_keys: bool = True) -> str:
    """The card of a data set as Markdown: the facts of its YAML file, the same on every machine.

    Args:
        name: of the data set.
        entries: its types; None: looked up.
        level: of its heading.
        with_keys: whether it has the keys of the samples, which depend only on the builder.
    """
    text = [f"{level} {name}\n\n{comment(name)}\n"]
    for entry in entries or entries_of(name):
        keys = sample_keys(entry.builder) if with_keys else {}
        lines = [*facts(entry), *(f"keys of a sample, {kind}: {named}" for kind, named in keys.items())]
        text.append(f"Type `{entry.type}`, builder `{entry.builder}`"
                    + (f", {entry.train_size:,} training samples" if entry.train_size else "")
                    + ":\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    return "\n".join(text)


def facts(entry: Entry) -> Iterator[str]:
    """The facts about one type of a data set, a line each."""
    section = section_of(entry)
    for split, file in section.build_info.annotations.items():
        yield f"{split}: {_files(file)}"
    for kind in ("images", "videos"):
        if folder := getattr(section.build_info, kind).storage:
            yield f"{kind}: `{folder}`"
    given = {key: getattr(section, key, None) for key in LAYOUT}
    if layout := {key: value for key, value in given.items() if value}:
        yield "layout: " + ", ".join(f"`{key}: {_plain(value)}`" for key, value in layout.items())
    if how := getattr(section, "how_to_get", None):
        yield f"how to get it: {how}"


def sample_keys(builder: str) -> dict[str, str]:
    """training and evaluation -> the keys of a sample of this builder; without what has no keys of its own."""
    training: Any = registry.get_builder_class(builder)
    media = getattr(training, "sample_keys", ())[:1]  # image or video, in an evaluation too
    classes = {"training": training, "evaluation": training.evaluation_class()}
    return {kind: ", ".join(f"`{key}`" for key in (*media, *keys[1:])) for kind, cls in classes.items()
            if (keys := getattr(cls, "sample_keys", ()))}


def section_of(entry: Entry) -> DatasetConfig:
    """The composed section of one type of a data set."""
    return compose_dataset(entry.name, [f"datasets.{entry.name}.type={entry.type}"]).config.datasets[entry.name]


def example(entry: Entry) -> str:
    """The first annotation of a type, as text; "" if its files are not on this machine."""
    split = next((split for split, here in entry.state.splits.items() if here), None)
    if split is None:
        return ""
    section = section_of(entry)
    dataset: Any = registry.get_builder_class(section.builder or entry.name)(entry.name, section).build(split, False)
    table = getattr(dataset, "table", None)
    row = json.dumps(table[0], ensure_ascii=False, default=str) if table else ""
    return f" The first row of {split}, as it is read:\n  {row}" if row else ""


def _files(file: FileConfig) -> str:
    """Paths of an annotation entry, linked to where they come from."""
    paths, urls = (value if isinstance(value, list) else [value] for value in (file.storage, file.url))
    linked = [f"[`{path or url}`]({url})" if url else f"`{path}`"
              for path, url in zip(paths, urls if len(urls) == len(paths) else [None] * len(paths), strict=True)]
    return ", ".join(linked)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
