"""What the rows of an evaluation depend on: finished work is taken up by the same evaluation and by no other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite import __version__
from lavis_lite.config.schema import Config, DatasetConfig
from lavis_lite.io import files
from lavis_lite.redaction import mask_all

Parts = dict[str, Any]
"""name of a part -> its plain value; the names of those that a configuration decides are dotted keys"""

SAMPLES = 256
"""elements of a tensor, and blocks of a file, that are looked at"""
BLOCK = 4096
"""bytes of a file that are looked at in one place"""
LONGEST = 60
"""characters of a value in a message"""

WITHOUT_EFFECT = frozenset({
    # the same rows by other means
    "num_workers", "worker_start_method", "world_size", "dist_url", "distributed", "use_dist_eval_sampler",
    "dist_timeout_minutes", "rendezvous_timeout_minutes", "fsdp",
    "find_unused_parameters", "device", "amp", "amp_dtype",  # the device and the precision in use count instead
    # where things go, and what is told
    "output_dir", "report", "report_samples", "tensorboard", "wandb", "wandb_project", "log_freq", "resume_ckpt_path",
    "resume_evaluation", "save_freq", "save_every", "save_last", "keep_checkpoints",
    # which splits, and which samples may be left out
    "evaluate", "allow_untrained", "valid_splits", "test_splits", "val_freq", "on_bad_sample", "max_bad_fraction",
    # training; what it made of the weights counts
    "runner", "max_epoch", "max_iters", "iters_per_inner_epoch", "sampling", "train_dataset_ratios", "shuffle_window",
    "lr_sched", "init_lr", "min_lr", "warmup_lr", "warmup_steps", "lr_decay_rate", "weight_decay", "beta1", "beta2",
    "lr_layer_decay", "max_grad_norm", "max_skipped_share", "accum_grad_iters", "lm_reduction",
    "batch_size_train", "train_splits",
    # how finished rows are scored and written
    "report_metric", "caption_metrics", "vqa_rule", "submission", "baselines", "positive",
})
"""run keys that rows do not depend on; a key that is not here counts, so that a task's own keys do"""


def of_config(cfg: Config, dataset: str) -> Parts:
    """The parts that stand in the configuration: model, preprocess, the data set's section, the task's run keys."""
    run = {key: value for key, value in asdict(cfg.run).items() if key not in WITHOUT_EFFECT}
    own = {name: asdict(section) for name, section in cfg.datasets.items() if name == dataset}
    sections = {"model": asdict(cfg.model), "preprocess": asdict(cfg.preprocess), "datasets": own, "run": run}
    return {key: _without_secret(value) for key, value in _flat(json.loads(json.dumps(sections, default=str)))}


def _without_secret(value: Any) -> Any:
    """A text with its secrets masked, and a short hash by which another secret is noticed."""
    masked = mask_all(value)
    if masked == value:
        return value
    return f"{masked} (sha256 {hashlib.sha256(str(value).encode()).hexdigest()[:8]}...)"


def of_things(cfg: Config, model: nn.Module, dataset: str, samples: int, **facts: Any) -> Parts:
    """All parts: those of the configuration, and those that only the things themselves tell.

    Args:
        cfg: the whole configuration.
        model: whose weights are looked at.
        dataset: name of the data set that is evaluated.
        samples: of it.
        facts: more plain values, such as the split and the precision.
    """
    section = cfg.datasets.get(dataset)
    contents = {} if section is None else of_files(section)
    versions = f"lavis_lite {__version__}, torch {torch.__version__}"
    return {**of_config(cfg, dataset), **contents, "number of samples": samples, "weights": of_weights(model),
            "versions": versions, **facts}


def differences(kept: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """What tells two sets of parts apart, one clause each; of those that both have or that one has."""
    told = []
    for key in sorted(kept.keys() | present.keys()):
        before, now = kept.get(key), present.get(key)
        if before != now:
            shown = key == "weights" or key.startswith("content of")
            told.append(f"{key} differ" if shown and key == "weights" else f"{key} differs" if shown
                        else f"{key} was {_short(before)} and is {_short(now)}")
    return told


def of_weights(model: nn.Module) -> str:
    """Hash of evenly spaced elements of every parameter and buffer.

    Half precision counts as what it becomes in float32, because some models widen their weights on a CPU. Of tensors
    that ranks share out only name and shape count: these are frozen, and named by the model's section.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.numel() and not hasattr(tensor, "to_local") and not tensor.is_meta:
            digest.update(_sampled(tensor.detach()))
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _sampled(tensor: Tensor) -> bytes:
    step = max(1, tensor.numel() // SAMPLES)
    part = tensor.reshape(-1)[::step]
    if part.is_floating_point():
        part = part.float()
    return part.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def of_files(section: DatasetConfig) -> Parts:
    """Size and a hash of evenly spaced blocks of every annotation file that is here, wherever it lies."""
    parts = {}
    for split, file in section.build_info.get("annotations", {}).items():
        named = file.get("storage")
        for number, name in enumerate(named if isinstance(named, list) else [named]):
            path = None if name is None or files.is_url(str(name)) else files.resolve(name)
            if path is not None and path.is_file():
                parts[f"content of {split} annotation file {number + 1}"] = of_file(path)
    return parts


def of_file(path: Path) -> str:
    """Size and a hash of evenly spaced blocks, both ends among them."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        last = max(0, size - BLOCK)
        for place in sorted({number * last // (SAMPLES - 1) for number in range(SAMPLES)}):
            file.seek(place)
            digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()}"


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
