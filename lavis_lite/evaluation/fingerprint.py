"""The fingerprint of an evaluation: everything that its rows depend on, as plain values that can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lavis_lite import __version__
from lavis_lite.config.layers import flatten
from lavis_lite.config.schema import Config, DatasetConfig
from lavis_lite.distributed.shards import is_sharded
from lavis_lite.io import files
from lavis_lite.redaction import mask_all

SAMPLES = 256
"""elements of a tensor, or blocks of a file, that are hashed"""
BLOCK = 4096
"""bytes of a hashed block of a file"""
LONGEST = 60
"""characters of a value in a message"""
Fingerprint = dict[str, Any]
"""name -> plain value; the names of configured values are dotted keys. Values, not one hash, so that a refusal can say
what differs"""


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


def weights_hash(model: nn.Module) -> str:
    """Hash of evenly spaced elements of every parameter and buffer.

    Half precision is hashed as float32, because some models widen their weights on a CPU. Of sharded tensors only name
    and shape count: these are frozen, and the model's section names their source.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
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
        for number, name in enumerate(stored if isinstance(stored, list) else [stored], 1):
            path = None if name is None or files.is_url(str(name)) else files.resolve(name)
            if path is not None and path.is_file():
                hashes[f"content of {split} annotation file {number}"] = _file_hash(path)
    return hashes


def _file_hash(path: Path) -> str:
    """Size, and a hash of evenly spaced blocks with both ends among them."""
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for offset in sorted({number * max(0, size - BLOCK) // (SAMPLES - 1) for number in range(SAMPLES)}):
            file.seek(offset)
            digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()}"


def config_fingerprint(cfg: Config, dataset: str) -> Fingerprint:
    """The configured part: model, preprocess, the data set's own section, and the run keys that affect rows."""
    whole = asdict(cfg)
    sections = {"model": whole["model"], "preprocess": whole["preprocess"],
                "datasets": {name: section for name, section in whole["datasets"].items() if name == dataset},
                "run": {key: value for key, value in whole["run"].items() if cfg.run.affects_rows(key)}}
    return {key: _without_secret(value) for key, value in flatten(json.loads(json.dumps(sections, default=str)))}


def _without_secret(value: Any) -> Any:
    """A value with its secrets masked, and a short hash that tells another secret."""
    masked = mask_all(value)
    return value if masked == value else f"{masked} (sha256 {hashlib.sha256(str(value).encode()).hexdigest()[:8]}...)"


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One clause for each value that differs; a value that only one side has differs, too."""
    changed = (key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key))
    return [_difference(key, saved.get(key), current.get(key)) for key in changed]


def _difference(key: str, *values: Any) -> str:
    if key == "weights" or key.startswith("content of"):
        return f"{key} differ" if key == "weights" else f"{key} differs"
    texts = (json.dumps(value, ensure_ascii=False) for value in values)
    before, now = (text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in texts)
    return f"{key} was {before} and is {now}"
