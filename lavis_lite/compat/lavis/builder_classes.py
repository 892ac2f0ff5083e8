"""LAVIS' own builders, for subclasses of a project: a class of training samples, one of evaluation samples, and YAMLs.

They build as `BaseDatasetBuilder` does. A run that only names such a data set uses this package's builders.
"""

from __future__ import annotations

from typing import Any

from lavis_lite.compat.lavis import dataset_classes as sets
from lavis_lite.compat.lavis.builders import BaseDatasetBuilder
from lavis_lite.errors import ConfigError
from lavis_lite.io import files

TABLE = {
    "COCOCapBuilder": ("Caption", "CaptionEval", {"default": "coco/defaults_cap"}),
    "Flickr30kCapBuilder": ("Caption", "CaptionEval", {"default": "flickr30k/defaults_cap"}),
    "MSRVTTCapBuilder": ("VideoCaption", "VideoCaptionEval", {"default": "msrvtt/defaults_cap"}),
    "MSVDCapBuilder": ("VideoCaption", "VideoCaptionEval", {"default": "msvd/defaults_cap"}),
    "VATEXCapBuilder": ("VideoCaption", "VideoCaptionEval", {"default": "vatex/defaults_cap"}),
    "COCORetrievalBuilder": ("Retrieval", "RetrievalEval", {"default": "coco/defaults_ret"}),
    "Flickr30kBuilder": ("Retrieval", "RetrievalEval", {"default": "flickr30k/defaults"}),
    "MSRVTTRetrievalBuilder": ("VideoRetrieval", "VideoRetrievalEval", {"default": "msrvtt/defaults_ret"}),
    "DiDeMoRetrievalBuilder": ("VideoRetrieval", "VideoRetrievalEval", {"default": "didemo/defaults_ret"}),
    "COCOVQABuilder": ("COCOVQA", "COCOVQAEval", {"default": "coco/defaults_vqa", "eval": "coco/eval_vqa"}),
    "MSRVTTQABuilder": ("VideoQA", "VideoQA", {"default": "msrvtt/defaults_qa"}),
    "MSVDQABuilder": ("VideoQA", "VideoQA", {"default": "msvd/defaults_qa"}),
    "AVSDDialBuilder": ("AVSDDial", "AVSDDialEval", {"default": "avsd/defaults_dial"}),
}
"""class -> beginnings of the names of its data sets, and type -> YAML below configs/datasets"""


class VideoQABuilder(BaseDatasetBuilder):
    """Questions about clips; `ans2label` of the annotations numbers the answers."""

    train_dataset_cls = eval_dataset_cls = sets.VideoQADataset

    def build(self) -> dict[str, Any]:
        """As `BaseDatasetBuilder`, with the numbers of answers in every data set.

        Raises:
            ConfigError: the section names no `ans2label`.
        """
        numbers = self.config.build_info.annotations.get("ans2label")
        if numbers is None:
            raise ConfigError(f"{type(self).__name__}: build_info.annotations.ans2label.storage must name a file "
                              "{answer: number}.")
        datasets = super().build()
        for dataset in datasets.values():
            dataset._build_class_labels(str(files.resolve(numbers.storage)))
        return datasets


def __getattr__(name: str) -> Any:
    if name not in TABLE:
        raise AttributeError(name)
    trained, scored, yamls = TABLE[name]
    made = globals()[name] = type(name, (VideoQABuilder if trained == "VideoQA" else BaseDatasetBuilder,), {
        "train_dataset_cls": getattr(sets, f"{trained}Dataset"), "eval_dataset_cls": getattr(sets, f"{scored}Dataset"),
        "DATASET_CONFIG_DICT": {kind: f"configs/datasets/{path}.yaml" for kind, path in yamls.items()},
        "__module__": __name__})
    return made
