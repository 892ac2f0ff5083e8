"""S6: a processor with any parameter of any value is built, or refused in words."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from lavis_lite.config.compose import compose
from lavis_lite.config.schema import DatasetConfig, ProcessorPair
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.errors import LavisLiteError
from lavis_lite.preflight import check
from lavis_lite.registry import registry
from tests.security.mutations import VALUES


@pytest.mark.parametrize("name", registry.list_processors())
def test_s6_parameters_of_processors(name: str) -> None:
    for key in inspect.signature(registry.get_processor_class(name)).parameters:
        for value in VALUES:
            section = DatasetConfig(vis_processor=ProcessorPair(train={"name": name, key: value}))
            try:
                BaseDatasetBuilder("mine", section).processor("vis_processor", training=True)
            except LavisLiteError as error:
                assert "datasets.mine.vis_processor.train" in str(error)


@pytest.mark.parametrize(("name", "key"), [("blip_caption", "max_words"), ("blip_image_train", "min_scale"),
                                           ("blip_caption", "prompt"), ("blip_question", "max_words")])
def test_s6_parameters_of_other_types_are_told_before_anything_is_built(tmp_path: Path, name: str, key: str) -> None:
    kind = "vis_processor" if "image" in name else "text_processor"
    (tmp_path / "run.yaml").write_text(f"""
datasets: {{mini_world_caption: {{{kind}: {{train: {{name: {name}, {key}: [a]}}}}}}}}
run: {{max_iters: 1}}
""")
    [fault] = check(compose(tmp_path / "run.yaml"))
    assert f"datasets.mini_world_caption.{kind}.train.{key}: must be" in fault and "not ['a']" in fault
