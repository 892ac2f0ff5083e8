"""Language models before one is built: what differs between families, as rows of a table, and how one is held.

A family is chosen by the `model_type` of the model's configuration, or by name (`llm_family` in a YAML). A model whose
type has no row takes the general row: its tokenizer's own special tokens, ended by its eos. So a new language model
is a YAML line, and a row only where something about it is peculiar.

The four switches of a model section (`llm_quantization`, `llm_device_map`, `llm_grad_checkpoint`, `lora`) are one
value, `LMLoadOptions`, checked before anything is built. Packages that only a switch needs are imported when it is on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lavis_lite.errors import ConfigError, MissingExtraError, did_you_mean

Precision = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class LMFamily:
    """Facts about a family of language models.

    Attributes:
        end: what ends an answer: the tokenizer's eos, or a line break.
        precision: of the frozen weights on a GPU ("auto" in a YAML).
        learns_bos: where there is no prompt, the begin token is itself a target (LAVIS' OPT).
        candidate_end: whether the end counts in the likelihood of a candidate answer.
        extra_tokens: by how many the vocabulary grows for them.
        special_tokens: given to the tokenizer in place of its own; released weights were trained so.
        prompt_start: token that every prompt starts with in place of what the tokenizer adds; None: the tokenizer's.
        silent: ids left out of answers.
        exact_gelu: the feed-forward's activation is the exact GELU (LAVIS' T5), not its tanh approximation.
        lora_targets: linear layers that adapters go beside where a YAML names none.
    """

    name: str
    end: Literal["eos", "newline"] = "eos"
    precision: Literal["fp32", "fp16", "bf16"] = "bf16"
    learns_bos: bool = False
    candidate_end: bool = True
    special_tokens: tuple[tuple[str, str], ...] = ()
    extra_tokens: int = 0
    prompt_start: str | None = None
    silent: tuple[int, ...] = ()
    exact_gelu: bool = False
    lora_targets: tuple[str, ...] | str = "all-linear"


GENERAL = LMFamily("general")
_VICUNA_TOKENS = (("pad_token", "[PAD]"), ("bos_token", "</s>"), ("eos_token", "</s>"), ("unk_token", "</s>"))
_QUERY_VALUE = ("q_proj", "v_proj")
FAMILIES = {
    "opt": LMFamily("opt", end="newline", precision="fp16", learns_bos=True, lora_targets=_QUERY_VALUE),
    "t5": LMFamily("t5", exact_gelu=True, lora_targets=("q", "v")),
    "mt5": LMFamily("mt5", lora_targets=("q", "v")),
    "bart": LMFamily("bart", precision="fp16", lora_targets=_QUERY_VALUE),
    "llama": LMFamily("llama", precision="fp16", lora_targets=_QUERY_VALUE),
    # the released InstructBLIP-Vicuna weights: prompts start with </s>, <unk> is silent, candidates carry no end
    "vicuna": LMFamily("vicuna", precision="fp16", candidate_end=False, special_tokens=_VICUNA_TOKENS,
                     extra_tokens=1, prompt_start="</s>", silent=(0,), lora_targets=_QUERY_VALUE),
    "gpt2": LMFamily("gpt2", precision="fp16"),
}


def family_of(model_type: str, name: str | None = None) -> LMFamily:
    """The row of a model.

    Args:
        model_type: of its configuration.
        name: a row asked for by name.

    Raises:
        ConfigError: no row has that name.
    """
    if name is None:
        return FAMILIES.get(model_type, GENERAL)
    if name not in FAMILIES and name != GENERAL.name:
        raise ConfigError(f"model.llm_family: unknown {name!r}: {did_you_mean(name, [*FAMILIES, GENERAL.name])}")
    return FAMILIES.get(name, GENERAL)


Quantization = Literal["8bit", "4bit"]
NEEDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "llm_quantization": ("quant", ("bitsandbytes", "accelerate")),
    "llm_device_map": ("devices", ("accelerate",)),
    "lora": ("lora", ("peft",)),
}
"""key of the section -> (extra of this package, packages that it brings)"""


def _lacking(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(key, sentence) of each switch whose packages are not all installed."""
    for key in keys:
        extra, packages = NEEDED[key]
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        if absent:
            yield key, f"needs {' and '.join(absent)}: pip install 'lavis_lite[{extra}]'."


