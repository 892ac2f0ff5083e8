"""Load a checkpoint into a model: every tensor accounted for before any is written."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_lite.checkpoints.formats.key_maps import (
    LANGUAGE_MODEL,
    WITHOUT_PLACE,
    Translated,
    derived,
    from_hf,
    from_lavis,
    is_llava,
    language_prefix,
    refuse_other_kind,
    to_lavis,
)
from lavis_lite.checkpoints.manifest import CONFIG, WEIGHTS, json_object, safetensors_metadata
from lavis_lite.checkpoints.reading import Content, read_content, read_extra, take_off_wrappers
from lavis_lite.config.layers import read_yaml
from lavis_lite.config.named import model_types, type_content
from lavis_lite.errors import CheckpointError, listed
from lavis_lite.finite import check_weights
from lavis_lite.models.base import BaseModel, frozen_roots
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.registry import registry

LAVIS_STARTS = ("Qformer.", "visual_encoder.")
HF_STARTS = ("qformer.encoder.", "vision_model.")
"""what names of a whole model begin with, by layout"""
UNSEEN = {"qformer_heads": "num_heads", "qformer_layer_norm_eps": "layer_norm_eps"}
"""keys of a section that no tensor's shape shows -> what the Q-Former calls them"""


@dataclass
class LoadReport:
    """What happened to every tensor of the model and of the file.

    Attributes:
        source: the file or folder.
        layout: "lavis_lite", "LAVIS", "Hugging Face" or a backbone's own.
        loaded: names in the model that took a value.
        resized: those of them that were interpolated (position embeddings) or cut (words the model does not have).
        frozen_missing: frozen names of the model that the file does not have, as expected.
        not_in_layout: names that the file's layout has no place for; they keep their initial values.
        allowed_missing: other names that the caller allowed to be missing.
        had: those of them that had their values already, out of another file.
        unused: names of the file that were not needed -> why.
        ignored: those of them (under our names) that the model has no place for.
        notes: how the tensors were found: prefixes taken off, which of several state dicts, their dtype.
    """

    source: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    frozen_missing: list[str] = field(default_factory=list)
    not_in_layout: list[str] = field(default_factory=list)
    allowed_missing: list[str] = field(default_factory=list)
    had: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for count, words in ((len(self.resized), "resized"), (len(self.frozen_missing), "frozen and not in it"),
                             (len(self.not_in_layout), "without a place in its layout, left as initialised"),
                             (len(self.had), "had from another file"),
                             (len(self.allowed_missing) - len(self.had), "missing, left as initialised"),
                             (len(self.unused), "of its own not needed")):
            if count:
                parts.append(f"{count} {words}")
        return f"{self.source} ({self.layout}): {', '.join(parts)}{''.join(f'; {note}' for note in self.notes)}"


def load_checkpoint(model: BaseModel, source: str | Path, *, allowed_missing: Iterable[str] = (),
                    allowed_unexpected: Iterable[str] = (), only: Container[str] | None = None,
                    allow_non_finite: bool = False) -> LoadReport:
    """Load a checkpoint of this project, of LAVIS or of Hugging Face; the layout is recognised by its names.

    Args:
        model: built, on any device; frozen parts may be missing in the file.
        source: a run's checkpoint folder, a .safetensors file, a LAVIS .pth, or a folder from the Hugging Face hub.
        allowed_missing: names (regular expressions) of the model that the file may lack: parts that start afresh.
        allowed_unexpected: names (regular expressions, ours) that the model may lack: parts that it dropped.
        only: load these names of the model only; the file may lack the others. None: all.
        allow_non_finite: load tensors that hold NaN or infinity too.

    Raises:
        CheckpointError: nothing there, damaged, not finite, or it does not fit; then the model is as it was.
    """
    content = read_content(source)
    refuse_other_settings(model, source)
    return load_state(model, content, str(source), allowed_missing=allowed_missing,
                      allowed_unexpected=allowed_unexpected, only=only, extra=read_extra(source),
                      allow_non_finite=allow_non_finite)


def refuse_other_settings(model: object, source: str | Path) -> None:
    """Refuse a checkpoint that records settings which no tensor's shape shows, and which are not the model's.

    Raises:
        CheckpointError: of a folder of transformers' BLIP-2, or of a file or run's checkpoint of this project.
    """
    source = Path(source).expanduser()
    if (source / "config.json").is_file():
        from lavis_lite.checkpoints.formats import hf_fields  # only folders of transformers have settings

        hf_fields.refuse_other_settings(model, source)
    section = recorded_section(source)
    if section.get("arch") not in registry.list_models():
        return
    recorded = registry.get_model_class(section["arch"])
    if not isinstance(model, recorded) and getattr(model, "language_model", None) and not section.get("llm_model"):
        refuse_other_kind(model, recorded.config_class, source)
    errors = [f"model.{key} was {was!r} (here {now!r})" for key, was, now in _unseen(model, section)
              if was != now and "${" not in str(was)]  # an interpolation is recorded as it was written
    if errors:
        raise CheckpointError(f"{source}: {'; '.join(errors)}. The tensors would fit, and the outputs would be others. "
                              "Give the section model these values.")


