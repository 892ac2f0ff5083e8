"""How a frozen language model is held: quantised, spread over devices, recomputed in the backward pass, adapted.

The four switches of a model section (`llm_quantization`, `llm_device_map`, `llm_grad_checkpoint`, `lora`) as one value,
and what is wrong with them before anything is built. Packages that only a switch needs are imported when it is on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lavis_lite.errors import ConfigError, MissingExtraError

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
    """

    quantization: Quantization | None = None
    device_map: Any = None
    grad_checkpoint: bool = False
    lora: Lora | None = None

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
