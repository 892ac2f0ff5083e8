"""Sections of classes without a schema: every key is kept, misspelt ones are refused, unread ones are named."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

import lavis_lite.compat.lavis  # noqa: F401  (makes `lavis` importable)
from lavis_lite.compat.lavis.sections import as_node, keys_read
from lavis_lite.config.schema import ModelConfig
from lavis_lite.config.typed import Checker
from lavis_lite.errors import ConfigError
from tests.compat.reader import Reader

GIVEN = {"arch": "reader", "len_video_ft": 3, "lora_rank": 4, "low_resource": True, "nested": {"rank": 4},
         "dataset_card": "card.md", "qformer_layers": 2}


def checked(content: dict[str, Any]) -> tuple[Any, Checker]:
    checker = Checker(lambda key: "my.yaml")
    return checker.section(Reader.section_class, content, "model"), checker


def test_what_a_class_reads_is_in_its_source() -> None:
    assert {"prompt_path", "len_video_ft", "lora_rank"} <= keys_read(Reader)


def test_all_keys_are_kept_and_handed_over_as_lavis_does() -> None:
    section, checker = checked(GIVEN)
    assert checker.errors == [] and isinstance(section, ModelConfig)
    node, path, length, rank, _ = Reader.from_config(section)
    assert (path, length, rank, node.nested.rank) == ("", 3, 4, 4)
    assert set(node) == set(GIVEN)  # no default of the package's own


def test_a_misspelt_key_is_refused_with_the_right_one() -> None:
    _, checker = checked({**GIVEN, "promt_path": "x"})
    assert len(checker.errors) == 1 and "model.promt_path; did you mean 'prompt_path'" in checker.errors[0]


def test_a_key_that_nothing_reads_is_named() -> None:
    section, checker = checked({**GIVEN, "wandb_entity": "me"})
    assert checker.errors == [] and section.wandb_entity == "me"
    assert [note for note in checker.notes if "wandb_entity: nothing in the source of Reader reads it" in note]


def test_a_key_that_the_class_needs_is_named() -> None:
    section, _ = checked({"arch": "reader"})
    with pytest.raises(ConfigError, match="model.len_video_ft: Reader needs this key"):
        Reader.from_config(section)


def test_a_section_travels_between_processes() -> None:
    section, _ = checked(GIVEN)
    twin = pickle.loads(pickle.dumps(section))
    assert dataclasses.asdict(twin) == dataclasses.asdict(section) and twin.given == section.given
    assert dataclasses.asdict(dataclasses.replace(twin, pretrained="x"))["pretrained"] == "x"


def test_packaged_names_become_paths() -> None:
    node = as_node({"llm_model": "mini/opt", "ckpt": "minimal/opt"})
    assert node.llm_model.endswith("assets/mini/opt") and node.ckpt == "minimal/opt"


def test_other_sections_stay_strict() -> None:
    checker = Checker(lambda key: "my.yaml")
    checker.section(ModelConfig, {"wandb_entity": "me"}, "model")
    assert len(checker.errors) == 1


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_values_are_finite_here_too(value: Any) -> None:
    _, checker = checked({**GIVEN, "prompt_path": value})
    assert len(checker.errors) == 1
