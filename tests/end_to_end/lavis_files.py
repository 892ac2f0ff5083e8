"""Annotation files in LAVIS' own layouts, made of the mini world, where LAVIS' run files look for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lavis_lite.mini_world.records import SceneRecord, answer_file, describe_scene, question_file
from lavis_lite.mini_world.render import encode_jpeg, render
from lavis_lite.mini_world.scenes import make_scene
from lavis_lite.mini_world.tasks import ANSWERS, _clip

Row = dict[str, Any]
Files = Iterable[tuple[str, Any]]
"""(path below the cache, content)"""
COUNTS = {"train": 8, "val": 4, "test": 4}
"""scenes of each split"""
COUNTED = {"nocaps": (2, 4), "msvd": ("ghynaoVNwZc_1_20.avi", "fEsrO_poIUg_161_168.avi")}
"""the first ids of `run.img_ids` in LAVIS' run files; the first images of a split get them, the others do not count"""
LABELS = ("entailment", "neutral", "contradiction")
PICTURES = {"coco": "coco/images", "flickr30k": "flickr30k/images", "vg": "vg/images", "nocaps": "nocaps/images",
            "gqa": "gqa/images", "snli_ve": "flickr30k/images/flickr30k-images"}
CLIPS = {name: f"{name}/videos" for name in ("msvd", "msrvtt", "vatex")}


def folder_of(dataset: str) -> str:
    """The folder of a data set's pictures or clips, below the cache."""
    known = {**CLIPS, **PICTURES, "ok": PICTURES["coco"]}
    return known.get(dataset.removesuffix("_instruct")) or known[dataset.partition("_")[0]]


def write_lavis_files(cache: Path) -> None:
    """Write pictures, clips and annotations of every data set below LAVIS' cache folder."""
    for split, count in COUNTS.items():
        records = [describe_scene(make_scene(3, split, index)) for index in range(count)]
        for record in records:
            for name in ("coco", "flickr30k", "vg", "nocaps", "gqa"):
                _write(cache / PICTURES[name] / image(name, record), encode_jpeg(render(record.scene)))
            for name, folder in CLIPS.items():
                _write(cache / folder / image(name, record), _clip(record.scene))
        for files in (captions, questions, clips):
            for path, content in files(split, records):
                _write(cache / path, json.dumps(content).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def identity(dataset: str, record: SceneRecord) -> int | str:
    """What a data set calls an image: NoCaps a number, MSVD the name of a file."""
    counted, index = COUNTED.get(dataset, ()), record.scene.index
    if index < len(counted):
        return counted[index]
    return f"other_{index}_{record.scene.image_id}.avi" if dataset == "msvd" else record.scene.image_id


def image(dataset: str, record: SceneRecord) -> str:
    """Path of an image (a clip) below its data set's folder."""
    scene, number = record.scene, record.scene.image_id
    part = "train2014" if scene.split == "train" else "val2014"
    return {"coco": f"{part}/COCO_{part}_{number:012d}.jpg", "flickr30k": f"flickr30k-images/{number}.jpg",
            "snli_ve": f"{number}.jpg", "vg": f"VG_100K/{number}.jpg", "gqa": f"{number}.jpg",
            "nocaps": f"{scene.split}/{scene.index:016x}.jpg", "msvd": str(identity("msvd", record)),
            }.get(dataset, f"video{number}.avi")


def references(dataset: str, records: Sequence[SceneRecord]) -> dict[str, Any]:
    """A COCO captions file, as `run.annotation_file` names one."""
    named = [(identity(dataset, record), record) for record in records]
    return {"images": [{"id": name, "file_name": image(dataset, record).rpartition("/")[2]} for name, record in named],
            "annotations": [{"id": 10 * number + place, "image_id": name, "caption": caption}
                            for number, (name, record) in enumerate(named)
                            for place, caption in enumerate(record.captions)]}


def captions(split: str, records: Sequence[SceneRecord]) -> Files:
    """Captions and retrieval: one caption a row in training, a list of them in evaluation; NoCaps, SNLI-VE."""
    for dataset, prefix in (("coco", "coco/annotations/coco_karpathy_"), ("flickr30k", "flickr30k/annotations/")):
        yield f"{prefix}{split}.json", [
            {"image": image(dataset, record), "caption": caption, "image_id": f"{dataset}_{record.scene.image_id}"}
            for record in records for caption in record.captions[:5]] if split == "train" else [
            {"image": image(dataset, record), "caption": record.captions[:5]} for record in records]
    yield f"nocaps/annotations/nocaps_{split}.json", [
        {"image": image("nocaps", record), "img_id": identity("nocaps", record)} for record in records]
    yield f"nocaps_gt/{split}.json", references("nocaps", records)
    yield f"snli/annotations/ve_{'dev' if split == 'val' else split}.json", [
        {"image": image("snli_ve", record), "sentence": record.captions[0], "label": LABELS[number % 3]}
        for number, record in enumerate(records)]
    if split == "train":
        yield "vg/annotations/vg_caption.json", [{"image": image("vg", record), "caption": record.captions[0]}
                                                 for record in records]


def asked(dataset: str, records: Sequence[SceneRecord], answer: Callable[[str], Row], key: str = "image") -> list[Row]:
    """{image, question, question_id} of every question, and what `answer` makes of its answer."""
    return [{key: image(dataset, record), "question": one.text, "question_id": 10 * record.scene.image_id + number,
             **answer(one.answer)} for record in records for number, one in enumerate(record.questions)]


def no_answer(text: str) -> Row:
    """Of rows to predict."""
    return {}


def one_answer(text: str) -> Row:
    """GQA's, MSVD's and MSR-VTT's."""
    return {"answer": text}


def ten_answers(text: str) -> Row:
    """VQAv2's and OK-VQA's."""
    return {"answer": [text] * 10}


def questions(split: str, records: Sequence[SceneRecord]) -> Files:
    """VQAv2 and OK-VQA: rows, answer list, official questions and annotations; GQA: rows with one answer."""
    labelled = split == "train" or split == "val"
    for folder, version, name in (("coco", "v2_", "vqa"), ("okvqa", "", "okvqa")):
        notes = f"{folder}/annotations"
        yield f"{notes}/{name}_{split}.json", asked("coco", records, ten_answers if labelled else no_answer)
        yield f"{notes}/answer_list.json", list(ANSWERS)
        if split == "val":
            yield f"{notes}/vqa_val_eval.json", asked("coco", records, no_answer)
            yield (f"{notes}/{version}OpenEnded_mscoco_val2014_questions.json",
                   question_file(list(records), {}, split))
            yield f"{notes}/{version}mscoco_val2014_annotations.json", answer_file(list(records), {}, split)
    part = "testdev" if split == "val" else split
    yield f"gqa/lavis/{part}_balanced_questions.json", asked("gqa", records, one_answer if labelled else no_answer)


def clips(split: str, records: Sequence[SceneRecord]) -> Files:
    """Captions of and questions about clips, the answers by number, and the references of a captioning run."""
    for name in CLIPS:
        yield f"{name}/annotations/cap_{split}.json", [
            {"video": image(name, record), "caption": caption, "image_id": identity(name, record)}
            for record in records for caption in record.captions[:2]]
        yield f"{name}_caption_gt/{name}_caption_{split}_annotations.json", references(name, records)
        yield f"{name}/annotations/qa_{split}.json", asked(name, records, one_answer, "video")
        yield f"{name}/annotations/qa_ans2label.json", {answer: number for number, answer in enumerate(ANSWERS)}
