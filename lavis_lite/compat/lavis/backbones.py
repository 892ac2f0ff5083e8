"""Which tensors of a model came from `from_pretrained`: checkpoints need not keep these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from lavis_lite.checkpoints.manifest import weight_files
from lavis_lite.checkpoints.weights import WeightFile
from lavis_lite.compat.lavis.sections import given_name
from lavis_lite.models.provenance import WeightSource, mark_loaded, sources_of
from lavis_lite.torchvision_shim import ensure_torchvision

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
            for name in content.keys():  # noqa: SIM118 (a safetensors file is no mapping)
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