def _unseen(model: object, section: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, recorded value, the model's) of settings that no tensor's shape shows."""
    if section.keys() == {"arch", "model_type"} and section["model_type"] in model_types(section["arch"]):
        section |= type_content(section["arch"], section["model_type"])["model"]  # a packaged one names its type only
    defaults = registry.get_model_class(section["arch"]).config_class  # they are not written down
    keys = (*UNSEEN, "vit_model", "vit_layer", "vit_cls")
    was = {key: section.get(key, getattr(defaults, key, None)) for key in keys}
    cfg = getattr(getattr(model, "qformer", None), "cfg", None)
    for key, name in UNSEEN.items():
        if was[key] is not None and (own := getattr(cfg, name, None)) is not None:
            yield key, was[key], own
    if isinstance(encoder := getattr(model, "vision_encoder", None), VisionEncoder):
        yield from encoder.differences(was)
    lora = getattr(getattr(getattr(model, "language_model", None), "load_options", None), "lora", None)
    if lora is not None and (section.get("lora") is not None or section.get("llm_train") == "lora"):
        yield "lora.alpha", (section.get("lora") or {}).get("alpha", type(lora).alpha), lora.alpha


def recorded_section(source: Path) -> dict[str, Any]:
    """The section `model` that a file or a run's checkpoint records; empty if it has none."""
    texts = (safetensors_metadata(file).get("lavis_lite") for file in (source, source / WEIGHTS))
    content = next((json_object(text, source) for text in texts if text), {})
    if not content and (source / CONFIG).is_file():
        content = read_yaml(source / CONFIG)
    section = content.get("model")
    return dict(section) if isinstance(section, dict) else {}


def load_state(model: BaseModel, tensors: Mapping[str, Tensor] | Content, source: str, *,
               allowed_missing: Iterable[str] = (), allowed_unexpected: Iterable[str] = (),
               extra: Mapping[str, Tensor] | None = None, only: Container[str] | None = None,
               allow_non_finite: bool = False) -> LoadReport:
    """As `load_checkpoint`, from tensors in memory; `source` is what messages call them.

    Args:
        extra: under our names, what a side file holds that has no place in the layout of `tensors`.
    """
    if only is not None:
        allowed_missing, allowed_unexpected = [".*"], [".*"]
    fitted, report = fit_state(model, tensors, source, allowed_missing=allowed_missing,
                               allowed_unexpected=allowed_unexpected, extra=extra, allow_non_finite=allow_non_finite)
    if only is not None:
        fitted = {name: tensor for name, tensor in fitted.items() if name in only}
        report.loaded = sorted(fitted)
    model.load_state_dict(fitted, strict=False)
    return report


def fit_state(model: BaseModel, tensors: Mapping[str, Tensor] | Content, source: str, *,
              allowed_missing: Iterable[str] = (), allowed_unexpected: Iterable[str] = (),
              extra: Mapping[str, Tensor] | None = None,
              allow_non_finite: bool = False) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors under the model's names, fit to be loaded, and the report; the model is not touched.

    A model on the meta device serves as well as any. Arguments and errors as `load_state`.
    """
    content = tensors if isinstance(tensors, Content) else Content(dict(tensors))
    own = model.state_dict()
    named, taken = take_off_wrappers(content.tensors, source, own, is_known_layout)
    layout, translated = recognise(named, own, vision_heads(model))
    translated.tensors = where_the_model_has(translated.tensors, own)
    if not own.keys() & translated.tensors.keys():
        from lavis_lite.checkpoints.report import shares_no_name  # guesses, for a file that does not fit

        raise shares_no_name(source, named, content.parts)
    if layout == "LAVIS":
        from lavis_lite.checkpoints.formats.language_fit import check_language_model  # imports the language models

        check_language_model(model, named, source)
    translated.tensors.update(extra or {})
    report = LoadReport(source, layout, unused=dict(translated.dropped), notes=_notes(content, taken))
    missing_allowed, unexpected_allowed = model.allowed_differences(translated.tensors.keys())
    _ignore(report, translated, own, [*allowed_unexpected, *unexpected_allowed])
    fitted = fit_resolution(model, translated.tensors, report)
    if layout == "Hugging Face":
        from lavis_lite.checkpoints.formats.language_fit import fit_language_model  # imports the language models

        fitted = fit_language_model(model, fitted, report)
    missing = _sort_missing(model, own, fitted, report, [*allowed_missing, *missing_allowed])
    check_fit(report, fitted, own, translated.unknown, missing, named)
    report.notes += check_weights(in_model_dtype(fitted, own), source, allow_non_finite)
    report.loaded = sorted(fitted)
    return fitted, report


def in_model_dtype(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of a wider range than the model's as the model will hold them: 1e300 is no float32."""
    return {name: tensor.to(own[name].dtype) if _is_wider(tensor, own.get(name)) else tensor
            for name, tensor in tensors.items()}


def _is_wider(tensor: Tensor, own: Tensor | None) -> bool:
    if own is None or not tensor.is_floating_point() or not own.is_floating_point():
        return False
    return torch.finfo(tensor.dtype).max > torch.finfo(own.dtype).max


def _notes(content: Content, taken: list[str]) -> list[str]:
    """What the load line says of how the tensors were found."""
    notes = [f"names without {', '.join(f'`{piece}`' for piece in taken)}"] if taken else []
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in content.tensors.values()
                    if tensor.is_floating_point() and tensor.dtype.itemsize < 4})
    notes += [f"stored in {' and '.join(kinds)}"] if kinds else []
    if content.foreign:
        notes.append(f"objects that were not read: {listed(content.foreign, 3)}")
    return [*content.notes, *notes]


