"""Names and shapes of the real checkpoints: every one explained, on the meta device, by the model of a model type.

The manifests are lists of names and shapes; the released files themselves are not read here.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.checkpoints import from_hf, from_lavis, load_state, to_hf, to_lavis
from lavis_lite.checkpoints.convert import metadata_of, skeleton_of, typed_section
from lavis_lite.checkpoints.export import first_names
from lavis_lite.checkpoints.formats.hf_config import section_of
from lavis_lite.checkpoints.formats.key_maps import language_kind
from lavis_lite.checkpoints.formats.vision import load_vision_state, vision_state
from lavis_lite.errors import CheckpointError
from lavis_lite.models.language.released import RELEASED
from lavis_lite.models.vision.encoder import VisionEncoder

TYPES = {
    "lavis_blip2_pretrain": ("blip2", "pretrain"),
    "lavis_blip2_pretrain_vitL": ("blip2", "pretrain_vitL"),
    "lavis_blip2_opt_pretrain_opt2.7b": ("blip2_opt", "pretrain_opt2.7b"),
    "lavis_blip2_t5_pretrain_flant5xl": ("blip2_t5", "pretrain_flant5xl"),
    "lavis_blip2_t5_instruct_flant5xl": ("blip2_t5_instruct", "flant5xl"),
    "lavis_blip2_vicuna_instruct_vicuna7b": ("blip2_vicuna_instruct", "vicuna7b"),
    "hf_blip2_itm_vit_g": ("blip2", "pretrain"),
    "hf_blip2_opt_2.7b": ("blip2_opt", "pretrain_opt2.7b"),
    "hf_instructblip_flan_t5_xl": ("blip2_t5_instruct", "flant5xl"),
    "hf_instructblip_vicuna_7b": ("blip2_vicuna_instruct", "vicuna7b"),
}
"""manifest -> model type that it belongs to"""
LAVIS = [name for name in TYPES if name.startswith("lavis_")]
HF = [name for name in TYPES if name.startswith("hf_")]
LLM = {"opt": RELEASED["facebook/opt-2.7b"], "t5": RELEASED["google/flan-t5-xl"],
       "vicuna": RELEASED["lmsys/vicuna-7b-v1.1"]}
"""sizes of the frozen language models by a part of the arch's name"""


@functools.cache
def encoder_of(vit_model: str, image_size: int) -> VisionEncoder:
    """A frozen vision encoder at full size, on the meta device; models share it to save time."""
    with torch.device("meta"):
        return VisionEncoder(vit_model, image_size, frozen=True)


@functools.cache
def model_of(arch: str, model_type: str) -> Any:
    """The model of a model type at full size, on the meta device."""
    section = metadata_of(Path(), arch, model_type).model
    sizes = next((sizes for name, sizes in LLM.items() if name in arch), None)
    model = skeleton_of(typed_section({**section, "vit_args": {"depth": 1}, **({"llm_args": sizes} if sizes else {})}))
    model.vision_encoder = encoder_of(section["vit_model"], section["image_size"])
    return model


def manifest(shared: Path, name: str) -> dict[str, Any]:
    return json.loads((shared / "parity/manifests" / f"{name}.json").read_text())


def tensors(content: dict[str, Any], kept_only: bool = False) -> dict[str, Tensor]:
    return {key: torch.empty(entry["shape"], device="meta") for key, entry in content["keys"].items()
            if not kept_only or entry["kept"]}


def shapes(found: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in found.items()}


def test_every_manifest_is_checked(shared_dir: Path) -> None:
    assert {path.stem for path in (shared_dir / "parity/manifests").glob("*.json")} == set(TYPES)


