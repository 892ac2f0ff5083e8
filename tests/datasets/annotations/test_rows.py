"""Data sets of the papers, each read from tiny files in its published layout by its row of YAML."""

from __future__ import annotations

import json
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.config.compose import compose
from lavis_lite.config.named import dataset_names
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.loading.loader import collate
from lavis_lite.errors import DataError
from lavis_lite.registry import registry
from tests.datasets.conftest import picture
from tests.datasets.row_files import CASES, TWINS, llava, visdial


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def put(cache: Path, files: dict[str, Any], images: list[str]) -> None:
    for name, content in files.items():
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, content)) if path.suffix == ".jsonl" else json.dumps(content))
    for name in images:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1, (8, 8)).save(cache / name, "PNG")


def builder_of(name: str, kind: str = "default", *options: str) -> Any:
    run = {"model": {"arch": "blip2", "model_type": "mini"}, "datasets": {name: {"type": kind}}, "run": {}}
    Path("run.yaml").write_text(json.dumps(run))
    composition = compose("run.yaml", list(options))
    assert composition.errors == []
    section = composition.config.datasets[name]
    return registry.get_builder_class(section.builder)(name, section)


@pytest.mark.parametrize("case", CASES)
def test_a_row_reads_the_published_files(cache: Path, case: str) -> None:
    kind, files, images, splits = CASES[case]
    put(cache, files, images)
    builder = builder_of(case.split(" ")[0], kind)
    if "vqg" not in case:
        more = {"test"} if case == "ok_vqa" else set()  # LAVIS' name of val
        assert set(builder.splits()) == set(splits) | more
    for split, (count, wanted) in splits.items():
        dataset = builder.build(split, training=split == "train")
        first = dataset.sample(0)
        assert (len(dataset), {key: first[key] for key in wanted}) == (count, wanted), split
        assert set(first) == set(dataset.sample_keys) and first["image"].shape[0] == 3
        assert collate([dataset[0], dataset[len(dataset) - 1]])["image"].shape[0] == 2
        assert dataset.location(0).rpartition(":")[0]


@pytest.mark.parametrize("case", TWINS)
def test_its_twin_asks_as_the_authors_did(cache: Path, case: str) -> None:
    kind, files, images, splits = CASES[case]
    put(cache, files, images)
    sample = builder_of(f"{case}_instruct", kind).build("val", training=False)[0]
    assert sample.get("prompt", sample["text_input"]) == TWINS[case]
    if "train" in splits:
        drawn = builder_of(f"{case}_instruct", kind).build("train", training=True).sample(0, random.Random(0))
        plain = builder_of(case, kind).build("train", training=True).sample(0, random.Random(0))
        assert drawn["text_output"] and len(drawn["text_input"]) > len(plain["text_input"]) - 1


def test_every_row_for_training_language_models_has_a_twin() -> None:
    names = set(dataset_names())
    assert {name.removesuffix("_instruct") for name in names if name.endswith("_instruct")} <= names
    assert {case.split(" ")[0] + "_instruct" for case in CASES} <= names


def test_what_was_said_before_stands_in_front(cache: Path) -> None:
    put(cache, llava("conversation_58k", 3), ["coco/images/train2017/0021.jpg"])
    plain, told = (builder_of(f"llava150k_dialogue{end}").build("train", training=True) for end in ("", "_instruct"))
    before = "Q: What is she doing? A: She reads; step 0.\nQ: And then, 1? A: She reads; step 1."
    for dataset in (plain, told):
        assert dataset[2]["text_input"] == f"{before}\nAnd then, 2?" and "history" not in dataset[2]
    assert [told[at]["question_id"] for at in range(3)] == ["1-1", "1-2", "1-3"]
    assert pickle.loads(pickle.dumps(told))[1]["text_output"] == "She reads; step 1."


