"""LAVIS' own run files and data-set sections, rebuilt from the inventory of their keys, compose with their meaning."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_lite.config.compose import Composition, compose
from lavis_lite.preflight.run import check

OUTSIDE = "holds point clouds, which are outside of this package's scope"
TRUE_NOTES = [
    r"run\.(world_size|dist_url|distributed) has no effect: the launcher",
    r"run\.use_dist_eval_sampler has no effect",
    r"run\.(inference_method|ques_files|anno_files) belongs to another task",
    r"vis_processor\.(train|eval)\.(full_video|min_scale|max_scale) has no effect",
    r"build_info\.instance_id_key has no effect: no code of LAVIS reads it",
    r"dataset_card has no effect",
    r"datasets\.\w+\.instruction: run\.prompt goes before it",
    r"model\.apply_lemmatizer: spaCy's",
    r"model\.prompt: 'Question: \{\} Short Answer:' is not put around questions",
]
TRANSLATED = ("datasets.", "model.model_type", "run.save_freq")


@pytest.fixture(scope="module")
def inventory(shared_dir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads((shared_dir / "facts/lavis_yaml_inventory.json").read_text())


RUN = """
model: {arch: blip2, model_type: mini}
datasets: {%s: %s}
run: {task: image_text_pretrain, max_iters: 1}
"""


def with_data(folder: Path, name: str, section: str) -> Composition:
    path = folder / "own.yaml"
    path.write_text(RUN % (name, section))
    return compose(path)


@pytest.mark.parametrize("name", ["laion400M", "laion2B_multi", "laion400M_instruct"])
def test_shards_at_the_place_where_lavis_names_them(tmp_path: Path, name: str) -> None:
    found = with_data(tmp_path, name, "{build_info: {storage: '/laion/{00000..01743}.tar'}}")
    info = found.config.datasets[name].build_info
    assert not errors_of(found) and (info.storage, info.annotations) == ("/laion/{00000..01743}.tar", {})
    both = with_data(tmp_path, name, "{build_info: {storage: a.tar, annotations: {train: {storage: b.tar}}}}")
    assert any("storage has no effect beside" in error for error in errors_of(both))


@pytest.mark.parametrize(("name", "words"), [
    ("audiocaps_mm_qa", "holds sound, which are outside"), ("objaverse_mm_caption_instruct", "holds point clouds"),
    ("webvid_caption", r"has no row here. Its lists \{video, caption\} are read by `builder: video_caption`"),
    ("msvd_captions", "neither a named data set nor a registered builder; did you mean 'msvd_caption'"),
])
def test_a_data_set_without_a_row_says_why(tmp_path: Path, name: str, words: str) -> None:
    assert re.search(words, "\n".join(with_data(tmp_path, name, "{}").errors))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in flat.items():
        at, *parts = out, *key.split(".")
        for part in parts[:-1]:
            at = at.setdefault(part, {})
        at[parts[-1]] = value
    return out


def errors_of(composition: Composition) -> list[str]:
    """Everything that would stop the run but missing files."""
    return check(composition)


def kept_meaning(flat: dict[str, Any], composition: Composition) -> list[str]:
    """Keys of model and run whose value is not the file's."""
    config: Any = composition.config
    other = []
    for key, value in flat.items():
        section, _, name = key.partition(".")
        holder = getattr(config, section, None)
        if section in ("model", "run") and "." not in name and hasattr(holder, name):
            found = getattr(holder, name)
            same = float(found) == float(value) if isinstance(found, float) and value is not None else found == value
            if not same and value is not None:
                other.append(f"{key}: {value!r} became {found!r}")
    return other


def test_every_run_file_composes_with_its_meaning_or_is_refused_by_name(inventory: Any, tmp_path: Path) -> None:
    refused = []
    assert len(inventory["runs"]) == 39
    for name, flat in inventory["runs"].items():
        path = tmp_path / name.replace("/", "_")
        path.write_text(yaml.safe_dump(nested(flat)))
        composition = compose(path)
        found = errors_of(composition)
        if any(OUTSIDE in line for line in found):
            refused.append(name)
            continue
        assert found == [], name
        assert kept_meaning(flat, composition) == [], name
        false = [note for note in composition.config.notes if not any(re.search(true, note) for true in TRUE_NOTES)]
        assert false == [], name
    assert refused == ["instructblip/classification_modelnet40_vicuna13b.yaml",
                       "instructblip/completion_modelnet40_vicuna13b.yaml"]


