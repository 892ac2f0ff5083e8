"""Trains the mini language models that ship with the package, from nothing but generated text.

Run by ``run_scripts/build_mini_assets.sh``; alone: ``python -m tools.train_llm --family opt --out FOLDER``.
It writes a folder in transformers' format (weights as fp16) with its tokenizer, and ``CARD.md``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools import build_llm_tokenizer
from tools.documents import Document, make_document
from tools.llm_card import card
from tools.llm_learners import HEAD_WIDTH, LEARNERS, WIDTHS, Learner, Predictions
from tools.llm_scores import evaluate, save
from tools.muon import Muon
from tools.phases import PHASES, Phases

SEED = 20261130
BATCH_SIZE = 16
STEPS = {"": 5500, "_small": 2500}
"""By the ending of a model's name."""
WARMUP_STEPS = 50
CONSTANT = 0.5
"""Share of the steps with the full learning rate, which then falls to zero linearly."""
MATRIX_RATE, OTHER_RATE, DISTANCE_RATE = 5e-3, 3e-3, 3e-2
"""Learning rates. Biases of distances must grow to several units, and steps of AdamW are as long as its rate."""


def batches(seed: int, steps: int, phases: Phases) -> Iterator[list[Document]]:
    """`steps` batches, each document once."""
    for step in range(steps):
        mix = next(mix for until, mix in phases if step < until * steps)
        yield [make_document(seed, number, mix) for number in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)]


def loss_of(predictions: Predictions) -> Tensor:
    """Weighted mean negative log-likelihood: float[]."""
    losses = F.cross_entropy(predictions.logits, predictions.ids, reduction="none")
    return (losses * predictions.weights).sum() / predictions.weights.sum()


def optimizers_of(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name and "bias" not in name
                and "lm_head" not in name and "shared" not in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for name, weight in named if id(weight) not in chosen and "relative" not in name]
    distances = [weight for name, weight in named if "relative" in name]  # the biases by which a T5 finds neighbours
    queries = {id(weight) for name, weight in named if name.endswith(".q.weight")}  # of a T5, which are far smaller
    groups = [([weight for weight in matrices if id(weight) not in queries], MATRIX_RATE),
              ([weight for weight in matrices if id(weight) in queries], MATRIX_RATE * HEAD_WIDTH ** -0.5)]
    rest = [{"params": others, "weight_decay": 0.05}, {"params": distances, "lr": DISTANCE_RATE, "weight_decay": 0.0}]
    return [*(Muon(some, rate, weight_decay=0.05) for some, rate in groups if some),
            torch.optim.AdamW(rest, lr=OTHER_RATE, betas=(0.9, 0.98))]


def rate_at(step: int, steps: int) -> float:
    """Factor on the learning rates."""
    return min((step + 1) / WARMUP_STEPS, 1.0, (1 - step / steps) / (1 - CONSTANT))


def train(learner: Learner, steps: int, seed: int, log_every: int = 100) -> None:
    """One pass over `steps` batches."""
    torch.manual_seed(seed)
    model = learner.model.train()
    optimizers = optimizers_of(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: rate_at(step, steps)) for one in optimizers]
    start = time.perf_counter()
    for step, documents in enumerate(batches(seed, steps, PHASES), 1):
        loss = loss_of(learner.predict(documents, noise=True))
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % log_every == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s", flush=True)
            if step % (5 * log_every) == 0:
                print(evaluate(learner, 60), flush=True)
                model.train()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: tokenizer, training, scores, card."""
    parser = argparse.ArgumentParser(description="train a mini language model")
    parser.add_argument("--family", choices=sorted(LEARNERS), required=True)
    parser.add_argument("--small", action="store_true", help="half as wide")
    parser.add_argument("--out", type=Path, help="default: the package's own folder")
    parser.add_argument("--steps", type=int, help=f"of {BATCH_SIZE} documents each")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1, help="1 is fastest where other jobs keep the cores busy")
    parser.add_argument("--test", type=int, default=500, help="scenes for the scores")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    ending = "_small" if options.small else ""
    folder = options.out or Path(__file__).parents[1] / "lavis_lite" / "assets" / "mini" / (options.family + ending)
    steps = options.steps or STEPS[ending]
    build_llm_tokenizer.build(folder, options.family)
    torch.manual_seed(options.seed)
    learner = LEARNERS[options.family].create(os.fspath(folder), WIDTHS[ending])
    start = time.process_time()
    train(learner, steps, options.seed)
    minutes = (time.process_time() - start) / 60
    save(learner, folder)
    scores = evaluate(learner, options.test)
    text = card(learner, steps, BATCH_SIZE, options.seed, minutes, scores, options.test)
    (folder / "CARD.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
