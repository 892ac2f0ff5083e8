"""Text as token ids: what the Q-Former is given, made in one place.

A tokenizer is loaded when the first text comes, so that a model can be built, counted and run on the meta device
without any file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError, DataError, shown
from lavis_lite.models.plain_text import CutTexts, PlainEncoder, Side, as_text, check_files, frame, framed
from lavis_lite.processors.text import without_control_tokens

BEGIN_TOKEN = "[DEC]"
"""stands in the place of [CLS] where text is generated (BLIP-2, section 3.2)"""
MINI = "mini"
MINI_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "mini" / "tokenizer"


@dataclass(frozen=True)
class SpecialIds:
    """What a model must know of its tokenizer: size including [DEC], and the ids with a role."""

    vocab_size: int
    pad: int
    begin: int
    end: int


KNOWN_IDS = {"bert-base-uncased": SpecialIds(vocab_size=30523, pad=0, begin=30522, end=102)}
"""tokenizers whose facts need no file"""


@dataclass(frozen=True)
class TextTokens:
    """A batch of right-padded texts.

    ids: int64[B,L], each row starts with [CLS].
    mask: bool[B,L], true for real tokens.
    lengths: real tokens per row, when known on the host; then nothing has to wait for the device to learn them.
    """

    ids: Tensor
    mask: Tensor
    lengths: tuple[int, ...] | None = None

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], pad: int, width: int | None = None) -> TextTokens:
        """Pad rows of ids on the right to the longest (or to `width`)."""
        lengths = tuple(len(row) for row in rows)
        width = width or max(lengths)
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.long)
        mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
        return cls(ids, mask, lengths)

    def to(self, device: torch.device) -> TextTokens:
        """Copy to a device, without waiting for it."""
        return TextTokens(self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True), self.lengths)

    def padded(self, width: int, pad: int) -> TextTokens:
        """The same texts in `width` columns (not fewer than now)."""
        more = width - self.ids.shape[1]
        if more <= 0:
            return self
        return TextTokens(torch.nn.functional.pad(self.ids, (0, more), value=pad),
                          torch.nn.functional.pad(self.mask, (0, more), value=False), self.lengths)

    def in_few_widths(self, most: int, pad: int) -> TextTokens:
        """The same texts in one of a few widths, their lengths unknown to the host; see `widths`."""
        from lavis_lite.models.widths import few  # of training only

        wide = self.padded(few(self.ids.shape[1], most), pad)
        return TextTokens(wide.ids, wide.mask)

    def select(self, rows: Tensor) -> TextTokens:
        """The texts `rows` (int64[M]); their lengths stay on the device."""
        return TextTokens(self.ids.index_select(0, rows), self.mask.index_select(0, rows))

    def ends(self) -> Tensor:
        """Tokens of each text up to its last real one: int64[B], on the device."""
        return (self.mask * torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)).amax(1)

    def trimmed(self, lengths: Sequence[int]) -> TextTokens:
        """The same texts with lengths that the host has learnt, as wide as the longest."""
        width = max(lengths)
        return TextTokens(self.ids[:, :width], self.mask[:, :width], tuple(lengths))

    @staticmethod
    def joined(parts: Sequence[TextTokens], pad: int) -> TextTokens:
        """Several batches of texts as one."""
        width = max(part.ids.shape[1] for part in parts)
        wide = [part.padded(width, pad) for part in parts]
        known = [part.lengths for part in wide if part.lengths is not None]
        return TextTokens(torch.cat([part.ids for part in wide]), torch.cat([part.mask for part in wide]),
                          sum(known, ()) if len(known) == len(wide) else None)

    def repeated(self, count: int) -> TextTokens:
        """One text, `count` times."""
        return TextTokens(self.ids.expand(count, -1), self.mask.expand(count, -1),
                          None if self.lengths is None else self.lengths * count)

    def each_repeated(self, times: int) -> TextTokens:
        """Every text so many times in a row."""
        if times == 1:
            return self
        lengths = None if self.lengths is None else tuple(length for length in self.lengths for _ in range(times))
        return TextTokens(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0), lengths)

    def prediction_rows(self) -> Tensor | None:
        """Where a next token is to be predicted: int64[T] into B x (L-1) positions, on the host; None: unknown."""
        if self.lengths is None:
            return None
        width = self.ids.shape[1] - 1
        rows = [torch.arange(length - 1) + row * width for row, length in enumerate(self.lengths)]
        return torch.cat(rows)


class TextTokenizer:
    """A BERT-like tokenizer with [DEC] added, loaded at first use.

    Texts become text tokens only: "[SEP]" in a caption is split like other words.

    Args:
        name: "bert-base-uncased", "mini" (the packaged one) or a folder; a folder with `vocab.txt` is enough.
        max_length: tokens kept of each text, [CLS] and [SEP] included.
        truncation_side: where a longer text loses tokens: "right", or "left" for instructions, whose end matters.

    Attributes:
        cut: how many texts were longer than their limit.
    """

    def __init__(self, name: str = "bert-base-uncased", max_length: int = 32, truncation_side: Side = "right") -> None:
        self.name, self.max_length, self.truncation_side = name, max_length, truncation_side
        self._loaded: Any = None
        self.cut = CutTexts()

    @property
    def loaded(self) -> Any:
        """The transformers tokenizer.

        Raises:
            ConfigError: it is neither a folder nor in the local cache and cannot be fetched.
        """
        if self._loaded is None:
            self._loaded = _load(self.name, self.truncation_side)
            for made in ("plain", "_frame", "_light"):  # a caller may change what it gets
                self.__dict__.pop(made, None)
        return self._loaded

    @cached_property
    def _light(self) -> WordPieces:
        return WordPieces(MINI_FOLDER / "tokenizer.json", BEGIN_TOKEN)

    @property
    def _words(self) -> Any:
        """What reads and writes text: the transformers tokenizer, or its equal without transformers."""
        return self._light if _folder(self.name) == MINI_FOLDER and self._loaded is None else self.loaded

    @cached_property
    def plain(self) -> PlainEncoder:
        """Texts to ids without special tokens."""
        return PlainEncoder(self._words)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """[CLS] and [SEP], as the tokenizer puts them."""
        return frame(self._words)

    @cached_property
    def special_ids(self) -> SpecialIds:
        """Size and special ids; needs no file for a known name."""
        if self.name in KNOWN_IDS:
            return KNOWN_IDS[self.name]
        tokenizer = self._words
        return SpecialIds(len(tokenizer), tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)

    def __call__(self, texts: Sequence[str], max_length: int | None = None) -> TextTokens:
        """Tokenise a batch on the CPU, padded to its longest text.

        Args:
            texts: B strings.
            max_length: instead of the tokenizer's own.

        Raises:
            DataError: there is no text.
            ConfigError: it is not a list of strings.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ConfigError(f"texts must be a list of strings, not {shown(texts)}.")
        if not len(texts):
            raise DataError("there is no text to read: the list is empty.")
        before, after = self._frame
        whole = self.plain([without_control_tokens(as_text(text, "text")) for text in texts])
        rows = [framed(row, before, after, max_length or self.max_length, self.truncation_side) for row in whole]
        self.cut.count(whole, rows, len(before) + len(after))
        return TextTokens.from_lists(rows, self.special_ids.pad)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole text, [CLS] and [SEP] included, before anything is cut."""
        before, after = self._frame
        return [len(before) + len(row) + len(after) for row in self.plain(texts)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Ids to strings, special tokens left out."""
        return [self._words.decode(list(row), skip_special_tokens=True).strip() for row in rows]