def test_every_section_of_a_data_set_composes(inventory: Any, tmp_path: Path) -> None:
    assert len(inventory["datasets"]) == 32
    for name, flat in inventory["datasets"].items():
        path = tmp_path / name.replace("/", "_")
        video = any("alpro_video" in str(value) for value in flat.values())
        splits = [key.split(".")[3] for key in flat if key.split(".")[1:3] == ["build_info", "annotations"]]
        run = {"task": "captioning", "evaluate": True, "test_splits": splits[:1]}
        path.write_text(yaml.safe_dump({
            "model": {"arch": "blip2_t5_instruct", "model_type": "flant5xl"}, "run": run, "datasets": nested(flat)}))
        composition = compose(path)
        wrong = [line for line in errors_of(composition) if "image_size" not in line or not video]
        assert wrong == [], name
        false = [note for note in composition.config.notes if not any(re.search(true, note) for true in TRUE_NOTES)]
        assert false == [], name


def composed(tmp_path: Path, datasets: dict[str, Any], **run: Any) -> Any:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": {"arch": "blip2_opt", "model_type": "mini"}, "datasets": datasets,
                                    "run": {"task": "captioning", "evaluate": True, "test_splits": ["val"], **run}}))
    return compose(path)


def test_files_of_lavis_choose_the_type_that_reads_them(tmp_path: Path) -> None:
    files = {"build_info": {"annotations": {"val": {"storage": "somewhere/nocaps_val.json"}}}}
    section = composed(tmp_path, {"nocaps": files}).config.datasets["nocaps"]
    assert section.type == "lavis" and section.columns == {"image_id": "img_id"} and section.image_pattern is None
    assert composed(tmp_path, {"nocaps": {}}).config.datasets["nocaps"].type == "default"
    chosen = composed(tmp_path, {"nocaps": {**files, "type": "default"}}).config.datasets["nocaps"]
    assert chosen.image_pattern


def test_the_four_files_of_a_split_are_rows_annotations_and_answers(tmp_path: Path) -> None:
    names = ["vqa_val_eval.json", "answer_list.json", "OpenEnded_mscoco_val2014_questions.json",
             "mscoco_val2014_annotations.json"]
    entry = {"url": [f"https://example.org/{name}" for name in names], "storage": [f"here/{name}" for name in names]}
    section = composed(tmp_path, {"ok_vqa": {"build_info": {"annotations": {"test": entry}}}},
                       task="vqa", test_splits=["test"]).config.datasets["ok_vqa"]
    test = section.build_info.annotations["test"]
    assert test.storage == ["here/vqa_val_eval.json", "here/mscoco_val2014_annotations.json"]
    assert test.url == [f"https://example.org/{name}" for name in (names[0], names[3])]
    assert section.type == "lavis" and "answer_list" in section.answer_list.storage


def test_the_annotation_file_of_a_run_holds_the_references(tmp_path: Path) -> None:
    composition = composed(tmp_path, {"nocaps": {}}, annotation_file="gt/val.json", img_ids=[3, "a"])
    assert composition.config.datasets["nocaps"].references["val"].storage == "gt/val.json"
    assert not any("annotation_file" in note or "img_ids" in note for note in composition.config.notes)


def test_the_prompt_of_a_run_goes_before_a_packaged_instruction_but_not_before_its_own(tmp_path: Path) -> None:
    asked = {"task": "vqa", "prompt": "Question: {} Short answer:"}
    composition = composed(tmp_path, {"gqa_instruct": {}}, **asked)
    pair = composition.config.datasets["gqa_instruct"].instruction
    assert not pair.train and not pair.eval and any("run.prompt goes before it" in note
                                                    for note in composition.config.notes)
    own = {"gqa_instruct": {"instruction": {"eval": {"name": "instruction", "templates": ["Q: {}"]}}}}
    assert any("set one of the two to null" in line for line in errors_of(composed(tmp_path, own, **asked)))


