"""LAVIS' `BaseModel`: what subclasses it is a model of this package, with LAVIS' methods and LAVIS' way of loading.

A class's `from_config` gets its section as an OmegaConf node. What it loads by itself (a language model by
`from_pretrained`, a checkpoint by `load_checkpoint_from_config`) is noted as a source of weights.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from torch import Tensor, nn

from lavis_lite import distributed, zoo
from lavis_lite.checkpoints.load import load_checkpoint
from lavis_lite.checkpoints.manifest import source_of, weight_files
from lavis_lite.checkpoints.weights import WeightFile, fetch_all, required_weights
from lavis_lite.compat.lavis.paths import config_path, located
from lavis_lite.compat.lavis.registry import registry
from lavis_lite.compat.lavis.sections import as_node, given_name, reading, section_class
from lavis_lite.compat.lavis.sizes import sizes, sizes_in
from lavis_lite.config.compose import model_sections
from lavis_lite.config.schema import ModelConfig, RunConfig
from lavis_lite.device import pick_device
from lavis_lite.errors import ConfigError, UndefinedMethodError, did_you_mean
from lavis_lite.io import files
from lavis_lite.models.base import BaseModel as CoreModel
from lavis_lite.models.base import ParameterGroup
from lavis_lite.models.provenance import WeightSource, mark_loaded, record_of, refuse_untrained, sources_of
from lavis_lite.process.launch import launch_from_environment
from lavis_lite.torchvision_shim import ensure_torchvision
from lavis_lite.zoo.loading import REMEDIES

TASK_OPTIONS = ("use_nucleus_sampling", "top_p", "temperature", "repetition_penalty", "length_penalty",
                "penalise_prompt", "num_ans_candidates", "answer_list", "inference_method")
"""options of a run section that tasks pass on"""
LIBRARIES = ("lavis_lite", "torch", "transformers", "builtins")
logger = logging.getLogger("lavis")


class BaseModel(CoreModel):
    """A model written for LAVIS: `from_config(cfg)`, `forward(samples) -> {"loss": ...}`, LAVIS' helpers.

    Checkpoints are loaded as LAVIS does, without insisting on every name; the line about each says what was not there.
    """

    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {}
    section_class: ClassVar[type[ModelConfig]]

    def __init__(self) -> None:
        nn.Module.__init__(self)  # not super: a subclass may have a transformers model or one of this package beside it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt(cls)

    # building -------------------------------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(cls, model_type: str) -> Any:
        """The model of a type, with the weights that its YAML names."""
        return cls.from_config(OmegaConf.load(cls.default_config_path(model_type)).model)

    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """The YAML of a model type.

        Raises:
            ConfigError: there is no such type.
        """
        types = cls.PRETRAINED_MODEL_CONFIG_DICT
        if model_type not in types:
            raise ConfigError(f"{cls.__name__} has no model type {model_type!r}; {did_you_mean(model_type, types)}")
        return config_path(cls, types[model_type])

    @classmethod
    def locate_config(cls, name: str) -> Path:
        """Where the YAML is that the class names."""
        return located(cls, name)

    def load_checkpoint(self, url_or_filename: str) -> Any:
        """Load what fits of a checkpoint: LAVIS' (.pth, a URL), a run's folder, or a packaged one such as mini/stage1.

        Returns:
            missing_keys and unexpected_keys, as `load_state_dict` does.

        Raises:
            CheckpointError: it is damaged, shares no name with the model, or has tensors of other shapes.
        """
        path = str(local_path(url_or_filename))
        report = load_checkpoint(self, path)
        mark_loaded(self, source_of("checkpoint", given_name(str(url_or_filename)), path), report.loaded)
        self.loaded_checkpoints = self.loaded_checkpoints | {path}
        if distributed.is_main():
            print(report, flush=True)
        return torch.nn.modules.module._IncompatibleKeys(
            [*report.frozen_missing, *report.allowed_missing], list(report.ignored))

    def load_from_pretrained(self, url_or_filename: str) -> Any:
        """LAVIS' second name of `load_checkpoint`."""
        return self.load_checkpoint(url_or_filename)

    def load_checkpoint_from_config(self, cfg: Any, **kwargs: Any) -> None:
        """Load `finetuned`, if `load_finetuned` (true unless the section says otherwise), else `pretrained`.

        A checkpoint of a run of this package is loaded later, with what the run kept frozen.

        Raises:
            ConfigError: neither is named, and the section does not switch loading off.
        """
        key = "finetuned" if cfg.get("load_finetuned", True) else "pretrained"
        if key == "pretrained" and not cfg.get("load_pretrained", True):
            return
        path = cfg.get(key)
        if not path:
            raise ConfigError(f"model.{key}: {type(self).__name__} loads a checkpoint, and none is named. Name one, or "
                              f"set model.load_{key}=false" + (" to load model.pretrained." if key == "finetuned"
                                                               else " to start without."))
        if (Path(path) / "manifest.json").is_file():
            return
        self.load_checkpoint(url_or_filename=path)

    # what the package asks for ----------------------------------------------------------------------------------------
    def allowed_differences(self, given: Set[str]) -> tuple[Sequence[str], Sequence[str]]:
        """A checkpoint may lack names and have others, as with LAVIS' `strict=False`."""
        return (".*",), (".*",)

    def optimizer_groups(self, run: RunConfig) -> list[ParameterGroup]:
        """The groups of `get_optimizer_params`, with the names of their parameters."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        groups: list[ParameterGroup] = []
        for group in self.get_optimizer_params(weight_decay=run.weight_decay, lr_scale=run.lr_layer_decay):
            params = list(group["params"])
            if params:
                groups.append({"params": params, "names": [names[id(one)] for one in params],
                               "weight_decay": float(group.get("weight_decay", run.weight_decay)),
                               "lr_scale": float(group.get("lr_scale", 1.0))})
        return groups

    # LAVIS' hooks and tools -------------------------------------------------------------------------------------------
    def before_training(self, **kwargs: Any) -> None:
        """Called before the first step; nothing to do by default."""

    def before_evaluation(self, **kwargs: Any) -> None:
        """Called before a split is evaluated; nothing to do by default."""

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1) -> list[dict[str, Any]]:
        """Trainable parameters in groups {"params", "weight_decay", "lr_scale"}; biases and vectors do not decay."""
        groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay, "lr_scale": lr_scale},
                                        {"params": [], "weight_decay": 0, "lr_scale": lr_scale}]
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[int(parameter.ndim < 2 or "bias" in name)]["params"].append(parameter)
        return groups

    def show_n_params(self, return_str: bool = True) -> Any:
        """Number of parameters: as text such as "3.9M", or as an int."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if not return_str:
            return total
        return f"{total / 1e6:.1f}M" if total >= 1e6 else f"{total / 1e3:.1f}K"


