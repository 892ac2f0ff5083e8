"""From the names and sizes in a YAML to a language model, on one device or several, and a folder's weights into it.

Modules are made first and keep their hooks; `load_pretrained` brings the weights, plain or in 8 or 4 bits. Quantisation
is by bitsandbytes through transformers: the linear layers of the blocks are quantised while they are read. Word
embeddings, norms and the output layer keep the model's precision. Gradients reach the soft prompt only.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavis_lite import distributed
from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.finite import check_weights
from lavis_lite.models.base import blocks_of
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.decoder_only import DecoderOnly
from lavis_lite.models.language.families import LMFamily, LMLoadOptions, Precision, Quantization, family_of
from lavis_lite.models.language.tokens import LanguageTokenizer, Limits
from lavis_lite.models.language.weights import SHOWN, is_quantised, refuse_partial
from lavis_lite.models.provenance import WeightSource, mark_loaded
from lavis_lite.products import replace_linears
from lavis_lite.torchvision_shim import ensure_torchvision

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
          "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
_UNFROZEN = "was_unfrozen"


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
    _refuse_quantised_already(name, config, setup)
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


def _refuse_quantised_already(name: str, config: Any, setup: LMLoadOptions) -> None:
    """Refuse files of quantised weights, which plain layers would take for weights."""
    method = getattr(config, "quantization_config", None)
    if method is not None and setup.quantization is None:
        kind = method.get("quant_method") if isinstance(method, dict) else method
        raise ConfigError(f"model.llm_model: the weights of {name!r} are quantised already ({kind}). Name the model "
                          "that they were made of; model.llm_quantization=8bit quantises it while it is read.")


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


# weights --------------------------------------------------------------------------------------------------------------
def load_pretrained(language_model: LanguageModel, folder: str, source: WeightSource | None = None, *,
                    allow_non_finite: bool = False) -> None:
    """Put the weights of a transformers folder into a language model, in its precision and into the modules it has.

    Modules stay the objects that they are, with their hooks, and what was unfrozen stays unfrozen. Parameters become
    new objects, as with `Module.to_empty`; layers that are quantised become new modules, which take over the hooks.

    Args:
        language_model: as `build_language_model` made it.
        folder: of transformers' format.
        source: what the weights are marked with; None: the folder's name.
        allow_non_finite: load tensors that hold NaN or infinity too.

    Raises:
        ConfigError: the folder holds no such model.
        CheckpointError: tensors are not finite or not those of its config.json; or it lacks some that the model has.
    """
    plan, setup, dtype = language_model.model, language_model.load_options, language_model.dtype
    try:
        found = _read(type(plan), folder, dtype, setup)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.llm_model: no weights of a language model in {folder!r}: "
                          f"{str(error).splitlines()[0]}") from error
    words = plan.get_input_embeddings().weight.shape[0]
    if found.get_input_embeddings().weight.shape[0] != words:
        _add_words(found, words)
    prepare(found, language_model.family)
    found = found if setup.quantization else found.to(dtype)
    if not allow_non_finite:  # scales of quantised weights are in the state alone
        check_weights(dict(found.state_dict() if setup.quantization else found.named_parameters()), folder)
    transplant(found, plan)
    adapters: set[str] = set()
    if setup.lora is not None or any(hasattr(module, "reset_lora_parameters") for module in plan.modules()):
        from lavis_lite.models.language.adapters import adapter_names, finish_adapters  # most models have none

        finish_adapters(language_model)
        adapters = adapter_names(plan)
    check_no_meta(plan)
    if setup.device_map is not None:
        spread(plan, setup.device_map)
    language_model.is_dispatched = bool(setup.quantization or setup.device_map)
    mark_loaded(plan, source or WeightSource("", "language model", str(folder), str(folder)),
                [name for name in plan.state_dict() if name not in adapters])


def _add_words(model: Any, count: int) -> None:
    """Rows for new words, each the mean of all others: what is frozen must be the same at every loading."""
    before = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(count, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None and count > before:
                layer.weight[before:] = layer.weight[:before].double().mean(0).to(layer.weight.dtype)


def _read(kind: Any, folder: str, dtype: torch.dtype, setup: LMLoadOptions) -> Any:
    with _silent_about_ties(), _bar_for_people():
        if setup.quantization is None:
            found, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True,
                                               ignore_mismatched_sizes=True)  # `refuse_partial` names them
        else:
            from lavis_lite.process.launch import launch_from_environment  # only quantised weights go to a GPU here

            local = launch_from_environment().local_rank
            device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
            found, info = read_quantised(kind, folder, setup.quantization, dtype, device)
    refuse_partial(found, folder, info)
    return found


@contextlib.contextmanager
def _silent_about_ties() -> Iterator[None]:
    """transformers 5 takes every T5 for tied and warns of FlanT5, whose output layer is rightly its own."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "will NOT tie" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextlib.contextmanager
