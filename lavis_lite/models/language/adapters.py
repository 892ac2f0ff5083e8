"""LoRA adapters on a frozen language model, by peft: they train, everything else stays as it is.

Adapters have float32 weights whatever the model's precision, and their dropout follows `train()`. They are the only
part of a language model that a checkpoint keeps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.models.base import MethodOf
from lavis_lite.models.language.families import Lora
from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from lavis_lite.models.language.contract import LanguageModel

ADAPTER = "default"
"""peft's name of the one set of adapters"""


def add_adapters(language_model: LanguageModel, lora: Lora) -> None:
    """Put adapters beside the linear layers that `lora` names.

    Raises:
        ConfigError: the model has no such layer.
    """
    ensure_torchvision()
    from peft import LoraConfig, inject_adapter_in_model

    targets = lora.target_modules or language_model.family.lora_targets
    if isinstance(targets, (list, tuple)):
        targets = list(targets)
        _refuse_unknown(targets, language_model.model)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none")
    inject_adapter_in_model(config, language_model.model, adapter_name=ADAPTER)
    for parameter in language_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    language_model.model.eval()
    language_model.train = MethodOf(language_model, train_adapters)  # type: ignore[assignment, method-assign]


def _refuse_unknown(targets: Sequence[str], model: nn.Module) -> None:
    """Refuse names without a layer; peft does so only if none of them has one."""
    layers = [f".{name}" for name, module in model.named_modules()
              if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim == 2]
    unknown = [target for target in targets if not any(layer.endswith(f".{target}") for layer in layers)]
    if unknown:
        known = sorted({layer.rpartition(".")[2] for layer in layers})
        raise ConfigError(f"model.lora.target_modules: {unknown} names no layer of this language model; its layers "
                          f"with a weight matrix are called {', '.join(known)}.")


def train_adapters(model: nn.Module, mode: bool = True) -> nn.Module:
    """What `train` does to a frozen model with adapters: their dropout follows, the rest stays in eval mode."""
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout"):
            module.train(mode)
    return model


def finish_adapters(language_model: LanguageModel) -> None:
    """Values for the adapters of a language model whose own weights have come just now.

    Adapters that were made on the meta device start as new ones do. Quantised layers are new modules, so that theirs
    are made anew.
    """
    setup = language_model.load_options
    if setup.lora is not None and setup.quantization is not None:
        add_adapters(language_model, setup.lora)
    for layer in adapted_layers(language_model.model).values():
        if any(value.is_meta for holder in (layer.lora_A, layer.lora_B) for value in holder.parameters()):
            for holder in (layer.lora_A, layer.lora_B):
                holder.to_empty(device=layer.base_layer.weight.device)
            for name in layer.lora_A:
                layer.reset_lora_parameters(name, True)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """peft's LoRA layers of a model by their path."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "reset_lora_parameters")}


def adapter_names(model: nn.Module) -> set[str]:
    """Names of the tensors that adapters brought."""
    return {f"{path}.{name}" for path, layer in adapted_layers(model).items() for name in layer.state_dict()
            if not name.startswith("base_layer.")}


def merged_state(model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The state of a model with its adapters added to the weights that they stand beside, and the names that changed.

    W + alpha / r * B A, in float32; names are those of the model without adapters.

    Args:
        model: with adapters in it somewhere.

    Raises:
        CheckpointError: an adapted weight is quantised, or tied to another layer that would change with it.
    """
    layers, state = adapted_layers(model), model.state_dict()
    skipped, changed = adapter_names(model), []
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    for path, layer in layers.items():
        base = layer.base_layer.weight
        if not base.is_floating_point():
            raise CheckpointError(f"{path}: adapters cannot be added to quantised weights; load the language model "
                                  "with model.llm_quantization=null.")
        if len(names[id(base)]) > 1:
            other = next(name for name in names[id(base)] if not name.startswith(f"{path}."))
            raise CheckpointError(f"{path}: its weights are also those of {other}, which would change with it. Take "
                                  "this layer out of model.lora.target_modules and train again.")
        delta = sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
        state[f"{path}.base_layer.weight"] = base.detach().float() + delta
        changed.append(f"{path}.weight")
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if name not in skipped}, changed


def adapter_state(language_model: LanguageModel) -> dict[str, Tensor]:
    """The adapters' tensors by their name in the transformers model."""
    return {name: value for name, value in language_model.model.named_parameters() if value.requires_grad}


def save_adapters(language_model: LanguageModel, folder: Path, base: str = "") -> None:
    """Write adapters for `peft.PeftModel.from_pretrained(model, folder)`. Raises ConfigError if it has none."""
    state = adapter_state(language_model)
    configs: dict[str, Any] = getattr(language_model.model, "peft_config", {})
    if ADAPTER not in configs or not state:
        raise ConfigError("this language model has no adapters to save; train it with model.lora={}.")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {key: sorted(value) if isinstance(value, set) else value
             for key, value in configs[ADAPTER].to_dict().items()}
    facts |= {"base_model_name_or_path": base, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
    tensors = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": value.detach().to("cpu", torch.float32)
               for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
