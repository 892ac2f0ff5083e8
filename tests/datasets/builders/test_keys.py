"""Every key of every builder's section either changes what the builder gives, or is refused: none is ignored."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import BuildInfo, FileConfig, ProcessorPair, StorageConfig
from lavis_lite.datasets.builders.images import StreamConfig
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.errors import ConfigError, LavisLiteError
from lavis_lite.mini_world.avi import motion_jpeg
from lavis_lite.registry import registry
from tests.datasets.conftest import picture

BUILDERS = ("custom", "image_caption", "image_retrieval", "image_shards", "image_qa", "image_dialogue", "video_caption",
            "video_qa", "video_dialogue", "chat", "video_retrieval", "images_qa", "image_classes")
ELSEWHERE = {
    "builder": "config.compose chooses the class by it", "type": "config.compose chooses the row by it",
    "sampling_factor": "config.mixing", "train_size": "config.mixing",
    "data_type": "load_dataset's vis_path and data check choose the kind of files by it",
}
"""keys that the builder itself need not know"""
UNUSED = {("chat", "text_processor"): "texts stay as written; a model type's default may name one"}
"""(builder, key) without an effect that is not refused -> why"""
IMAGES = 6


def rows() -> list[dict[str, Any]]:
    """Rows that are captions, questions and dialogues at once."""
    return [{"image": f"{at}.png", "pair": [f"{at}.png", f"{at + 1}.png"],
             "video": f"{at}.avi", "file": f"{at + 1}.png", "clip": f"{at + 1}.avi", "number": at,
             "part": "train" if at < 3 else "val", "caption": [f"One {at}!", f"Two {at}."], "says": f"Said {at}.",
             "image_id": 10 + at, "question": f"What is {at}?", "asks": f"Who is {at}?", "answer": f"a{at}",
             "reply": f"b{at}", "options": [f"a{at}", f"b{at}"], "qid": f"q{at}", "hint": "" if at else "h",
             "conversations": [{"from": "human", "value": f"<image>\nWho {at}?"}, {"from": "gpt", "value": "He."},
                               {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
            for at in range(IMAGES - 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, clips, shards and annotation files of many layouts."""
    place = tmp_path_factory.mktemp("keys")
    (place / "media").mkdir()
    (place / "broken").mkdir()
    for at in range(IMAGES):
        frames = []
        for frame in range(3):
            buffer = io.BytesIO()
            picture(10 * at + frame, (24, 16)).save(buffer, "JPEG")
            frames.append(buffer.getvalue())
        (place / "media" / f"{at}.avi").write_bytes(motion_jpeg(frames, 24, 16))
        picture(at).save(place / "media" / f"{at}.png")
        (place / "broken" / f"{at}.avi").write_bytes(b"no video")
    (place / "outside.png").write_bytes((place / "media" / "5.png").read_bytes())
    (place / "linked").mkdir()
    (place / "linked" / "0.png").symlink_to(place / "outside.png")
    (place / "linked" / "0.avi").symlink_to(place / "media" / "5.avi")
    for split in ("train", "val"):
        for at in range(2):
            (place / "classes" / split / f"n{at}").mkdir(parents=True)
            picture(at).save(place / "classes" / split / f"n{at}" / "0.png")
    for name, content in annotation_files().items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content.encode("cp1252"))
    pack(place / "shards", rows())
    pack(place / "others", rows()[1:])
    return place


