"""Tensors out of files: safetensors (also in shards) and torch's .pth, without running anything in a file.

Trainings save a state dict inside other dictionaries ({"state_dict": ...}, {"module": ...}), several state dicts in one
file (the model and its moving average), and names with pieces that DDP, FSDP, torch.compile or Lightning added. Here
those are found and taken off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lavis_lite.checkpoints import manifest
from lavis_lite.checkpoints.formats.key_maps import same_values
from lavis_lite.checkpoints.manifest import INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS
from lavis_lite.errors import CheckpointError, listed
from lavis_lite.finite import check_weights

ADAPTERS_ALONE = ("LoRA adapters alone, in peft's format; load the run's checkpoint that they were saved from, or "
                  "merge them with peft's merge_and_unload()")
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""keys under which trainings keep the model, the most telling first"""
AVERAGES = ("model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "ema",
            "averaged_model", "params_ema", "ema_weights")
"""keys under which they keep a moving average of its weights"""
AVERAGE_COUNT = "n_averaged"
"""what torch.optim.swa_utils.AveragedModel keeps beside the weights"""
OPTIMIZERS = ("optim", "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "lr_scheduler",
              "lr_schedulers", "scheduler", "scaler", "callbacks", "hyper_parameters", "loops", "rng_state",
              "rng_states")
"""keys of what is not the model although it may hold tensors"""
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
            "_ddp_module", "_wrapped_module")
"""pieces of names that belong to a wrapper, not to a part of the model: torch.compile, DDP and DeepSpeed, FSDP,
activation checkpointing, Fabric"""
DEEPEST = 8
"""dictionaries within each other that are looked through"""
SHOWN = 5
PARAMETERS = (".weight", ".bias", ".gamma", ".beta")
"""how names end of what must be real numbers; positions and counters are rightly integers"""


@dataclass
class Content:
    """The tensors of a checkpoint and what was done to find them.

    Attributes:
        tensors: by name.
        notes: clauses for the load line, such as "under 'state_dict'".
        foreign: classes of the objects in the file that were not read.
        parts: keys of several dictionaries of tensors, any of which may be the model.
    """

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


def find_state_dict(content: Any, where: str, depth: int = 0) -> Content:
    """The model's state dict within what a file holds.

    Raises:
        CheckpointError: there is no checkpoint, or there are several and it is unclear which is the model's.
    """
    if not isinstance(content, Mapping) or depth > DEEPEST:
        raise CheckpointError(f"{where} holds no state dict: it is an object of {type(content).__name__}, not a "
                              "dictionary of tensors. Save model.state_dict(), not the model itself.")
    inner = {str(key): value for key, value in content.items()
             if isinstance(value, Mapping) and _holds_tensors(value, depth)}
    averages = [key for key in AVERAGES if key in inner]
    chosen = next((key for key in (*CONTAINERS, *averages) if key in inner), None)
    if chosen is None:
        return _plain(content, inner, where, depth)
    found = find_state_dict(inner[chosen], where, depth + 1)
    if chosen in averages:
        found.notes.insert(0, f"the averaged weights under {chosen!r}, the only ones in it")
    elif averages:
        found.notes.insert(0, f"the weights under {chosen!r}, not their average under {averages[0]!r}")
    return found