class WordPieces:
    """What reading and writing text needs of transformers' tokenizer of the same file, under the same names.

    The packaged tokenizer is read by it, because to import transformers takes longer.

    Args:
        file: tokenizer.json with the tokens [PAD], [CLS] and [SEP].
        begin: the special token that is added, for text that is generated.
    """

    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()  # all are added tokens

    def __init__(self, file: Path, begin: str) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(file))
        self.backend_tokenizer.add_special_tokens([begin])
        self.backend_tokenizer.encode_special_tokens = True  # special tokens in a text are split like other words
        self.pad_token_id, self.bos_token_id, self.sep_token_id = (
            self.backend_tokenizer.token_to_id(token) for token in ("[PAD]", begin, "[SEP]"))

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True, **options: Any) -> dict[str, Any]:
        """Ids of a text, or of each of several: {"input_ids": ...}; special tokens in it are always split."""
        found = self.backend_tokenizer.encode_batch([text] if isinstance(text, str) else list(text),
                                                    add_special_tokens=add_special_tokens)
        return {"input_ids": found[0].ids if isinstance(text, str) else [row.ids for row in found]}

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> token, of those beside the words."""
        found: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def decode(self, row: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Ids to text."""
        return str(self.backend_tokenizer.decode(list(row), skip_special_tokens=skip_special_tokens))


def _folder(name: str) -> Path:
    return MINI_FOLDER if name == MINI else Path(name)


def _load(name: str, side: Side) -> Any:
    from transformers import AutoTokenizer, BertTokenizer

    folder = _folder(name)
    try:
        if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
            tokenizer = BertTokenizer.from_pretrained(str(folder), truncation_side=side)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name,
                                                      truncation_side=side)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.tokenizer: {name!r} is neither a folder with a tokenizer nor in the local cache, and it could not "
            f"be fetched ({str(error).splitlines()[0]}). Give a folder that holds vocab.txt, or {MINI!r} for the "
            "packaged one.") from error
    check_files(tokenizer, str(folder), "model.tokenizer")
    lost = [kind for kind in ("cls", "sep", "pad") if getattr(tokenizer, f"{kind}_token_id") is None]
    if lost:
        raise ConfigError(f"model.tokenizer: {name!r} has no {', '.join(lost)} token; the Q-Former's texts are "
                          f"[CLS] ... [SEP], filled up with [PAD]. Give a BERT-like tokenizer, or {MINI!r}.")
    tokenizer.add_special_tokens({"bos_token": BEGIN_TOKEN})
    return tokenizer


def as_tokens(text: Any, tokenizer: TextTokenizer, max_length: int | None = None) -> TextTokens:
    """Whatever a sample holds as text: strings are tokenised, `TextTokens` pass, so does a tokenizer's output."""
    if isinstance(text, TextTokens):
        return text
    if isinstance(text, str):
        return tokenizer([text], max_length)
    ids = text.get("input_ids") if isinstance(text, Mapping) else getattr(text, "input_ids", None)
    if ids is not None:
        mask = text["attention_mask"] if isinstance(text, Mapping) else text.attention_mask
        return TextTokens(ids, mask.bool())
    return tokenizer(text, max_length)
