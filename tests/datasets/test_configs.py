"""Every data set row that ships: composes, names what is missing for it, and its builder takes it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lavis_lite.config.compose import compose
from lavis_lite.config.named import dataset_names
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.builders.custom import CustomBuilder, CustomConfig
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.loading.loader import eval_loader, train_loader
from lavis_lite.datasets.loading.policy import TrainingSamples
from lavis_lite.datasets.loading.sampler import GlobalSampler, SampleKey
from lavis_lite.errors import ConfigError
from lavis_lite.preflight import check, missing
from lavis_lite.registry import registry


def composed(folder: Path, datasets: str, *options: str):
    run = "run: {task: image_text_pretrain, runner: runner_iter, max_iters: 1, train_splits: []}"
    path = folder / "run.yaml"
    path.write_text(f"model: {{arch: blip2, model_type: mini}}\ndatasets: {datasets}\n{run}\n")
    return compose(str(path), list(options))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", dataset_names())
def test_every_row_composes_and_says_what_it_needs(tmp_path, name):
    composition = composed(tmp_path, f"{{{name}: {{}}}}")
    assert check(composition) == []
    section = composition.config.datasets[name]
    builder = registry.get_builder_class(section.builder)(name, section)
    needs = builder.missing_files()
    wanted = [sentence for sentence in missing(composition.config) if sentence.startswith("datasets.")]
    assert set(wanted) <= set(needs)  # a run needs the files of its own splits only
    if section.prepare:
        assert needs == []
        return
    media = section.data_type if isinstance(section.data_type, str) else section.data_type[0]
    if section.builder != "image_shards":  # those bring their images
        assert any(f"datasets.{name}.build_info.{media}.storage" in sentence for sentence in needs)
    for split in builder.splits():
        assert any(f"datasets.{name}.build_info.annotations.{split}" in sentence for sentence in needs)
    assert all("curl" in sentence or "set the key" in sentence or "https://" in sentence for sentence in needs)


def test_rows_of_lavis_pass(tmp_path):
    lavis = """{coco_caption: {type: default, data_type: [images], vis_processor: {train: {name: blip2_image_train,
        image_size: 224}, eval: {name: blip_image_eval, image_size: 224}}, text_processor: {train: {name: blip_caption,
        prompt: "a photo of "}, eval: {name: blip_caption}}, build_info: {annotations: {train: {url: [/data/a.json],
        storage: [coco/a.json]}}, images: {storage: /data/coco/}}}}"""
    composition = composed(tmp_path, lavis)
    assert composition.errors == []
    section = composition.config.datasets["coco_caption"]
    assert section.vis_processor.train == {"name": "blip2_image_train", "image_size": 224}
    assert section.text_processor.train["prompt"] == "a photo of "


def test_a_row_without_processors_takes_the_models_and_may_change_one_parameter(tmp_path):
    plain = composed(tmp_path, "{coco_caption: {}}").config
    assert plain.datasets["coco_caption"].vis_processor.eval == plain.preprocess.vis_processor.eval
    option = "datasets.coco_caption.vis_processor.train.image_size=96"
    changed = composed(tmp_path, "{coco_caption: {}}", option).config
    assert changed.datasets["coco_caption"].vis_processor.train == {
        **plain.preprocess.vis_processor.train, "image_size": 96}


def test_a_row_may_be_another_one_with_changes(tmp_path):
    sections = composed(tmp_path, "{coco_vqa: {type: lavis}, coco_vqa_instruct: {type: lavis}}").config.datasets
    plain, instructed = sections["coco_vqa"], sections["coco_vqa_instruct"]
    assert plain.build_info == instructed.build_info and plain.instruction.train is None
    assert instructed.instruction.train == {"name": "instruction", "templates": "vqa"}
    faults = composed(tmp_path, "{coco_vqa_instruct: {type: lavi}}").errors
    assert len(faults) == 1 and "no type 'lavi'" in faults[0]


def test_a_question_is_put_into_one_prompt_only(tmp_path):
    options = ["run.task=vqa", "run.prompt='Question: {} Answer:'"]
    assert check(composed(tmp_path, "{mini_world_vqa: {}}", *options)) == []
    composition = composed(tmp_path, "{mini_world_vqa_instruct: {}}", *options)
    assert check(composition) == [] and any("run.prompt goes before it" in note for note in composition.config.notes)
    own = "{mini_world_vqa_instruct: {instruction: {eval: {name: instruction, templates: ['Q: {}']}}}}"
    faults = check(composed(tmp_path, own, *options))
    assert len(faults) == 1 and "puts questions into a prompt already" in faults[0]


def test_questions_of_the_mini_world(tmp_path):
    arguments = "{prepare_args: {train: 4, val: 2, test: 0, ood: 0, workers: 1, progress: false}}"
    section = composed(tmp_path, f"{{mini_world_vqa: {arguments}}}").config.datasets["mini_world_vqa"]
    builder = registry.get_builder_class("image_qa")("mini_world_vqa", section)
    train, val = builder.build("train", training=True), builder.build("val", training=False)
    assert len(train) == 12 and train[0]["image"].shape == (3, 64, 64)
    assert train[0]["text_output"] in train[0]["answers"] and train[0]["weights"] == [1.0]
    assert val.image_name(0) == "val/000000.jpg" and len(val.question(0)["answers"]) == 10
    assert val.question(0)["question_type"] in ("color", "shape", "count", "existence", "relation", "comparison")


def test_held_out_question_types_are_only_in_the_splits_that_are_not_trained_on(tmp_path):
    arguments = "{prepare_args: {train: 12, val: 6, test: 0, ood: 0, workers: 1, progress: false}}"
    section = composed(tmp_path, f"{{mini_world_vqa_held_in: {arguments}}}").config.datasets["mini_world_vqa_held_in"]
    builder = registry.get_builder_class("image_qa")("mini_world_vqa_held_in", section)
    train, val = builder.build("train", training=True), builder.build("val", training=False)
    assert {row["question_type"] for row in train.table.skim()} == {"color", "count", "comparison"}
    assert {val.question(at)["question_type"] for at in range(len(val))} == {
        "color", "shape", "count", "existence", "relation", "comparison"}
    section.question_types = {"trian": ["color"]}
    with pytest.raises(ConfigError, match=r"question_types.trian: the data set has no such split"):
        registry.get_builder_class("image_qa")("mini_world_vqa_held_in", section)


def test_preflight_knows_the_splits_that_a_builder_makes(tmp_path):
    section = "{mine: {builder: custom, val_fraction: 0.1, build_info: {annotations: {train: {storage: a.json}}}}}"
    assert check(composed(tmp_path, section, "run.valid_splits=[val]")) == []
    faults = check(composed(tmp_path, section, "run.valid_splits=[test]"))
    assert len(faults) == 1 and "data set mine has no split 'test'" in faults[0]
    wrong = check(composed(tmp_path, section, "datasets.mine.val_fraction=2"))
    assert len(wrong) == 1 and "val_fraction" in wrong[0]


def test_mini_world_is_generated_and_read(tmp_path):
    arguments = "{prepare_args: {train: 6, val: 2, test: 0, ood: 0, workers: 1, progress: false}}"
    section = composed(tmp_path, f"{{mini_world_caption: {arguments}}}").config.datasets["mini_world_caption"]
    builder = ImageCaptionBuilder("mini_world_caption", section)
    train, val = builder.build("train", training=True), builder.build("val", training=False)
    assert len(train) == 30 and len(val) == 2 and len(val.text) == 10
    assert train[0]["image"].shape == (3, 64, 64)
    folders = list((tmp_path / "cache" / "mini_world").iterdir())
    assert any("train=6" in folder.name for folder in folders)


def test_what_workers_get_can_be_pickled(coco_section):
    samples = TrainingSamples([ImageCaptionBuilder("tiny", coco_section).build("train", training=True)], 0)
    again = pickle.loads(pickle.dumps(samples))
    key = SampleKey(0, 3, 1, 9)
    assert (again[key]["image"] == samples[key]["image"]).all()


@pytest.mark.shared
def test_photographs_by_the_custom_builder(shared_dir, section):
    folder = shared_dir / "data" / "coco_photos"
    cfg: CustomConfig = section(folder, {"train": "annotations.json"}, CustomConfig, split_column="split",
                                split_values={"train": "train2017", "val": "val2017"}, id_column="coco_id")
    builder = CustomBuilder("photos", cfg)
    train, val = builder.build("train", training=True), builder.build("val", training=False)
    assert len(train) + 5 * len(val) == 5 * 239 and len(val.text) == 5 * len(val)
    assert val.image_ids[0] == int(val.image[0].split("_")[-1].split(".")[0])
    run = RunConfig(batch_size_train=8, num_workers=0, device="cpu", batch_size_eval=16)
    batch = next(iter(train_loader([train], GlobalSampler([len(train)], 0, 8), run, 0, 1, 0, 1)))
    assert batch["image"].shape == (8, 3, 16, 16) and len(set(batch["text_input"])) == 8
    assert sum(len(part["index"]) for part in eval_loader(val, run)) == len(val)
