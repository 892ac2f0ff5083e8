"""The contract of all models: how parts are frozen, and how trainable parameters are grouped for the optimizer.

Groups follow LAVIS' rule: everything decays except one-dimensional parameters and biases. So the query tokens (3-D)
and the ITC temperature (0-D) do decay.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import chain
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from lavis_lite import distributed
from lavis_lite.config.schema import ModelConfig, RunConfig
from lavis_lite.errors import ConfigError, UndefinedMethodError, did_you_mean
from lavis_lite.models.plain_text import CutTexts
from lavis_lite.models.provenance import FOLLOWED, WeightRecord, sources_of
from lavis_lite.models.qformer.layers import Layer

HASHED = 256
"""elements of a tensor that `weights_hash` looks at"""


class ParameterGroup(TypedDict, total=False):
    """One group of a model's trainable parameters; `params` and `names` are required."""

    params: list[nn.Parameter]
    names: list[str]
    """of `params`, in the same order"""
    weight_decay: float
    """absent: `run.weight_decay`"""
    lr_scale: float
    """factor on the scheduled learning rate; absent: 1"""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to 1-D parameters (norms, scales) and not to anything called `bias`."""
    return not (parameter.ndim == 1 or name.endswith(".bias"))


def group_parameters(model: nn.Module, weight_decay: float,
                     lr_scale: Callable[[str], float] = lambda name: 1.0) -> list[ParameterGroup]:
    """Trainable parameters grouped by (weight decay, learning-rate scale), in order of first appearance.

    Args:
        model: any module.
        weight_decay: of the parameters that decay.
        lr_scale: name -> factor on the learning rate.

    Returns:
        Complete groups, decaying ones first.
    """
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay, scale = weight_decay if decays(name, parameter) else 0.0, lr_scale(name)
        group = groups.setdefault((decay, scale), {"params": [], "names": [], "weight_decay": decay,
                                                   "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(groups.values(), key=lambda group: group["weight_decay"] == 0.0)


class Exchange(NamedTuple):
    """What the loss of one of several ranks takes because there are others; gradients are not in it."""

    all_gather: int = 0
    """bytes of the results, all ranks' rows"""
    reduce_scatter: int = 0
    """bytes of the inputs, all ranks' rows"""
    all_to_all: int = 0
    """bytes of the results"""
    flops: int = 0
    """float32 operations, forward and backward, of products with other ranks' rows"""
    calls: int = 0
    """collectives; each has its latency"""


P = ParamSpec("P")
R = TypeVar("R")


def freeze(module: nn.Module) -> nn.Module:
    """Make a module's weights constant and keep it in eval mode, also after `.train()` of whatever contains it."""
    module.requires_grad_(False)
    module.eval()
    module.stays_frozen = True  # type: ignore[assignment]
    module.train = MethodOf(module, _stay_in_eval)  # type: ignore[method-assign]
    return module


