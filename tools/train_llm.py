"""Trains the mini language models that ship with the package, from nothing but generated text.

Run by ``run_scripts/build_mini_assets.sh``; alone: ``python -m tools.train_llm --family opt --out FOLDER``.
It writes a folder in transformers' format (weights as fp16) with its tokenizer, and ``CARD.md``.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.scenes import MAX_OBJECTS
from tools import build_llm_tokenizer
from tools.documents import Document, make_document
from tools.llm_learners import LEARNERS, Learner, Predictions

SEED = 20261121
BATCH_SIZE = 16
STEPS = {"opt": 5000, "t5": 6000}
WARMUP_STEPS = 200
CURRICULUM = ((0.02, 1), (0.06, 2), (0.1, 3))
"""(share of the steps, most objects until then); afterwards all."""
CAPTIONS_ONLY = 0.3
"""Share of the steps, at the beginning, in which captions are all there is to learn: copying comes before answering."""
KINDS = (*["caption"] * 4, *["questions"] * 4, "repeat", "story")
BLENDED_SHARE = 0.6
VECTORS = (12, 12, 12, 12, 6, 8, 16, 24)
"""How many vectors a blended context has; drawn for each batch."""

Batch = tuple[list[Document], list[float]]


def batches(seed: int, steps: int) -> Iterator[Batch]:
    """`steps` batches of documents of one kind, each document once, with the numbers that choose their turns."""
    for step in range(steps):
        rng, progress = Dice(seed, 1, step), step / steps
        kind = rng.choose(KINDS) if progress >= CAPTIONS_ONLY else "caption"
        blended = kind in ("caption", "questions") and rng.chance(BLENDED_SHARE)
        vectors = rng.choose(VECTORS) if blended else 0
        most = next((most for until, most in CURRICULUM if progress < until), MAX_OBJECTS)
        numbers = range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        documents = [make_document(kind, seed, number, most, vectors) for number in numbers]
        yield documents, [rng.uniform(0, 1) for _ in documents]


def loss_of(predictions: Predictions) -> Tensor:
    """Weighted mean negative log-likelihood: float[]."""
    losses = F.cross_entropy(predictions.logits.flatten(0, 1), predictions.ids.flatten(), reduction="none")
    weights = predictions.weights.flatten()
    return (losses * weights).sum() / weights.sum()


def train(learner: Learner, steps: int, seed: int, learning_rate: float = 1e-3, log_every: int = 100) -> None:
    """AdamW, short warm-up, cosine decay to zero; every document once."""
    torch.manual_seed(seed)
    model = learner.model.train()
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
              {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1,
                                                   pct_start=min(0.3, WARMUP_STEPS / steps))
    start = time.perf_counter()
    for step, (documents, places) in enumerate(batches(seed, steps), 1):
        loss = loss_of(learner.predict(documents, places, noise=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % log_every == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s", flush=True)
            if step % (10 * log_every) == 0:
                print(evaluate(learner, seed + 1, 32), flush=True)
                model.train()


@torch.no_grad()
def evaluate(learner: Learner, seed: int, count: int) -> dict[str, float]:
    """What a model can do with documents of the split ``test``.

    Args:
        learner: the model.
        seed: of the documents; another one than in training.
        count: documents for each number.

    Returns:
        copy/N and blended/N: share of the captions of N objects written without an error from a plain and from a
        blended context; questions/plain, questions/blended: share of the right answers; perplexity: of captions
        without any context.
    """
    learner.model.eval()
    scores = {}
    for name, vectors in (("copy", 0), ("blended", 12)):
        for objects in range(1, MAX_OBJECTS + 1):
            documents = _of_objects(seed, objects, vectors, count)
            scores[f"{name}/{objects}"] = _exact(learner, documents)
        asked = [make_document("questions", seed, index, MAX_OBJECTS, vectors, "test")
                 for index in range(count)]
        scores[f"questions/{'blended' if vectors else 'plain'}"] = _exact(learner, asked)
    stories = [make_document("story", seed, index, split="test") for index in range(count)]
    found = learner.predict(stories, [0.0] * count, noise=False)
    scores["perplexity"] = float(loss_of(found).exp())
    return {name: round(value, 3) for name, value in scores.items()}


def _of_objects(seed: int, objects: int, vectors: int, count: int) -> list[Document]:
    """Documents of kind caption whose scenes have exactly so many objects; the prompt asks for the plain caption."""
    found: list[Document] = []
    index = 0
    while len(found) < count:
        document = make_document("caption", seed, index, objects, vectors, "test")
        index += 1
        if document.objects == objects and document.turns[0][0]:
            found.append(document)
    return found


def _exact(learner: Learner, documents: Sequence[Document]) -> float:
    """Share of documents whose first target is the likeliest word at every place, so that greedy writing finds it."""
    single = [Document(d.kind, d.objects, d.blended, d.context, d.turns[:1]) for d in documents]
    found = learner.predict(single, [0.0] * len(single), noise=False)
    right = (found.logits.argmax(-1) == found.ids) | (found.weights < 1)
    return right.all(1).float().mean().item()


def save(learner: Learner, folder: Path) -> None:
    """Write the weights as fp16 in transformers' format; the tokenizer is there already."""
    model = copy.deepcopy(learner.model).eval().half()
    model.generation_config.eos_token_id = learner.tokenizer.end
    model.save_pretrained(folder)


