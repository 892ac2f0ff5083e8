"""Builds the mini Q-Former's tokenizer: a BERT word-piece tokenizer of about a thousand tokens.

Whole words are those of the mini world and a hand-written list of everyday caption words; any other word falls into
single characters, so that plain English never becomes ``[UNK]``. The token ``[DEC]`` is not part of it: the model adds
it as the beginning-of-sequence token, as LAVIS does to BERT's.

Run by ``run_scripts/build_mini_assets.sh``; alone: ``python -m tools.build_tokenizer --out FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from lavis_lite.mini_world import captions, questions
from lavis_lite.mini_world.scenes import CELLS, COLORS, SHAPES, SIZES, TEXTURES, make_scene
from tools.words import EVERYDAY

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""In this order from 0; [PAD] is 0 as in BERT."""
SUFFIXES = ("s", "es", "ed", "ing", "er", "est", "ly", "y")
MAX_LENGTH = 512
_SURVEY = 2000


def world_words() -> set[str]:
    """Every word that captions and questions of the mini world use: stated values, and what a survey of scenes says."""
    texts: list[str] = [*CELLS, *COLORS, *SHAPES, *SIZES, *TEXTURES]
    for split in ("train", "ood"):
        for index in range(_SURVEY):
            scene = make_scene(0, split, index)
            texts += captions.make_captions(scene)
            texts += [f"{question.text} {question.answer}" for question in questions.make_questions(scene)]
    return set(re.findall(r"[a-z]+", " ".join(texts)))


def vocabulary() -> list[str]:
    """Tokens in the order of their ids: special, characters, their continuations, suffixes, words in order."""
    characters = string.digits + string.ascii_lowercase
    pieces: list[str] = [*SPECIAL, *string.punctuation, *characters]
    pieces += [f"##{character}" for character in characters]
    pieces += [f"##{suffix}" for suffix in SUFFIXES]
    return _unique([*pieces, *sorted(world_words()), *sorted(set(EVERYDAY.split()))])


def build(folder: Path) -> int:
    """Write ``tokenizer.json``, ``vocab.txt`` and ``tokenizer_config.json``; returns the number of tokens."""
    tokens = vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = BertWordPieceTokenizer({token: number for number, token in enumerate(tokens)}, lowercase=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": MAX_LENGTH,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return len(tokens)


def _unique(tokens: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(tokens))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="build the mini tokenizer")
    packaged = Path(__file__).parents[1] / "lavis_lite" / "assets" / "mini" / "tokenizer"
    parser.add_argument("--out", type=Path, default=packaged)
    folder = parser.parse_args(argv).out
    print(f"{folder}: {build(folder)} tokens")


if __name__ == "__main__":
    main()
