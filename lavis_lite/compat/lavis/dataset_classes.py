"""LAVIS' own data sets, for subclasses of a project."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lavis_lite.compat.lavis.datasets import BaseDataset
from lavis_lite.errors import DataError


def picture(dataset: BaseDataset, name: str) -> Any:
    """The processed image of that name."""
    with Image.open(Path(dataset.vis_root) / name) as found:
        return dataset.vis_processor(found.convert("RGB"))


def numbered(names: Iterable[Any]) -> dict[Any, int]:
    """Different names -> their numbers, in order of appearance."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


class CaptionDataset(BaseDataset):
    """Rows {image, caption, image_id}; `img_ids` numbers the images."""

    def __init__(self, vis_processor: Any = None, text_processor: Any = None, vis_root: Any = None,
                 ann_paths: Sequence[str] = ()) -> None:
        super().__init__(vis_processor, text_processor, vis_root, ann_paths)
        self.img_ids = numbered(row.get("image_id", row["image"]) for row in self.annotation)

    def image(self, row: dict[str, Any]) -> Any:
        """The processed image of a row."""
        return picture(self, row["image"])

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {"image": self.image(row), "text_input": self.text_processor(row["caption"]),
                "image_id": self.img_ids[row.get("image_id", row["image"])]}


class CaptionEvalDataset(CaptionDataset):
    """As `CaptionDataset`, without the caption."""

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {"image": self.image(row), "image_id": row.get("image_id", row["image"]),
                "instance_id": row["instance_id"]}


class ImageTextPairDataset(CaptionDataset):
    """Rows {image, caption} without ids of images."""

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {"image": self.image(row), "text_input": self.text_processor(row["caption"])}


class _Instructed(CaptionDataset):
    """The caption is `text_output`, and `text_input` an instruction of the text processor."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return {**sample, "text_input": self.text_processor(""), "text_output": sample["text_input"]}


class CaptionInstructDataset(_Instructed, CaptionDataset):
    """As `CaptionDataset`, with an instruction."""


class ImageTextPairInstructDataset(_Instructed, ImageTextPairDataset):
    """As `ImageTextPairDataset`, with an instruction."""


class RetrievalDataset(CaptionDataset):
    """Pairs for training, as `CaptionDataset`."""


class RetrievalEvalDataset(BaseDataset):
    """Rows {image, caption: [...]}: the images are samples, `text` the captions, `img2txt` and `txt2img` join them."""

    def __init__(self, vis_processor: Any = None, text_processor: Any = None, vis_root: Any = None,
                 ann_paths: Sequence[str] = ()) -> None:
        super().__init__(vis_processor, text_processor, vis_root, ann_paths)
        self.image = [row["image"] for row in self.annotation]
        self.text: list[str] = []
        self.img2txt: dict[int, list[int]] = {}
        for number, row in enumerate(self.annotation):
            self.img2txt[number] = list(range(len(self.text), len(self.text) + len(row["caption"])))
            self.text += [text_processor(caption) for caption in row["caption"]]
        self.txt2img = {text: image for image, texts in self.img2txt.items() for text in texts}

    def __getitem__(self, index: int) -> Any:
        return {"image": picture(self, self.image[index]), "index": index}


class MultimodalClassificationDataset(BaseDataset):
    """Rows with a class; `class_labels` names the classes."""

    class_labels: Any = None


class VideoQADataset(MultimodalClassificationDataset):
    """Rows {video, question, answer, question_id}; `_build_class_labels` reads {answer: number}."""

    def _build_class_labels(self, ans_path: str) -> None:
        self.class_labels = json.loads(Path(ans_path).read_text(encoding="utf-8"))

    def _get_answer_label(self, answer: str) -> int:
        """The answer's number; one above the last for an answer without."""
        return int(self.class_labels.get(answer, len(self.class_labels)))

    def __getitem__(self, index: int) -> Any:
        if self.class_labels is None:
            raise DataError(f"{type(self).__name__}: call _build_class_labels(ans_path) first.")
        row = self.annotation[index]
        return {"video": self.vis_processor(str(Path(self.vis_root) / row["video"])),
                "text_input": self.text_processor(row["question"]), "answers": self._get_answer_label(row["answer"]),
                "question_id": row["question_id"], "instance_id": row["instance_id"]}


class VQADataset(BaseDataset):
    """Rows of questions; a subclass defines `__getitem__`, with `answers` and `weights` of each sample."""

    def collater(self, samples: Sequence[Any]) -> Any:
        """As the base class; but `answer` str and `weight` float[A] of all samples in a row, `n_answers` int64[B]."""
        kept = [sample for sample in samples if sample is not None]
        if not kept or not {"answers", "weights"} <= kept[0].keys():
            return super().collater(kept)
        rest = [{key: value for key, value in one.items() if key not in ("answers", "weights")} for one in kept]
        return {**super().collater(rest), "answer": [answer for one in kept for answer in one["answers"]],
                "weight": torch.tensor([float(weight) for one in kept for weight in one["weights"]]),
                "n_answers": torch.tensor([len(one["answers"]) for one in kept])}


class COCOVQADataset(VQADataset):
    """Rows {image, question, answer: [text, ...]}; an answer weighs as many times as it was given."""

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        counts = Counter(row["answer"])
        return {"image": picture(self, row["image"]), "text_input": self.text_processor(row["question"]),
                "answers": list(counts), "weights": [count / len(row["answer"]) for count in counts.values()]}


class VQAEvalDataset(BaseDataset):
    """Rows of questions, for evaluation."""


class COCOVQAEvalDataset(VQAEvalDataset):
    """Rows {image, question, question_id}; a second file is the list of answers."""

    def __init__(self, vis_processor: Any = None, text_processor: Any = None, vis_root: Any = None,
                 ann_paths: Sequence[str] = ()) -> None:
        super().__init__(vis_processor, text_processor, vis_root, ann_paths[:1])
        self.answer_list = json.loads(Path(ann_paths[1]).read_text(encoding="utf-8")) if len(ann_paths) > 1 else None

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {"image": picture(self, row["image"]), "text_input": self.text_processor(row["question"]),
                "question_id": row["question_id"], "instance_id": row["instance_id"]}


class DialogueDataset(BaseDataset):
    """One row per turn of the dialogues in JSON files {"dialogs": [{"dialog": [{question, answer}, ...], ...}, ...]}.

    A row has the dialogue's own keys, `dialog` (the turns before it), `question` and `answer`.
    """

    def __init__(self, vis_processor: Any = None, text_processor: Any = None, vis_root: Any = None,
                 ann_paths: Sequence[str] = ()) -> None:
        super().__init__(vis_processor, text_processor, vis_root)
        for path in ann_paths:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if "dialogs" not in content:
                raise DataError(f"annotations {path}: a file of dialogues has the key `dialogs`.")
            for dialogue in content["dialogs"]:
                turns = dialogue["dialog"]
                self.annotation += [{**dialogue, "dialog": turns[:number], "question": turn["question"],
                                     "answer": turn["answer"]} for number, turn in enumerate(turns)]
        self._add_instance_ids()
        self.img_ids = numbered(row.get("image_id") for row in self.annotation)


class DialogueEvalDataset(DialogueDataset):
    """As `DialogueDataset`, for evaluation."""
