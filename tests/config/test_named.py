"""Model types and data sets of folders from outside: `configs:`, `register_path`, LAVIS_LITE_CONFIGS, LAVIS' tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_lite.cli.main import main
from lavis_lite.config.compose import compose, model_sections, to_yaml
from lavis_lite.config.named import dataset_names, model_types
from lavis_lite.errors import ConfigError, ErrorList, RegistryError
from lavis_lite.preflight import check
from lavis_lite.registry import Registries, registry

ROOT = Path(__file__).resolve().parents[2]
SMALL = """# A smaller Q-Former, for quick trials.
base: {base}
model: {{arch: blip2, pretrained: null, qformer_layers: 2}}
"""
ROW = """# Birds of the neighbourhood.
default: {builder: custom, build_info: {annotations: {train: {storage: birds.json}}}}
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a folder of configurations; what is registered in a test is forgotten after it."""
    monkeypatch.setattr(registry, "config_folders", [])
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "my_configs"
    (home / "models" / "blip2").mkdir(parents=True)
    (home / "datasets").mkdir()
    parts = ROOT / "lavis_lite/configs/models/parts/mini.yaml"
    (home / "models" / "blip2" / "small.yaml").write_text(SMALL.format(base=parts))
    (home / "datasets" / "birds.yaml").write_text(ROW)
    return home


def recipe(folder: Path, text: str = "", named: str = "my_configs") -> Path:
    path = folder.parent / "run.yaml"
    path.write_text(f"configs: {named}\nmodel: {{arch: blip2, model_type: small}}\n"
                    f"datasets: {{birds: {{}}}}\nrun: {{max_iters: 1}}\n{text}")
    return path


def test_a_yaml_names_the_folder_once(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = recipe(folder)
    monkeypatch.chdir(tmp_path.parent)  # the folder is relative to its file
    composition = compose(path)
    assert composition.errors == []
    assert composition.config.model["qformer_layers"] == 2 and composition.config.model["qformer_heads"] == 4
    assert composition.config.datasets["birds"].build_info.annotations["train"].storage == "birds.json"
    assert composition.where("model.qformer_layers") == str(folder / "models/blip2/small.yaml")
    assert composition.where("model.qformer_heads") == "models/parts/mini.yaml"
    registry.config_folders.clear()
    (tmp_path / "again.yaml").write_text(to_yaml(composition))
    assert compose(tmp_path / "again.yaml").errors == []


def test_of_a_project_that_was_moved_the_option_is_named(folder: Path) -> None:
    [error, *_] = compose(recipe(folder, named=f"/former/{folder.name}")).errors
    assert error.endswith(f"If {folder.name} is it now, add --options configs=[{folder.name}].")


def test_a_folder_that_is_not_there_and_one_of_another_shape(folder: Path) -> None:
    [error, *_] = compose(recipe(folder, named="my_confgis")).errors
    assert "configs: there is no folder" in error and "my_confgis" in error
    with pytest.raises(ErrorList, match="configs: must be a folder or a list of folders"):
        compose(recipe(folder, named="3"))


def test_the_commands_list_what_a_folder_adds(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAVIS_LITE_CONFIGS", str(folder))
    for command, words in ((["models"], "small"), (["zoo", "blip2"], "A smaller Q-Former"),
                           (["data", "list", "bird*"], "Birds of the neighbourhood")):
        assert main(command) == 0 and words in capsys.readouterr().out
    monkeypatch.setenv("LAVIS_LITE_CONFIGS", str(folder / "absent"))
    assert main(["models"]) == 2 and "there is no folder" in capsys.readouterr().err


def test_a_registered_path_is_known_to_python(folder: Path) -> None:
    registry.register_path("configs", folder)
    registry.register_path("configs", folder)
    assert registry.config_folders == [folder] and "birds" in dataset_names() and "small" in model_types("blip2")
    section, preprocess = model_sections("blip2", "small")
    assert section["qformer_layers"] == 2 and preprocess.vis_processor.train is not None
    for name, path, words in (("cache_root", folder, "unknown path 'cache_root'"), ("configs", "no", "no folder")):
        with pytest.raises(RegistryError, match=words):
            Registries().register_path(name, path)


def test_an_installed_package_brings_its_folder(folder: Path) -> None:
    home = folder.parent
    (home / "birdwatch.py").write_text("from pathlib import Path\nfrom lavis_lite.registry import registry\n"
                                       "registry.register_path('configs', Path(__file__).parent / 'my_configs')\n")
    info = home / "birdwatch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: birdwatch\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lavis_lite.plugins]\nbirdwatch = birdwatch\n")
    code = ("from lavis_lite import dataset_zoo, model_zoo\n"
            "print('birds' in dict(dataset_zoo), dict(model_zoo)['blip2'])")
    path = os.pathsep.join([str(ROOT), str(home)])
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
                            text=True, check=True)
    assert result.stdout.startswith("True") and "small" in result.stdout


def test_a_name_that_is_taken_names_both_files(folder: Path) -> None:
    (folder / "datasets" / "coco_caption.yaml").write_text(ROW)
    registry.register_path("configs", folder)
    with pytest.raises(ConfigError, match=r"coco_caption.yaml: the name 'coco_caption' is taken by .*configs"):
        dataset_names()


@pytest.mark.parametrize(("file", "text", "words"), [
    ("models/blip2/small.yaml", "preproces: {}\nmodel: {arch: blip2}", "unknown section 'preproces'; did you mean"),
    ("models/blip2/small.yaml", "model: {arch: blip2, qformer_layres: 2}", "unknown key model.qformer_layres; did you"),
    ("models/blip2/small.yaml", "base: absent.yaml", "absent.yaml: no such file (named by base: in"),
    ("datasets/birds.yaml", "base: coco_captoin", "base: there is no data set 'coco_captoin'; did you mean 'coco_cap"),
    ("datasets/birds.yaml", "defualt: 3", "birds.yaml: defualt: must be a section"),
    ("datasets/birds.yaml", "default: {builder: custom, build_inof: {}}", "unknown key datasets.birds.build_inof"),
])
def test_mistakes_in_such_files_name_the_file_and_the_key(folder: Path, file: str, text: str, words: str) -> None:
    (folder / file).write_text(text)
    try:
        errors = check(compose(recipe(folder)))
    except ConfigError as error:
        errors = [str(error)]
    assert any(words in error for error in errors), errors


def test_data_set_files_take_a_base_and_lavis_layout(folder: Path) -> None:
    (folder / "datasets" / "birds.yaml").write_text("base: coco_caption\nchanges: {captions_per_image: 1}\n"
                                                    "few: {builder: custom}")
    (folder / "datasets" / "lavis_way.yaml").write_text("datasets: {lavis_way: {builder: custom, train_size: 7}}")
    composition = compose(recipe(folder, "", "my_configs"), ["datasets.lavis_way.type=default"])
    assert composition.config.datasets["birds"]["captions_per_image"] == 1
    assert composition.config.datasets["lavis_way"].train_size == 7
    assert compose(recipe(folder), ["datasets.birds.type=few"]).config.datasets["birds"].builder == "custom"


PLUGIN = """
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.models.base import BaseModel
from lavis_lite.registry import registry

