"""A lone file of annotations or a folder of shards -> the section that reads it, and a recipe that trains on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from lavis_lite.config.schema import BuildInfo, DatasetConfig, FileConfig, StorageConfig
from lavis_lite.datasets.annotations.chats import COLUMNS, READ, is_benchmark, is_conversation
from lavis_lite.datasets.annotations.columns import KNOWN, Columns, guess_columns, split_values
from lavis_lite.datasets.annotations.dialogues import read_dialogues
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.text_files import AUTO, FileFormat
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.builders.chat import ChatConfig
from lavis_lite.datasets.builders.custom import CustomConfig
from lavis_lite.datasets.builders.dialogue import ImageDialogueConfig
from lavis_lite.datasets.builders.images import ImageDatasetConfig
from lavis_lite.datasets.builders.questions import ImageQAConfig
from lavis_lite.datasets.files.locate import TEXT_FILES, splits_in
from lavis_lite.datasets.shards.index import ShardIndex
from lavis_lite.datasets.shards.scan import needs_index
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.io import atomic

Goal = Literal["captioning", "pretrain", "vqa", "chat"]


def guess(path: Path, image_root: Path | None = None, named: Mapping[str, str] | None = None,
          form: FileFormat = AUTO, goal: Goal | None = None) -> tuple[DatasetConfig, list[str]]:
    """(a section that reads a file or a folder of shards, notes on what was guessed).

    A file of conversations is read by `chat`, or by `image_dialogue` if every row is about one picture. A file with
    questions is read by `image_qa`, tars by `chat` or by `image_shards`, and any other file by `custom`. Questions
    without an answer are the split test.

    Args:
        path: JSON, JSONL, CSV, TSV, Parquet or Arrow; a folder with such files; or one with tars and their index.
        image_root: folder of the images; by default the file's, and for files in `annotations` the folder around it.
        named: columns that the caller knows: key of KNOWN -> name in the file.
        form: how the file is written, as far as that is known.
        goal: what is to be learned, if that is known.

    Raises:
        DataError: the file is unreadable, empty, or has no column that could be what is needed.
        ConfigError: `named` has a key that KNOWN lacks.
    """
    for key in named or {}:
        if key not in KNOWN:
            raise ConfigError(f"--columns {key}=...: no such column; {did_you_mean(key, KNOWN)}")
    splits = splits_in(path) if path.is_dir() else {"train": [path]}
    if not splits:
        return _shards(path)
    first = splits.get("train", next(iter(splits.values())))[0]
    columns = guess_columns(first, named, form)
    folders = {file.parent for files in splits.values() for file in files}
    root = image_root or (first.parent.parent if path.is_dir() and first.parent.name == "annotations" else first.parent)
    beside = image_root is None and len(folders) > 1  # each split has its images beside its own file
    asked = is_benchmark(columns.present) or "question" in columns.found and "answer" not in columns.found
    if asked and list(splits) == ["train"]:  # nothing to learn
        splits = {"test": splits["train"]}
    storage = {split: [str(file.absolute()) for file in files] for split, files in splits.items()}
    info = BuildInfo({split: FileConfig(storage=files[0] if len(files) == 1 else list(files))
                      for split, files in storage.items()},
                     images=StorageConfig(storage=None if beside else str(root.absolute())))
    text = "question" if "question" in columns.found else "caption"
    if is_conversation(columns.present):
        text = "conversations" if goal == "vqa" or goal is None and _are_questions(splits, columns, form) else "chat"
    _refuse_lacking(first, columns, text)
    section, notes = _section(columns, text, info), [
        f"columns: {columns.describe()}", "images beside each file" if beside else f"images in {root.absolute()}"]
    section.delimiter, section.quoting, section.encoding = form.delimiter, form.quoting, form.encoding
    notes += _choose_splits(first, columns, section) if len(splits) == 1 else [f"splits: {', '.join(splits)}"]
    used = {section.split_column, *_named_in(section)}
    unread = [repr(column) for column in columns.present if column not in used]
    return section, notes + ([f"columns that are not read: {', '.join(unread)}"] if unread else [])


def _are_questions(splits: Mapping[str, Sequence[Path]], columns: Columns, form: FileFormat) -> bool:
    """Whether `image_dialogue` reads every row: questions and answers about one picture."""
    two = {"image", "images"} <= {*columns.present}
    if two or not {"conversations", "image"} <= columns.found.keys():
        return False
    try:
        for files in splits.values():
            read_dialogues(files, Layout(columns={"image": columns.found["image"]}, form=form), True, "{} {}")
    except DataError:
        return False
    return True


def _choose_splits(path: Path, columns: Columns, section: ImageDatasetConfig) -> list[str]:
    """Let the section use a column with names of splits; a note if there is a column of that name with other values."""
    column = columns.found.get("split")
    if column is None:
        return []
    form = FileFormat(section.delimiter, section.quoting, section.encoding)
    values, others = split_values(path, column, form)
    if values:
        section.split_column, section.split_values = column, values
        rows = ", ".join(f"{count} with {value!r}" for value, count in others.items())
        return [f"rows of no split, which are not used: {rows}; split_values may name them"] if others else []
    return [f"column {column!r} holds other values than train, val and test, so that rows of all of them are used; to "
            "choose among them set split_column and split_values"]


def _named_in(section: ImageDatasetConfig) -> list[str]:
    """Columns that a section reads."""
    if isinstance(section, CustomConfig):
        return [name for name in (section.image_column, section.caption_column, section.id_column) if name]
    if isinstance(section, ChatConfig):
        return list(READ)
    names = [name for name in section.columns.values() if isinstance(name, str)]
    return [*names, "conversations"] if isinstance(section, ImageDialogueConfig) else names


def _section(columns: Columns, text: str, info: BuildInfo) -> ImageDatasetConfig:
    """The section that reads a file with these columns."""
    found = columns.found
    if text == "conversations":
        return ImageDialogueConfig(builder="image_dialogue", build_info=info, columns={"image": found["image"]})
    if text == "chat":
        own = {"image": found["image"]} if found.get("image") not in (None, *COLUMNS["image"]) else {}
        return ChatConfig(builder="chat", build_info=info, columns={**own})
    if text == "question":
        kept = ("image", "question", "answer", "image_id", "question_id")
        names: dict[str, str | list[str]] = {key: found[key] for key in kept if key in found}
        return ImageQAConfig(builder="image_qa", build_info=info, columns=names)
    return CustomConfig(builder="custom", build_info=info, image_column=found["image"],
                        caption_column=found["caption"], id_column=found.get("image_id"))


def _refuse_lacking(path: Path, columns: Columns, text: str) -> None:
    lacking = [key for key in ("image", text) if key not in columns.found and text != "chat"]
    if lacking:
        raise DataError(f"{path}: no column looks like {' or '.join(lacking)}; it has: "
                        f"{', '.join(columns.present) or 'none'}. "
                        f"Say which: --columns {' '.join(f'{key}=NAME' for key in lacking)}")


def _shards(folder: Path) -> tuple[DatasetConfig, list[str]]:
    """The section that reads a folder of tars; a DataError if they have no index."""
    if not any(folder.glob("*.tar")):
        found = ", ".join(sorted(path.name for path in folder.glob("*") if path.suffix.lower() in TEXT_FILES)[:5])
        raise DataError(f"{folder}: the folder has neither annotation files (JSON, CSV, Parquet ...) nor tars."
                        if not found else f"{folder}: has several files, and no name tells a split: {found}. Name one "
                        "file instead of the folder, or call them train, val and test.")
    if needs_index(folder, again=False):
        raise DataError(f"{folder}: its tars have no index yet. Make it with: python -m lavis_lite data index {folder}")
    info = BuildInfo(annotations={"train": FileConfig(storage=str(folder.absolute()))})
    rows = ShardIndex(folder).table([])
    talks = len(rows) > 0 and is_conversation(list(rows[0]))
    made, name = (ChatConfig, "chat") if talks else (ImageDatasetConfig, "image_shards")
    return made(builder=name, build_info=info), [f"shards {'of conversations ' if talks else ''}in {folder.absolute()}"]


MakeBuilder = Callable[[DatasetConfig], BaseDatasetBuilder]
FRACTIONS = (0.1, 0.2, 0.3, 0.5)
"""shares of the images that are held out, the first that leaves some for both splits"""
HELD_OUT = ("val", "test")
MODELS: dict[Goal, dict[str, Any]] = {
    "captioning": {"arch": "blip2_opt", "model_type": "mini"},
    "pretrain": {"arch": "blip2", "model_type": "mini"},
    "vqa": {"arch": "blip2_opt", "model_type": "mini_instruct"},
    "chat": {"arch": "vision_language", "model_type": "mini_resampler",
             "template": {"user": "{}\n", "assistant": "{}</s>"}},
}
RUNS: dict[Goal, dict[str, Any]] = {
    "captioning": {"task": "captioning", "num_beams": 1, "max_len": 40,
                   "caption_metrics": ["bleu", "rouge_l", "cider"]},
    "pretrain": {"task": "image_text_pretrain"},
    "vqa": {"task": "vqa", "prompt": "question: {} short answer:", "num_beams": 1},
    "chat": {"task": "chat", "max_len": 40},
}
LOOP = {"runner": "runner_iter", "max_iters": 200, "batch_size_train": 16, "batch_size_eval": 32, "num_workers": 1,
        "init_lr": 1e-4, "min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_steps": 20, "lr_sched": "linear_warmup_cosine_lr",
        "log_freq": 10, "save_every": 100, "train_splits": ["train"]}
TRAINING = LOOP.keys() - {"batch_size_eval", "num_workers"}
"""keys of a run that an evaluation does not need"""
HELD: dict[str, tuple[str, tuple[Goal, ...]]] = {
    "image_qa": ("questions", ("vqa",)), "image_dialogue": ("questions", ("vqa",)),
    "chat": ("conversations", ("chat",))}
"""builder -> what its texts are, goals that fit; other builders read captions"""
HEADING = """\
# Written by `data check {source}`: {what}.
# The packaged mini model knows the words and shapes of a generated world. For real pictures choose another
# model.model_type, for example {released}; `python -m lavis_lite zoo` lists them all.
#   {command}
"""
RELEASED: dict[Goal, str] = {"captioning": "caption_coco_opt2.7b", "pretrain": "pretrain", "vqa": "vqa_opt2.7b",
                            "chat": "llava15_7b with model.template=vicuna_v1"}


def write_recipe(recipe: Path, source: str, name: str, section: DatasetConfig, make: MakeBuilder,
                 goal: Goal | None = None) -> str:
    """Write the recipe that trains on what `data check` has read; returns a line that describes it.

    Args:
        recipe: the file to write; it must not exist.
        source: what was checked, as the user named it.
        name: the data set's name in the recipe.
        section: reads it, with the split `train`.
        make: a section -> its builder.
        goal: what to learn; None: captioning for captions, vqa for questions and dialogues, chat for conversations.

    Raises:
        ConfigError: the recipe exists, or the goal does not fit the data.
        DataError: the rows cannot be read.
    """
    if recipe.exists():
        raise ConfigError(f"--write-yaml {recipe}: there is such a file already; choose another name.")
    texts, fitting = HELD.get(section.builder or "", ("captions", ("captioning", "pretrain")))
    goal = goal or fitting[0]
    if goal not in fitting:
        raise ConfigError(f"--goal {goal}: {source} has {texts}; choose {' or '.join(fitting)}.")
    held_out = _hold_out(section, make)
    run = {**RUNS[goal], **LOOP, "test_splits": held_out, "output_dir": f"output/{name}"}
    model = dict(MODELS[goal])
    if section.builder == "image_dialogue":
        run |= {"prompt": None, "max_len": 40}
        model["max_txt_len"] = 64  # the history is part of the prompt
    what, way_on = f"{goal} on its {texts}, " + (
        f"scored on {', '.join(held_out)}" if held_out else "without a held-out split: the images are too few"), "train"
    if "train" not in section.build_info.annotations:
        what, way_on = f"answers to its {texts}, which nothing is learned from", "evaluate"
        run = {"evaluate": True, **{key: value for key, value in run.items() if key not in TRAINING}}
    tree = {"model": model, "datasets": {name: _as_yaml(section)}, "run": run}
    command = f"python -m lavis_lite {way_on} {recipe}"
    if way_on == "evaluate" and goal == "chat":  # the packaged connectors are not trained
        command += " --options model.load_pretrained=true model.pretrained=RUN"
    heading = HEADING.format(source=source, what=what, released=RELEASED[goal], command=command)
    text = heading + "\n" + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
    recipe.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(recipe, text)
    return f"{recipe}: {what}. {'Train' if way_on == 'train' else 'Answer'} with: {command}"


def _hold_out(section: DatasetConfig, make: MakeBuilder) -> list[str]:
    """Give the section splits to score on; returns their names.

    A column that says which split a row belongs to is used; else a share of the images is held out.
    """
    named = section.build_info.annotations
    if getattr(section, "split_column", None) or len(named) > 1 or "train" not in named:
        return [split for split in HELD_OUT if split in make(section).splits()]
    for fraction in FRACTIONS if "val_fraction" in section else ():
        section.val_fraction = fraction  # type: ignore[attr-defined]
        try:
            builder = make(section)
            if builder.build("val", training=False) and builder.build("train", training=True):
                return ["val"]
        except DataError:  # no rows in one of the two: too few images for this share
            section.val_fraction = 0.0  # type: ignore[attr-defined]
    return []


def _as_yaml(section: DatasetConfig) -> dict[str, Any]:
    """The section's keys with other values than the defaults; processors are left to the model."""
    usual = dataclasses.asdict(type(section)())
    return {key: _pruned(value) for key, value in dataclasses.asdict(section).items()
            if value != usual[key] and key not in ("vis_processor", "text_processor")}


def _pruned(value: Any) -> Any:
    """A mapping without its empty members, in depth."""
    if not isinstance(value, dict):
        return value
    inner = {key: _pruned(member) for key, member in value.items()}
    return {key: member for key, member in inner.items() if member not in (None, {}, [], "")}