def _plain(content: Mapping[Any, Any], inner: dict[str, Any], where: str, depth: int) -> Content:
    """A state dict, or several, one for each part of the model, whose names are joined with the parts'."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    parts = {key: value for key, value in inner.items() if key not in OPTIMIZERS}
    if len(parts) == 1 and not any(value.ndim for value in tensors.values()):  # a loss or a counter beside the model
        return find_state_dict(next(iter(parts.values())), where, depth + 1)
    for key, value in parts.items():
        part = find_state_dict(value, where, depth + 1).tensors
        tensors |= {f"{key}.{name}": tensor for name, tensor in part.items()}
    if AVERAGE_COUNT in tensors and all(name.startswith("module.") for name in tensors if name != AVERAGE_COUNT):
        del tensors[AVERAGE_COUNT]
        return Content(tensors, ["averaged weights of torch's AveragedModel"])
    if not tensors:
        held = ", ".join(list(map(str, content))[:SHOWN]) or "nothing"
        hint = " It is a training's state; the weights are in the same folder." if set(inner) & set(OPTIMIZERS) else ""
        raise CheckpointError(f"{where} holds no state dict, alone or under 'model' (it holds: {held}).{hint}")
    return Content(tensors, parts=list(parts) if len(parts) > 1 else [])


def _holds_tensors(content: Mapping[Any, Any], depth: int) -> bool:
    return any(isinstance(value, Tensor) or (
        isinstance(value, Mapping) and depth < DEEPEST and _holds_tensors(value, depth + 1))
        for value in content.values())


# names --------------------------------------------------------------------------------------------------------------
def take_off_wrappers(tensors: Mapping[str, Tensor], where: str, own: Iterable[str] = (),
                      known: Callable[[Iterable[str]], bool] | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The same tensors under names without wrappers, and what was taken off, such as ["_orig_mod.", "module."].

    Pieces in `WRAPPERS` go wherever they are in a name, unless the model has such a piece itself. A beginning that all
    names share goes where the names are known without it, and not with it (Lightning's `model.`).

    Args:
        tensors: by the names in the file.
        where: the file, for messages.
        own: names of the model that they are for, where there is one.
        known: whether names are those of a layout that can be read.

    Raises:
        CheckpointError: two different tensors would have one name.
    """
    own = set(own)
    kept = {piece for name in own for piece in name.split(".")}
    pieces = [piece for piece in WRAPPERS if piece not in kept]
    found, taken = _without_pieces(tensors, pieces, where)
    prefix = _foreign_prefix(list(found), lambda names: bool(own.intersection(names)) or bool(known and known(names)))
    if prefix:
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        taken.append(prefix)
    return found, taken


def _without_pieces(tensors: Mapping[str, Tensor], pieces: list[str],
                    where: str) -> tuple[dict[str, Tensor], list[str]]:
    found: dict[str, Tensor] = {}
    taken: dict[str, None] = {}
    before: dict[str, str] = {}
    for name, tensor in tensors.items():
        split = name.split(".")
        short = ".".join(piece for piece in split if piece not in pieces) or name
        taken.update(dict.fromkeys(f"{piece}." for piece in split if piece in pieces))
        if short in found and not same_values(found[short], tensor):
            raise CheckpointError(
                f"{where}: {before[short]!r} and {name!r} are two tensors of one name ({short!r}) once the wrappers' "
                f"names ({', '.join(taken)}) are taken off. Keep one of them and save the file again.")
        found[short], before[short] = tensor, name
    return found, list(taken)


def _foreign_prefix(names: list[str], known: Callable[[Iterable[str]], bool]) -> str:
    """The shortest beginning, shared by all names, without which they are known; "" where none is."""
    if not names or known(names):
        return ""
    for count in range(1, common_pieces(names) + 1):
        prefix = ".".join(names[0].split(".")[:count]) + "."
        if known([name.removeprefix(prefix) for name in names]):
            return prefix
    return ""


def common_pieces(names: list[str]) -> int:
    """How many pieces all names begin with; the last piece of a name is never one of them."""
    split = [name.split(".")[:-1] for name in names]
    shortest = min(map(len, split), default=0)
    return next((count for count in range(shortest) if len({tuple(one[:count + 1]) for one in split}) > 1), shortest)


EXTRA = "lavis_lite_extra.safetensors"
"""beside weights in another format: tensors under this project's names that have no place in that format"""
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
DEEPSPEED = "mp_rank_00_model_states.pt"
ONE_SHARD = re.compile(r".+-\d{5}-of-\d{5}")
"""the name of one of several files that hold a model together"""
PACKED = [(b"\x1f\x8b", 0, "gzip -dc {} > unpacked"), (b"\xfd7zXZ", 0, "xz -dc {} > unpacked"),
          (b"\x28\xb5\x2f\xfd", 0, "zstd -dc {} > unpacked"), (b"ustar", 257, "tar -xf {}")]
"""what a packed file has at which byte, and the command that unpacks it"""
FOREIGN_FOLDERS = [
    ("*.distcp", "shards of torch.distributed.checkpoint; join them with `python -m "
                 "torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pth`"),
    ("**/zero_pp_rank_*", "shards of DeepSpeed's ZeRO; join them with `python zero_to_fp32.py {folder} model.bin`, by "
                          "the script that DeepSpeed left there"),
    ("adapter_model.safetensors", ADAPTERS_ALONE),
]
"""files that give a folder away -> what it is and what to do"""


