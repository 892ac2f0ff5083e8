"""Recipes of one task as the base of another's, and null as the way to take a key out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis_lite.config.compose import Composition, compose, overlaid, to_yaml
from lavis_lite.config.layers import Layer
from lavis_lite.config.sections import settings_of_others
from lavis_lite.preflight import check

ROOT = Path(__file__).resolve().parents[2]
STAGE2 = ROOT / "projects/blip2/stage2_opt.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def child(folder: Path, text: str, base: Path = STAGE2) -> Composition:
    path = folder / "child.yaml"
    path.write_text(f"base: {base}\n{text}")
    return compose(path)


def test_a_recipe_of_another_task_is_a_base_and_its_keys_are_left_out_with_one_note(tmp_path: Path) -> None:
    composition = child(tmp_path, "run: {task: vqa}")
    assert composition.errors == []
    [note] = [note for note in composition.config.notes if "run.caption_metrics" in note]
    assert note.startswith(str(STAGE2)) and "sets run.task to vqa" in note
    assert "caption_metrics" not in to_yaml(composition)


def test_the_result_composes_to_itself(tmp_path: Path) -> None:
    first = child(tmp_path, "run: {task: vqa, max_epoch: null, init_lr: null}")
    (tmp_path / "flat.yaml").write_text(to_yaml(first))
    again = compose(tmp_path / "flat.yaml")
    assert again.errors == [] and again.config.run == first.config.run


def test_a_key_of_another_task_beside_the_choice_or_above_it_is_still_an_error(tmp_path: Path) -> None:
    [beside] = child(tmp_path, "run: {task: vqa, caption_metrics: [coco]}").errors
    assert "unknown key run.caption_metrics" in beside
    path = tmp_path / "child.yaml"
    path.write_text(f"base: {STAGE2}\nrun: {{task: vqa}}")
    [above] = compose(path, ["run.caption_metrics=[coco]"]).errors
    assert above.startswith("--options: unknown key run.caption_metrics")


def test_null_takes_out_a_key_of_the_former_task(tmp_path: Path) -> None:
    composition = child(tmp_path, "run: {task: vqa, caption_metrics: null}")
    assert composition.errors == [] and "caption_metrics" not in to_yaml(composition)
    [error] = child(tmp_path, "run: {task: vqa, caption_metric: null}").errors
    assert "unknown key run.caption_metric;" in error


def test_an_unknown_key_of_the_base_is_an_error_whatever_the_task(tmp_path: Path) -> None:
    middle = tmp_path / "middle.yaml"
    middle.write_text(f"base: {STAGE2}\nrun: {{max_epohc: 3}}")
    [error] = child(tmp_path, "run: {task: vqa}", middle).errors
    assert f"{middle}: unknown key run.max_epohc" in error


def test_another_arch_takes_a_recipe_as_its_base(tmp_path: Path) -> None:
    composition = child(tmp_path, "model: {arch: blip2_t5, model_type: mini}")
    assert composition.errors == [] and type(composition.config.model).__name__ == "Blip2T5Config"
    stage1 = ROOT / "projects/blip2/retrieval_coco_vitg_itc_itm.yaml"
    composition = child(tmp_path, "model: {arch: blip2_opt, model_type: mini}\nrun: {task: captioning}", stage1)
    assert composition.errors == [] and any("model.itg_weight" in note for note in composition.config.notes)


@pytest.mark.parametrize(("text", "key", "value"), [
    ("run: {init_lr: null}", "run.init_lr", 1e-4),
    ("run: {caption_metrics: null}", "run.caption_metrics", None),
    ("run: {seed: null, task: null}", "run.seed", 42),
    ("run: null", "run.init_lr", 1e-4),
    ("model: {prompt: null}", "model.prompt", ""),
    ("model: {pretrained: null}", "model.pretrained", None),
])
def test_null_takes_a_key_out(tmp_path: Path, text: str, key: str, value: object) -> None:
    composition = child(tmp_path, text)
    assert composition.errors == []
    section, name = key.split(".")
    assert getattr(getattr(composition.config, section), name, None) == value


def test_null_takes_entries_out_of_open_sections(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"base: {STAGE2}\nmodel: {{llm_args: {{model_type: opt, a: 1}}}}\nrun: {{train_dataset_ratios: "
                    "{mini_world_caption: 1, other: 2}}\n"
                    "datasets: {mini_world_caption: {text_processor: {train: {prompt: 'a '}}}}")
    composition = child(tmp_path, "model: {llm_args: {a: null}}\nrun: {train_dataset_ratios: {other: null}}\n"
                                  "datasets: {mini_world_caption: {text_processor: {train: {prompt: null}}}}", base)
    config = composition.config
    assert composition.errors == []
    assert config.run.train_dataset_ratios == {"mini_world_caption": 1.0}
    assert config.model["llm_args"] == {"model_type": "opt"}
    assert "prompt" not in (config.datasets["mini_world_caption"].text_processor.train or {})


def test_null_for_a_key_that_nothing_set_is_still_a_typing_error(tmp_path: Path) -> None:
    [error] = child(tmp_path, "run: {max_epohc: null}").errors
    assert "unknown key run.max_epohc; did you mean 'max_epoch'" in error


def test_null_hides_no_error(tmp_path: Path) -> None:
    assert any("must be above 0" in error for error in check(child(tmp_path, "run: {max_epoch: 0, init_lr: null}")))


def test_a_null_over_a_default_of_the_model_type_is_written(tmp_path: Path) -> None:
    """The written run composes over the same defaults: without the null they would come back."""
    text = ("model: {arch: vision_language, model_type: mini, pretrained: null, max_txt_len: null, "
            "connector: {type: qformer, depth: null}}")
    first = child(tmp_path, text)
    (tmp_path / "flat.yaml").write_text(to_yaml(first))
    again = compose(tmp_path / "flat.yaml")
    assert first.errors == again.errors == [] and again.config.model == first.config.model
    assert first.config.model["connector"] == {"type": "qformer"}
    more = overlaid(again, Layer("more", {"run": {"seed": 3}}))
    assert more.errors == [] and more.config.model == first.config.model and more.config.run.seed == 3


def test_another_processor_takes_no_settings_but_the_sizes_of_the_former_one(tmp_path: Path) -> None:
    own = "{name: blip2_image_train, image_size: 64, min_scale: 0.7}"
    rows = f"datasets: {{mini_world_caption: {{vis_processor: {{train: {own}}}}}}}"
    (tmp_path / "first.yaml").write_text(f"base: projects/blip2/stage1.yaml\n{rows}\n"
                                         "preprocess: {vis_processor: {train: {min_scale: 0.9}}}")
    swap = "{vis_processor: {train: {name: clip_image_eval}}}"
    (tmp_path / "second.yaml").write_text(
        f"base: first.yaml\npreprocess: {swap}\ndatasets: {{mini_world_caption: {swap}}}")
    found = compose(tmp_path / "second.yaml")
    assert found.errors == [] and check(found) == []
    assert found.config.preprocess.vis_processor.train == {"name": "clip_image_eval", "image_size": 64}
    assert found.config.datasets["mini_world_caption"].vis_processor.train == {"name": "clip_image_eval",
                                                                                 "image_size": 64}
    kept = compose(tmp_path / "first.yaml").config
    assert kept.preprocess.vis_processor.train["min_scale"] == 0.9  # type: ignore[index]
    assert not any("min_scale" in key for key in found.config.provenance)


def test_settings_of_a_processor_without_a_name_are_no_others() -> None:
    """They may be of the one that a later layer names; if not, its check reports them."""
    def train(**settings: object) -> dict[str, Any]:
        return {"preprocess": {"vis_processor": {"train": settings}}}

    assert list(settings_of_others(train(min_scale=0.9), train(name="blip_image_train"))) == []
    assert list(settings_of_others(train(name="clip_image_eval", min_scale=0.9), train(name="blip_image_train"))) == [
        "preprocess.vis_processor.train.min_scale"]


def test_another_connector_takes_no_settings_of_the_former_one(tmp_path: Path) -> None:
    text = "model: {arch: vision_language, model_type: mini_mlp, pretrained: null, max_txt_len: null, connector: {%s}}"
    other = child(tmp_path, text % "type: resampler, queries: 4")
    assert other.errors == [] and other.config.model["connector"] == {"type": "resampler", "queries": 4}
    assert not any(key.endswith("connector.depth") for key in other.config.provenance)
    same = child(tmp_path, text % "type: mlp")
    assert same.config.model["connector"] == {"type": "mlp", "depth": 2}
    assert child(tmp_path, text % "depth: 3").config.model["connector"] == {"type": "mlp", "depth": 3}
