"""Configurations of transformers: every field is carried, has no effect, or is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.checkpoints import load_checkpoint
from lavis_lite.checkpoints.convert import convert
from lavis_lite.checkpoints.export import export_hf
from lavis_lite.checkpoints.formats.hf_config import section_of
from lavis_lite.checkpoints.formats.hf_fields import CARRIED, _inert
from lavis_lite.errors import CheckpointError
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.checkpoints.export_helpers import build, section_of_arch

ensure_torchvision()
import transformers  # noqa: E402

KINDS = {"blip-2": transformers.Blip2Config, "instructblip": transformers.InstructBlipConfig}
FOLLOW = {"encoder_hidden_size", "use_qformer_text_input", "vocab_size", "image_text_hidden_size", "image_token_index",
          *CARRIED[""] - {"num_query_tokens"}}
"""what other fields, the tokenizer or the class of the model say already"""


def config(kind: str = "blip-2") -> dict[str, Any]:
    return KINDS[kind]().to_dict()


def other(value: Any) -> Any:
    """Some other value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    return value + "_new" if isinstance(value, str) else 2 * value + 1


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("part", ["", "vision_config", "qformer_config"])
def test_every_field_changes_the_section_or_is_refused(kind: str, part: str) -> None:
    """Over all fields of the installed classes, so that one that is added later is noticed."""
    base, looked_at = section_of(config(kind)), 0
    for name, value in (config(kind)[part] if part else config(kind)).items():
        if name in _inert() | FOLLOW or isinstance(value, dict):
            continue
        changed = config(kind)
        (changed[part] if part else changed)[name] = other(value)
        looked_at += 1
        try:
            assert section_of(changed) != base, f"{part}.{name} is dropped"
        except CheckpointError as error:
            assert name in str(error)
    assert looked_at >= {"": 1, "vision_config": 9, "qformer_config": 9}[part]


@pytest.mark.parametrize("kind", ["opt", "t5", "llama"])
def test_every_field_of_the_language_model_is_carried(kind: str) -> None:
    base = config()
    base["text_config"] = text = transformers.AutoConfig.for_model(kind).to_dict()
    for name, value in text.items():
        if name in ("model_type", "vocab_size", "is_encoder_decoder") or isinstance(value, dict | list):
            continue
        changed = copy.deepcopy(base)
        changed["text_config"][name] = given = other(value)
        assert section_of(changed)["llm_args"].get(name) == given, name
    nothing = copy.deepcopy(base)
    nothing["text_config"]["eos_token_id"] = None  # which is not what the class has where the field is absent
    assert section_of(nothing)["llm_args"]["eos_token_id"] is None


def test_both_dropouts_are_carried() -> None:
    changed = config()
    assert section_of(changed)["qformer_attention_dropout"] is None
    changed["qformer_config"]["attention_probs_dropout_prob"] = 0.3
    section = section_of(changed)
    assert (section["qformer_dropout"], section["qformer_attention_dropout"]) == (0.1, 0.3)


def test_fields_that_are_left_out_are_those_of_the_classes() -> None:
    """As on the hub, where a config.json holds only what differs."""
    short = {"model_type": "blip-2", "vision_config": {"patch_size": 7}, "text_config": {"model_type": "opt"}}
    section = section_of(short)
    assert (section["num_query_token"], section["vit_args"]["patch_size"], section["vit_args"]["depth"]) == (32, 7, 39)
    assert section["qformer_layer_norm_eps"] == 1e-12 and section["llm_args"]["vocab_size"] == 50272
    old = {**short, "vision_config": {"dropout": 0.0, "num_channels": 3, "projection_dim": 512, "top_k": 50,
                                      "torchscript": False, "initializer_factor": 1.0}}
    assert section_of(old)["vit_args"]["depth"] == 39  # fields of older versions that nothing was computed from


@pytest.mark.parametrize(("part", "field", "value", "words"), [
    ("vision_config", "hidden_act", "quick_gelu", r"vision_config.hidden_act is 'quick_gelu' \(here 'gelu'\)"),
    ("vision_config", "layer_norm_eps", 1e-5, r"vision_config.layer_norm_eps is 1e-05 \(here 1e-06\)"),
    ("vision_config", "attention_dropout", 0.1, r"vision_config.attention_dropout is 0.1 \(here 0.0\)"),
    ("qformer_config", "hidden_act", "relu", r"qformer_config.hidden_act is 'relu' \(here 'gelu'\)"),
    ("qformer_config", "position_embedding_type", "relative_key", r"'relative_key' \(here 'absolute'\)"),
    ("qformer_config", "of_tomorrow", 3, r"qformer_config.of_tomorrow is 3 \(here None\)"),
    ("text_config", "model_type", "no_such", "which the installed transformers does not have"),
])
def test_refusals_name_the_field_and_our_value(part: str, field: str, value: Any, words: str) -> None:
    changed = config()
    changed[part][field] = value
    with pytest.raises(CheckpointError, match=words):
        section_of(changed)


@pytest.mark.parametrize(("part", "field", "value"), [
    ("qformer_config", "num_attention_heads", 3), ("qformer_config", "layer_norm_eps", 1e-5),
    ("qformer_config", "cross_attention_frequency", 1), ("vision_config", "num_attention_heads", 4),
    ("vision_config", "hidden_act", "quick_gelu"),
])
def test_a_model_of_other_settings_does_not_take_the_tensors(part: str, field: str, value: Any, tmp_path: Path) -> None:
    """Settings that no shape tells of: the tensors would fit, and the outputs would be others."""
    model = build(section_of_arch("blip2_opt", tmp_path))
    export_hf(model, tmp_path / "hf")
    load_checkpoint(model, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    content = json.loads(path.read_text())
    content[part][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{part}.{field} is {value!r}"):
        load_checkpoint(model, tmp_path / "hf")


def test_a_broken_config_is_told_of(tmp_path: Path) -> None:
    model = build(section_of_arch("blip2_opt", tmp_path))
    export_hf(model, tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match="config.json cannot be read as JSON"):
        load_checkpoint(model, tmp_path / "hf")


def test_a_folder_with_such_a_field_is_not_converted(tmp_path: Path) -> None:
    export_hf(build(section_of_arch("blip2_opt", tmp_path)), tmp_path / "hf")
    (tmp_path / "hf" / "lavis_lite_extra.safetensors").unlink()
    path = tmp_path / "hf" / "config.json"
    content = json.loads(path.read_text())
    content["qformer_config"]["hidden_act"] = "relu"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="qformer_config.hidden_act is 'relu'"):
        convert(tmp_path / "hf", "lite", tmp_path / "lite")
    assert not (tmp_path / "lite").exists()