@pytest.mark.parametrize("name", LAVIS)
def test_every_name_and_shape_of_lavis(name: str, shared_dir: Path) -> None:
    model, content = model_of(*TYPES[name]), manifest(shared_dir, name)
    whole = tensors(content)
    report = load_state(model, whole, name)
    assert set(report.loaded) == set(model.state_dict()) and not report.resized
    derived = ("0, 1, 2, ...", "a constant that follows from the head's width")
    assert all(entry in derived or entry.startswith("the same tensor as") for entry in report.unused.values())
    assert len(report.loaded) + len(report.unused) == len(whole)
    released = load_state(model, tensors(content, kept_only=True), name)
    found = first_names(model, {key: torch.empty(0) for key in released.loaded})  # LAVIS keeps a tied one's second name
    assert found.keys() | set(released.frozen_missing) >= first_names(model, model.state_dict()).keys()
    assert model.trainable_state().keys() <= found.keys()


@pytest.mark.parametrize("name", LAVIS)
def test_writing_gives_the_names_and_shapes_of_lavis(name: str, shared_dir: Path) -> None:
    model, content = model_of(*TYPES[name]), manifest(shared_dir, name)
    written = to_lavis(model.state_dict(), language_kind(model) or "opt", model.qformer.cfg.max_positions)
    wanted = {key: shape for key, shape in shapes(tensors(content)).items() if "inv_freq" not in key}
    assert not written.unknown and shapes(written.tensors) == wanted
    assert shapes(from_lavis(written.tensors).tensors) == shapes(model.state_dict())


@pytest.mark.parametrize("name", LAVIS)
def test_parameter_counts_are_those_of_lavis(name: str, shared_dir: Path) -> None:
    counts, found = manifest(shared_dir, name)["counts"], model_of(*TYPES[name]).count_parameters()
    assert found["vision_encoder"] == (0, counts["visual_encoder"])
    assert found["qformer"] == (counts["Qformer"], 0)
    language = next((counts[key] for key in ("opt_model", "t5_model", "llm_model") if key in counts), None)
    assert language is None or found["language_model"] == (0, language)
    assert sum(trainable for trainable, _ in found.values()) == counts["trainable"]


@pytest.mark.parametrize("name", HF)
def test_every_name_and_shape_of_transformers(name: str, shared_dir: Path) -> None:
    model, content = model_of(*TYPES[name]), manifest(shared_dir, name)
    whole = tensors(content)
    report = load_state(model, whole, name)
    assert set(report.loaded) | set(report.not_in_layout) == set(model.state_dict())
    assert not report.unused and not report.frozen_missing
    written = to_hf(model.state_dict(), "Instruct" in content["cls"])
    assert set(written.unknown) == set(report.not_in_layout) and shapes(written.tensors) == shapes(whole)
    assert shapes(from_hf(written.tensors).tensors).keys() == set(report.loaded)