def load_model_and_preprocess(name: str, model_type: str, is_eval: bool = False, device: Any = "cpu",
                              checkpoint: str | None = None, **options: Any) -> tuple[Any, Any, Any]:
    """As this package's, but a model that LAVIS has too has LAVIS' parts: `visual_encoder`, `Qformer`, `opt_proj`.

    Further options (`run`, `dtype`, `quantization` ...) give this package's model, which has other names for them.
    """
    cls = registry.get_model_class(name)
    if options or not issubclass(cls, BaseModel):
        return zoo.load_model_and_preprocess(name, model_type, is_eval, device, checkpoint=checkpoint, **options)
    section, preprocess = model_sections(name, model_type)
    if checkpoint is not None:
        section = section.replaced(**section.starting_from(checkpoint))
    fetch_all(required_weights(section), f"{name}/{model_type}")
    model = cls.from_config(dataclasses.asdict(section))
    model.weight_record = record_of(model)
    if is_eval:
        refuse_untrained(model, REMEDIES)
    return model.train(not is_eval).to(pick_device(device, key="device")), *zoo.load_preprocess(preprocess)


def load_model(name: str, model_type: str, is_eval: bool = False, device: Any = "cpu", checkpoint: str | None = None,
               **options: Any) -> Any:
    """The model of `load_model_and_preprocess` alone."""
    return load_model_and_preprocess(name, model_type, is_eval, device, checkpoint, **options)[0]


def adopt(cls: type) -> None:
    """Give a model class its section, and wrap a `from_config` of its own."""
    own: Any = cls
    own.section_class = section_class(ModelConfig, cls)
    written = cls.__dict__.get("from_config")
    if isinstance(written, classmethod) and not hasattr(written.__func__, "is_wrapped"):
        own.from_config = classmethod(_wrapped(written.__func__))
    for name in ("generate", "predict_answers"):
        method = cls.__dict__.get(name)
        if inspect.isfunction(method) and not method.__module__.startswith("lavis_lite."):
            setattr(cls, name, _without_options(method))


def _wrapped(written: Callable[..., Any]) -> Callable[..., Any]:
    """A `from_config` that gets an OmegaConf node, builds in the sizes of its section, and knows its backbones."""

    @functools.wraps(written)
    def from_config(cls: type, cfg: Any = None) -> Any:
        node = as_node(cfg if cfg is not None else {})
        built = sizes(**sizes_in(OmegaConf.to_container(node, resolve=True)))  # type: ignore[arg-type]
        with built, reading("model", cls):
            model = written(cls, node)
        if isinstance(model, nn.Module):
            mark_backbones(model)
            fit_to_machine(model)
        return model

    from_config.is_wrapped = True  # type: ignore[attr-defined]
    return from_config


