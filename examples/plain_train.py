"""The whole of BLIP-2's stage 1 as one script: data, model, optimizer, schedule and loop, without the runner.

    python examples/plain_train.py [STEPS]

It reads the settings of projects/blip2/stage1.yaml, builds the same data set and the same model, and then does by hand
what `train.py` does. The losses are equal bit for bit. The runner adds what is missing here: several processes, loader
workers, micro-batches, exact resume, validation, signals, reports, and a message for every mistake.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import default_collate

from lavis_lite.config.compose import compose
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.loading.sampler import ORDER, hash64, negative_uniforms, permutation, sample_rng
from lavis_lite.device import seed_position
from lavis_lite.engine import build_datasets, build_model, seed_everything
from lavis_lite.models.blip2.stage1 import Blip2Qformer

RECIPE = "projects/blip2/stage1.yaml"


def batches(dataset: Any, run: RunConfig) -> Iterator[dict[str, Any]]:
    """Batches of shuffled samples, epoch after epoch; the last incomplete batch of an epoch is left out.

    Order, augmentation and the draws of hard negatives are functions of the seed and the position alone.

    Yields:
        image float[B, 3, H, W], text_input list[B], image_id list[B] or int64[B], uniform float64[B, 2].
    """
    size, position, epoch = run.batch_size_train, 0, 0
    while True:
        rows = permutation(hash64(ORDER, run.seed, -1, epoch), len(dataset))
        for start in range(0, len(dataset) - size + 1, size):
            samples = []
            for row in map(int, rows[start:start + size]):
                sample = dataset.sample(row, sample_rng(run.seed, epoch, 0, row))
                samples.append({**sample, "uniform": negative_uniforms(run.seed, position)})
                position += 1
            yield {key: joined([sample[key] for sample in samples]) for key in samples[0]}
        epoch += 1


def joined(values: list[Any]) -> Any:
    """Numbers and tensors as one tensor; texts as a list."""
    return values if isinstance(values[0], str) else default_collate(values)


def stage1_losses(model: Blip2Qformer, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """ITC, ITM and ITG of a batch, each float[], and their sum `loss` (paper section 3.2)."""
    output = model(batch)
    return {"loss": output.loss, "loss_itc": output.loss_itc, "loss_itm": output.loss_itm, "loss_lm": output.loss_lm}


def optimizer_of(model: nn.Module, run: RunConfig) -> torch.optim.Optimizer:
    """AdamW; biases and the weights of norms do not decay."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": run.weight_decay}, {"params": [], "weight_decay": 0}]
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups[weight.ndim == 1 or name.endswith(".bias")]["params"].append(weight)
    return torch.optim.AdamW(groups, lr=run.init_lr, betas=(run.beta1, run.beta2), fused=True)


def learning_rate(step: int, steps: int, run: RunConfig) -> float:
    """A linear warm-up to `init_lr`, then half a cosine to `min_lr`."""
    if step < run.warmup_steps:
        return run.warmup_lr + (run.init_lr - run.warmup_lr) * step / run.warmup_steps
    done = min((step - run.warmup_steps) / max(steps - run.warmup_steps, 1), 1.0)
    return run.min_lr + 0.5 * (run.init_lr - run.min_lr) * (1.0 + math.cos(math.pi * done))


def train(options: Sequence[str] = (), output: Path = Path("output/plain_train")) -> list[dict[str, float]]:
    """Train the recipe with `options`; writes weights and log, and returns the losses of each step."""
    config = compose(RECIPE, options).config
    run, [name] = config.run, list(config.datasets)
    seed_everything(run.seed)
    dataset = build_datasets(config)[name][run.train_splits[0]]
    model = build_model(config)
    assert isinstance(model, Blip2Qformer) and run.max_iters is not None
    model.train()
    optimizer, log = optimizer_of(model, run), []
    for step, batch in zip(range(run.max_iters), batches(dataset, run), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, run.max_iters, run)
        seed_position(run.seed, step, 0, 0)  # dropout
        losses = stage1_losses(model, batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        log.append({key: value.item() for key, value in losses.items()})
        if step % run.log_freq == 0 or step + 1 == run.max_iters:
            print(f"step {step + 1}/{run.max_iters}", *(f"{key} {value:.4f}" for key, value in log[-1].items()))
    output.mkdir(parents=True, exist_ok=True)
    trained = {key: weight.detach() for key, weight in model.named_parameters() if weight.requires_grad}
    save_file(trained, output / "model.safetensors")
    (output / "losses.json").write_text(json.dumps(log))
    return log


if __name__ == "__main__":
    train([f"run.max_iters={sys.argv[1]}"] if len(sys.argv) > 1 else [])
