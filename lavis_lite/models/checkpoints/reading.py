"""Tensors out of files: safetensors (also in shards) and torch's .pth, without running anything in a file."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lavis_lite import manifest
from lavis_lite.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXTRA = "lavis_lite_extra.safetensors"
"""beside weights in another format: tensors under this project's names that have no place in that format"""
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def read_tensors(source: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, under the names it gives them.

    Args:
        source: a .safetensors file; a .pth/.pt/.bin file (a state dict, or one under "model"); or a folder with
            model.safetensors (or its shards and their index), which a run's checkpoint and a Hugging Face download are.

    Raises:
        CheckpointError: nothing is there, it is damaged, or it holds more than plain tensors.
    """
    if "://" in str(source):
        raise CheckpointError(f"{source} is an address, not a file; download it and give the file's path.")
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {source} (looked at {path.absolute()}{_neighbours(path)}).")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    if path.name in (INDEX, TORCH_INDEX):
        return _read_shards(path)
    raise CheckpointError(f"{path}: a checkpoint is a folder or ends in .safetensors, {', '.join(TORCH_SUFFIXES)}.")


def tensor_names(source: str | Path) -> set[str]:
    """Names of a checkpoint's tensors, as `read_tensors` gives them; of safetensors without reading the tensors.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    path = Path(source).expanduser()
    found = next((path / name for name in (WEIGHTS, INDEX) if (path / name).is_file()), path)
    if found.suffix != ".safetensors" or not found.is_file():
        return set(read_tensors(path))
    try:
        with safe_open(found, "pt") as content:
            return set(content.keys())
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{found} cannot be read as safetensors ({fault}); it is damaged.") from fault


def read_extra(source: str | Path) -> dict[str, Tensor]:
    """Tensors of the side file that belongs to a folder (or to the weights in it); empty where there is none."""
    path = Path(source).expanduser()
    side = (path.parent if path.name in (WEIGHTS, INDEX) else path) / EXTRA
    return _read_safetensors(side) if side.is_file() else {}


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name, read in ((WEIGHTS, _read_safetensors), (INDEX, _read_shards), (TORCH_WEIGHTS, _read_torch),
                       (TORCH_INDEX, _read_shards)):
        if (folder / name).is_file():
            return read(folder / name)
    depths = ("*", "*/*", "*/*/*")
    inside = sorted({str(found.parent) for depth in depths for found in folder.glob(f"{depth}/{WEIGHTS}")})
    hint = f"; there are checkpoints in {', '.join(inside[-3:])}" if inside else ""
    raise CheckpointError(f"{folder.absolute()} is no checkpoint: it has none of {WEIGHTS}, {INDEX}, "
                          f"{TORCH_WEIGHTS}{hint}.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    manifest.prove(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{path} cannot be read as safetensors ({fault}); it is damaged.") from fault


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        names = sorted({Path(name).name for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
        raise CheckpointError(f"{index} is not an index of shards (weight_map: name -> file): {fault}") from fault
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:5])}.")
    read = _read_torch if index.name == TORCH_INDEX else _read_safetensors
    return {key: tensor for name in names for key, tensor in read(index.parent / name).items()}


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as fault:
        raise CheckpointError(f"{path} is damaged, or holds Python objects besides tensors, which are not loaded "
                              f"because they can run code ({str(fault).splitlines()[0]})") from fault
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as fault:
        raise CheckpointError(f"{path} cannot be read as a torch checkpoint ({fault}).") from fault
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside of what LAVIS, timm and plain torch.save write."""
    for key in ("model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        held = ", ".join(list(map(str, content))[:5]) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} holds no state dict, alone or under 'model' (it holds: {held}).")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    wrapped = all(name.startswith("module.") for name in tensors)  # saved from inside DistributedDataParallel
    return {name.removeprefix("module.") if wrapped else name: value for name, value in tensors.items()}


def _neighbours(path: Path) -> str:
    """What lies where the missing file was looked for."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent.absolute()}"
    found = sorted(item.name for item in path.parent.iterdir()
                   if item.is_dir() or item.suffix in (".safetensors", *TORCH_SUFFIXES))
    return f"; that folder has {', '.join(found[:8])}" if found else "; that folder has no checkpoints"