def test_a_template_of_questions_under_model_is_notes_of(tmp_path: Path) -> None:
    def notes_of(run: dict[str, Any]) -> list[str]:
        path = tmp_path / "run.yaml"
        model = {"arch": "blip2_opt", "model_type": "mini", "prompt": "Question: {} Answer:"}
        path.write_text(yaml.safe_dump({"model": model, "run": {"evaluate": True, **run}}))
        return [note for note in compose(path).config.notes if note.startswith("model.prompt: ")]

    assert len(notes_of({"task": "vqa"})) == 1 and notes_of({"task": "vqa", "prompt": "Q: {}"}) == []
    assert notes_of({"task": "captioning"}) == []


def test_blip_instruction_is_the_key_instruction(tmp_path: Path) -> None:
    words = {"train": {"name": "blip_instruction", "modality": "image", "task": "qa"},
             "eval": {"name": "blip_question"}}
    section = composed(tmp_path, {"gqa": {"text_processor": words}}, task="vqa").config.datasets["gqa"]
    assert section.text_processor.train["name"] == "blip_question"
    assert section.instruction.train == {"name": "instruction", "templates": "vqa"}


@pytest.mark.parametrize("name", ["laion400M", "capfilt14m", "snli_ve", "snli_ve_instruct", "vatex_caption",
                                  "vsr_caption", "laion400M_instruct"])
def test_names_of_lavis_resolve(name: str, tmp_path: Path) -> None:
    assert [line for line in errors_of(composed(tmp_path, {name: {}})) if f"datasets.{name}:" in line] == []


def test_splits_beside_annotations_are_annotations(tmp_path: Path) -> None:
    files = {"train": {"storage": ["vsr/train.jsonl"]}, "val": {"storage": ["vsr/dev.jsonl"]}}
    composition = composed(tmp_path, {"vsr_caption": {"build_info": {**files, "images": {"storage": "vsr/images"}}}})
    info = composition.config.datasets["vsr_caption"].build_info
    assert errors_of(composition) == [] and info.annotations["val"].storage == ["vsr/dev.jsonl"]


def test_the_folder_of_all_arrays_is_that_of_each(tmp_path: Path) -> None:
    own = {"data_type": "features", "build_info": {"features": {"storage": "my/features/"}}}
    section = composed(tmp_path, {"avsd_dialogue": own}, task="vqa").config.datasets["avsd_dialogue"]
    assert section.type == "features" and section.arrays["i3d_rgb"].storage == "my/features/i3d_rgb"


def test_what_is_out_of_scope_is_named_once(tmp_path: Path) -> None:
    clips = {"video_processor": {"eval": {"name": "alpro_video_eval", "n_frms": 2, "image_size": 64}}}
    assert errors_of(composed(tmp_path, {"vatex_caption": clips})) == []
    sound = {**clips, "audio_processor": {"eval": {"name": "beats_audio"}}, "build_info": {"audio": {"storage": "x"}}}
    assert re.findall(r"(\w+_processor): is for sound", "\n".join(errors_of(composed(
        tmp_path, {"vatex_caption": sound})))) == ["audio_processor"]
    (error,) = errors_of(composed(tmp_path, {"modelnet40_cls": {"pc_processor": {}, "build_info": {"pc": {}}}}))
    assert "holds point clouds" in error


@pytest.mark.parametrize(("model", "section", "words"), [
    ({"arch": "instruct_vicuna7b"}, {}, "'vicuna7b' is a type of blip2_vicuna_instruct."),
    ({}, {"sample_ratio": 4}, "run.train_dataset_ratios: {coco_caption: 4, ...}"),
])
def test_habits_of_lavis_forks_are_explained(tmp_path: Path, model: dict[str, Any], section: dict[str, Any],
                                             words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": {"arch": "blip2_opt", "model_type": "mini", **model},
                                    "datasets": {"coco_caption": section}, "run": {"max_iters": 1}}))
    assert words in "\n".join(compose(path).errors)


def test_full_video_is_what_is_read(tmp_path: Path) -> None:
    clip = {"name": "alpro_video_eval", "image_size": 64, "n_frms": 2}
    section = {"msvd_caption": {"vis_processor": {"eval": {**clip, "full_video": False}}}}
    assert any("false cuts clips by times" in line for line in errors_of(composed(tmp_path, section)))