MINIGPT4, OWL = "llama_proj.", "abstractor.encoder."
"""how names begin: those of MiniGPT-4's release, which is one linear layer, and of mPLUG-Owl's abstractor"""


def is_known_layout(names: Iterable[str]) -> bool:
    """Whether names are LAVIS', Hugging Face's, LLaVA's, mPLUG-Owl's or MiniGPT-4's."""
    names = list(names)
    starts = (*LAVIS_STARTS, *HF_STARTS, MINIGPT4, OWL)
    return is_llava(names) or any(name.startswith(starts) for name in names)


def recognise(tensors: Mapping[str, Tensor], own: Iterable[str] = (), heads: int = 1) -> tuple[str, Translated]:
    """(layout, tensors under the model's names).

    Args:
        tensors: of a file.
        own: names of the model that they are for, if there is one.
        heads: of its vision encoder.
    """
    if any(name.startswith(LAVIS_STARTS) for name in own):
        return "lavis_lite", _for_lavis_names(tensors, own)
    if any(name.startswith(LAVIS_STARTS) for name in tensors):
        return "LAVIS", from_lavis(tensors)
    if tensors and all(name.startswith(MINIGPT4) for name in tensors):
        return "MiniGPT-4", Translated({name.replace(MINIGPT4, "connector.language_projection."): tensor
                                        for name, tensor in tensors.items()})
    if any(name.startswith(OWL) for name in tensors):
        from lavis_lite.checkpoints.formats.owl import from_owl  # most checkpoints are neither this nor the next

        return "Hugging Face", from_owl(tensors, heads)
    if is_llava(tensors):
        from lavis_lite.checkpoints.formats.llava import from_llava

        return "Hugging Face", from_llava(tensors)
    if any(name.startswith(HF_STARTS) for name in tensors):
        return "Hugging Face", from_hf(tensors, any(name.endswith(".attn.qkv.bias") for name in own))
    return "lavis_lite", Translated(dict(tensors))


def vision_heads(model: object) -> int:
    """Heads of a model's vision encoder; 1: it has none that is a ViT."""
    blocks = getattr(getattr(getattr(model, "vision_encoder", None), "vit", None), "blocks", None)
    return 1 if blocks is None else int(getattr(blocks[0].attn, "num_heads", 1))


def _for_lavis_names(tensors: Mapping[str, Tensor], own: Iterable[str]) -> Translated:
    """Tensors for a model with LAVIS' names: those of LAVIS' layout unchanged, ours under LAVIS' names."""
    if any(name.startswith(LAVIS_STARTS) for name in tensors):
        known = set(own)
        return Translated({name: tensor for name, tensor in tensors.items() if name in known or not derived(name)})
    translated = to_lavis(tensors, language_prefix(own) or "opt")
    return Translated({**translated.tensors, **{name: tensors[name] for name in translated.unknown}})