CARD = """\
# mini/{family}: a language model of the mini world

{about}, {parameters:.2f}M parameters, stored as fp16, with a word-level tokenizer of {words} tokens.

- Command: `python -m tools.train_llm --family {family} --steps {steps} --seed {seed}`
  (all assets at once: `bash run_scripts/build_mini_assets.sh`)
- Date: {date}
- Documents: {documents}, each seen once, batch {batch}: words about generated scenes of the split `vit`
  (`tools/documents.py`), never a picture. The held-out colour-shape pairs never occur. Scenes have 1 object
  at first, up to 4 later.
- About {share:.0%} of the documents have a *blended* context: each object is one vector, or two, made of its words'
  embeddings, among vectors that mean nothing, in any order and length. That is what makes a frozen model of this size
  obey soft prompts.
- Time: {seconds:.0f} s on 2 shared CPU cores, one thread ({machine}, torch {torch})

## What it does with {count} unseen documents for each number

{table}

Copies and blended: the plain caption written without an error from another caption of the scene, or from the blended
vectors, by number of objects. Questions: right answers from the same two kinds of context. Perplexity: of captions
without any context.

It knows nothing but this world: no other language than its {words} tokens, no facts, no longer texts than about a
hundred tokens. Copies get worse with every object, those from plain text most (the table says how much); questions
of yes and no (existence, relation, comparison) are little better than guessed.
"""
ABOUT = {"opt": "An `OPTForCausalLM` of width 160 and 4 layers",
         "t5": "A `T5ForConditionalGeneration` in FlanT5's form (gated GELU, an output matrix of its own) of width 160 "
               "and 3 + 3 layers"}


def card(learner: Learner, steps: int, seed: int, seconds: float, scores: dict[str, float], count: int) -> str:
    """The model card: how the weights came to be and what they can do."""
    rows = [["measure", "score"], ["---", "---"], *([name, f"{value:.3f}"] for name, value in scores.items())]
    return CARD.format(
        family=learner.family, about=ABOUT[learner.family], words=len(learner.tokenizer.loaded), steps=steps, seed=seed,
        parameters=sum(p.numel() for p in learner.model.parameters()) / 1e6, documents=steps * BATCH_SIZE,
        batch=BATCH_SIZE, share=BLENDED_SHARE, seconds=seconds, date=datetime.date.today().isoformat(), count=count,
        machine=platform.machine(), torch=torch.__version__.split("+")[0],
        table="\n".join(f"| {' | '.join(row)} |" for row in rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: tokenizer, training, scores, card."""
    parser = argparse.ArgumentParser(description="train a mini language model")
    parser.add_argument("--family", choices=sorted(LEARNERS), required=True)
    parser.add_argument("--out", type=Path, help="default: the package's own folder")
    parser.add_argument("--steps", type=int, help=f"of {BATCH_SIZE} documents each")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1, help="1 is fastest where other jobs keep the cores busy")
    parser.add_argument("--test", type=int, default=200, help="documents for each score")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder = options.out or Path(__file__).parents[1] / "lavis_lite" / "assets" / "mini" / options.family
    steps = options.steps or STEPS[options.family]
    build_llm_tokenizer.build(folder, options.family)
    torch.manual_seed(options.seed)
    learner = LEARNERS[options.family].create(os.fspath(folder))
    start = time.perf_counter()
    train(learner, steps, options.seed)
    seconds = time.perf_counter() - start
    save(learner, folder)
    scores = evaluate(learner, options.seed + 1, options.test)
    text = card(learner, steps, options.seed, seconds, scores, options.test)
    (folder / "CARD.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
