"""Trains the mini ViT that ships with the package: every patch learns to name the object it shows.

Run by ``run_scripts/build_mini_assets.sh``; alone: ``python -m tools.train_vit --out FOLDER``. It writes
``vit.safetensors`` (fp16) and ``VIT_CARD.md``. Only the colour-shape pairs of the training splits are ever shown, from
a seed and a split of its own, so every scene of the written data set is new to the model.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from lavis_lite.datasets.loading.loader import Loader
from lavis_lite.models.vision.encoder import MINI_WIDTH as WIDTH
from lavis_lite.models.vision.encoder import mini_vit
from tools.patches import ATTRIBUTES, IGNORE, PatchBatches
from tools.probe import probe_model

SEED = 20261121
BATCH_SIZE = 16
IMAGES = 64_000
WARMUP_STEPS = 200
BACKGROUND_WEIGHT = 0.1
"""Weight of background in the loss: most patches show nothing else and are easy."""


class PatchHeads(nn.Module):
    """One linear classifier per attribute on patch features; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = [len(values) + 1 for values in ATTRIBUTES.values()]
        self.linear = nn.Linear(WIDTH, sum(self.widths))
        for place, width in enumerate(self.widths):
            weight = torch.ones(width)
            weight[-1] = BACKGROUND_WEIGHT
            self.register_buffer(f"weight_{place}", weight)

    def forward(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over attributes: float[B, P, D], int64[B, A, P] -> float[]."""
        parts = self.linear(patches).split(self.widths, dim=-1)
        losses = [
            nn.functional.cross_entropy(
                part.flatten(0, 1),
                labels[:, place].flatten(),
                weight=self.get_buffer(f"weight_{place}"),
                ignore_index=IGNORE,
            )
            for place, part in enumerate(parts)
        ]
        return torch.stack(losses).mean()


def train(images: int, seed: int, learning_rate: float = 1e-3, log_every: int = 100) -> nn.Module:
    """Train on `images` pictures, each seen once: AdamW, short warm-up, cosine decay to zero.

    Many small steps beat few large ones here, hence the batch of 16.
    """
    torch.manual_seed(seed)
    model, heads = mini_vit(), PatchHeads()
    parameters = [*model.parameters(), *heads.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    batches = PatchBatches(seed, images, BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=len(batches) + 1, pct_start=min(0.3, WARMUP_STEPS / len(batches))
    )
    model.train()
    for step, (pixels, labels) in enumerate(Loader(batches, 1, batch_size=None, prefetch_factor=8), 1):
        loss = heads(model.forward_features(pixels)[:, 1:], labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % log_every == 0 or step == len(batches):
            print(f"step {step}/{len(batches)}  loss {loss.item():.3f}", flush=True)
    return model


def save(model: nn.Module, path: Path) -> None:
    """Write the weights as fp16 safetensors, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(to_bytes({name: value.half().contiguous() for name, value in model.state_dict().items()}))
    os.replace(partial, path)


CARD = """\
# vit.safetensors: the mini vision encoder

A timm `VisionTransformer` with a convolutional stem (`lavis_lite/models/vision/encoder.py`): 64-pixel pictures,
8-pixel patches, width 128, 4 blocks, 4 heads, 0.89M parameters, stored as fp16. Features are those after all four
blocks and the final LayerNorm.

- Command: `python -m tools.train_vit --images {images} --seed {seed}`
  (all assets at once: `bash run_scripts/build_mini_assets.sh`)
- Date: {date}
- Data: {images} generated scenes of the split `vit`, seed {seed}, each seen once, batch {batch}. The held-out
  colour-shape pairs never occur. Every patch is labelled with the attributes of the object it shows.
- Time: {seconds:.0f} s on {cores} CPU cores shared with other jobs ({machine}, torch {torch})
- Input: RGB 0-1, normalised with CLIP's mean and deviation, as the image processors do by default

## What a linear probe reads from one patch

Ridge regression fitted on 400 scenes; accuracy on the object patches of 500 scenes, none of them seen in training.
Every `ood` scene holds a colour-shape pair that training never showed. Chance: 0.125, 0.167, 0.5, 0.5, 0.111.

{table}
"""


def card(images: int, seed: int, seconds: float, scores: dict[str, dict[str, float]]) -> str:
    """The model card: how the weights came to be and what they can do."""
    names = list(ATTRIBUTES)
    rows = [["split", *names], ["---"] * (len(names) + 1)]
    rows += [[split, *(f"{values[name]:.3f}" for name in names)] for split, values in scores.items()]
    return CARD.format(
        images=images,
        seed=seed,
        date=datetime.date.today().isoformat(),
        batch=BATCH_SIZE,
        seconds=seconds,
        cores=os.cpu_count(),
        machine=platform.machine(),
        torch=torch.__version__.split("+")[0],
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: train, save, probe, write the card."""
    parser = argparse.ArgumentParser(description="train the mini vision encoder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "lavis_lite" / "assets" / "mini")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=None, help="1 is fastest where other jobs keep the cores busy")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model = train(options.images, options.seed)
    seconds = time.perf_counter() - start
    save(model, options.out / "vit.safetensors")
    scores = probe_model(model, options.seed + 1, fit=400, test=500, splits=("test", "ood"))
    text = card(options.images, options.seed, seconds, scores)
    (options.out / "VIT_CARD.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
