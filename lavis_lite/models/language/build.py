"""From the names and sizes in a YAML to a language model, on one device or several.

`pretrained.load_pretrained` loads its weights.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lavis_lite.errors import ConfigError
from lavis_lite.models.base import blocks_of
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.decoder_only import DecoderOnly
from lavis_lite.models.language.families import LMFamily, LMLoadOptions, Precision, family_of
from lavis_lite.models.language.tokens import LanguageTokenizer, Limits
from lavis_lite.torchvision_shim import ensure_torchvision

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_language_model(name: str, *, sizes: dict[str, Any] | None = None, tokenizer: Any = None,
                         family: str | None = None, precision: Precision = "auto", limits: Limits | None = None,
                         lm_reduction: Literal["global", "per_rank"] = "global",
                         setup: LMLoadOptions | None = None) -> LanguageModel:
    """A language model without its weights, or a random one of given sizes.

    Args:
        name: folder or hub name of a transformers model, whose configuration is read. Its tensors are on the meta
            device until `load_pretrained` brings the weights, so that no random numbers are drawn for billions of
            them.
        sizes: the configuration itself (`model_type` and its keys) for a model with random weights; `name` then only
            stands for the tokenizer.
        tokenizer: folder or hub name, or a transformers tokenizer; None: that of `name`.
        family: a row of `families`; None: by the model's type.
        precision: of the weights; auto: the family's on a machine with a GPU, else fp32.
        limits: of training texts.
        lm_reduction: average the loss over the tokens of all ranks ("global") or of each rank ("per_rank", LAVIS).
        setup: how its weights are loaded and held; quantisation and devices take effect in `load_pretrained`.

    Raises:
        ConfigError: no such model, an unknown family, a model that generates no text, or an impossible setup.
        MissingExtraError: a package that the setup needs is not installed.
    """
    setup = setup or LMLoadOptions()
    setup.check(has_weights=sizes is None)
    ensure_torchvision()
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = _config(name, sizes)
    row = family_of(config.model_type, family)
    if row.extra_tokens:
        config.vocab_size += row.extra_tokens
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with torch.device("meta") if sizes is None else contextlib.nullcontext():
            model = auto.from_config(config)
    except ValueError as error:
        raise ConfigError(f"model.llm_model: {name!r} is of type {config.model_type!r}, which writes no text: "
                          f"{str(error).splitlines()[0]}") from error
    language_model = wrap(model, LanguageTokenizer(tokenizer or name, row, config.is_encoder_decoder), row,
                          "fp32" if setup.trains else precision, limits, lm_reduction)
    language_model.load_options = setup
    if setup.lora is not None:
        from lavis_lite.models.language.adapters import add_adapters  # most models have none

        add_adapters(language_model, setup.lora)
    if setup.trains:
        language_model.unfreeze()
    if setup.grad_checkpoint:
        recompute_blocks(language_model.model)
    return language_model


def wrap(model: Any, tokenizer: LanguageTokenizer, family: LMFamily, precision: Precision = "auto",
         limits: Limits | None = None, lm_reduction: Literal["global", "per_rank"] = "global") -> LanguageModel:
    """A transformers model behind the contract."""
    prepare(model, family)
    model.to(_dtype(precision, family))
    kind: type[LanguageModel] = DecoderOnly
    if model.config.is_encoder_decoder:
        from lavis_lite.models.language.encoder_decoder import EncoderDecoder as kind  # most models are decoders
    return kind(model, tokenizer, family, limits, lm_reduction)


def prepare(model: Any, family: LMFamily) -> None:
    """What a family needs beyond its configuration.

    T5 from 1.1 on (FlanT5) has an output matrix of its own, which transformers 5 ties when it builds the model. The
    released BLIP-2 weights go with the exact GELU.
    """
    config = model.config
    if getattr(config, "scale_decoder_outputs", None) is False:
        if model.lm_head.weight is model.shared.weight:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        config.tie_word_embeddings = False
    exact = family.exact_gelu and getattr(config, "dense_act_fn", None) == "gelu_new"
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":  # eight operations where one does
                setattr(module, name, nn.GELU("none" if exact else "tanh"))


def _config(name: str, sizes: dict[str, Any] | None) -> Any:
    from transformers import AutoConfig

    try:
        if sizes is not None:
            rest = dict(sizes)
            return AutoConfig.for_model(rest.pop("model_type"), **rest)
        return AutoConfig.from_pretrained(name)
    except (KeyError, OSError, ValueError) as error:
        where = "model.llm_args: model_type" if sizes is not None else "model.llm_model"
        raise ConfigError(f"{where}: {name if sizes is None else sizes.get('model_type')!r} is no language model that "
                          f"can be built here ({str(error).splitlines()[0]}). Give a folder with config.json, or a "
                          "model_type of transformers with its sizes.") from error


def _dtype(precision: Precision, family: LMFamily) -> torch.dtype:
    if precision == "auto":
        precision = family.precision if torch.cuda.is_available() else "fp32"
    if precision not in DTYPES:
        raise ConfigError(f"model.llm_precision: {precision!r} is not one of auto, {', '.join(DTYPES)}.")
    return DTYPES[precision]


def recompute_blocks(model: nn.Module) -> None:
    """Keep what enters a block and compute the block again in the backward pass; gradients are the same.

    transformers' own switch works in training mode only, which a frozen model is never in. Without gradients, and while
    a cache is filled, blocks run as they are.
    """
    for block in blocks_of(model):
        block.forward = functools.partial(_recomputed, block.forward)
        setattr(block, "is_recomputed", True)  # noqa: B010  # mypy takes it for a module; for those that compute a block's parts themselves


def _recomputed(forward: Any, *args: Any, **given: Any) -> Any:
    if not torch.is_grad_enabled() or given.get("use_cache"):
        return forward(*args, **given)
    return checkpoint(forward, *args, use_reentrant=False, **given)


def spread(model: Any, device_map: Any) -> Any:
    """A model over several devices, by accelerate: hooks move what flows from block to block.

    Args:
        model: with its weights, on the CPU.
        device_map: "auto" (as evenly as fits the GPUs, then the CPU), or {module name: device} for all modules.

    Raises:
        ConfigError: the map leaves a module out, or names no device.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    together = list(getattr(model, "_no_split_modules", None) or ())
    if device_map == "auto":
        memory = get_balanced_memory(model, no_split_module_classes=together)
        device_map = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=together)
    if "disk" in device_map.values():
        raise ConfigError('model.llm_device_map: does not fit the GPUs and the memory here ("disk" would be needed); '
                          "take a smaller model, or model.llm_quantization.")
    try:
        return dispatch_model(model, device_map=dict(device_map), force_hooks=True)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"model.llm_device_map: {str(error).splitlines()[0]}") from error
