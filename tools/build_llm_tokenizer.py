"""Builds the tokenizers of the mini language models: the words of the mini tokenizer, the manners of OPT and of T5.

Like OPT's, the one puts ``</s>`` in front of a text, and a line break, which ends an answer there, is a token of its
own. Like T5's, the other closes a text with ``</s>``. Both write "a red circle, a star?" without stray spaces.

Run by ``train_llm``; alone: ``python -m tools.build_llm_tokenizer --family opt --out FOLDER``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tools import build_tokenizer

SPECIAL = {"opt": ("<s>", "<pad>", "</s>", "<unk>"), "t5": ("<pad>", "</s>", "<unk>")}
"""Special tokens in the order of their ids, which are those of the families' released models."""
MAX_LENGTH = 512


def vocabulary(family: str) -> list[str]:
    """Tokens in the order of their ids: special, the line break where answers end with it, then the words."""
    words = [token for token in build_tokenizer.vocabulary() if token not in build_tokenizer.SPECIAL]
    return [*SPECIAL[family], *(["\n"] if family == "opt" else []), *words]


def build(folder: Path, family: str) -> int:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``; returns the number of tokens.

    Args:
        folder: made where it is missing.
        family: opt | t5.
    """
    tokens = vocabulary(family)
    tokenizer = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL[family]])
    if family == "opt":
        tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    template = {"opt": "</s> $A", "t5": "$A </s>"}[family]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=[("</s>", tokens.index("</s>"))])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH,
        "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False,
        **({"bos_token": "</s>"} if family == "opt" else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return len(tokens)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="build the tokenizer of a mini language model")
    parser.add_argument("--family", choices=sorted(SPECIAL), required=True)
    parser.add_argument("--out", type=Path, help="default: the package's own folder")
    options = parser.parse_args(argv)
    folder = options.out or Path(__file__).parents[1] / "lavis_lite" / "assets" / "mini" / options.family
    print(f"{folder}: {build(folder, options.family)} tokens")


if __name__ == "__main__":
    main()