@registry.register_builder("lake_birds")
class LakeBirds(BaseDatasetBuilder):
    DATASET_CONFIG_DICT = {"default": "lake.yaml"}

@registry.register_model("lake_model")
class LakeModel(BaseModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"tiny": "tiny.yaml"}
"""


def test_the_tables_of_lavis_classes_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder.parent
    monkeypatch.syspath_prepend(str(home))
    (home / "lake_plugin.py").write_text(PLUGIN)
    (home / "lake.yaml").write_text("datasets: {lake_birds: {train_size: 5}}")
    (home / "most.yaml").write_text("model: {load_pretrained: false}")
    (home / "tiny.yaml").write_text("base: most.yaml\nmodel: {arch: lake_model, allow_non_finite: true}")
    (home / "lake_run.yaml").write_text("imports: [lake_plugin]\nmodel: {arch: lake_model, model_type: tiny}\n"
                                        "datasets: {lake_birds: {}}\nrun: {max_iters: 1}")
    composition = compose(home / "lake_run.yaml")
    assert composition.errors == [] and composition.config.datasets["lake_birds"].train_size == 5
    assert composition.config.model.allow_non_finite and not composition.config.model.load_pretrained


HEIRS = """
from dataclasses import dataclass
from lavis_lite.config.schema import ModelConfig
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.registry import registry

@registry.register_model("types_heir")
class Heir(Blip2Qformer):
    pass

@registry.register_model("types_listed")
class Listed(Blip2Qformer):
    PRETRAINED_MODEL_CONFIG_DICT = {"own": "own.yaml"}

@dataclass
class SmallConfig(ModelConfig):
    width: int = 3

@registry.register_model("types_small")
class Small(Blip2Qformer):
    config_class = SmallConfig
"""


def test_a_class_that_derives_from_a_packaged_one_has_its_types(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "types_heirs.py").write_text(HEIRS)
    (tmp_path / "heir.yaml").write_text("base: projects/blip2/stage1.yaml\nimports: [types_heirs]\n"
                                        "model: {arch: types_heir}\n")
    config = compose(tmp_path / "heir.yaml").config
    assert config.model["vit_model"] == "mini" and config.preprocess.vis_processor.train["image_size"] == 64
    assert model_types("types_heir") == model_types("blip2")
    assert list(model_types("types_listed")) == ["own"]
    assert model_types("types_small") == {}, "its section lacks the keys of those YAMLs"
