"""Weights of a vision encoder alone, from the layouts that ViTs are published in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lavis_lite.checkpoints.formats.key_maps import HF_CLIP_MAP, VIT, from_hf, from_lavis, join_qkv, to_lavis
from lavis_lite.checkpoints.load import LoadReport, check_fit, in_model_dtype, where_the_model_has
from lavis_lite.checkpoints.reading import read_content, take_off_wrappers
from lavis_lite.errors import CheckpointError
from lavis_lite.finite import check_weights
from lavis_lite.models.vision.encoder import VisionEncoder

AFTER_THE_FEATURES = re.compile(r"(norm|fc_norm|head|head_dist|attn_pool|ln_post|post_layernorm)\..+|proj|mask_token|"
                                r".+\.k_bias|.*position_ids")
"""Names of a ViT that the features do not depend on: its end, training aids, constants."""


def load_vision_weights(encoder: VisionEncoder, source: str | Path, *, allow_non_finite: bool = False) -> LoadReport:
    """Load a ViT's weights: timm's layout, LAVIS' (eva_vit_g.pth, clip_vit_L.pth), OpenAI's CLIP or Hugging Face's.

    The file may be of a whole model (only its vision part is read) and have one block more than the encoder runs.
    Position embeddings of another resolution are interpolated.

    Raises:
        CheckpointError: nothing there, damaged, not finite (unless that is allowed), or not the weights of this ViT;
            then the encoder is as it was.
    """
    content = read_content(source)
    return load_vision_state(encoder, content.tensors, str(source), allow_non_finite=allow_non_finite)


def load_vision_state(encoder: VisionEncoder, tensors: Mapping[str, Tensor], source: str, *,
                      allow_non_finite: bool = False) -> LoadReport:
    """As `load_vision_weights`, from tensors in memory; `source` is what messages call them."""
    own = {name: value for name, value in encoder.vit.state_dict().items() if ".lora_" not in name}
    tensors, taken = take_off_wrappers(tensors, source, own, _is_known)
    layout, found = _vit_names(tensors)
    found = where_the_model_has(found, own)
    if not own.keys() & found.keys():
        from lavis_lite.checkpoints.report import seems_to_be  # guesses, for a file that does not fit

        raise CheckpointError(f"{source} has no weights of vision encoder {encoder.name!r}: it seems to be "
                              f"{seems_to_be(tensors)}.")
    report = LoadReport(source, layout, notes=[f"names without {', '.join(taken)}"] if taken else [])
    total = max(encoder.total_layers, encoder.num_layers + 1)
    behind = tuple(f"blocks.{number}." for number in range(encoder.num_layers, total))
    for name in [name for name in found if name not in own]:
        if name.startswith(behind) or AFTER_THE_FEATURES.fullmatch(name):
            del found[name]
            report.unused[name] = "comes after the features"
    if "pos_embed" in found and "pos_embed" in own:
        table = encoder.fit_pos_embed(found["pos_embed"])
        report.resized = ["pos_embed"] if table is not found["pos_embed"] else []
        found["pos_embed"] = table
    check_fit(report, found, own, [], [name for name in own if name not in found])
    report.notes += check_weights(in_model_dtype(found, own), source, allow_non_finite)
    encoder.vit.load_state_dict(found, strict=False)
    report.loaded = sorted(found)
    return report


def vision_state(encoder: VisionEncoder, layout: str) -> dict[str, Tensor]:
    """The encoder's weights in another layout: "timm", "LAVIS" (names as in its own weight files) or "OpenAI".

    LAVIS' names of EVA are timm's; its names of CLIP are OpenAI's without `visual.`.
    """
    state = {str(name): value for name, value in encoder.vit.state_dict().items()}
    if layout == "timm":
        return state
    if layout not in ("LAVIS", "OpenAI"):
        raise ValueError(f"layout {layout!r} is not one of 'timm', 'LAVIS', 'OpenAI'")
    translated = to_lavis({VIT + name: value for name, value in state.items()}).tensors
    prefix = "visual." if layout == "OpenAI" else ""
    return {prefix + name.removeprefix("visual_encoder."): value for name, value in translated.items()}


def _is_known(names: Iterable[str]) -> bool:
    """Whether names are those of a layout with a ViT in it."""
    return any(name.startswith(("visual_encoder.", "visual.", VIT, "vision_model.", "conv1.", "pre_layrnorm."))
               for name in names)


def _vit_names(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """(layout, the vision part's tensors under timm's names)."""
    for prefix, layout in (("visual_encoder.", "LAVIS"), ("visual.", "OpenAI"), (VIT, "lavis_lite")):
        part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if part:
            return layout, _bare_names(part)
    part = {name: value for name, value in tensors.items() if name.startswith("vision_model.")}
    if "pre_layrnorm.weight" in tensors:  # transformers 5 keeps CLIP's vision model without its prefix
        part = {f"vision_model.{name}": value for name, value in tensors.items()}
    if part:
        return "Hugging Face", _hugging_face_names(part)
    return "timm" if "conv1.weight" not in tensors else "LAVIS", _bare_names(tensors)


def _bare_names(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's, EVA's or OpenAI's names, without any prefix -> timm's."""
    if "conv1.weight" not in part:
        return dict(part)
    translated = from_lavis({f"visual_encoder.{name}": value for name, value in part.items()})
    found = {name.removeprefix(VIT): value for name, value in translated.tensors.items()}
    return found | {name.removeprefix("visual_encoder."): part[name.removeprefix("visual_encoder.")]
                    for name in translated.unknown}


def _hugging_face_names(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """BLIP-2's vision model or CLIP's -> timm's names."""
    is_clip = any(name.endswith("self_attn.q_proj.weight") for name in part)
    translated = HF_CLIP_MAP.to_ours(join_qkv(part)) if is_clip else from_hf(part)
    rest = {name.removeprefix("vision_model."): part[name] for name in translated.unknown}
    return {name.removeprefix(VIT): value for name, value in translated.tensors.items()
            if not name.startswith("ln_vision.")} | rest
