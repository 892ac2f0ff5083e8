"""Names of models and their types, without torch."""

from __future__ import annotations

import subprocess
import sys

import yaml

from lavis_lite.config.compose import CONFIGS, MODEL_CONFIG_HOME
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
    files = [path for folder in (CONFIGS / "models").iterdir() for path in folder.iterdir()]
    assert files
    for path in files:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.parent.name in homes and set(sections) == {"model", "preprocess"}, path
        assert sections["model"]["arch"] == path.parent.name, path


def test_image_sizes_of_model_and_processors_agree():
    for path in (CONFIGS / "models" / "blip2").iterdir():
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        sizes = {side["image_size"] for side in sections["preprocess"]["vis_processor"].values()}
        assert sizes == {sections["model"]["image_size"]}, path
