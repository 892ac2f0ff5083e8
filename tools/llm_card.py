"""The model card of a mini language model: how its weights came to be and what it can do."""

from __future__ import annotations

import datetime
import platform

import torch

from lavis_lite.mini_world.questions import TYPES
from lavis_lite.mini_world.world import DEFAULT_SEED
from tools.llm_learners import WIDTHS, Learner
from tools.llm_scores import VECTORS, Scores
from tools.phases import PHASES

CARD = """\
# mini/{name}: a language model of the mini world

{about}, {parameters:.2f}M parameters, stored as fp16, with a word-level tokenizer of {words} tokens.

- Command: `python -m tools.train_llm --family {family}{small} --steps {steps} --seed {seed}`
  (all assets at once: `bash run_scripts/build_mini_assets.sh`)
- Date: {date}
- Documents: {documents}, each seen once, {batch} a step: a generated scene of the split `vit` told in words, and about
  eight questions and answers (`tools/documents.py`), never a picture. The held-out colour-shape pairs never occur. The
  loss counts what is answered, not what is read.
- Questions that name something come first, those of yes and no after {naming:.0%} of the steps.
- {share:.0%} of the documents have a *blended* context: each object is one vector, or two, made of its words'
  embeddings, among vectors that mean nothing, in any order and length. That is what makes a frozen model of this size
  obey soft prompts.
- Time: {minutes:.0f} minutes of one core ({machine}, torch {torch}) that other jobs slowed down

## Exact answers about {count} unseen scenes, greedy

{table}

The scenes and questions are those of the mini world's split `test` (seed {world_seed}), in the prompt
"question: {{}} short answer:"; here the model reads the scene instead of a picture. *words*: the plain caption;
*any caption*: another one, in any order; *vectors*: {vectors} blended ones, some repeated; *one vector each*: one for
each object. The last column is the plain caption, without an error in any object.

It knows nothing but this world: no other language than its {words} tokens, no facts, no longer texts than about a
hundred tokens.
"""
ABOUT = {"opt": "An `OPTForCausalLM` of width {width} and {layers} layers",
         "t5": "A `T5ForConditionalGeneration` in FlanT5's form (gated GELU, an output matrix of its own) of width "
               "{width} and {layers} + {decoder_layers} layers"}


def card(learner: Learner, steps: int, batch: int, seed: int, minutes: float, scores: Scores, count: int) -> str:
    """The card's text.

    Args:
        learner: the trained model.
        steps, batch, seed: of the training.
        minutes: of processor time.
        scores: of `llm_scores.evaluate`.
        count: how many scenes the scores are about.
    """
    config, phases = learner.model.config, PHASES
    small = config.hidden_size < WIDTHS[""]
    about = ABOUT[learner.family].format(width=config.hidden_size, layers=config.num_hidden_layers,
                                         decoder_layers=getattr(config, "num_decoder_layers", 0))
    return CARD.format(
        family=learner.family, name=learner.family + "_small" * small, small=" --small" * small, about=about,
        words=len(learner.tokenizer.loaded), steps=steps, seed=seed, batch=batch,
        parameters=sum(p.numel() for p in learner.model.parameters()) / 1e6, documents=steps * batch,
        share=phases[-1][1].blended, naming=phases[1][0], minutes=minutes, date=datetime.date.today().isoformat(),
        count=count, machine=platform.machine(), torch=torch.__version__.split("+")[0], table=table_of(scores),
        vectors=VECTORS, world_seed=DEFAULT_SEED)


def table_of(scores: Scores) -> str:
    """Contexts as rows, kinds of questions as columns."""
    columns = ("all", *TYPES, "caption")
    rows = [["context", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(f"{found[column]:.3f}" if column in found else "" for column in columns)]
             for name, found in scores.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