def _bar_for_people() -> Iterator[None]:
    """transformers shows a bar while it reads weights: on a terminal, once, and not in logs."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    if not (distributed.is_main() and sys.stderr.isatty()):
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


# quantisation ---------------------------------------------------------------------------------------------------------
def quantization_config(bits: Quantization, dtype: torch.dtype) -> Any:
    """What transformers' `from_pretrained` takes.

    8bit: LLM.int8(), columns with outliers stay in 16 bits (arXiv 2208.07339). 4bit: NF4 with quantised constants, as
    in QLoRA (arXiv 2305.14314), multiplied in `dtype`.
    """
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)


def read_quantised(kind: Any, folder: str, bits: Quantization, dtype: torch.dtype, device: torch.device) -> Any:
    """A transformers model of class `kind` with quantised weights, on `device`, and what its files lacked.

    Raises:
        ConfigError: bitsandbytes is too old, or cannot compute on the devices here.
        OSError, ValueError: as transformers' `from_pretrained`.
    """
    try:
        return kind.from_pretrained(folder, dtype=dtype, quantization_config=quantization_config(bits, dtype),
                                    device_map={"": str(device)}, output_loading_info=True)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"model.llm_quantization: {bits} does not work here: {str(error).splitlines()[0]} Set "
                          "model.llm_quantization=null, or update with pip install -U 'lavis_lite[quant]'.") from error


# into the modules -----------------------------------------------------------------------------------------------------
def transplant(found: nn.Module, plan: nn.Module) -> None:
    """Give every module of `plan` the parameters and buffers of its counterpart in `found`, a model of its class.

    Modules of `plan` stay the same objects, with their hooks; parameters keep their `requires_grad`. A module of
    another class in `found` (a quantised layer) replaces its counterpart and takes over its hooks. A layer with an
    adapter gets its weights behind the adapter.

    Raises:
        CheckpointError: `plan` has tensors without values that `found` does not bring.
    """
    replaced: list[str] = []
    for path, module in replace_linears(found).named_modules():
        if any(path.startswith(f"{done}.") for done in replaced):
            continue
        target = plan.get_submodule(path)
        if _is_adapted(target) and not is_quantised(module):
            target = target.base_layer  # type: ignore[assignment]
        if path and type(target) is not type(module):
            _replace(plan, path, module)
            replaced.append(path)
        else:
            _fill(module, target)
    for name, value in vars(found).items():  # such as what transformers knows of a quantisation
        vars(plan).setdefault(name, value)
    plan.generation_config = found.generation_config


def check_no_meta(model: nn.Module) -> None:
    """Raise a CheckpointError that names some of the parameters without values, if there are any."""
    lost = [name for name, value in model.named_parameters() if value.is_meta]
    if lost:
        raise CheckpointError(
            f"{len(lost)} parameters of the language model have no values, as its folder does not have them: "
            f"{', '.join(lost[:SHOWN])}. Parts that a model adds to its language model belong into its method "
            "on_weights_loaded.")


def _is_adapted(module: nn.Module) -> bool:
    """Whether peft put an adapter around a layer."""
    return isinstance(getattr(module, "base_layer", None), nn.Module)


def _fill(module: nn.Module, target: nn.Module) -> None:
    for name, value in module._parameters.items():
        old = target._parameters.get(name)
        if value is not None:  # a tied one is met under each of its names, and stays unfrozen once it is
            trains = old is not None and old.requires_grad
            value.requires_grad_(trains or getattr(value, _UNFROZEN, False))
            setattr(value, _UNFROZEN, value.requires_grad)
        target._parameters[name] = value
    target._buffers.update(module._buffers)
    for name, value in vars(module).items():  # tensors that are plain attributes: angles of rotary positions
        held: Any = vars(target).get(name)
        if isinstance(held, Tensor) and held.is_meta and isinstance(value, Tensor):
            setattr(target, name, value)


def _replace(plan: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module of another class in its counterpart's place."""
    parent, _, leaf = path.rpartition(".")
    old = plan.get_submodule(path)
    for hooks in _HOOKS:
        getattr(module, hooks).update(getattr(old, hooks, {}))
    for value in module.parameters():
        value.requires_grad_(False)
    setattr(plan.get_submodule(parent), leaf, module)