def test_rounds_of_a_visual_dialogue(cache: Path) -> None:
    _, files, images, _ = CASES["visdial"]
    put(cache, files, images)
    dataset = builder_of("visdial").build("val", training=False)
    assert dataset[2]["history"] == "Q: is it sunny? A: yes\nQ: any people? A: 2 of them"
    ranked = ("candidates", "label", "relevance")
    assert list(dataset.table.skim()) == [{key: value for key, value in dataset.table[at].items() if key not in ranked}
                                          for at in range(len(dataset))]
    assert sorted(dataset.evaluation_order()) == list(range(len(dataset)))
    right = [(row["label"], row["candidates"][row["label"]], len(row["candidates"])) for row in
             map(dataset.sample, range(3))]
    assert right == [(4, "yes", 100), (0, "2 of them", 100), (2, "green", 100)]
    assert dataset.question(1)["answers"] == ["2 of them"] and dataset.has_answers
    option = "datasets.visdial.relevance.val.storage=visdial/dense.json"
    put(cache, {"visdial/dense.json": [{"image_id": 185, "round_id": 2, "gt_relevance": [0, 0.5] * 50}]}, [])
    dense = builder_of("visdial", "default", option).build("val", training=False)
    assert dense.question(1)["relevance"] == [0.0, 0.5] * 50 and "relevance" not in dense.question(0)
    put(cache, {"visdial/dense.json": [{"image_id": 185, "round_id": 2}]}, [])
    with pytest.raises(DataError, match=r"dense.json:1: must have image_id, round_id and gt_relevance"):
        builder_of("visdial", "default", option).build("val", training=False)
    assert not builder_of("visdial").build("test", training=False).has_answers
    train = builder_of("visdial").build("train", training=True)
    assert train.table[0]["image"].startswith("val2014/") and "candidates" not in train.table[0]


def test_what_scores_are_grouped_by_and_left_out_by(cache: Path) -> None:
    for case in ("scienceqa", "aok_vqa"):
        put(cache, *CASES[case][1:3])
    lessons = builder_of("scienceqa").build("test", training=False)
    assert lessons.question(0)["question_type"] == "natural science"
    topics = builder_of("scienceqa", "default", "datasets.scienceqa.columns.question_type=topic")
    assert topics.build("test", training=False).question(0)["question_type"] == "physics"
    hard = builder_of("aok_vqa").build("val", training=False)
    assert hard.question(0)["difficult"] is True and "difficult" not in hard.sample(0)


def test_captions_of_a_file_of_their_own(cache: Path) -> None:
    _, files, images, _ = CASES["nocaps (lavis)"]
    put(cache, files, images)
    split = builder_of("nocaps", "lavis").build("val", training=False)
    assert split.has_text and split.references(0) == ["Thing 2, told 0.", "Thing 2, told 1."]
    assert split.domain(0) == "out-domain" and split.image_name(0) == "val/1.jpg"
    rows = [{"image": f"val/{at}.jpg", "img_id": at} for at in (1, 8, 9)]
    put(cache, {"nocaps/annotations/nocaps_val.json": rows}, [])
    with pytest.raises(DataError, match=r"no caption for 2 of the 3 images of split 'val'; image ids: 8, 9\. It"):
        builder_of("nocaps", "lavis").build("val", training=False)
    rows = [{"image": "val/1.jpg"}, {"image": "val/2.jpg", "img_id": 1}]
    put(cache, {"nocaps/annotations/nocaps_val.json": rows}, [])
    with pytest.raises(DataError, match=r"1 of 2 images .* have no image_id(.|\n)*nocaps_val.json:1"):
        builder_of("nocaps", "lavis").build("val", training=False)
    nowhere = "datasets.nocaps.references.val={storage: nowhere.json, url: null}"
    with pytest.warns(UserWarning, match="will be predicted and not scored: .*references.val"):
        assert not builder_of("nocaps", "lavis", nowhere).build("val", training=False).has_text


