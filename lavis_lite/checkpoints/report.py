"""Why a checkpoint could not be loaded: what the file seems to be, what differs, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lavis_lite.checkpoints.reading import ADAPTERS_ALONE
from lavis_lite.errors import CheckpointError, listed, nearest

SHOWN = 5
"""names shown of each kind of error"""

_CONNECTED = "; a model of arch vision_language with the same connector takes it"
SIGNATURES = [
    (r"base_model\.model\..*lora_[AB]\..*", ADAPTERS_ALONE),
    (r"abstractor\..*", f"an mPLUG-Owl{_CONNECTED}"),
    (r"(model\.)?(multi_modal_projector|mm_projector)\..*", f"a LLaVA{_CONNECTED}"),
    (r"llama_proj\..*", f"MiniGPT-4's linear layer{_CONNECTED}"),
    (r"lang_encoder\..*|perceiver\.latents", "an OpenFlamingo; `python -m projects.flamingo.openflamingo` converts it"),
    (r"opt_model\..*|opt_proj\..*", "a BLIP-2 model on OPT in LAVIS' layout"),
    (r"t5_model\..*|t5_proj\..*", "a BLIP-2 or InstructBLIP model on T5 in LAVIS' layout"),
    (r"llm_model\..*|llm_proj\..*", "a BLIP-2 or InstructBLIP model on Vicuna in LAVIS' layout"),
    (r"Qformer\..*", "a BLIP-2 model in LAVIS' layout"),
    (r"qformer\.layers\..*", "a checkpoint of this project"),
    (r"language_projection\..*", "a BLIP-2 or InstructBLIP model with its language model in Hugging Face's layout"),
    (r"qformer\.encoder\..*", "a BLIP-2 retrieval model in Hugging Face's layout"),
    (r"text_encoder\..*|text_decoder\..*", "a BLIP (first version) model of LAVIS"),
    (r"blocks\.\d+\.attn\..*", "a vision encoder alone in timm's layout; model.vit_weights takes it"),
    (r"visual\..*", "a CLIP model in OpenAI's layout; model.vit_weights takes its image half"),
    (r"vision_model\..*", "a CLIP model in Hugging Face's layout; model.vit_weights takes its image half"),
    (r"bert\..*|encoder\.layer\.\d+\.attention\.self\..*", "a BERT; model.qformer_weights takes its folder"),
    (r"model\.layers\..*|model\.decoder\..*|lm_head\..*|shared\..*",
     "a language model; model.llm_model takes its folder"),
    (r"state|param_groups", "an optimizer's state"),
]
"""Names (regular expressions) that give a file away, most telling first."""

TEXT_HALF = r"(Qformer\.bert\.|qformer\.)?embeddings\.word_embeddings\.weight"
ARCHS = [
    (r"opt_model\..*|opt_proj\..*|language_model\.(model\.)?model\.decoder\..*", ("blip2_opt", "blip2_opt")),
    (r"t5_model\..*|t5_proj\..*|language_model\.(model\.)?encoder\.block\..*", ("blip2_t5", "blip2_t5_instruct")),
    (r"llm_model\..*|llm_proj\..*|language_model\.(model\.)?model\.layers\..*",
     ("blip2_vicuna", "blip2_vicuna_instruct")),
    (r"language_projection\..*", ("blip2_opt, blip2_t5 or blip2_vicuna", "blip2_t5_instruct or blip2_vicuna_instruct")),
    (r"itm_head\..*", ("blip2", "blip2")),
]
"""Names (regular expressions) -> the arch they point to: without the Q-Former's text half, and with it."""


def seems_to_be(names: Iterable[str]) -> str:
    """A guess at what a file with these names is, with the arch that it fits where one is known."""
    names = list(names)
    if not names:
        return "a file without tensors"
    for pattern, words in SIGNATURES:
        if any(re.fullmatch(pattern, name) for name in names):
            arch = "" if words.endswith(_CONNECTED) else likely_arch(names)
            return f"{words} (arch {arch})" if arch else words
    beginnings = describe_beginnings(names)
    return f"no layout known here (its first names: {listed(names, SHOWN)}{'; ' + beginnings if beginnings else ''})"


def likely_arch(names: Iterable[str]) -> str:
    """The registered arch (or several) of a whole model with these names; "" where nothing points to one."""
    names = list(names)
    with_text = any(re.fullmatch(TEXT_HALF, name) for name in names)
    for pattern, archs in ARCHS:
        if any(re.fullmatch(pattern, name) for name in names):
            return archs[with_text]
    return ""


def shares_no_name(source: str, names: Iterable[str], parts: Sequence[str]) -> CheckpointError:
    """The error of a file that shares no name with the model, with what may help.

    Args:
        source: the file.
        names: of its tensors.
        parts: keys of its dictionaries of tensors, if it holds several.
    """
    names = list(names)
    command = "" if parts else rename_command(source, names)
    way_on = f" {choose_command(source, parts)}" if parts else ""
    way_on += f" To keep these names without that beginning: {command}" if command else ""
    return CheckpointError(f"{source} shares no name with the model: it seems to be {seems_to_be(names)}.{way_on}")