def _without_options(written: Callable[..., Any]) -> Callable[..., Any]:
    """A method without options of a task that it has no parameter for; a line names each of them once."""
    parameters = inspect.signature(written).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return written
    named: set[str] = set()

    @functools.wraps(written)
    def called(self: Any, *args: Any, **options: Any) -> Any:
        dropped = {name for name in options if name in TASK_OPTIONS and name not in parameters}
        for name in sorted(dropped - named):
            logger.warning("%s takes no %s, so run.%s has no effect.", written.__qualname__, name, name)
        named.update(dropped)
        return written(self, *args, **{name: value for name, value in options.items() if name not in dropped})

    return called


def fit_to_machine(model: nn.Module) -> None:
    """Without a GPU, compute in float32; for code that calls torch.distributed itself, join a group of one process."""
    if not torch.cuda.is_available():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
    alone = not torch.distributed.is_initialized() and launch_from_environment().world_size == 1
    if alone and names_distributed(type(model)):
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                             store=store, rank=0, world_size=1)


def names_distributed(cls: type) -> bool:
    """Whether the module of a class, or of a base that is not this package's, names torch.distributed."""
    modules = {base.__module__ for base in cls.__mro__ if base.__module__.partition(".")[0] not in LIBRARIES}
    sources = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return any("torch.distributed" in Path(path).read_text(encoding="utf-8") for path in sources if path)


def local_path(url_or_filename: str) -> Path:
    """A checkpoint on this machine, fetched if its name is a URL.

    Raises:
        DataError: it is neither here nor downloadable.
    """
    return WeightFile("pretrained", str(url_or_filename)).fetch()


class BaseEncoder(nn.Module):
    """Base of encoders; says on which device they are."""

    def forward_features(self, samples: Any, **kwargs: Any) -> Any:
        """Features of samples."""
        raise UndefinedMethodError.of(self, "forward_features")

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return next(self.parameters()).device


def concat_all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, joined along the first axis; without gradient."""
    return distributed.all_gather(tensor.detach())


def tile(x: Tensor, dim: int, n_tile: int) -> Tensor:
    """Each entry of an axis `n_tile` times in a row."""
    return x.repeat_interleave(n_tile, dim)


def download_cached_file(url: str, check_hash: bool = True, progress: bool = False) -> str:
    """The local copy of a URL, fetched once."""
    return str(files.fetch(url))


# tensors that came from `from_pretrained`: checkpoints need not keep them ---------------------------------------------
COMPARED = 3
"""tensors of a file that are compared with the module's"""


def mark_backbones(model: nn.Module) -> None:
    """Note the folder or repository of every transformers model within, if its files hold what the model holds.

    A frozen one is read again by a later run. One that trains is what the run began from.
    """
    ensure_torchvision()
    from transformers import PreTrainedModel

    for module in model.modules():
        name = str(getattr(module, "name_or_path", "") or "") if isinstance(module, PreTrainedModel) else ""
        if not name or any(source.kind != "random" for source in sources_of(module).values()):
            continue
        path = WeightFile("llm_model", name).local()
        if path is not None and holds(path, module):
            trains = any(parameter.requires_grad for parameter in module.parameters())
            mark_loaded(module, WeightSource("", "bert" if trains else "language model", given_name(name),
                                              str(path)),
                        _in_files(path, module))


def holds(path: Path, module: nn.Module) -> bool:
    """Whether tensors of a folder's files equal the module's of the same names; files of torch's own format pass.

    A tensor of another shape does not count: the project added words to it.
    """
    state = module.state_dict()
    compared = 0
    for file in weight_files(path):
        if file.suffix != ".safetensors":
            return True
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
                own: Any = state.get(name)
                if own is None or own.is_meta or compared == COMPARED or _shape(content, name) != tuple(own.shape):
                    continue
                compared += 1
                if not _equal(content.get_tensor(name), own):
                    return False
    return compared > 0


def _shape(content: Any, name: str) -> tuple[int, ...]:
    return tuple(content.get_slice(name).get_shape())


def _equal(stored: Any, own: Any) -> bool:
    return bool((stored.reshape(-1)[:64].to(own.dtype) == own.detach().cpu().reshape(-1)[:64]).all())


def _in_files(path: Path, module: nn.Module) -> list[str]:
    """Names of the module's state that the files hold in that shape; all if the files are of torch's own format."""
    files = weight_files(path)
    state = module.state_dict()
    if any(file.suffix != ".safetensors" for file in files):
        return list(state)
    stored: set[str] = set()
    other: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118
                fits = name not in state or _shape(content, name) == tuple(state[name].shape)
                (stored if fits else other).add(name)
    parameters: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    kept = {id(parameters[name]) for name in stored if name in parameters}
    return [name for name in state if name in stored or id(parameters.get(name)) in kept
            or name not in parameters and name not in other]