FAULTS = [
    ("llava150k_detail", {"llava150k/detail_23k.json": [{"id": "1", "image": "a.jpg", "conversations": [
        {"from": "gpt", "value": "no"}]}, {"id": "2", "image": "b.jpg", "conversations": [
            {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}]},
     r":1: conversations\[1\]: is from 'gpt', but a dialogue begins(.|\n)*:2: conversations\[1\]: value is empty"),
    ("visdial", {**visdial("train"), "visdial/annotations/visdial_1.0_train.json": {"data": {
        "questions": ["a"], "answers": ["b"], "dialogs": [{"image_id": 1, "dialog": [{"question": 0, "answer": 4}]},
                                                          {"image_id": 2, "dialog": [{"question": ["a"]}]}]}}},
     r"question and answer must be texts, or numbers of texts(.|\n)*:1: refers to a text that the file has not"),
    ("aok_vqa_mc", {"aokvqa/annotations/aokvqa_v1p0_train.json": [
        {"image_id": 1, "question": "a?", "choices": ["b", "c"], "correct_choice_idx": 2}]},
     r":1: field 'correct_choice_idx' is 2, not a place among the 2 choices"),
    ("hatefulmemes", {"hateful_memes/train.jsonl": [{"id": 1, "img": "a.png", "label": 3, "text": "x"}]},
     r":1: field 'label' is 3, not one of '0', '1'"),
    ("ocr_vqa", {"ocrvqa/annotations/dataset.json": {"7": {"split": 1, "imageURL": "a.jpg", "questions": ["a", "b"],
                                                           "answers": ["c"]}}},
     r":1: fields 'questions' and 'answers' must be lists of equal length"),
]


@pytest.mark.parametrize(("name", "files", "told"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_faults_are_told_by_row(cache: Path, name: str, files: dict[str, Any], told: str) -> None:
    put(cache, files, [])
    with pytest.raises(DataError, match=told):
        builder_of(name).build("train", training=True)


def read_records(cache: Path, records: Any, name: str, row: str) -> Any:
    """The rows that a data set of the package makes of published records."""
    builder: ImageQABuilder = builder_of(row)
    path = cache / name
    path.write_text("\n".join(map(json.dumps, records)) if name.endswith("l") else json.dumps(records))
    assert isinstance(builder.cfg, ImageQAConfig)
    table = builder.read([path], builder.layout("train", lambda image: False), True)
    return [table[index] for index in range(len(table))]


@pytest.mark.shared
def test_published_records(cache: Path, shared_dir: Path) -> None:
    def records(name: str) -> Any:
        return json.loads((shared_dir / "data" / "schemas" / name).read_text())

    statements = read_records(cache, records("vsr_sample.json"), "vsr.jsonl", "vsr_classification")
    assert statements[0]["answers"] == ["true"] and statements[0]["choices"] == ["false", "true"]
    talks = read_records(cache, records("llava_instruct_layout.json"), "talks.json", "llava150k_reasoning")
    assert talks[0]["image"] == "train2017/000000021248.jpg" and talks[0]["question"].startswith("What precautions")
    assert all("<image>" not in row["question"] for row in talks)
    radiology = read_records(cache, records("vqa_rad_sample.json"), "rad.json", "vqa_rad")
    assert (radiology[0]["question_id"], radiology[0]["image"]) == (1, "synpic54610.jpg")
    layout = {"nested": "QA", "columns": {"question": "q", "answers": "a"}}
    for name in ("llava_complex_reasoning_QA_layout.json", "minigpt4_caption_QA_layout.json"):
        path = cache / name
        path.write_text(json.dumps(records(name)))
        cfg = ImageQAConfig(**layout)
        builder = ImageQABuilder("talk", cfg)
        assert len(builder.read([path], builder.layout("train"), True)) >= len(records(name))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["textvqa", "vizwiz"])
def test_published_records_in_vqa_layout(cache: Path, shared_dir: Path, name: str) -> None:
    parts = json.loads((shared_dir / "data" / "schemas" / f"{name}_vqa_format.json").read_text())
    for part, content in parts.items():
        (cache / f"{part}.json").write_text(json.dumps(content))
    builder = builder_of("textvqa" if name == "textvqa" else "ok_vqa")
    builder.cfg.image_pattern = "{image_id}"
    with warnings.catch_warnings(record=True) as said:
        table = builder.read([cache / "questions.json", cache / "annotations.json"], builder.layout("val"), True)
    assert [str(one.message).partition(": ")[2] for one in said] == (
        ["no file has rows about images, so that samples have no ocr_tokens."] if name == "textvqa" else [])
    assert len(table) == len(parts["questions"]["questions"]) and sum(table[0]["counts"]) == 10


@pytest.mark.shared
def test_radiology_from_its_row(cache: Path, shared_dir: Path) -> None:
    where = shared_dir / "data" / "vqa_rad"
    info = "datasets.vqa_rad_instruct.build_info"
    options = [f"{info}.annotations.{split}.storage={where / (split + 'set.json')}" for split in ("train", "test")]
    builder = builder_of("vqa_rad_instruct", "default", *options, f"{info}.images.storage={where / 'images'}")
    train, test = builder.build("train", training=True), builder.build("test", training=False)
    assert (len(train), len(test)) == (3064, 451) and test[0]["text_input"].startswith("Question: ")
