"""The builder of pictures sorted into one folder per class, as ImageNet has them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.rows import Row, RowTable
from lavis_lite.datasets.annotations.text_files import json_object, lines_of, read_text
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.builders.base import CLASSES, IMAGES, QUESTIONS
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.media.images import SUFFIXES
from lavis_lite.datasets.qa import QAEvalDataset
from lavis_lite.errors import DataError
from lavis_lite.registry import registry


@dataclass
class ImageClassesConfig(ImageQAConfig):
    """Section of a data set of pictures in one folder per class."""

    question: str = "a photo of a"
    """what the model reads before the name of a class"""


class ClassesDataset(QAEvalDataset):
    """Pictures with a class: the question is the same for all, the answer is the class, candidates are all classes."""

    whole_list: ClassVar[bool] = True


@registry.register_builder("image_classes")
class ImageClassesBuilder(ImageQABuilder):
    """Pictures in `<split>/<folder of the class>/` below build_info.images.storage.

    The annotation file of a split names the classes: lines "<folder> <name>[, synonym ...]" (ImageNet's
    LOC_synset_mapping.txt, of which the first name counts), or JSON {folder: name}. Classes of one name are one class.
    """

    config_class: ClassVar[type[DatasetConfig]] = ImageClassesConfig
    eval_dataset: ClassVar[type[Any]] = ClassesDataset
    ignored_keys: ClassVar[Mapping[str, str]] = {**IMAGES, **QUESTIONS, **CLASSES}
    cfg: ImageClassesConfig
    _split = ""
    """the split that is being built"""

    def build(self, split: str, training: bool) -> BaseDataset | None:
        """The data set of a split; None where there is no such split."""
        self._split = split
        return super().build(split, training)

    def read(self, paths: Sequence[Path], layout: Layout, training: bool) -> RowTable:
        """One row per picture: {image, question, question_id, answers, counts}, class by class.

        Raises:
            DataError: a class has no folder, or no class has a picture.
        """
        names, root = class_names(paths[0]), self._media_root(paths)
        lacking = [folder for folder in names if not (root / layout.split / folder).is_dir()]
        if lacking:
            raise DataError(f"{root / layout.split}: has no folder for {len(lacking)} of the {len(names)} classes of "
                            f"{paths[0]}; the first is {lacking[0]!r}. Put the pictures of a class into its folder.")
        others = sorted({path.name for path in (root / layout.split).iterdir() if path.is_dir()} - names.keys())
        if others:
            warnings.warn(f"{root / layout.split}: {len(others)} of its folders are no class of {paths[0]}, so their "
                          f"pictures are left out; the first is {others[0]!r}.", stacklevel=2)
        table = RowTable(self._rows(names, root / layout.split), paths)
        if not len(table):
            raise DataError(f"{root / layout.split}: the folders of the {len(names)} classes hold no picture.")
        return table

    def _rows(self, names: dict[str, str], root: Path) -> Iterator[tuple[int, int, Row]]:
        files = [(line, name, file) for line, (folder, name) in enumerate(names.items(), 1)
                 for file in sorted((root / folder).iterdir())
                 if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()]
        for number, (line, name, file) in enumerate(files):
            yield 0, line, {"image": f"{root.name}/{file.parent.name}/{file.name}", "question": self.cfg.question,
                            "question_id": number, "answers": [name], "counts": [1]}

    def _candidates(self) -> list[str]:
        (path, *_) = self.annotation_files(self._split)
        return list(dict.fromkeys(class_names(path).values()))


def class_names(path: Path) -> dict[str, str]:
    """Folder -> name of the class.

    Raises:
        DataError: a file of another kind, or fewer than two classes.
    """
    try:
        pairs = list(json_object(path).items()) if path.suffix == ".json" else [
            line.split(maxsplit=1) for line in lines_of(read_text(path)) if line.strip()]
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a folder is named twice")
        names = {str(folder): str(name).partition(",")[0].strip() for folder, name in found.items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: must have lines '<folder> <name of the class>', or be JSON {{folder: name}} "
                        f"({error}).") from error
    if len(names) < 2 or not all(names.values()):
        raise DataError(f"{path}: names {len(names)} classes; at least two are needed, each with a name.")
    return names
