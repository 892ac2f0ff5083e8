"""What the rows of an evaluation depend on. A stopped evaluation is resumed only under an equal fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite import __version__
from lavis_lite.config.layers import flatten
from lavis_lite.config.schema import Config, DatasetConfig
from lavis_lite.distributed.shards import is_sharded
from lavis_lite.io import files
from lavis_lite.redaction import mask_all

Fingerprint = dict[str, Any]
"""name -> plain value; the names of configured values are dotted keys. Values, not one hash, so that a refusal can say
what differs"""

SAMPLES = 256
"""elements of a tensor, or blocks of a file, that are hashed"""
BLOCK = 4096
"""bytes of a hashed block of a file"""
LONGEST = 60
"""characters of a value in a message"""


def config_fingerprint(cfg: Config, dataset: str) -> Fingerprint:
    """The configured part: model, preprocess, the data set's own section, and the run keys that affect rows."""
    run = {key: value for key, value in asdict(cfg.run).items() if cfg.run.affects_rows(key)}
    own = {name: asdict(section) for name, section in cfg.datasets.items() if name == dataset}
    sections = {"model": asdict(cfg.model), "preprocess": asdict(cfg.preprocess), "datasets": own, "run": run}
    return {key: _without_secret(value) for key, value in flatten(json.loads(json.dumps(sections, default=str)))}


def _without_secret(value: Any) -> Any:
    """A value with its secrets masked, and a short hash that tells another secret."""
    masked = mask_all(value)
    if masked == value:
        return value
    return f"{masked} (sha256 {hashlib.sha256(str(value).encode()).hexdigest()[:8]}...)"


def eval_fingerprint(cfg: Config, model: nn.Module, dataset: str, samples: int, **facts: Any) -> Fingerprint:
    """The whole fingerprint: the configured part, the weights, and the annotation files.

    Args:
        cfg: the whole configuration.
        model: its weights are hashed.
        dataset: name of the data set that is evaluated.
        samples: number of its samples.
        facts: more plain values, such as the split and the precision.
    """
    section = cfg.datasets.get(dataset)
    return {**config_fingerprint(cfg, dataset), **(annotation_hashes(section) if section else {}),
            "number of samples": samples, "weights": weights_hash(model),
            "versions": f"lavis_lite {__version__}, torch {torch.__version__}", **facts}


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One clause for each value that differs; a value that only one side has differs, too."""
    changed = [key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key)]
    return [_difference(key, saved.get(key), current.get(key)) for key in changed]


def _difference(key: str, saved: Any, current: Any) -> str:
    if key == "weights":
        return "weights differ"
    if key.startswith("content of"):
        return f"{key} differs"
    texts = (json.dumps(value, ensure_ascii=False) for value in (saved, current))
    before, now = (text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in texts)
    return f"{key} was {before} and is {now}"


def weights_hash(model: nn.Module) -> str:
    """Hash of evenly spaced elements of every parameter and buffer.

    Half precision is hashed as float32, because some models widen their weights on a CPU. Of sharded tensors only name
    and shape count: these are frozen, and the model's section names their source.
    """
    digest = hashlib.blake2b(digest_size=16)
    tensors: Iterable[tuple[str, Tensor]] = chain(model.named_parameters(), model.named_buffers())
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.numel() and not is_sharded(tensor) and not tensor.is_meta:
            part = tensor.detach().reshape(-1)[::max(1, tensor.numel() // SAMPLES)]
            part = part.float() if part.is_floating_point() else part
            digest.update(part.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def annotation_hashes(section: DatasetConfig) -> Fingerprint:
    """Size and hash of every annotation file that exists on this machine; its path does not count."""
    hashes = {}
    for split, file in section.build_info.get("annotations", {}).items():
        stored = file.get("storage")
        names = stored if isinstance(stored, list) else [stored]
        for number, name in enumerate(names, 1):
            path = None if name is None or files.is_url(str(name)) else files.resolve(name)
            if path is not None and path.is_file():
                hashes[f"content of {split} annotation file {number}"] = _file_hash(path)
    return hashes


def _file_hash(path: Path) -> str:
    """Size, and a hash of evenly spaced blocks with both ends among them."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        last = max(0, size - BLOCK)
        for offset in sorted({number * last // (SAMPLES - 1) for number in range(SAMPLES)}):
            file.seek(offset)
            digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()}"