def read_tensors(source: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, under the names it gives them; as `read_content`, without its notes."""
    return read_content(source).tensors


def read_content(source: str | Path) -> Content:
    """All tensors of a checkpoint, on the CPU, under the names it gives them, and what was noticed on the way.

    Args:
        source: a .safetensors file; a .pth/.pt/.bin/.ckpt file (a state dict, or one within other dictionaries); or a
            folder with model.safetensors (or its shards and their index), which a run's checkpoint and a Hugging Face
            download are.

    Raises:
        CheckpointError: nothing is there, it is damaged, or it holds what cannot be read without running code.
    """
    if "://" in str(source):
        raise CheckpointError(f"{source} is an address, not a file; download it and give the file's path.")
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {source} (looked at {path.absolute()}{_neighbours(path)}).")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file (a pipe or a device); give a checkpoint.")
    _check_downloaded(path)
    content = _read_file(path)
    if content is None:
        raise CheckpointError(f"{path}: a checkpoint is a folder or ends in .safetensors, {', '.join(TORCH_SUFFIXES)}.")
    if ONE_SHARD.fullmatch(path.stem):
        content.notes.append("one of several shards: give the folder, or the .index.json beside it, to have them all")
    return content


def _check_downloaded(path: Path) -> None:
    """Refuse what a download left in a file's place (a pointer of Git LFS, a web page), and names of another format."""
    with open(path, "rb") as file:
        content = file.read(262)
    begin = content[:200].lstrip().lower()
    _check_format(path, content)
    if begin.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file: get it with `git lfs pull` in its "
                              "repository.")
    if begin.startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download led to a login page or failed. "
                              "Download it again.")


def _check_format(path: Path, content: bytes) -> None:
    """Refuse a file that begins as one of another format than its name says; `content` are its first 262 bytes."""
    if path.suffix in TORCH_SUFFIXES and content[8:9] == b"{" and content[7:8] == b"\0":
        raise CheckpointError(f"{path} is in the format safetensors: rename it to {path.stem}.safetensors.")
    if path.suffix == ".safetensors" and content.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path} was written by torch.save: rename it to {path.stem}.pth.")
    for begin, start, command in PACKED:
        if content[start:].startswith(begin):
            raise CheckpointError(f"{path} is a packed file: unpack it with `{command.format(path)}`, and name what "
                                  "was in it.")


def _read_file(path: Path) -> Content | None:
    """A file by its name; None: no checkpoint is called so."""
    if path.suffix == ".safetensors":
        return Content(_read_safetensors(path))
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    return _read_shards(path) if path.name.endswith((".safetensors.index.json", ".bin.index.json")) else None


