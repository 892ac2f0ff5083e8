"""Copies of LAVIS that grew on: LAVIS' names registered again, LAVIS' own YAMLs, loops and matrices."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

import lavis_lite.compat.lavis  # noqa: F401  (makes `lavis` importable)
from lavis_lite.cli.main import run_command
from lavis_lite.compat.lavis import paths
from lavis_lite.config.compose import compose
from lavis_lite.errors import ConfigError, RegistryError
from lavis_lite.preflight.run import check
from lavis_lite.registry import registry as core
from tests.compat import made_data
from tests.compat.test_blip2_models import made
from tests.compat.test_projects import PROJECTS, train, workplace  # noqa: F401  (a fixture)
from tests.end_to_end.conftest import read_log

from lavis.common.registry import registry  # isort: skip
from lavis.models.base_model import BaseModel  # isort: skip
from lavis.models.blip2_models.blip2 import Blip2Base, compute_sim_matrix  # isort: skip
from lavis.models.blip2_models.blip2_qformer import Blip2Qformer  # isort: skip
from lavis.tasks.retrieval import RetrievalTask  # isort: skip


@pytest.mark.slow
def test_a_fork_that_changed_lavis_in_place(workplace: Path) -> None:  # noqa: F811
    made_data.make_views(workplace / "cache" / "views")
    run = train("grown_fork")
    rows = read_log(Path("out"))
    assert [row["loss_alpha"] for row in rows if "loss_alpha" in row] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert [row["known"] for row in rows if row.get("split") == "val"] == [4, 4]
    assert len((run / "evaluate.txt").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_fork_with_a_search_of_its_own(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    made_data.make_views(workplace / "cache" / "views")
    content = yaml.safe_load((PROJECTS / "grown_fork" / "train.yaml").read_text())
    content["model"] |= {"arch": "blip2", "model_type": "pretrain", "pretrained": "mini/stage1", "embed_dim": 64}
    del content["model"]["opt_model"], content["model"]["warm_epochs"]
    content["datasets"] = {"flickr30k": content["datasets"]["coco_caption"]}
    content["run"] |= {"task": "retrieval", "k_test": 2, "evaluate": True}
    (workplace / "search.yaml").write_text(yaml.safe_dump(content))
    assert run_command("evaluate", ["--cfg-path", "search.yaml", "--options", "run.report=false"]) == 0
    (path,) = Path("output/grown_fork").glob("*/results/val_step0.json")
    scores = json.loads(path.read_text())["metrics"]
    assert scores["texts"] == 4 and scores["agg_metrics"] == scores["txt_r1"] >= 25
    assert "take the place of the package's own" in capsys.readouterr().out


def composed(folder: Path, size: int, **model: Any) -> Any:
    content = yaml.safe_load((PROJECTS / "grown_fork" / "train.yaml").read_text())
    content["model"] = model
    for processor in content["datasets"]["coco_caption"]["vis_processor"].values():
        processor["image_size"] = size
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return compose(folder / "run.yaml")


def test_lavis_names_are_the_fork_s_and_lavis_files_the_package_s(workplace: Path) -> None:  # noqa: F811
    composition = composed(workplace, 224, arch="blip2_opt", model_type="pretrain_opt2.7b", warm_epochs=2)
    assert check(composition) == []
    model: Any = composition.config.model
    assert (model.opt_model, model.image_size, model.warm_epochs) == ("facebook/opt-2.7b", 224, 2)
    assert model.pretrained.endswith("blip2_pretrained_opt2.7b.pth")
    files: Any = composition.config.datasets["coco_caption"].build_info
    assert files["annotations"]["train"]["storage"] == "views/train.json"
    (note,) = [note for note in composition.config.notes if "take the place" in note]
    assert "model blip2_opt (grown_fork.model)" in note and "task captioning (grown_fork.captions)" in note
    assert core.get_model_class("blip2_opt").__module__ == "grown_fork.model"
    assert core.model.builtin("blip2_opt").__module__ == "lavis_lite.models.blip2.llm"
    assert core.get_processor_class("blip_caption")()("A cat!") == "a cat indeed"
    assert paths.ROOTS["library_root"] == str(PROJECTS / "grown_fork")


def test_a_file_of_the_fork_that_is_not_there_is_an_error_only_if_it_is_chosen(workplace: Path) -> None:  # noqa: F811
    composition = composed(workplace, 364, arch="blip2_opt", model_type="caption_coco_opt2.7b")
    assert check(composition) == []  # a type that the package alone has
    chosen = ["datasets.coco_caption.type=mine"]
    with pytest.raises(ConfigError, match=r"grown_fork/configs/datasets/mine\.yaml: no such file"):
        compose(workplace / "run.yaml", chosen)


def test_a_name_that_is_taken_out_of_the_mapping_is_registered_again() -> None:
    names = registry.mapping["model_name_mapping"]
    assert names.pop("no_such_model", None) is None and names.pop("blip2_t5", None) is not None
    assert "blip2_t5" in names, "until a project registers it again"


def test_two_classes_of_projects_cannot_share_a_name() -> None:
    for place in range(2):
        cls = type(f"Own{place}", (BaseModel,), {"__module__": "somewhere"})
        if place:
            with pytest.raises(RegistryError, match="registered twice"):
                registry.register_model("blip2_t5")(cls)
        else:
            registry.register_model("blip2_t5")(cls)
    import lavis_lite.models.blip2.llm  # noqa: F401  (its own class registers, and gives way)

    assert core.get_model_class("blip2_t5").__name__ == "Own0"


@pytest.mark.parametrize(("name", "key", "value"), [
    ("models/blip2/blip2_pretrain_vitL", "model.vit_model", "clip_L"),
    ("models/blip2/blip2_caption_opt6.7b", "model.opt_model", "facebook/opt-6.7b"),
    ("models/blip2/blip2_instruct_vicuna7b", "model.freeze_vit", True),
    ("datasets/coco/eval_vqa", "datasets.coco_vqa.data_type", "images"),
    ("datasets/okvqa/defaults", "datasets.ok_vqa.build_info.annotations.train.storage",
     "okvqa/annotations/okvqa_train.json"),
    ("datasets/capfilt14m/defaults_cap_instruct", "datasets.capfilt14m_instruct.data_type", "images"),
])
def test_yamls_that_only_lavis_has_are_made_of_the_package_s(name: str, key: str, value: Any) -> None:
    found = OmegaConf.load(paths.config_path(Blip2Base, f"configs/{name}.yaml"))
    assert OmegaConf.select(found, key) == value


def test_a_yaml_that_nobody_has_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no configs/models/blip2/mine\.yaml"):
        paths.config_path(Blip2Base, "configs/models/blip2/mine.yaml")


def test_a_packaged_data_set_by_lavis_calls(workplace: Path) -> None:  # noqa: F811
    section = OmegaConf.create({"prepare_args": {"train": 6, "val": 2, "test": 2, "ood": 2, "seed": 3}})
    found = registry.get_builder_class("mini_world_caption")(section).build_datasets()
    assert {"train", "val"} <= found.keys() and {"image", "text_input"} <= found["train"][0].keys()


# the matrix of scores -------------------------------------------------------------------------------------------------
class Gallery:
    """Four pictures with one or two captions each."""

    text = ["a red circle", "a blue square", "two dogs", "a cat", "a green star", "one dog"]
    img2txt = {0: [0], 1: [1, 4], 2: [2, 5], 3: [3]}
    txt2img = {0: 0, 1: 1, 4: 1, 2: 2, 5: 2, 3: 3}


class Loader:
    """Batches of two pictures."""

    dataset = Gallery()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def __iter__(self) -> Any:
        yield {"image": self.images[:2], "index": torch.tensor([0, 1])}
        yield {"image": self.images[2:], "index": torch.tensor([2, 3])}


@pytest.fixture(scope="module")
def stage1() -> Any:
    return made(Blip2Qformer, "mini/stage1", embed_dim=64, max_txt_len=48).double()


def by_pair(model: Any) -> np.ndarray:
    """float[N,M]: ITM + ITC of every pair, one by one."""
    with torch.no_grad():
        hidden, embeds = model.forward_image(Loader.images.double())
        image = torch.nn.functional.normalize(model.vision_proj(hidden), dim=-1)
        rows = []
        for one, features in zip(image, embeds, strict=True):
            row = []
            for text in Gallery.text:
                tokens = model.tokenizer([text], return_tensors="pt")
                text_feat = torch.nn.functional.normalize(model.text_proj(model.forward_text([text])), dim=-1)
                itm = model.compute_itm(features[None], tokens.input_ids, tokens.attention_mask)
                row.append(float((one @ text_feat[0]).max() + itm.flatten()[-1]))
            rows.append(row)
    return np.array(rows)


def test_the_matrix_holds_itm_and_itc_of_the_best_candidates(stage1: Any) -> None:
    loader = Loader()
    loader.images = Loader.images.double()
    wanted = by_pair(stage1)
    images, texts = compute_sim_matrix(model=stage1, data_loader=loader, k_test=6)
    np.testing.assert_allclose(images, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(texts, wanted.T, rtol=1e-5, atol=1e-5)
    best, _ = stage1.compute_sim_matrix(loader, OmegaConf.create({"k_test": 2}))
    assert ((best == -100).sum(1) == 4).all()
    np.testing.assert_allclose(best[best != -100], wanted[best != -100], rtol=1e-5, atol=1e-5)


def test_lavis_task_measures_recalls_in_percent(stage1: Any) -> None:
    loader = Loader()
    loader.images = Loader.images.double()
    task = RetrievalTask.setup_task(cfg=SimpleNamespace(run_cfg=OmegaConf.create({"k_test": 6})))
    scores = task.after_evaluation(val_result=task.evaluation(stage1, loader), split_name="val", epoch=1)
    wanted = by_pair(stage1)
    right = [int(wanted[image].argmax()) in texts for image, texts in Gallery.img2txt.items()]
    assert scores["txt_r1"] == pytest.approx(25.0 * sum(right)) and scores["img_r10"] == 100.0
    assert scores["agg_metrics"] == scores["r_mean"]
