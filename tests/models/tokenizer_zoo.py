"""Small tokenizers in the manner of eight families, made without files, with the control tokens of the real ones."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lavis_lite.models.text_tokens import MINI_FOLDER

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789<>/_|[]{}?.,:;=~-\"'()!"
CONTROL: dict[str, list[str]] = {
    "opt": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "gpt2": ["<|endoftext|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<image>"],
    "phi": ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>", "<|placeholder1|>"],
    "words": ["[PAD]", "[UNK]", "</s>", "<image>"],
}


def byte_level(control: list[str]) -> PreTrainedTokenizerFast:
    """OPT's, GPT-2's and Qwen2's kind: every byte is a word, control tokens are added."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(control)
    end = next((name for name in control if name in ("</s>", "<eos>", "<|im_end|>", "<|endoftext|>")), control[0])
    core.post_processor = processors.TemplateProcessing(single=f"{control[0]} $A", special_tokens=[
        (control[0], core.token_to_id(control[0]))])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token=control[0],
                                   additional_special_tokens=control)


def whole_words(control: list[str]) -> PreTrainedTokenizerFast:
    """The worst kind: a word between blanks is looked up whole, and control tokens are among the words."""
    words = [*control, "a", "red", "dog", "x", "\n"]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(control)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="[PAD]", unk_token="[UNK]",
                                   additional_special_tokens=control)


def t5() -> Any:
    """T5's: the control tokens are words of its unigram model."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *[(letter, -3.0) for letter in LETTERS],
                  *[(f"<extra_id_{number}>", 0.0) for number in (2, 1, 0)]]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=3)


def llama() -> Any:
    """LLaMA's: the control tokens are words of its BPE model."""
    words = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    return transformers.LlamaTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])


def bert() -> Any:
    """The packaged one, with [DEC]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MINI_FOLDER))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


TOKENIZERS: dict[str, Any] = {
    **{name: lambda name=name: byte_level(CONTROL[name]) for name in CONTROL if name != "words"},
    "words": lambda: whole_words(CONTROL["words"]), "t5": t5, "llama": llama, "bert": bert,
    "byt5": lambda: transformers.ByT5Tokenizer(extra_ids=3),  # written in Python
    "mini opt": lambda: transformers.AutoTokenizer.from_pretrained(str(MINI_FOLDER.parent / "opt")),
    "mini t5": lambda: transformers.AutoTokenizer.from_pretrained(str(MINI_FOLDER.parent / "t5")),
}