def tensor_names(source: str | Path) -> set[str]:
    """Names of a checkpoint's tensors, as `read_tensors` gives them; of safetensors without reading the tensors.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    path = Path(source).expanduser()
    found = next((path / name for name in (WEIGHTS, INDEX) if (path / name).is_file()), path)
    if found.suffix != ".safetensors" or not found.is_file():
        return set(read_tensors(path))
    with manifest.reading_safetensors(found), safe_open(found, "pt") as content:
        return set(content.keys())


def read_extra(source: str | Path) -> dict[str, Tensor]:
    """Tensors of the side file that belongs to a folder (or to the weights in it); empty if it has no side file."""
    path = Path(source).expanduser()
    side = (path.parent if path.name in (WEIGHTS, INDEX) else path) / EXTRA
    return _read_safetensors(side) if side.is_file() else {}


def _read_folder(folder: Path) -> Content:
    for name in (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX, DEEPSPEED):
        if (folder / name).is_file():
            content = _read_file(folder / name)
            assert content is not None, "these names are those of checkpoints"
            return content
    for pattern, words in FOREIGN_FOLDERS:
        if next(folder.glob(pattern), None) is not None:
            raise CheckpointError(f"{folder.absolute()} holds {words.format(folder=folder)}.")
    depths = ("*", "*/*", "*/*/*")
    inside = sorted({str(found.parent) for depth in depths for found in folder.glob(f"{depth}/{WEIGHTS}")})
    hint = f"; there are checkpoints in {', '.join(inside[-3:])}" if inside else ""
    raise CheckpointError(f"{folder.absolute()} is no checkpoint: it has none of {WEIGHTS}, {INDEX}, "
                          f"{TORCH_WEIGHTS}{hint}.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    manifest.prove(path)
    with manifest.reading_safetensors(path):
        return load_file(path)


def _read_shards(index: Path) -> Content:
    files = manifest.shards_of(index)
    names = sorted(set(files.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:5])}.")
    whole = Content({}, [f"{len(names)} shards"])
    for name in names:
        content = _read_file(index.parent / name)
        if content is None:
            raise CheckpointError(f"{index}: {name} is no file of weights.")
        whole.tensors |= {key: tensor for key, tensor in content.tensors.items() if files.get(key, name) == name}
        whole.foreign += content.foreign
    lost = [name for name in files if name not in whole.tensors]
    if lost:
        raise CheckpointError(f"{index} names {len(lost)} tensors that its shards lack: {', '.join(lost[:5])}.")
    return whole


def _read_torch(path: Path) -> Content:
    from lavis_lite.checkpoints.unpickling import read_torch_file, resave_command  # most files are safetensors

    raw, foreign = read_torch_file(path)
    try:
        content = find_state_dict(raw, str(path))
    except CheckpointError as error:
        if not foreign:
            raise
        entry = _entry(raw)
        raise CheckpointError(f"{error} It has objects of {', '.join(foreign[:3])}, which are not loaded because they "
                              f"can run code. If you trust its author: {resave_command(path, entry)}") from error
    content.foreign = foreign
    return content


def _entry(raw: Any) -> str:
    """The expression that gives the tensors of a file `c` that was not made of them."""
    if not isinstance(raw, Mapping):
        return "c.state_dict()"
    key = next((key for key in CONTAINERS if key in raw), None)
    holder = "c" if key is None else f"c[{key!r}]"
    if key is None or isinstance(raw[key], Mapping):  # arrays of numpy
        return f"{{k: torch.as_tensor(v) for k, v in {holder}.items()}}"
    return f"{holder}.state_dict()"


def _neighbours(path: Path) -> str:
    """What lies where the missing file was looked for."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent.absolute()}"
    found = sorted(item.name for item in path.parent.iterdir()
                   if item.is_dir() or item.suffix in (".safetensors", *TORCH_SUFFIXES))
    return f"; that folder has {', '.join(found[:8])}" if found else "; that folder has no checkpoints"


def check_folder(folder: str | Path, key: str, finite: bool = False) -> None:
    """Refuse a folder of transformers' format with weights that transformers would spoil silently.

    It casts integers, which mean nothing without their scales. Quantising to 4 bits, it makes numbers of NaN.

    Args:
        folder: or a name on the hub, which is not looked at.
        key: of the configuration that names it, for the message.
        finite: read the values too, and refuse NaN and infinity; else only the heads of the files are read.

    Raises:
        CheckpointError: names some of the tensors.
    """
    integers = []
    for file in manifest.weight_files(Path(folder).expanduser()):
        for name, tensor in _each_tensor(file, finite):
            if not tensor.is_floating_point() and name.endswith(PARAMETERS):
                integers.append(f"{name} ({str(tensor.dtype).removeprefix('torch.')})")
            elif finite:
                check_weights({name: tensor}, f"{key}: {file}")
    if integers:
        raise CheckpointError(
            f"{key}: {folder} stores {len(integers)} weights as integers: {listed(integers, SHOWN)}. They are "
            "quantised, and config.json does not say how. Give the folder of the model that they were made of, or turn "
            "them back before they are saved (transformers: model.dequantize()).")


def _each_tensor(file: Path, values: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) one by one; without `values` a tensor may have one value only."""
    if file.suffix != ".safetensors":
        yield from read_content(file).tensors.items()  # mapped into memory: what is not looked at is not read
        return
    with manifest.reading_safetensors(file), safe_open(file, "pt") as content:
        for name in content.keys():
            head = content.get_slice(name)
            yield name, content.get_tensor(name) if values else head[(slice(1),) * len(head.get_shape())]
