"""LAVIS' own data sets, for subclasses of a project.

Each is made of (vis_processor, text_processor, vis_root, ann_paths). Those with `media = "video"` have the row's
`video` where the others have its `image`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from lavis_lite.compat.lavis.datasets import BaseDataset
from lavis_lite.errors import DataError


class DisplMixin:
    """LAVIS' `__DisplMixin`, which its data sets and many of a project derive from besides."""

    annotation: list[Any]

    def displ_item(self, index: int) -> dict[str, Any]:
        """File, texts and processed picture (or video) of a row."""
        row, sample = self.annotation[index], self[index]  # type: ignore[index]
        texts = ("caption", "question", "answer", "answers", "sentence", "label")
        kept = {key: row[key] for key in texts if key in row}
        seen = {key: sample[key] for key in ("image", "video") if key in sample}
        return {"file": row.get("image", row.get("video")), **kept, **seen}


class SeenDataset(BaseDataset, DisplMixin):
    """Rows that name a picture or a video."""

    media: ClassVar[str] = "image"

    def seen(self, row: dict[str, Any]) -> dict[str, Any]:
        """{"image" or "video": what the processor makes of it}."""
        path = Path(self.vis_root) / row[self.media]
        if self.media == "video":
            return {"video": self.vis_processor(str(path))}
        with Image.open(path) as found:
            return {"image": self.vis_processor(found.convert("RGB"))}


def numbered(names: Iterable[Any]) -> dict[Any, int]:
    """Different names -> their numbers, in order of appearance."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


class CaptionDataset(SeenDataset):
    """Rows {image, caption, image_id}; `img_ids` numbers the images."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.img_ids = numbered(map(self.id_of, self.annotation))

    def id_of(self, row: dict[str, Any]) -> Any:
        """The image's id, or its file."""
        return row.get("image_id", row.get(self.media))

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {**self.seen(row), "text_input": self.text_processor(row["caption"]),
                "image_id": self.img_ids[self.id_of(row)]}


class CaptionEvalDataset(CaptionDataset):
    """As `CaptionDataset`, without the caption."""

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {**self.seen(row), "image_id": self.id_of(row), "instance_id": row["instance_id"]}


class NoCapsEvalDataset(CaptionEvalDataset):
    """As `CaptionEvalDataset`, of rows {image, img_id}."""

    def id_of(self, row: dict[str, Any]) -> Any:
        """The image's number in NoCaps."""
        return row.get("img_id", super().id_of(row))


class VideoCaptionDataset(CaptionDataset):
    """Rows {video, caption, image_id}."""

    media = "video"


class VideoCaptionEvalDataset(CaptionEvalDataset):
    """As `VideoCaptionDataset`, without the caption."""

    media = "video"


class ImageTextPairDataset(CaptionDataset):
    """Rows {image, caption} without ids of images."""

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {**self.seen(row), "text_input": self.text_processor(row["caption"])}


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