def annotation_files() -> dict[str, str]:
    given = rows()
    pairs = [{key: row[key] for key in ("image", "pair", "video", "question", "answer")} for row in given]
    nested = [{"image": row["image"], "pair": row["pair"], "video": row["video"],
               "inner": [{"question": "A?", "answer": "b"}] * 1}
              for row in given]
    tables = {f"{name}.csv": "\n".join(
        mark.join(quote + str(row[column]).replace('"', '""') + quote if quote else str(row[column])
                  for column in ("image", "video", "says", "asks", "reply")) for row in
        [dict(zip(*[("image", "video", "says", "asks", "reply")] * 2, strict=True)), *given])
        for name, mark, quote in (("hash", "#", ""), ("plain", ",", ""))}
    odd = tables["plain.csv"].replace("Said 1.", '"Said" 1.').replace("Who is 1?", '"Who" is 1?')
    talk = 'image#conversations\n0.png#[{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "He"}]\n'
    return {
        **{name: json.dumps(part).replace("He.", "He?") for name, part in (
            ("chat.json", talks(given)), ("chat_val.json", talks(given[1:])), ("chat_one.json", talks(given[:1])))},
        "chat_plain.json": json.dumps(talks(given), ensure_ascii=False).replace("He.", "Caf\u00e9."),
        "chat_video.json": json.dumps([{**row, "conversations": [{"from": "human", "value": "<video>"}, row[
            "conversations"][1]]} for row in videos(given)]),
        "train.json": json.dumps(given), "val.json": json.dumps(given[1:]), "odd.csv": odd, **tables,
        "one.json": json.dumps(given[:1]), "talk.csv": talk, "talk_odd.csv": talk.replace("#", ",").replace(
            "0.png", '"0" .png'),
        "plain.json": json.dumps([{**row, "hint": "x"} for row in given]).replace("He.", "Caf\u00e9.").replace(
            "Said", "Caf\u00e9").replace("What", "Caf\u00e9").replace("One", "Caf\u00e9"),
        "silent.json": json.dumps([{"image": row["image"], "video": row["video"]} for row in given]),
        "keyed.json": json.dumps({f"{at}": row for at, row in enumerate(pairs)}),
        "nested.json": json.dumps(nested),
        "parallel.json": json.dumps([{**row, "question": ["A?"], "answer": ["b"]} for row in pairs]),
        "facts.json": json.dumps([{"image": row["image"], "video": row["video"], "hint": "h"} for row in given]),
        "folder/a/data.json": json.dumps(pairs[0]),
        "names.json": json.dumps({"n0": "tench", "n1": "crane"}), "others.json": json.dumps({"n1": "b", "n0": "a"}),
        "answers.json": json.dumps(["a1", "a0"]),
        "references.json": json.dumps([{"image_id": 10 + at, "caption": "Refer."} for at in range(IMAGES)]),
        "dense.json": json.dumps([{"image_id": 0, "round_id": 1, "gt_relevance": [0.5, 0.5]}]),
        "visdial.json": json.dumps({"data": {"questions": ["q"], "answers": ["a", "b"], "dialogs": [
            {"image_id": 0, "image": "0.png", "video": "0.avi", "caption": "c", "dialog": [
                {"question": 0, "answer": 0, "answer_options": [0, 1], "gt_index": 0}] * 2}]}}),
    }


