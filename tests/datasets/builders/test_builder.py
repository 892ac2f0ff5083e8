"""Builders: from sections to data sets, and sentences about what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lavis_lite.config.schema import FileConfig, ProcessorPair
from lavis_lite.datasets.annotations.layout import answer_texts
from lavis_lite.datasets.base import image_number
from lavis_lite.datasets.builders.custom import CustomBuilder
from lavis_lite.datasets.builders.images import ImageCaptionBuilder, ImageRetrievalBuilder
from lavis_lite.errors import ConfigError, DataError, RegistryError
from lavis_lite.mini_world import GENERATORS
from lavis_lite.registry import registry


def test_caption_training_has_one_sample_per_caption(coco_section):
    dataset = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    assert len(dataset) == 16
    first, second, other = dataset[0], dataset[1], dataset[2]
    assert set(first) == set(ImageCaptionBuilder.sample_keys)
    assert first["image"].shape == (3, 16, 16) and first["image"].dtype == torch.float32
    assert (first["text_input"], second["text_input"]) == ("picture 0, caption 0", "picture 0, caption 1")
    assert first["image_id"] == second["image_id"] != other["image_id"]
    assert isinstance(first["image_id"], int) and 0 <= first["image_id"] < 2**63
    assert dataset.location(1).endswith("captions_train.json:9")  # its place among the annotations


def test_captions_per_image_keeps_the_first_of_each_in_training_only(coco_section):
    coco_section.captions_per_image = 1
    dataset = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    assert [dataset[index]["text_input"] for index in (0, 1)] == ["picture 0, caption 0", "picture 1, caption 0"]
    assert len(dataset) == 8 and dataset.location(1).endswith("captions_train.json:2")
    assert len(ImageCaptionBuilder("tiny", coco_section).build("val", training=False).text) == 8
    coco_section.captions_per_image = 0
    with pytest.raises(ConfigError, match="datasets.tiny.captions_per_image must be at least 1"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


def test_image_ids_do_not_depend_on_the_machine(coco_section, coco_folder, monkeypatch):
    monkeypatch.chdir(coco_folder)
    coco_section.build_info.images.storage = "images/"
    dataset = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    assert dataset[0]["image_id"] == image_number("images", "0.png")
    coco_section.build_info.images.storage = "images"
    again = ImageCaptionBuilder("other", coco_section).build("train", training=True)
    assert again[0]["image_id"] == dataset[0]["image_id"]


def test_caption_evaluation_has_one_sample_per_image_and_the_retrieval_lists(coco_section):
    dataset = ImageCaptionBuilder("tiny", coco_section).build("val", training=False)
    assert len(dataset) == 4
    assert dataset[2]["image_id"] == 110 and dataset[2]["index"] == 2
    assert dataset[2]["text_input"] == "picture 10, caption 0"
    assert set(dataset[0]) == set(dataset.sample_keys)
    assert dataset.image == ["8.png", "9.png", "10.png", "11.png"]
    assert len(dataset.text) == 8 and dataset.text[5] == "picture 10, caption 1"
    assert dataset.img2txt == {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6, 7]}
    assert dataset.txt2img[5] == 2


def test_two_spellings_of_a_file_are_one_image(coco_section, coco_folder):
    """Else an image would be its own hard negative, and its captions would be wrong answers to it."""
    spelled = ["8.png", "./8.png", "x/../8.png", ".//8.png", "9.png"]
    for split in ("train", "val"):
        rows = [{"image": name, "caption": f"caption {number}"} for number, name in enumerate(spelled)]
        (coco_folder / f"captions_{split}.json").write_text(json.dumps(rows))
    gallery = ImageRetrievalBuilder("tiny", coco_section).build("val", training=False)
    assert gallery.image == ["8.png", "9.png"] and gallery.img2txt == {0: [0, 1, 2, 3], 1: [4]}
    pairs = ImageRetrievalBuilder("tiny", coco_section).build("train", training=True)
    assert len({pairs[index]["image_id"] for index in range(4)}) == 1 != pairs[4]["image_id"]
    del coco_section.build_info.annotations["val"]
    coco_section.val_fraction = 0.5
    rows = [{"image": f"{start}{number}.png", "caption": "a"} for number in range(8) for start in ("", "./")]
    (coco_folder / "captions_train.json").write_text(json.dumps(rows))
    held_out = ImageRetrievalBuilder("tiny", coco_section).build("val", training=False)
    trained = ImageRetrievalBuilder("tiny", coco_section).build("train", training=True)
    assert not {row["image"] for row in trained.table.skim()} & set(held_out.image) and len(held_out) + len(trained) > 8
    assert image_number("./images", "0.png") == image_number("images/", "0.png")


def test_an_empty_file_among_several_and_one_that_is_named_twice_are_told(coco_section, coco_folder):
    (coco_folder / "none.json").write_text("[]")
    files, entry = [str(coco_folder / "captions_train.json"), str(coco_folder / "none.json")], "train"
    coco_section.build_info.annotations[entry] = FileConfig(storage=files)
    with pytest.warns(UserWarning, match=r"none.json: has no rows; the other files of its split do"):
        assert len(ImageCaptionBuilder("tiny", coco_section).build("train", training=True)) == 16
    coco_section.build_info.annotations[entry] = FileConfig(storage=[files[0], files[0]])
    with pytest.raises(DataError, match=r"annotations.train: names .*captions_train.json twice, so its rows would"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


@pytest.mark.parametrize("written", ["['a dog', 'two dogs']", '\n["a dog"]', "['a dog' 'two dogs']"])
def test_a_list_that_became_one_text_is_refused(coco_section, coco_folder, written):
    """Else a model would learn to write brackets."""
    (coco_folder / "captions_train.json").write_text(json.dumps([{"image": "0.png", "caption": written}]))
    with pytest.raises(DataError, match="field 'caption' is a list written as one text"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    with pytest.raises(ValueError, match="is a list written as one text"):
        answer_texts(written)
    assert answer_texts("[sic] a [dog]")["answers"] == ["[sic] a [dog]"]


def test_retrieval_evaluation_samples_carry_no_text(coco_section):
    dataset = ImageRetrievalBuilder("tiny", coco_section).build("val", training=False)
    assert set(dataset[0]) == {"image", "image_id", "index", "instance_id"} == set(dataset.sample_keys)
    assert len(dataset.text) == 8
    assert "image_id" in ImageRetrievalBuilder("tiny", coco_section).build("train", training=True)[0]


def test_karpathy_lists(section, coco_folder):
    train = [{"image": "0.png", "caption": "a", "image_id": "coco_7"}, {"image": "0.png", "caption": "b",
                                                                        "image_id": "coco_7"}]
    (coco_folder / "k_train.json").write_text(json.dumps(train))
    (coco_folder / "k_val.json").write_text(json.dumps([{"image": "1.png", "caption": ["c", "d"]},
                                                        {"image": "2.png", "caption": ["e"]}]))
    builder = ImageCaptionBuilder("k", section(coco_folder, {"train": "k_train.json", "val": "k_val.json"}))
    assert [builder.build("train", True)[i]["text_input"] for i in range(2)] == ["a", "b"]
    val = builder.build("val", False)
    assert val.text == ["c", "d", "e"] and val.image_ids == [1, 2]
    joined = ImageCaptionBuilder("k", section(coco_folder, {"val": "k_train.json"})).build("val", False)
    assert joined.text == ["a", "b"] and joined.image_ids == [7]
    assert joined.ids(0) == (7, "coco_7") and val.ids(1) == (2,)
    clips = [{"image": f"{number}.png", "caption": "c", "image_id": f"x_{number}.avi"} for number in (1, 2)]
    (coco_folder / "msvd.json").write_text(json.dumps(clips))
    videos = ImageCaptionBuilder("k", section(coco_folder, {"val": "msvd.json"})).build("val", False)
    assert videos.image_ids == [1, 2] and videos.ids(1) == ("x_2.avi",)


def test_a_split_that_is_not_there_is_none(coco_section):
    assert ImageCaptionBuilder("tiny", coco_section).build("test", training=False) is None


def test_captions_may_be_absent_only_where_the_section_says_so(section, coco_folder):
    (coco_folder / "n.json").write_text(json.dumps([{"image": "1.png", "img_id": 4}]))
    with pytest.raises(DataError, match=r"n.json:1: field 'caption' is missing"):
        ImageCaptionBuilder("n", section(coco_folder, {"val": "n.json"})).build("val", False)
    dataset = ImageCaptionBuilder("n", section(coco_folder, {"val": "n.json"}, captions_required=False)).build("val",
                                                                                                               False)
    assert "text_input" not in dataset[0] and dataset.text == []
    assert set(dataset[0]) == set(dataset.sample_keys)


def test_several_files_make_one_split(coco_section, coco_folder):
    coco_section.build_info.annotations["train"] = FileConfig(
        storage=[str(coco_folder / "captions_train.json"), str(coco_folder / "captions_val.json")])
    dataset = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    assert len(dataset) == 24 and dataset.location(23).endswith("captions_val.json:8")


def test_a_url_that_is_a_local_file_is_read_where_it_is(coco_section, coco_folder):
    coco_section.build_info.annotations["train"] = FileConfig(url=str(coco_folder / "captions_train.json"),
                                                              storage="nowhere/train.json")
    assert len(ImageCaptionBuilder("tiny", coco_section).build("train", training=True)) == 16


@pytest.mark.parametrize(("pair", "words"), [
    (ProcessorPair(), "names no processor"),
    (ProcessorPair(train={"name": "blip_image_train", "size": 3}), "unexpected keyword"),
    (ProcessorPair(train={"name": "blip_image_train", "image_size": -3}), "image_size must be"),
])
def test_processor_faults_name_the_key(coco_section, pair, words):
    coco_section.vis_processor = pair
    with pytest.raises(ConfigError, match=words):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


def test_unknown_processor_is_suggested(coco_section):
    coco_section.vis_processor = ProcessorPair(train={"name": "blip_image_trian"})
    with pytest.raises(RegistryError, match="did you mean 'blip_image_train'"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


# custom ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), [
    ("a.json", '[{"file": "0.png", "says": ["One.", "Two."]}, {"file": "1.png", "says": "Three"}]'),
    ("a.jsonl", '{"file": "0.png", "says": ["One.", "Two."]}\n\n{"file": "1.png", "says": "Three"}\n'),
    ("a.csv", "\ufefffile,says\r\n0.png,One.\r\n0.png,Two.\r\n1.png,Three\r\n"),
    ("a.tsv", "file\tsays\n0.png\tOne.\n0.png\tTwo.\n1.png\tThree"),
])
def test_custom_reads_every_format(custom_section, coco_folder, name, text):
    cfg = custom_section(text, name, image_column="file", caption_column="says")
    dataset = CustomBuilder("mine", cfg).build("train", training=True)
    assert [dataset[i]["text_input"] for i in range(3)] == ["one", "two", "three"]
    assert len({dataset[i]["image_id"] for i in range(3)}) == 2
    evaluation = CustomBuilder("mine", cfg).build("train", training=False)
    assert len(evaluation) == 2 and evaluation.img2txt == {0: [0, 1], 1: [2]}


def test_custom_images_default_to_the_folder_of_the_file(custom_section, coco_folder):
    cfg = custom_section('[{"image": "images/0.png", "caption": "x"}]', "a.json")
    cfg.build_info.images.storage = None
    assert CustomBuilder("mine", cfg).build("train", training=True)[0]["image"].shape == (3, 16, 16)
    assert CustomBuilder("mine", cfg).missing_files() == []


def test_custom_val_fraction_splits_by_image(custom_section):
    rows = [{"image": f"{n % 200}.png", "caption": f"c{n}"} for n in range(400)]
    builder = CustomBuilder("mine", custom_section(json.dumps(rows), "a.json", val_fraction=0.2))
    assert builder.splits() == ["train", "val"]
    train, val = builder.build("train", training=True), builder.build("val", training=False)
    train_images = {train.table[i]["image"] for i in range(len(train))}
    assert not train_images & set(val.image)
    assert len(train_images) + len(val.image) == 200 and 20 <= len(val.image) <= 60
    assert len(train) == 2 * len(train_images)


def test_custom_split_column(custom_section):
    rows = [{"image": "0.png", "caption": "a", "part": "train2017"},
            {"image": "1.png", "caption": "b", "part": "val2017"},
            {"caption": 3, "part": "of another split, so not checked"}]
    cfg = custom_section(json.dumps(rows), "a.json", split_column="part",
                         split_values={"train": "train2017", "val": "val2017"})
    builder = CustomBuilder("mine", cfg)
    assert builder.splits() == ["train", "val"]
    assert builder.build("train", training=True)[0]["text_input"] == "a"
    assert builder.build("val", training=False).image == ["1.png"]
    cfg.split_values = {"train": "nothing"}
    with pytest.raises(DataError, match=r"no rows of this split, for which column 'part' must be 'nothing'\. It is "
                                        r"'train2017' \(1 row\), .*set datasets\.mine\.split_values\.train"):
        CustomBuilder("mine", cfg).build("train", training=True)


def test_custom_id_column(custom_section):
    cfg = custom_section('[{"image": "0.png", "caption": "x", "key": "img-00042"}]', "a.json", id_column="key")
    assert CustomBuilder("mine", cfg).build("train", training=False)[0]["image_id"] == 42


def test_custom_val_fraction_must_be_a_share(custom_section):
    with pytest.raises(ConfigError, match="val_fraction"):
        CustomBuilder("mine", custom_section("[]", "a.json", val_fraction=1.5))


# what is missing ------------------------------------------------------------------------------------------------------


def test_missing_files_names_all_with_key_and_command(coco_section, tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    info = coco_section.build_info
    info.annotations = {"train": FileConfig(url="https://example.org/t.json", storage="c/t.json"),
                        "val": FileConfig(storage="c/v.json")}
    info.images.storage = "c/images"
    coco_section.how_to_get = "Ask the owner."
    missing = ImageCaptionBuilder("tiny", coco_section).missing_files()
    assert len(missing) == 3
    assert f"curl -L --fail --create-dirs -o {tmp_path}/cache/c/t.json https://example.org/t.json" in missing[0]
    assert missing[1].startswith("datasets.tiny.build_info.annotations.val.storage: ")
    assert "datasets.tiny.build_info.images.storage" in missing[2] and "Ask the owner." in missing[2]
    assert len(ImageCaptionBuilder("tiny", coco_section).missing_files(["val"])) == 2


def test_a_file_that_build_can_fetch_is_missing_only_offline(coco_section, tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    coco_section.build_info.annotations["train"] = FileConfig(url="https://example.org/t.json", storage="c/t.json")
    builder = ImageCaptionBuilder("tiny", coco_section)
    assert builder.missing_files() == []
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    assert len(builder.missing_files()) == 1
    with pytest.raises(DataError, match=r"LAVIS_LITE_OFFLINE.*forbids.*curl -L"):
        builder.build("train", training=True)


def test_file_lists_of_unequal_length_are_refused(coco_section):
    coco_section.build_info.annotations["train"] = FileConfig(url=["https://a/1", "https://a/2"], storage=["x"])
    with pytest.raises(ConfigError, match=r"annotations.train.storage has 1 entries, but the others have 2"):
        ImageCaptionBuilder("tiny", coco_section).missing_files()


def test_a_split_without_any_place_is_refused(coco_section):
    coco_section.build_info.annotations["train"] = FileConfig()
    with pytest.raises(ConfigError, match="give `storage`"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


def test_unknown_generator(coco_section):
    coco_section.prepare = "mini_wrld"
    with pytest.raises(ConfigError, match="did you mean 'mini_world'"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


def test_prepared_files_are_found_first(coco_section, coco_folder, monkeypatch):
    calls = []

    def generate(root: Path, train: int = 0) -> Path:
        calls.append((root, train))
        return coco_folder

    monkeypatch.setenv("LAVIS_LITE_CACHE", str(coco_folder / "cache"))
    monkeypatch.setitem(GENERATORS, "g", "generator_of_this_test:generate")
    monkeypatch.setitem(__import__("sys").modules, "generator_of_this_test", type("M", (), {"generate": generate}))
    coco_section.prepare, coco_section.prepare_args = "g", {"train": 8}
    coco_section.build_info.annotations["train"] = FileConfig(storage="captions_train.json")
    coco_section.build_info.images.storage = "images"
    builder = ImageCaptionBuilder("tiny", coco_section)
    assert builder.missing_files() == [] and not calls
    assert len(builder.build("train", training=True)) == 16
    assert calls == [(coco_folder / "cache" / "g" / "train=8", 8)]
    coco_section.prepare_args = {"trian": 8}
    with pytest.raises(ConfigError, match=r"datasets.tiny.prepare_args: .*trian"):
        builder.build("train", training=True)


def test_builders_are_registered():
    assert registry.get_builder_class("custom") is CustomBuilder
    assert registry.get_builder_class("image_caption") is ImageCaptionBuilder
    assert registry.get_builder_class("image_retrieval") is ImageRetrievalBuilder


def test_fetch_brings_what_has_a_url_and_names_what_has_none(coco_section, coco_folder, tmp_path, monkeypatch):
    coco_section.build_info.annotations = {
        "train": FileConfig(url=(coco_folder / "captions_train.json").as_uri(), storage="nowhere/t.json")}
    builder = ImageCaptionBuilder("tiny", coco_section)
    builder.fetch()
    coco_section.build_info.annotations["val"] = FileConfig(storage="nowhere/v.json")
    with pytest.raises(DataError, match=r"tiny.build_info.annotations.val.storage: .*nowhere/v.json is not here"):
        builder.fetch()
