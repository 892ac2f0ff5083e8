"""The papers' tables: every evaluation recipe states its table and score, and the README beside it agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lavis_lite.config.compose import compose
from lavis_lite.registry import registry

ROOT = Path(__file__).resolve().parents[2] / "projects"
RECIPES = sorted(ROOT.glob("*/eval/*.yaml"))
ROW = re.compile(r"^\| .* \| (?P<score>[^|]*) \| (?P<measured>[^|]*)\| \[(?P<name>\S+)\]\(eval/(?P<file>\S+)\) \|$",
                 re.MULTILINE)
CELLS = {"blip2": 24 + 6 + 6 + 4 + 2 + 6, "instructblip": 13 * 4 + 14}
"""Tables 2 to 6, Table 1, and the embedded default's twins"""


def header(path: Path) -> tuple[str, str]:
    """(first line, expected score) of a recipe."""
    lines = path.read_text().splitlines()
    expected = re.fullmatch(r"# Expected: (.+?) \(.+\)\.", lines[1])
    assert expected is not None, f"{path}: its second line must state the expected score"
    return lines[0], expected[1]


@pytest.mark.parametrize("project", sorted(CELLS))
def test_tables_and_recipes_agree(project: str) -> None:
    rows = {row["file"]: row for row in ROW.finditer((ROOT / project / "README.md").read_text())}
    recipes = [path for path in RECIPES if path.parent.parent.name == project]
    assert len(recipes) == CELLS[project] and set(rows) == {path.name for path in recipes}
    for path in recipes:
        first, expected = header(path)
        assert rows[path.name]["score"] == expected, path
        assert re.match(r"# (BLIP-2, Table [2-6]|InstructBLIP, Table 1|The embedded default's twin): ", first), path
        assert rows[path.name]["name"] == path.name
        measured = rows[path.name]["measured"].strip()
        assert measured == (expected if path.name.startswith("mini_") else ""), f"{path}: the papers' cells are not run"


def test_every_task_has_a_recipe_on_the_embedded_default() -> None:
    asked = {re.search(r"^  task: (\S+)$", path.read_text(), re.MULTILINE)[1]  # type: ignore[index]
             for path in RECIPES if path.name.startswith("mini_")}
    assert asked | {"chat"} == registry.task.builtins.keys(), "conversations: projects/llava/llava_bench.yaml"


FINE_TUNED = {  # file -> epochs, warm-up, rate, batch over 16 GPUs, betas, decay of rates by layer, pixels
    "caption_coco_flant5xl": (5, 1000, 1e-5, 256, 0.9, 0.999, 1.0, 364),
    "caption_coco_opt2.7b": (5, 1000, 1e-5, 256, 0.9, 0.999, 1.0, 364),
    "caption_coco_opt6.7b": (5, 1000, 1e-5, 256, 0.9, 0.999, 0.95, 364),
    "vqa_flant5xl": (5, 1000, 1e-5, 128, 0.9, 0.999, 0.95, 490),
    "vqa_opt2.7b": (5, 1000, 1e-5, 128, 0.9, 0.999, 0.95, 490),
    "vqa_opt6.7b": (5, 1000, 1e-5, 128, 0.9, 0.999, 0.9, 490),
    "retrieval_coco_vitl": (5, 1000, 5e-6, 224, 0.9, 0.98, 1.0, 364),
    "retrieval_coco_vitg": (5, 1000, 1e-5, 224, 0.9, 0.999, 0.95, 364)}
PROMPTS = {"caption": ("a photo of", 5), "vqa": ("Question: {} Answer:", 5), "retrieval": (None, None)}


@pytest.mark.parametrize("name", FINE_TUNED)
def test_fine_tuning_is_that_of_tables_7_to_9(name: str) -> None:
    config = compose(str(ROOT / "blip2" / f"{name}.yaml")).config
    run, model = config.run, config.model
    assert (run.max_epoch, run.warmup_steps, run.init_lr, 16 * run.batch_size_train, run.beta1, run.beta2,
            run.lr_layer_decay, model.image_size) == FINE_TUNED[name]
    assert (run.weight_decay, model.drop_path_rate, run.amp, run.accum_grad_iters) == (0.05, 0, True, 1)
    assert not model.freeze_vit and model.vit_precision == "fp32"  # trained, in bf16 arithmetic with fp32 weights
    sizes = {spec["image_size"] for section in [config.preprocess, *config.datasets.values()]
             for spec in (section.vis_processor.train, section.vis_processor.eval)}
    assert sizes == {model.image_size}
    assert (run.get("prompt"), run.get("num_beams")) == PROMPTS[name.partition("_")[0]]
    assert model.get("qformer_text_input", False) == name.startswith("vqa")
    assert run.get("k_test", 128) == 128 and (model.itg_weight == 1 if "retrieval" in name else True)


def test_links_of_the_readmes_lead_somewhere() -> None:
    for readme in ROOT.glob("*/README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme}: {target}"


def test_bases_are_all_in_use() -> None:
    named = {(path.parent / base[1]).resolve() for path in ROOT.rglob("*.yaml")
             if (base := re.search(r"^base: (\S+)$", path.read_text(), re.MULTILINE))}
    assert set(ROOT.glob("*/eval/base/*.yaml")) <= named
