"""Names of models and their types, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image

import lavis_lite.models
from lavis_lite import load_model, load_model_and_preprocess, load_preprocess
from lavis_lite.config.named import CONFIGS, MODEL_CONFIG_HOME, type_content
from lavis_lite.errors import ConfigError, RegistryError
from lavis_lite.processors.image import BlipImageEval, BlipImageTrain
from lavis_lite.processors.text import BlipCaption
from lavis_lite.registry import registry
from lavis_lite.zoo import list_models, model_zoo


def test_listing_knows_patterns():
    assert {"blip2", "blip2_feature_extractor", "blip2_image_text_matching"} <= set(list_models())
    assert list_models("blip2_*") == [name for name in list_models() if name.startswith("blip2_")]
    assert list_models("no such thing") == []


def test_the_zoo_has_every_shipped_type():
    zoo = dict(model_zoo)
    assert {"mini", "pretrain", "pretrain_vitL", "coco"} <= set(zoo["blip2"])
    assert zoo["blip2"] == zoo["blip2_feature_extractor"] == zoo["blip2_image_text_matching"]
    assert len(model_zoo) == sum(map(len, zoo.values()))
    assert "blip2_image_text_matching" in str(model_zoo) and "pretrain_vitL" in str(model_zoo)


def test_listing_loads_no_torch():
    code = ("import sys, lavis_lite; lavis_lite.list_models(); import lavis_lite.zoo as z; str(z.model_zoo); "
            "print(sorted({'torch', 'transformers', 'timm'} & set(sys.modules)))")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_every_model_file_stands_in_the_folder_of_a_registered_arch():
    homes = {MODEL_CONFIG_HOME.get(name, name) for name in registry.list_models()}
    files = [path for folder in (CONFIGS / "models").iterdir() for path in folder.iterdir() if folder.name != "parts"]
    assert files
    for path in files:
        sections = type_content(path.parent.name, path.stem)
        assert path.parent.name in homes and set(sections) == {"model", "preprocess"}, path
        assert sections["model"]["arch"] == path.parent.name, path


def test_image_sizes_of_model_and_processors_agree():
    for path in (CONFIGS / "models" / "blip2").iterdir():
        sections = type_content("blip2", path.stem)
        sizes = {side["image_size"] for side in sections["preprocess"]["vis_processor"].values()}
        assert sizes == {sections["model"]["image_size"]}, path


# models ready for use -------------------------------------------------------------------------------------------------
def test_a_model_comes_with_its_processors() -> None:
    model, images, texts = load_model_and_preprocess("blip2", "mini", is_eval=True)
    assert not model.training and model.device == torch.device("cpu")
    assert set(images) == set(texts) == {"train", "eval"}
    picture = images["eval"](Image.new("RGB", (80, 60), (10, 200, 30)))
    assert picture.shape == (3, 64, 64) and picture.dtype is torch.float32
    assert texts["train"]("A red Dog!") == "a red dog"
    assert len(model.generate({"image": picture[None]}, num_beams=1, max_new_tokens=2)) == 1


def test_lavis_positional_order_and_names_in_the_models_room() -> None:
    model = load_model("blip2", "mini", False, "cpu", None)
    assert model.training and not model.vision_encoder.training
    assert any(value.requires_grad for value in model.parameters())
    for name in ("list_models", "load_model", "load_model_and_preprocess", "load_preprocess", "model_zoo"):
        assert getattr(lavis_lite.models, name) is getattr(lavis_lite, name) and name in dir(lavis_lite.models)
    with pytest.raises(AttributeError, match="no attribute 'lod_model'"):
        lavis_lite.models.lod_model  # noqa: B018


def test_an_arch_that_shares_files_is_built_as_itself() -> None:
    assert type(load_model("blip2_image_text_matching", "mini")).__name__ == "Blip2ImageTextMatching"


def test_processors_of_a_plain_mapping() -> None:
    given = {"vis_processor": {"train": {"name": "blip_image_train", "image_size": 32}, "eval": {
        "name": "blip_image_eval", "image_size": 48}}, "text_processor": {"eval": {"name": "blip_caption"}}}
    images, texts = load_preprocess(given)
    assert isinstance(images["train"], BlipImageTrain) and isinstance(images["eval"], BlipImageEval)
    assert images["eval"](Image.new("L", (9, 9))).shape == (3, 48, 48)
    assert isinstance(texts["eval"], BlipCaption) and texts["train"]("As It Is.") == "As It Is."


@pytest.mark.parametrize(("spec", "words"), [
    ({"image_size": 3}, r"preprocess.vis_processor.eval: names no processor"),
    ({"name": "blip_image_evl"}, "unknown processor 'blip_image_evl': did you mean 'blip_image_eval'"),
    ({"name": "blip_image_eval", "imgsize": 3}, r"eval.imgsize: BlipImageEval has no such parameter; did you mean"),
])
def test_processors_that_cannot_be(spec: dict[str, object], words: str) -> None:
    with pytest.raises((ConfigError, RegistryError), match=words):
        load_preprocess({"vis_processor": {"eval": spec}})