Shapes = Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
"""(name, shape in the file, shape in the model)"""


def does_not_fit(source: str, names: Iterable[str], own: Iterable[str], unknown: Sequence[str], missing: Sequence[str],
                 shapes: Shapes, kinds: Sequence[tuple[str, str]]) -> CheckpointError:
    """The error of a file that differs from the model, with all differences.

    Args:
        source: the file.
        names: of its tensors.
        own: the model's names.
        unknown, missing, shapes, kinds: as the functions below describe them; empty: no such difference.
    """
    lines = [describe_unknown(unknown, own)] if unknown else []
    lines += [describe_missing(missing)] if missing else []
    lines += [describe_shapes(shapes)] if shapes else []
    lines += [describe_kinds(kinds)] if kinds else []
    return CheckpointError(f"{source} does not fit the model, nothing was loaded. It seems to be "
                           f"{seems_to_be(names)}.\n  " + "\n  ".join(lines))


def describe_unknown(unknown: Sequence[str], model_names: Iterable[str]) -> str:
    """A sentence on names that the model does not have, with its most similar ones."""
    choices = list(model_names)
    lines = []
    for name in unknown[:SHOWN]:
        near = nearest(name, choices, 1)
        lines.append(name + (f" (most similar in the model: {near[0]})" if near else ""))
    adapters = any(".lora_" in name for name in unknown)
    hint = (" (LoRA adapters: give the model the same `lora:` section, or merge them: `python -m lavis_lite convert "
            "--to lite --merge-lora`)") if adapters else ""
    return f"{len(unknown)} not in the model: {listed(lines, SHOWN, '; ', len(unknown))}{hint}"


def describe_missing(missing: Sequence[str]) -> str:
    """A sentence on names of the model that the file lacks."""
    return f"{len(missing)} of the model's not in the file: {listed(missing, SHOWN, '; ')}"


def describe_shapes(shapes: Shapes) -> str:
    """A sentence on tensors of another shape: (name, in the file, in the model)."""
    lines = []
    for name, theirs, own in shapes:
        transposed = " (transposed)" if theirs == own[::-1] and len(own) == 2 else ""
        lines.append(f"{name} is {list(theirs)} in the file, {list(own)} in the model{transposed}")
    hint = ""
    if any(theirs == (0,) for _, theirs, _ in shapes):
        hint = (" (empty tensors are left by DeepSpeed's ZeRO-3: join its shards with `python zero_to_fp32.py FOLDER "
                "model.bin`)")
    return f"{len(shapes)} of another shape: {listed(lines, SHOWN, '; ')}{hint}"


def describe_kinds(kinds: Sequence[tuple[str, str]]) -> str:
    """A sentence on tensors that are not plain real numbers: (name, dtype, layout or what else is wrong)."""
    lines = [f"{name} ({kind})" for name, kind in kinds]
    first = kinds[0][1]
    if "meta" in first:
        way_on = "Such a model was never loaded: save it after its weights are on a device"
    elif "sparse" in first:
        way_on = "Save v.to_dense() of each"
    else:
        way_on = "Quantised weights must be turned back before they are saved (transformers: model.dequantize())"
    return f"{len(kinds)} not stored as real numbers: {listed(lines, SHOWN, '; ')}. {way_on}"


def rename_command(source: str, names: Iterable[str]) -> str:
    """The command that takes off what most names begin with and leaves other tensors out; "" if most share nothing."""
    names = list(names)
    if not describe_beginnings(names):
        return ""
    start = Counter(name.split(".")[0] for name in names if "." in name).most_common(1)[0][0] + "."
    kept = f"{{k[{len(start)}:]: v for k, v in s.items() if k.startswith('{start}')}}"
    if source.endswith(".safetensors"):
        return (f"python -c \"from safetensors.torch import load_file, save_file; s = load_file('{source}'); "
                f"save_file({kept}, 'renamed.safetensors')\"")
    return (f"python -c \"import torch; c = torch.load('{source}', map_location='cpu'); s = c.get('state_dict', "
            f"c.get('model', c)); torch.save({kept}, 'renamed.pth')\"")


def choose_command(source: str, parts: Iterable[str]) -> str:
    """A sentence on a file of several dictionaries of tensors, and the command that saves one of them alone."""
    parts = list(parts)
    return (f"It holds {len(parts)} dictionaries of tensors ({listed([*map(repr, parts)], SHOWN)}). If one of them is "
            f"the model, save it alone: python -c \"import torch; c = torch.load('{source}', map_location='cpu'); "
            f"torch.save(c['{parts[-1]}'], 'model.pth')\"")


def describe_beginnings(names: Iterable[str]) -> str:
    """A clause on what most names begin with, for files that no layout explains: "all names begin with `model.`"."""
    names = list(names)
    counts = Counter(name.split(".")[0] for name in names if "." in name)
    if not counts:
        return ""
    first, count = counts.most_common(1)[0]
    if count == len(names):
        return f"all names begin with `{first}.`"
    return f"{count} of {len(names)} names begin with `{first}.`" if 2 * count > len(names) else ""