@dataclass
class Lora:
    """Section `model.lora`: low-rank adapters (LoRA, arXiv 2106.09685) beside weights that stay frozen.

    An adapter adds `alpha / r * B A x` to what a linear layer gives. B starts at zero: at first nothing changes.
    """

    r: int = 16
    """rank"""
    alpha: int = 32
    dropout: float = 0.05
    """on the adapters' input while training"""
    target_modules: Any = None
    """names of linear layers, "all-linear", or a regular expression; None: what the model's family says"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """(key, sentence) of each value that is out of range."""
        if self.r < 1:
            yield "lora.r", f"must be at least 1, not {self.r}."
        if self.alpha <= 0:
            yield "lora.alpha", f"must be above 0, not {self.alpha}."
        if not 0.0 <= self.dropout < 1.0:
            yield "lora.dropout", f"must be at least 0 and below 1, not {self.dropout}."
        names = self.target_modules
        is_list = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
        if not (names is None or is_list or (isinstance(names, str) and names)):
            yield "lora.target_modules", f'must be a list of names or "all-linear", not {names!r}.'


@dataclass(frozen=True)
class LMLoadOptions:
    """The switches; the defaults hold a model plainly.

    Attributes:
        quantization: of its linear layers.
        device_map: None, "auto" or {module: device}.
        grad_checkpoint: keep only what enters a block and compute the block again in the backward pass.
        lora: adapters that train.
        trains: whether all weights train.
    """

    quantization: Quantization | None = None
    device_map: Any = None
    grad_checkpoint: bool = False
    lora: Lora | None = None
    trains: bool = False

    def check(self, has_weights: bool = True) -> None:
        """Raise the first of `faults`: MissingExtraError for a package that is not installed, else ConfigError."""
        for key, sentence in self.faults(has_weights):
            raise (MissingExtraError if "pip install" in sentence else ConfigError)(f"model.{key}: {sentence}")

    def faults(self, has_weights: bool = True) -> Iterator[tuple[str, str]]:
        """(key of the section, sentence) of everything wrong with them, missing packages included.

        Args:
            has_weights: whether the model's weights come from a folder.
        """
        given = {"llm_quantization": self.quantization, "llm_device_map": self.device_map, "lora": self.lora}
        yield from _lacking(key for key, value in given.items() if value is not None)
        if self.device_map is not None and self.device_map != "auto" and not isinstance(self.device_map, dict):
            yield "llm_device_map", f'must be "auto" or {{module: device}}, not {self.device_map!r}.'
        if self.quantization is not None and self.device_map is not None:
            yield "llm_device_map", "a quantised language model lies on one device; set one of both to null."
        for key in ("llm_quantization", "llm_device_map"):
            if given[key] is not None and not has_weights:
                yield key, "llm_args makes random weights; name a folder or a hub model with weights in llm_model."
        if self.lora is not None:
            yield from self.lora.faults()
        if self.trains and (self.lora is not None or self.quantization is not None):
            other = "adapters (model.lora)" if self.lora is not None else "quantised weights (model.llm_quantization)"
            yield "llm_train", f"full trains every weight; {other} do not go with it. Set one of both to null."
        if self.quantization is not None and importlib.util.find_spec("bitsandbytes") is not None:
            sentence = device_fault()
            if sentence is not None:
                yield "llm_quantization", sentence


Setup = LMLoadOptions
"""its name until version 0.2"""


def device_fault() -> str | None:
    """Why the installed bitsandbytes cannot compute here, as a sentence; None where it can."""
    import torch

    if torch.cuda.is_available():
        return None
    import bitsandbytes

    able = sorted(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    if "cpu" in able:
        return None
    return (f"torch sees no GPU, and the installed bitsandbytes computes on {', '.join(able)} only; update it with "
            "pip install -U 'lavis_lite[quant]', or set model.llm_quantization=null.")