class MethodOf:
    """A method of one module, set as its attribute. Copies and pickles of the module get their own.

    It does not keep the module alive. A bound method would: memory would stay in use until Python looks for
    circles.

    Args:
        module: gets the method.
        function: called with the module and the arguments.
    """

    def __init__(self, module: nn.Module, function: Callable[..., nn.Module]) -> None:
        self._module, self._function = weakref.ref(module), function

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The function's result."""
        module = self._module()
        assert module is not None, "the module is gone"
        return self._function(module, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and pickles make it of: the module's copy."""
        return MethodOf, (self._module(), self._function)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast switched off on a device; that of the CPU stands for the meta device, which has none."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type of autocast on a device; None: it is off, or the device has none."""
    if device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def at_least_float32(tensor: Tensor) -> Tensor:
    """float64 stays, any other type becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a transformers model, in order; those of an encoder first."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    # by its bases' names too: FSDP2 puts a class of its own before a block's
    return [module for module in model.modules() if names & {kind.__name__ for kind in type(module).__mro__}]


def frozen_roots(model: nn.Module) -> tuple[str, ...]:
    """Name prefixes of the parts that `freeze` was called on; their buffers are in no checkpoint."""
    return tuple(f"{name}." for name, module in model.named_modules()
                 if name and getattr(module, "stays_frozen", False))


def loss_weight(samples: Mapping[str, Any], name: str, like: Tensor) -> Tensor | float:
    """What a loss of a micro-batch is multiplied by, so that their mean is the mean over all terms of the step.

    Args:
        samples: with loss_weights (optional), loss name -> float[].
        name: of the loss, as in `BaseModel.loss_terms`.
        like: the loss; the weight gets its type.

    Returns:
        float[], or 1.0 if the samples bring no weight.
    """
    weight = samples.get("loss_weights", {}).get(name)
    return 1.0 if weight is None else weight.to(like.dtype)


def known_options(method: Callable[P, R]) -> Callable[P, R]:
    """A method that raises ConfigError for a keyword argument it does not have, and names the nearest."""
    takes = {name: parameter for name, parameter in inspect.signature(method).parameters.items() if name != "self"}
    names = [name for name, parameter in takes.items() if parameter.kind is not parameter.VAR_KEYWORD]
    open_ended = len(names) < len(takes)

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not open_ended:
            for name in kwargs:
                if name not in takes:
                    raise ConfigError(f"{method.__name__} has no option {name!r}; {did_you_mean(name, names[1:])}")
        return method(*args, **kwargs)

    return checked


class BaseModel(nn.Module):
    """A registered model: built from its typed section, fed with samples, giving an output with a `loss`.

    Contract: `forward(samples)` takes a dict with LAVIS' keys (image float[B,3,H,W], text_input list[str], ...) and
    returns an object with attribute `loss` (float[]) and further `loss_*` scalars. Models know nothing of tasks,
    runners or files; checkpoints are loaded from outside.

    A step may consist of several micro-batches. A loss that is a mean over tokens then weighs each of them by its
    number of tokens. `loss_terms` counts them before the first forward pass, and `forward` multiplies the loss by its
    `loss_weight`. Without `loss_terms` all micro-batches weigh alike.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    takes_image_rows: ClassVar[bool] = False
    """whether samples to evaluate may share pictures: image float[U,3,H,W], and image_rows int64[B], the image
    of each sample"""

    in_batch_negatives: ClassVar[bool] = False
    """whether the loss compares the samples of a micro-batch (of all ranks) with each other. Several small
    micro-batches are then another objective than a large one."""
    weight_record: WeightRecord = WeightRecord()
    """where the weights came from; `lavis_lite.checkpoints.weights.build_model` sets it"""
    loaded_checkpoints: frozenset[str] = frozenset()
    """paths of checkpoints that the model's `from_config` has loaded already"""
    lr_scales: Mapping[str, float] = MappingProxyType({})
    """start of a parameter's name -> factor on its learning rate"""
    allow_non_finite: bool = False
    """whether checkpoints with NaN or infinity may be loaded; the section says so"""
    few_widths: bool = False
    """whether texts of training are padded to a few widths (`lavis_lite.models.widths`); `run.compile` sets it"""
    traced: Sequence[str] = ()
    """methods from tensors to tensors that `run.compile=full` compiles. What they compute depends on no length that
    only the host knows, if `few_widths` is set"""

    @classmethod
    def from_config(cls, cfg: Any) -> BaseModel:
        """Build the model (architecture and frozen weights named in its section) from its typed section."""
        raise UndefinedMethodError.of(cls, "from_config")

    def on_weights_loaded(self) -> None:
        """Called once when all weights are in place: backbones, then checkpoints. By default nothing is done.

        For what needs the final values: hooks, unfreezing, adapters, caches. Parameters that are made here take their
        values from the checkpoints too, if these have them. A training that is resumed fills all of them again after
        this call.
        """

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def frozen_names(self) -> set[str]:
        """Names of parameters that do not train; they are not part of a checkpoint."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    def allowed_differences(self, given: Set[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Names (regular expressions) that may be missing in a checkpoint, and names in it that the model may ignore.

        By default none: a checkpoint must have exactly the model's names.

        Args:
            given: names in the checkpoint.
        """
        return (), ()

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: trainable parameters, and buffers of parts that are not frozen.

        A frozen part may hold parameters that train (adapters): those are kept, and nothing else of it.
        """
        parameters = dict(self.named_parameters(remove_duplicate=False))
        roots = frozen_roots(self) + tuple(f"{name}." for name in self.frozen_parts())
        return {name: value for name, value in self.state_dict().items()
                if (parameters[name].requires_grad if name in parameters else not name.startswith(roots))}

    def checkpoint_state(self) -> dict[str, Tensor]:
        """What a run's checkpoint keeps: `trainable_state`, and frozen tensors that no named file can bring again.

        Of a model without a record of its weights, one that was not built from its section, that is `trainable_state`.
        """
        kept, sources = self.trainable_state(), sources_of(self)
        if not self.weight_record.sources:
            return kept
        return {name: value for name, value in self.state_dict().items()
                if name in kept or sources[name].kind not in FOLLOWED}

    def blocks_to_shard(self) -> list[nn.Module]:
        """Blocks that the ranks may share (`run.fsdp`), frozen or trained, in the order in which they run.

        Every forward pass runs each of them, on every rank. By default the transformer blocks of the attribute
        `language_model`, if that is a model of transformers or holds one; else none. A model with blocks elsewhere
        overrides this.
        """
        language_model = getattr(self, "language_model", None)
        parts = [] if language_model is None else language_model.modules()
        # transformers names the classes of its blocks in an attribute of the whole model
        inner = next((part for part in parts if getattr(part, "_no_split_modules", None)), None)
        return [] if inner is None else blocks_of(inner)

    def vision_blocks_to_shard(self, device: torch.device) -> list[nn.Module]:
        """Blocks that `run.fsdp=blocks` shares besides: those of `vision_encoder`, if it names them."""
        named = getattr(getattr(self, "vision_encoder", None), "blocks_to_shard", None)
        return [] if named is None else named(device)

    def blocks_to_compile(self, device: torch.device) -> list[nn.Module]:
        """Blocks that `run.compile=blocks` compiles: those that could be shared, and the layers of a Q-Former."""
        layers = [module for module in self.modules() if isinstance(module, Layer)]
        return [*self.vision_blocks_to_shard(device), *layers, *self.blocks_to_shard()]

    def frozen_parts(self) -> list[str]:
        """Top-level children all of whose parameters are frozen."""
        return [name for name, child in self.named_children() if (parameters := list(child.parameters()))
                and not any(parameter.requires_grad for parameter in parameters)]

    def count_parameters(self) -> dict[str, tuple[int, int]]:
        """(trainable, frozen) parameter counts by top-level part, shown at the start of a run."""
        counts: dict[str, tuple[int, int]] = {}
        for name, parameter in self.named_parameters():
            part = name.split(".")[0]
            trainable, frozen = counts.get(part, (0, 0))
            own = (parameter.numel(), 0) if parameter.requires_grad else (0, parameter.numel())
            counts[part] = (trainable + own[0], frozen + own[1])
        return counts

    def cut_texts(self) -> dict[str, CutTexts]:
        """How many texts were longer than a setting allows, by what they are and the setting that cut them."""
        return {}

    def loss_terms(self, samples: dict[str, Any]) -> dict[str, int]:
        """How many terms (tokens) each loss of `forward(samples)` is a mean over, by the loss's name.

        Asked before the forward pass, with the same state of the random generators, if a step has several
        micro-batches. Losses that are not named here are averaged over micro-batches.

        Args:
            samples: as `forward` gets them, on the CPU.
        """
        return {}

    def encode_ahead(self, image: Tensor) -> Tensor:
        """What frozen parts make of the images of a coming step, to be put in their place in its samples.

        It must change neither the results of that step nor the random numbers of this one. The default is the images.
        """
        return image

    def exchanged(self, batch: int, ranks: int, dtype: torch.dtype) -> Exchange:
        """What a forward and backward pass exchanges with other ranks; by default nothing.

        Args:
            batch: samples of each rank.
            ranks: their number, at least 2.
            dtype: of autocast; float32: no autocast.
        """
        return Exchange()

    def auxiliary_losses(self, encoded: Any, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Further losses of a training step, name -> float[]; they are added to the loss and logged as loss_<name>.

        The default adds no loss. Stage 1 calls it with its `Encoded`, a model with a language model with the soft
        prompt float[B,Q,D].
        """
        return {}

    def optimizer_groups(self, run: RunConfig) -> list[ParameterGroup]:
        """The parameters to optimize, in groups; every trainable parameter belongs to exactly one.

        By default those that decay and those that do not, split further by `lr_scales`, and by `layer_scale` if
        `run.lr_layer_decay` is not 1.

        Args:
            run: the `run:` section; `weight_decay` and `lr_layer_decay` are used.
        """
        decay = run.lr_layer_decay

        def scale(name: str) -> float:
            own = next((factor for prefix, factor in self.lr_scales.items() if name.startswith(prefix)), 1.0)
            return own if decay == 1.0 else own * self.layer_scale(name, decay)

        return group_parameters(self, run.weight_decay, scale)

    def layer_scale(self, name: str, decay: float) -> float:
        """Learning-rate factor of a parameter under layer-wise decay; 1 outside a trained vision encoder."""
        return 1.0


def weights_hash(model: nn.Module) -> str:
    """Hash of evenly spaced elements of every parameter and buffer.

    Half precision is hashed as float32, because some models widen their weights on a CPU. Of sharded tensors only name
    and shape count: these are frozen, and the model's section names their source.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.numel() and not distributed.is_sharded(tensor) and not tensor.is_meta:
            part = tensor.detach().reshape(-1)[::max(1, tensor.numel() // HASHED)]
            part = part.float() if part.is_floating_point() else part
            digest.update(part.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
