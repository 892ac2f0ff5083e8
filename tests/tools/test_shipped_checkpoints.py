"""The packaged checkpoints: they fit the models their names belong to, and say what is in a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import lavis_lite
from lavis_lite.checkpoints.weights import build_model
from lavis_lite.config.named import type_content
from lavis_lite.metrics.scenes import scene_scores
from lavis_lite.mini_world.captions import canonical_caption
from lavis_lite.mini_world.scenes import make_scene
from lavis_lite.registry import registry
from tools.patches import load_pixels

PACKAGE = Path(lavis_lite.__file__).parent
SCENES = 24


def shipped(arch: str, model_type: str) -> Any:
    kind = registry.get_model_class(arch).config_class
    given = {"model_type": model_type, **type_content(arch, model_type)["model"]}
    assert set(given) <= {field.name for field in dataclasses.fields(kind)}
    return build_model(kind(**given)).eval()


@pytest.mark.parametrize("arch", ["blip2_opt", "blip2_t5"])
def test_captions_tell_what_is_in_unseen_pictures(arch: str) -> None:
    scenes = [make_scene(99, "test", index) for index in range(SCENES)]
    model = shipped(arch, "mini")
    captions = model.generate({"image": torch.stack([load_pixels(scene) for scene in scenes])}, num_beams=1,
                              max_length=40)
    truth = {index: [canonical_caption(scene)] for index, scene in enumerate(scenes)}
    scores = scene_scores(dict(enumerate(captions)), truth)
    assert scores["attribute_f1"] > 0.8 and scores["exact_1"] > 0.7
    shifted = {index: captions[(index + 1) % SCENES] for index in range(SCENES)}
    assert scene_scores(shifted, truth)["attribute_f1"] < scores["attribute_f1"] - 0.2


@pytest.mark.parametrize(("arch", "model_type"), [("blip2_opt", "mini_instruct"), ("blip2_t5_instruct", "mini")])
def test_questions_about_a_single_object_are_answered(arch: str, model_type: str) -> None:
    singles = (scene for scene in (make_scene(99, "test", index) for index in range(200)) if len(scene.objects) == 1)
    scenes = [next(singles) for _ in range(SCENES)]
    model = shipped(arch, model_type)
    image = torch.stack([load_pixels(scene) for scene in scenes])
    for attribute in ("color", "shape"):
        question = {"color": "what color is the object?", "shape": "what shape is the object?"}[attribute]
        answers = model.predict_answers({"image": image, "text_input": [question] * SCENES}, num_beams=1,
                                        prompt="question: {} short answer:")
        pairs = zip(answers, scenes, strict=True)
        right = sum(answer == getattr(scene.objects[0], attribute) for answer, scene in pairs)
        assert right > 0.6 * SCENES


def test_all_that_ships_stays_small() -> None:
    assert sum(path.stat().st_size for path in (PACKAGE / "assets" / "mini").rglob("*") if path.is_file()) < 25e6
