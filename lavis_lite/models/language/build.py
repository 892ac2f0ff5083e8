"""From the names and sizes in a YAML to a language model with random weights, or with those of a folder."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from lavis_lite.checkpoints.load import check_finite
from lavis_lite.checkpoints.report import LoadReport
from lavis_lite.errors import ConfigError, MissingExtraError
from lavis_lite.models.language.adapters import adapted_layers, adapter_names, add_adapters, finish_adapters
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.decoder_only import DecoderOnly
from lavis_lite.models.language.encoder_decoder import EncoderDecoder
from lavis_lite.models.language.families import Family, Precision, family_of
from lavis_lite.models.language.load_options import Setup
from lavis_lite.models.language.placement import recompute_blocks, spread
from lavis_lite.models.language.tokens import LanguageTokenizer, Limits
from lavis_lite.models.language.transplant import check_no_meta, transplant
from lavis_lite.models.provenance import WeightSource, mark_loaded
from lavis_lite.torchvision_shim import ensure_torchvision

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_language_model(name: str, *, sizes: dict[str, Any] | None = None, tokenizer: Any = None,
                         family: str | None = None, precision: Precision = "auto", limits: Limits | None = None,
                         lm_reduction: Literal["global", "per_rank"] = "global",
                         setup: Setup | None = None) -> LanguageModel:
    """A frozen language model without its weights, or a random one of given sizes.

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
        lm_reduction: see `LanguageModel`.
        setup: how its weights are held; quantisation and devices take effect in `load_pretrained`.

    Raises:
        ConfigError: no such model, an unknown family, a model that generates no text, or an impossible setup.
        MissingExtraError: a package that the setup needs is not installed.
    """
    setup = setup or Setup()
    refuse_faults(setup, has_weights=sizes is None)
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
    except ValueError as fault:
        raise ConfigError(f"model.llm_model: {name!r} is of type {config.model_type!r}, which writes no text: "
                          f"{str(fault).splitlines()[0]}") from fault
    language_model = wrap(model, LanguageTokenizer(tokenizer or name, row, config.is_encoder_decoder), row, precision,
                          limits, lm_reduction)
    language_model.setup = setup
    _adapt(language_model)
    return language_model


def refuse_faults(setup: Setup, has_weights: bool) -> None:
    """Raise the first fault of a setup: MissingExtraError for a package that is not here, else ConfigError."""
    for key, sentence in setup.faults(has_weights):
        raise (MissingExtraError if "pip install" in sentence else ConfigError)(f"model.{key}: {sentence}")


def _adapt(language_model: LanguageModel) -> None:
    """What a setup adds to a model that is there: adapters, recomputation."""
    setup = language_model.setup
    if setup.lora is not None:
        add_adapters(language_model, setup.lora)
    if setup.grad_checkpoint:
        recompute_blocks(language_model.model)


def wrap(model: Any, tokenizer: LanguageTokenizer, family: Family, precision: Precision = "auto",
         limits: Limits | None = None, lm_reduction: Literal["global", "per_rank"] = "global") -> LanguageModel:
    """A transformers model behind the contract."""
    prepare(model, family)
    model.to(_dtype(precision, family))
    kind = EncoderDecoder if model.config.is_encoder_decoder else DecoderOnly
    return kind(model, tokenizer, family, limits, lm_reduction)


def prepare(model: Any, family: Family) -> None:
    """What a family needs beyond its configuration.

    T5 from 1.1 on (FlanT5) has an output matrix of its own, which transformers 5 ties when it builds the model; and
    the released BLIP-2 weights go with the exact GELU.
    """
    config = model.config
    if getattr(config, "scale_decoder_outputs", None) is False:
        if model.lm_head.weight is model.shared.weight:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        config.tie_word_embeddings = False
    if family.exact_gelu and getattr(config, "dense_act_fn", None) == "gelu_new":
        for module in model.modules():
            if hasattr(module, "wi_0") and hasattr(module, "act"):
                module.act = nn.GELU()


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
        CheckpointError: its tensors are not finite, or the model has tensors of its own that the folder lacks.
    """
    plan, setup, dtype = language_model.model, language_model.setup, language_model.dtype
    try:
        found = _read(type(plan), folder, dtype, setup)
    except (OSError, ValueError) as fault:
        raise ConfigError(f"model.llm_model: no weights of a language model in {folder!r}: "
                          f"{str(fault).splitlines()[0]}") from fault
    words = plan.get_input_embeddings().weight.shape[0]
    if found.get_input_embeddings().weight.shape[0] != words:
        _add_words(found, words)
    prepare(found, language_model.family)
    found = found if setup.quantization else found.to(dtype)
    if not setup.quantization and not allow_non_finite:
        check_finite(LoadReport(folder, "transformers"), dict(found.named_parameters()), allow=False)
    transplant(found, plan)
    if adapted_layers(plan) or setup.lora is not None:
        finish_adapters(language_model)
    check_no_meta(plan)
    if setup.device_map is not None:
        spread(plan, setup.device_map)
    language_model.settled = bool(setup.quantization or setup.device_map)
    adapters = adapter_names(plan)
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


def _read(kind: Any, folder: str, dtype: torch.dtype, setup: Setup) -> Any:
    if setup.quantization is None:
        with _silent_about_ties(), _bar_for_people():
            return kind.from_pretrained(folder, dtype=dtype)
    from lavis_lite.models.language.quantization import from_pretrained
    from lavis_lite.process.launch import launch_from_environment

    local = launch_from_environment().local_rank
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    return from_pretrained(kind, folder, setup.quantization, dtype, device)


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

    from lavis_lite import distributed

    shown = bars.is_progress_bar_enabled()
    if not (distributed.is_main() and sys.stderr.isatty()):
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _config(name: str, sizes: dict[str, Any] | None) -> Any:
    from transformers import AutoConfig

    try:
        if sizes is not None:
            rest = dict(sizes)
            return AutoConfig.for_model(rest.pop("model_type"), **rest)
        return AutoConfig.from_pretrained(name)
    except (KeyError, OSError, ValueError) as fault:
        where = "model.llm_args: model_type" if sizes is not None else "model.llm_model"
        raise ConfigError(f"{where}: {name if sizes is None else sizes.get('model_type')!r} is no language model that "
                          f"can be built here ({str(fault).splitlines()[0]}). Give a folder with config.json, or a "
                          "model_type of transformers with its sizes.") from fault


def _dtype(precision: Precision, family: Family) -> torch.dtype:
    if precision == "auto":
        precision = family.precision if torch.cuda.is_available() else "fp32"
    if precision not in DTYPES:
        raise ConfigError(f"model.llm_precision: {precision!r} is not one of auto, {', '.join(DTYPES)}.")
    return DTYPES[precision]