def _ignore(report: LoadReport, translated: Translated, own: Mapping[str, Tensor], patterns: Iterable[str]) -> None:
    patterns = list(patterns)
    for name in [name for name in translated.tensors if name not in own and _matches(name, patterns)]:
        del translated.tensors[name]
        report.unused[name] = "the model has no such part"
        report.ignored.append(name)


def fit_resolution(model: BaseModel, tensors: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """The same tensors, with position embeddings of vision encoders brought to the model's resolution."""
    fitted = dict(tensors)
    for path, module in model.named_modules():
        name = f"{path}.vit.pos_embed".lstrip(".")
        if isinstance(module, VisionEncoder) and name in fitted:
            table = module.fit_pos_embed(fitted[name])
            if table is not fitted[name]:
                fitted[name] = table
                report.resized.append(name)
    return fitted


def _sort_missing(model: BaseModel, own: Mapping[str, Tensor], fitted: Mapping[str, Tensor], report: LoadReport,
                  allowed_missing: Iterable[str]) -> list[str]:
    """Sort the names of the model that are not in the file into the report; return those that are not allowed."""
    frozen = frozen_tensors(model, own)
    given = _tied_to(model, fitted)
    without_place = WITHOUT_PLACE if report.layout == "Hugging Face" else ()
    allowed_missing, missing = list(allowed_missing), []
    whole = report.layout == "Hugging Face" and any(name.startswith(LANGUAGE_MODEL) for name in fitted)
    for name in own:
        if name in fitted or name in given:
            continue
        if name in frozen and not (whole and name.startswith(LANGUAGE_MODEL)):  # half a language model is a damaged one
            report.frozen_missing.append(name)
        elif _matches(name, without_place):
            report.not_in_layout.append(name)
        elif _matches(name, allowed_missing):
            report.allowed_missing.append(name)
        else:
            missing.append(name)
    return missing


def check_fit(report: LoadReport, fitted: Mapping[str, Tensor], own: Mapping[str, Tensor], unknown: list[str],
              missing: list[str], names: Iterable[str] = ()) -> None:
    """Raise CheckpointError with all differences at once: names on both sides, shapes, dtypes.

    `names` are the original ones of the file, from which its kind is guessed.
    """
    unexpected = unknown + [name for name in fitted if name not in own]
    shapes = [(name, tuple(tensor.shape), tuple(own[name].shape)) for name, tensor in fitted.items()
              if name in own and tensor.shape != own[name].shape]
    kinds = [(name, _kind(tensor)) for name, tensor in fitted.items() if name in own
             and own[name].is_floating_point() and not (is_plain_float(tensor) and tensor.is_meta <= own[name].is_meta)]
    if unexpected or missing or shapes or kinds:
        from lavis_lite.checkpoints.report import does_not_fit  # as above

        raise does_not_fit(report.source, list(names) or [*unknown, *fitted], own, unexpected, missing, shapes, kinds)


def _kind(tensor: Tensor) -> str:
    """What makes a tensor unfit: it has no values, is sparse, or is of a dtype that holds no real numbers."""
    if tensor.is_meta:
        return "without values, on the meta device"
    return str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)


def is_plain_float(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers as they are: no integers of a quantisation, no sparse or complex ones."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_quantized


def frozen_tensors(model: BaseModel, own: Mapping[str, Tensor]) -> set[str]:
    """Frozen parameters under all of their names, and the buffers of parts that are frozen as a whole."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    frozen = model.frozen_names() | {name for name, value in parameters.items() if not value.requires_grad}
    trained_parts = {name.split(".")[0] for name in parameters if name not in frozen}
    frozen_parts = {name.split(".")[0] for name in frozen} - trained_parts
    roots = frozen_roots(model)
    return frozen | {name for name in own if name not in parameters
                     and (name.split(".")[0] in frozen_parts or name.startswith(roots))}


def where_the_model_has(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that a wrapped part has in the model.

    BLIP-2's Q-Former may be the model's `connector`, and a layer with an adapter keeps its own weights under
    `base_layer`.
    """
    for pattern, name in ((r"^", "connector."), (r"(^|\.)([^.]+)$", r"\1base_layer.\2")):
        inner = {old: re.sub(pattern, name, old, count=1) for old in tensors.keys() - own.keys()}
        tensors = {inner[old] if inner.get(old) in own else old: tensor for old, tensor in tensors.items()}
    return dict(tensors)


def _tied_to(model: BaseModel, fitted: Mapping[str, Tensor]) -> set[str]:
    """Second names of parameters that the file has under a first name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    given = {id(value) for name, value in parameters.items() if name in fitted}
    return {name for name, value in parameters.items() if id(value) in given}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