class RetrievalEvalDataset(SeenDataset):
    """Rows {image, caption: [...]}: the images are samples, `text` the captions, `img2txt` and `txt2img` join them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image = [row[self.media] for row in self.annotation]
        self.text: list[str] = []
        self.img2txt: dict[int, list[int]] = {}
        for number, row in enumerate(self.annotation):
            captions = [row["caption"]] if isinstance(row["caption"], str) else row["caption"]
            self.img2txt[number] = list(range(len(self.text), len(self.text) + len(captions)))
            self.text += [self.text_processor(caption) for caption in captions]
        self.txt2img = {text: image for image, texts in self.img2txt.items() for text in texts}

    def __getitem__(self, index: int) -> Any:
        return {**self.seen(self.annotation[index]), "index": index}


class VideoRetrievalDataset(RetrievalDataset):
    """As `RetrievalDataset`, of rows with a video."""

    media = "video"


class VideoRetrievalEvalDataset(RetrievalEvalDataset):
    """As `RetrievalEvalDataset`, of rows with a video."""

    media = "video"


class MultimodalClassificationDataset(SeenDataset):
    """Rows with a class; `class_labels` names the classes."""

    class_labels: Any = None


class VideoQADataset(MultimodalClassificationDataset):
    """Rows {video, question, answer, question_id}; `_build_class_labels` reads {answer: number}."""

    media = "video"

    def _build_class_labels(self, ans_path: str) -> None:
        self.class_labels = json.loads(Path(ans_path).read_text(encoding="utf-8"))

    def _get_answer_label(self, answer: str) -> int:
        """The answer's number; one above the last for an answer without."""
        return int(self.class_labels.get(answer, len(self.class_labels)))

    def __getitem__(self, index: int) -> Any:
        if self.class_labels is None:
            raise DataError(f"{type(self).__name__}: call _build_class_labels(ans_path) first.")
        row = self.annotation[index]
        return {**self.seen(row), "text_input": self.text_processor(row["question"]),
                "answers": self._get_answer_label(row["answer"]), "question_id": row["question_id"],
                "instance_id": row["instance_id"]}


class VQADataset(SeenDataset):
    """Rows of questions; a subclass defines `__getitem__`, with `answers` and `weights` of each sample."""

    def collater(self, samples: Sequence[Any]) -> Any:
        """The batch: all samples' answers and weights in a row, and how many each sample has."""
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
        return {**self.seen(row), "text_input": self.text_processor(row["question"]), "answers": list(counts),
                "weights": [count / len(row["answer"]) for count in counts.values()]}


class VQAEvalDataset(SeenDataset):
    """Rows of questions, for evaluation."""


class COCOVQAEvalDataset(VQAEvalDataset):
    """Rows {image, question, question_id}; a second file is the list of answers."""

    def __init__(self, vis_processor: Any = None, text_processor: Any = None, vis_root: Any = None,
                 ann_paths: Sequence[str] = ()) -> None:
        super().__init__(vis_processor, text_processor, vis_root, ann_paths[:1])
        self.answer_list = json.loads(Path(ann_paths[1]).read_text(encoding="utf-8")) if len(ann_paths) > 1 else None

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        return {**self.seen(row), "text_input": self.text_processor(row["question"]),
                "question_id": row["question_id"], "instance_id": row["instance_id"]}


class DialogueDataset(SeenDataset):
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


class AVSDDialDataset(DialogueDataset):
    """Dialogues about clips; the project's processors read and pad the clips' arrays."""

    def __getitem__(self, index: int) -> Any:
        row = self.annotation[index]
        video = self.vis_processor(self.vis_root, row["image_id"])
        return {**self.text_processor(row), "video_fts": video["video_fts"], "image_id": row["image_id"],
                "video_token_type_ids": video["token_type_ids"], "instance_id": row["instance_id"]}

    def collater(self, samples: Sequence[Any]) -> Any:
        """The batch: frames, then words; `attn_mask` and `token_type_ids` over both, -1 as the frames' labels."""
        def of(key: str) -> list[Any]:
            return [sample[key] for sample in samples]

        pad = self.text_processor.padding
        frames, words, labels = self.vis_processor.padding(of("video_fts")), pad(of("input_ids")), pad(of("labels"), -1)
        kinds = [pad(of("video_token_type_ids")), pad(of("token_type_ids"))]
        seen = [self.vis_processor.get_attention_mask(frames).long(), self.text_processor.get_attention_mask(words)]
        skipped = labels.new_full(frames.shape[:2], -1)
        return {"video_fts": frames, "input_ids": words, "token_type_ids": torch.cat(kinds, 1),
                "attn_mask": torch.cat([seen[0], seen[1].long()], 1), "labels": torch.cat([skipped, labels], 1),
                "image_id": of("image_id"), "instance_id": of("instance_id")}


class AVSDDialEvalDataset(AVSDDialDataset):
    """As `AVSDDialDataset`, for evaluation."""
