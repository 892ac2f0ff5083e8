"""Files of a checkpoint that somebody altered: one error that names the file, and never a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lavis_lite.checkpoints import manifest
from lavis_lite.checkpoints.formats.hf_config import section_of
from lavis_lite.checkpoints.metadata import metadata_of
from lavis_lite.checkpoints.weights import WeightFile
from lavis_lite.errors import CheckpointError

TENSORS = {"a": torch.zeros(1)}


@pytest.mark.parametrize(("text", "reason"), [
    ("{", "cannot be read as JSON"), ("[]", "not a JSON object, but list"),
    ('{"model": "x"}', "model: must be a section of keys, not .x"),
    ('{"model": {"arch": "blip2"}, "preprocess": 3}', "preprocess: must be a section of keys, not 3"),
    ("{}", "does not record which model")])
def test_the_header_of_a_file(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file, {"lavis_lite": text})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{reason}"):
        metadata_of(file)


def test_a_header_of_an_arch_alone_or_with_more_keys(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file, {"lavis_lite": '{"model": {"arch": "blip2"}, "later": 2}'})
    assert metadata_of(file).model == {"arch": "blip2"}


@pytest.mark.parametrize(("text", "reason"), [
    ("{", "cannot be read as JSON"), ("[]", "not a JSON object"), ("\ud800", "cannot be read as JSON"),
    ('{"model_type": "blip-2", "text_config": 3}', "text_config must be an object, not int"),
    ('{"model_type": "blip-2", "vision_config": {"hidden_size": "x"}}', "are widths, not .* and 'x'"),
    ('{"model_type": "blip-2", "vision_config": {"hidden_size": 0}}', "are widths, not .* and 0"),
    ('{"model_type": "llava", "vision_config": 3}', "vision_config must be an object, not int"),
    ('{"model_type": "llava", "image_seq_length": "many"}', "LlavaConfig refuses it"),
    ('{"model_type": "llava", "text_config": {"model_type": "llama", "num_attention_heads": 0}}', "refuses it: .*zero"),
    ('{"model_type": "llava", "text_config": {"model_type": {}}}', "LlavaConfig refuses it"),
    ('{"model_type": "llava", "id2label": 3}', "LlavaConfig refuses it")])
def test_the_config_of_a_folder(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CheckpointError, match=rf"(?s)^{re.escape(str(tmp_path))}/config\.json.*{reason}"):
        metadata_of(tmp_path)


@pytest.mark.parametrize(("text", "reason"), [
    ("model: x", "model: must be a section of keys, not .x"),
    ("model: {arch: blip2}\npreprocess: 3", "preprocess: must be a section of keys, not 3"),
    ("imports: 3\nmodel: {arch: blip2}", "imports: must be a list of modules")])
def test_the_configuration_of_a_run(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.yaml.*{reason}"):
        metadata_of(tmp_path)


def test_sections_within_a_pth(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save({"lavis_lite": "1", "config": {"model": {"arch": "blip2"}, "preprocess": 3}, "model": TENSORS}, file)
    with pytest.raises(CheckpointError, match=r"model\.pth.*preprocess: must be a section"):
        metadata_of(file)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_the_index_of_shards(text: str, tmp_path: Path) -> None:
    (tmp_path / manifest.INDEX).write_text(text)
    for read in (manifest.hash_of, manifest.weight_files, lambda path: WeightFile("llm_model", str(path)).local()):
        with pytest.raises(CheckpointError, match=r"index\.json is not an index of shards"):
            read(tmp_path)


def test_a_part_that_is_null_has_the_defaults_of_an_absent_one() -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    assert section_of({**config, "vision_config": None}) == section_of(config)
    assert section_of(config)["vit_args"]["width"] == 1024