@pytest.mark.parametrize("name", HF)
def test_what_a_repository_stores_is_enough(name: str, shared_dir: Path) -> None:
    """Tied tensors once, buffers of older versions, and rows for an image token."""
    model, content = model_of(*TYPES[name]), manifest(shared_dir, name)
    stored = {key: value for key, value in tensors(content).items() if "tied_to" not in content["keys"][key]}
    stored["qformer.embeddings.position_ids"] = torch.empty(1, 512, device="meta")
    if "vicuna" in name:
        stored["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.empty(64, device="meta")
    for key, value in stored.items():
        if key.startswith("language_model.") and key.endswith(("tokens.weight", "shared.weight", "lm_head.weight")):
            stored[key] = torch.empty(len(value) + 32, *value.shape[1:], device="meta")
    report = load_state(model, stored, name)
    assert not report.frozen_missing and set(report.unused) >= {"qformer.embeddings.position_ids"}
    assert bool(report.resized) == any(key.startswith("language_model.") for key in stored)
    if report.resized:
        half = {key: value for key, value in stored.items() if "layer_norm" not in key and "layernorm" not in key}
        with pytest.raises(CheckpointError, match="not in the file: .*norm"):
            load_state(model, half, name)


@pytest.mark.parametrize("name", HF)
def test_transformers_configurations_give_the_same_model(name: str, shared_dir: Path) -> None:
    """Sections made from their config.json: as the model types', but for the depth, which costs time here."""
    content = manifest(shared_dir, name)
    config = {**content["config"], "architectures": [content["cls"]]}
    keys = section_of(config)
    assert keys["arch"] == TYPES[name][0]
    keys["vit_args"]["depth"], small = 1, {"num_hidden_layers": 1, "num_layers": 1, "num_decoder_layers": 1}
    if "llm_args" in keys:
        keys["llm_args"].update({key: value for key, value in small.items() if key in keys["llm_args"]})
    found = shapes(skeleton_of(typed_section(keys)).state_dict())
    wanted = shapes(model_of(*TYPES[name]).state_dict())
    assert {key: wanted[key] for key in found} == found
    trained = {key for key in wanted if not key.startswith(("vision_encoder.", "language_model."))}
    assert trained <= found.keys()


# the paper's table ----------------------------------------------------------------------------------------------------
WIDTHS = {"opt2.7b": 2560, "opt6.7b": 4096, "flant5xl": 2048, "flant5xxl": 4096, "vicuna7b": 4096}
TRAINED = {
    ("blip2", "pretrain"): (186, 187),
    ("blip2_opt", "pretrain_opt2.7b_vitL"): (104, 104), ("blip2_opt", "pretrain_opt2.7b"): (107, 107),
    ("blip2_opt", "pretrain_opt6.7b"): (108, 108),
    ("blip2_t5", "pretrain_flant5xl_vitL"): (103, 103), ("blip2_t5", "pretrain_flant5xl"): (107, 107),
    ("blip2_t5", "pretrain_flant5xxl"): (108, 108),
    ("blip2_t5_instruct", "flant5xl"): (187, 188), ("blip2_vicuna_instruct", "vicuna7b"): (188, 189),
}
"""model type -> millions of trained parameters, rounded: BLIP-2's tables 2 and 3, and 188 million in InstructBLIP's"""


@pytest.mark.parametrize("model_type", TRAINED, ids="/".join)
def test_trained_parameters_are_the_papers(model_type: tuple[str, str]) -> None:
    """Frozen parts do not count: one layer of each stands for all."""
    section = {**metadata_of(Path(), *model_type).model, "vit_args": {"depth": 1}}
    width = next((WIDTHS[name] for name in WIDTHS if name in model_type[1].split("_")), None)
    if width and "t5" in model_type[0]:
        section["llm_args"] = {"model_type": "t5", "d_model": width, "num_layers": 1, "vocab_size": 64}
    elif width:
        section["llm_args"] = {"model_type": "opt", "hidden_size": width, "word_embed_proj_dim": width,
                               "num_hidden_layers": 1, "vocab_size": 64, "num_attention_heads": 1}
    counts = skeleton_of(typed_section(section)).count_parameters()
    least, most = TRAINED[model_type]
    assert least <= round(sum(trainable for trainable, _ in counts.values()) / 1e6) <= most


# vision encoders alone ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lavis_blip2_pretrain", "lavis_blip2_pretrain_vitL", "hf_blip2_itm_vit_g"])
def test_vision_encoders_of_the_manifests(name: str, shared_dir: Path) -> None:
    """As part of a whole model, and alone under LAVIS' and timm's names with the block that is not run."""
    encoder, whole = model_of(*TYPES[name]).vision_encoder, tensors(manifest(shared_dir, name))
    assert len(load_vision_state(encoder, whole, name).loaded) == len(encoder.vit.state_dict())
    if not name.startswith("lavis_"):
        return
    alone = {key.removeprefix("visual_encoder."): value for key, value in whole.items()
             if key.startswith("visual_encoder.")}
    assert shapes(vision_state(encoder, "LAVIS")) == shapes(alone)
    last = [key for key in alone if f".{encoder.num_layers - 1}." in key or f"blocks.{encoder.num_layers - 1}." in key]
    more = {key.replace(str(encoder.num_layers - 1), str(encoder.num_layers)): alone[key] for key in last}
    report = load_vision_state(encoder, {**alone, **more}, name)
    assert len(report.loaded) == len(alone) and len(report.unused) == len(more) > 0
    assert len(load_vision_state(encoder, vision_state(encoder, "timm"), name).loaded) == len(alone)
