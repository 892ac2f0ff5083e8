"""What a mini language model can do with scenes it has never read: questions and captions by kind of context."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from lavis_lite.mini_world.captions import canonical_caption, make_captions
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.questions import TYPES, make_questions
from lavis_lite.mini_world.scenes import Scene, make_scene
from lavis_lite.mini_world.world import DEFAULT_SEED
from tools.documents import Document, Group, blend
from tools.llm_learners import Learner

PROMPT = "question: {} short answer:"
VECTORS = 12
"""Of a blended context: as many as the mini Q-Former's queries."""
CONTEXTS: dict[str, Callable[[Dice, Scene], str | tuple[Group, ...]]] = {
    "words": lambda rng, scene: f"{canonical_caption(scene)}.",
    "any caption": lambda rng, scene: f"{rng.choose(make_captions(scene)[1:])}.",
    "vectors": lambda rng, scene: blend(rng, scene, VECTORS),
    "one vector each": lambda rng, scene: blend(rng, scene, len(scene.objects)),
}
Scores = dict[str, dict[str, float]]


@torch.no_grad()
def evaluate(learner: Learner, scenes: int, split: str = "test", batch_size: int = 50) -> Scores:
    """Share of exact answers to the first scenes of a split of the mini world, by context and by kind of question.

    An answer counts if every token, its end included, is the likeliest at its place, so that greedy decoding finds it.

    Returns:
        for each of CONTEXTS: all (of the questions), each of their types, and caption.
    """
    learner.model.eval()
    found: Scores = {}
    for name, context in CONTEXTS.items():
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        for start in range(0, scenes, batch_size):
            chosen = [make_scene(DEFAULT_SEED, split, index) for index in range(start, min(start + batch_size, scenes))]
            documents = [_document(scene, context(Dice(3, scene.index), scene)) for scene in chosen]
            kinds = [kind for scene in chosen for kind in ["caption", *(one.type for one in make_questions(scene))]]
            for kind, exact in zip(kinds, exact_turns(learner, documents), strict=True):
                asked.update([kind] + ["all"] * (kind != "caption"))
                right.update(([kind] + ["all"] * (kind != "caption")) * exact)
        found[name] = {kind: round(right[kind] / asked[kind], 3) for kind in ("all", *TYPES, "caption") if asked[kind]}
    return found


def _document(scene: Scene, context: str | tuple[Group, ...]) -> Document:
    questions = [(PROMPT.replace("{}", one.text), one.answer) for one in make_questions(scene)]
    return Document(context, (("a photo of", canonical_caption(scene)), *questions), len(scene.objects))


def exact_turns(learner: Learner, documents: list[Document]) -> list[bool]:
    """Whether greedy decoding would write the answer of each turn."""
    found = learner.predict(documents, noise=False)
    wrong = found.turns[(found.logits.argmax(-1) != found.ids) & (found.turns >= 0)]
    exact = torch.ones(sum(len(document.turns) for document in documents), dtype=torch.bool)
    exact[wrong] = False
    return exact.tolist()


def save(learner: Learner, folder: Path) -> None:
    """Write the weights as fp16 in transformers' format; the tokenizer is there already."""
    model = copy.deepcopy(learner.model).eval().half()
    model.generation_config.eos_token_id = learner.tokenizer.end
    model.save_pretrained(folder)