def talks(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Conversations about images."""
    return [{key: row[key] for key in ("image", "file", "part", "conversations")} for row in given]


def videos(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Conversations about videos."""
    return [{key: row[key] for key in ("video", "conversations")} for row in given]


def pack(out: Path, given: list[dict[str, Any]]) -> None:
    out.mkdir()
    with tarfile.open(out / "0.tar", "w") as tar:
        for row in given:
            for suffix, content in (("png", (out.parent / "media" / row["image"]).read_bytes()),
                                    ("json", json.dumps({**row, "image": 0}).encode())):
                member = tarfile.TarInfo(f"{row['number']}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    index_folder(out, ["says", "part", "image_id"], log=lambda text: None)


# --- what a builder gives, as text ------------------------------------------------------------------------------------
def observe(name: str, section: Any) -> str:
    """All that can be seen of the data sets of a section, and what it is refused with."""
    try:
        builder = registry.get_builder_class(name)("own", section)
        seen = [builder.splits(), builder.missing_files()]
        for split in builder.splits():
            seen += [attempt(lambda split=split, training=training: describe(builder.build(split, training)))
                     for training in (True, False)]
    except LavisLiteError as fault:
        return f"refused: {fault}"
    return "\n".join(map(str, seen))


def attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except LavisLiteError as fault:
        return f"{type(fault).__name__}: {fault}"


def describe(dataset: Any) -> str:
    found = [len(dataset), getattr(dataset, "answer_list", None), getattr(dataset, "text", None)]
    for index in range(min(len(dataset), 2)):  # of more rows a key changes the number
        found.append(attempt(lambda index=index: plain(dataset.sample(index, random.Random(3)))))
        found += [getattr(dataset, name)(index) for name in ("references", "question") if hasattr(dataset, name)]
    return "\n".join(map(str, found))


def plain(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: (tuple(value.shape), round(float(value.sum()), 3)) if torch.is_tensor(value) else value
            for key, value in sample.items()}


# --- sections ---------------------------------------------------------------------------------------------------------
def base(name: str, folder: Path, **changes: Any) -> Any:
    """A section that the builder reads, with these keys; a `file` is the annotation file of both splits."""
    cls = registry.get_builder_class(name).config_class
    shards, video = name == "image_shards", name.startswith("video")
    train, val = ("shards", "others") if shards else ("train.json", "val.json")
    if name == "chat":
        train, val = "chat.json", "chat_val.json"
    if name == "image_classes":
        train = val = "names.json"
    if "file" in changes:
        train = val = changes.pop("file")
    usual = "classes" if name == "image_classes" else "media"
    media = StorageConfig(storage=str(folder / changes.pop("media", usual)),
                          follow_links=changes.pop("follow_links", None))
    info = BuildInfo(annotations={"train": FileConfig(storage=str(folder / train)),
                                  "val": FileConfig(storage=str(folder / val))},
                     **({} if shards else {"videos" if video else "images": media}))
    eye = {"name": "alpro_video_eval", "image_size": 8, "n_frms": 2} if video else {
        "name": "blip_image_eval", "image_size": 8}
    mouth = {"name": "blip_caption"}
    changed = dict(changes)
    if name == "custom" and "custom_questions" not in changed:
        changed = {"image_column": "image", "caption_column": "caption", "id_column": "image_id", **changed}
    if name == "images_qa":
        changed["columns"] = {"image": "pair", **changed.get("columns", {})}
    changed.pop("custom_questions", None)
    return cls(builder=name, build_info=changed.pop("build_info", info),
               vis_processor=changed.pop("vis_processor", ProcessorPair(train=eye, eval=eye)),
               text_processor=changed.pop("text_processor", ProcessorPair(train=mouth, eval=mouth)), **changed)


def question_base(**more: Any) -> dict[str, Any]:
    """A `custom` section of questions."""
    return {"custom_questions": True, "image_column": "image", "question_column": "question", "answer_column": "answer",
            **more}


@functools.cache
def cases(name: str, folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Key -> (what the section has besides, what is changed in it)."""
    talks, asks, video = name.endswith(("_dialogue", "chat")), name.endswith("_qa"), name.startswith("video")
    media = "video" if video else "image"
    small = ProcessorPair(*2 * [{"name": "alpro_video_eval", "image_size": 9, "n_frms": 2} if video else
                                {"name": "blip_image_eval", "image_size": 9}])
    table = {"columns": {"question": "asks", "answer": "reply"}} if asks else (
        {"image_column": "image", "caption_column": "says", "id_column": None} if name == "custom" else
        {} if talks else {"columns": {"caption": "says", "image": media}})
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "build_info": ({}, {"file": {"image_shards": "others", "image_classes": "others.json"}.get(name, "val.json")}),
        "question": ({}, {"question": "an image of a"}),
        "vis_processor": ({}, {"vis_processor": small}),
        "text_processor": ({}, {"text_processor": ProcessorPair(*2 * [{"name": "blip_caption", "prompt": "Say "}])}),
        "kw_processor": ({}, {"kw_processor": {"name": "x"}}),
        "prepare": ({}, {"prepare": "nothing"}), "prepare_args": ({}, {"prepare_args": {"train": 3}}),
        "how_to_get": ({"file": "nowhere"} if name == "image_shards" else {"media": "nowhere"}, {"how_to_get": "Ask."}),
        "max_pixels": ({}, {"max_pixels": 10}),
        "captions_per_image": ({}, {"captions_per_image": 1}),
        "captions_required": ({"file": "silent.json"} if name != "image_shards" else {"columns": {"caption": "none"}},
                              {"captions_required": False}),
        "references": ({}, {"references": {"val": FileConfig(storage=str(folder / "references.json"))}}),
        "columns": ({}, {"columns": {media: "clip" if video else "file"} | (
            {"image": "clip"} if name in ("video_caption", "video_retrieval") else {"image": "file"} if talks else
            {"question": "asks"} if asks else {"caption": "says"})}),
        "image_pattern": ({}, {"image_pattern": "{image_id}.avi" if video else "{image_id}.png"}),
        "split_column": ({}, {"split_column": "part"}),
        "split_values": ({"split_column": "part"}, {"split_column": "part", "split_values": {"train": "val"}}),
        "val_fraction": ({"build_info": info_of(name, folder)}, {"build_info": info_of(name, folder),
                                                               "val_fraction": 0.5}),
        "captions": ({}, {"captions": "random"}),
        "features": ({}, {"features": "nowhere"}),
        "arrays": ({}, {"arrays": {"eeg": StreamConfig(storage="nowhere")}}),
        "instruction": ({}, {"instruction": ProcessorPair(train={"name": "instruction", "templates": ["Say: {}"]})}),
        "delimiter": ({**table, "file": "talk.csv" if talks else "hash.csv"}, {"delimiter": "#"}),
        "quoting": ({**table, "file": "talk_odd.csv" if talks else "odd.csv"}, {"quoting": "none"}),
        "encoding": ({"file": "chat_plain.json" if name == "chat" else "plain.json"}, {"encoding": "cp1252"}),
        "check_files": ({"media": "nowhere"}, {"check_files": False}),
        "video_frames": ({"file": "chat_video.json"}, {"video_frames": 2}),
        "key_column": ({"file": "keyed.json"}, {"key_column": "question_id"}),
        "row_files": ({} if talks else {"file": "folder", "key_column": "name"}, {"row_files": "*/data.json"}),
        "nested": ({"file": "nested.json"}, {"nested": "inner"}),
        "parallel": ({"file": "parallel.json"}, {"parallel": ["question", "answer"]}),
        "required": ({}, {"required": ["hint"]}),
        "join_column": ({"build_info": joined(name, folder), "columns": {"context": "hint"}}, {"join_column": media}),
        "answer_words": ({"file": "one.json"}, {"answer_words": {"a0": "yes", "b0": "no"}}),
        "answer_list": ({}, {"answer_list": FileConfig(storage=str(folder / "answers.json"))}),
        "learn": ({}, {"learn": "last" if name == "chat" else "question"}),
        "reader": ({"file": "chat_video.json" if name == "chat" else "train.json", "media": "broken"},
                   {"reader": "av"}),
        "question_types": ({"columns": {"question_type": "part"}} if asks else {},
                           {"question_types": {"train": ["val"]}}),
        "turn": ({}, {"turn": "Ask {} Say {}"}), "asked": ({}, {"asked": "last"}),
        "relevance": ({"file": "visdial.json"}, {"relevance": {"val": FileConfig(storage=str(folder / "dense.json"))}}),
        "image_column": ({}, {"image_column": "file"}), "caption_column": ({}, {"caption_column": "says"}),
        "question_column": (question_base(), {"question_column": "asks"}),
        "answer_column": (question_base(), {"answer_column": "reply"}),
        "choices_column": (question_base(), {"choices_column": "options"}),
        "id_column": ({}, {"id_column": "number"}),
        "question_id_column": (question_base(), {"question_id_column": "qid"}),
    }
    return found


def info_of(name: str, folder: Path) -> BuildInfo:
    """One annotation file, the train split's."""
    info: BuildInfo = base(name, folder).build_info
    return dataclasses.replace(info, annotations={"train": info.annotations["train"]})


def joined(name: str, folder: Path) -> BuildInfo:
    """Questions and facts about their images in two files."""
    info: BuildInfo = base(name, folder).build_info
    names = [str(folder / file) for file in ("keyless.json", "facts.json")]
    (folder / "keyless.json").write_text(json.dumps([{key: row[key] for key in ("image", "video", "question", "answer")}
                                                     for row in rows()]))
    return dataclasses.replace(info, annotations={"train": FileConfig(storage=names)})


@functools.cache
def unchanged(name: str, folder: Path) -> str:
    """What a builder gives of the section with which most keys are compared."""
    return observe(name, base(name, folder))


KEYS = [(name, field.name) for name in BUILDERS for field in
        dataclasses.fields(registry.get_builder_class(name).config_class)
        if field.name not in ELSEWHERE and (name, field.name) not in UNUSED]


def test_all_builders_are_looked_at() -> None:
    assert set(BUILDERS) == set(registry.builder.builtins)


@pytest.mark.parametrize(("name", "key"), KEYS, ids=[f"{name}-{key}" for name, key in KEYS])
def test_a_key_has_an_effect_or_is_refused(folder: Path, name: str, key: str) -> None:
    besides, changes = cases(name, folder)[key]
    ignored = registry.get_builder_class(name).ignored_keys
    if name == "image_classes" and key in ignored:
        besides, changes = {}, {key: changes[key]}  # what a case has besides is refused as well
    before = observe(name, base(name, folder, **besides)) if besides else unchanged(name, folder)
    after = observe(name, base(name, folder, **{**besides, **changes}))
    if key in ignored:
        assert after.startswith("refused: ") and f"datasets.own.{key} has no effect" in after
    else:
        assert before != after


@pytest.mark.parametrize("name", BUILDERS)
def test_folders_of_other_kinds_are_refused(folder: Path, name: str) -> None:
    section = base(name, folder)
    other = "images" if name.startswith("video") else "videos"
    for part in ("features",) if name == "chat" else (other, "features"):
        info = dataclasses.replace(section.build_info, **{part: StorageConfig(storage="x")})
        with pytest.raises(ConfigError, match=f"datasets.own.build_info.{part} has no effect with builder {name}: "):
            registry.get_builder_class(name)("own", dataclasses.replace(section, build_info=info))
    info = dataclasses.replace(section.build_info, storage="x")
    with pytest.raises(ConfigError, match="datasets.own.build_info.storage has no effect"):
        registry.get_builder_class(name)("own", dataclasses.replace(section, build_info=info))


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("image_shards", "image_classes")])
def test_links_are_followed_as_the_section_says(folder: Path, name: str) -> None:
    one = "chat_one.json" if name == "chat" else "one.json"
    seen = {follow: observe(name, base(name, folder, file=one, media="linked", follow_links=follow))
            for follow in (None, True, False)}
    assert seen[None] == seen[True] != seen[False] and "follow_links" in seen[False]


@pytest.mark.parametrize(("changes", "words"), [
    ({"split_values": {"train": "a"}}, r"split_values has no effect without split_column"),
    ({"prepare_args": {"train": 3}}, r"prepare_args has no effect without prepare"),
    ({"references": {"vall": FileConfig(storage="x")}},
     r"references.vall: the data set has no such split; did you mean"),
    ({"image_pattern": {"trian": "{image_id}.png"}}, r"image_pattern.trian: .* did you mean 'train'"),
    ({"data_type": "videos"}, r"data_type is videos, but builder image_caption reads images"),
])
def test_keys_that_need_another(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        registry.get_builder_class("image_caption")("own", base("image_caption", folder, **changes))


def test_shards_of_questions_are_not_split_again(folder: Path) -> None:
    section = base("image_qa", folder, file="shards", split_column="part")
    with pytest.raises(ConfigError, match="shards of questions hold the rows of one split"):
        registry.get_builder_class("image_qa")("own", section).build("train", training=True)


def test_custom_refuses_what_captions_do_nothing_with(folder: Path) -> None:
    for changes in ({"columns": {"caption": "says"}}, {"choices_column": "options"}, {"question_id_column": "qid"}):
        (key,) = changes
        with pytest.raises(ConfigError, match=f"datasets.own.{key} has no effect"):
            registry.get_builder_class("custom")("own", base("custom", folder, **changes)).build("train", training=True)
