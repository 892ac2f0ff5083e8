"""Text to ids and back for a language model, and how many positions it has for them.

Prompts and targets are tokenised apart and joined as ids. The border between them is exact, and the end token is never
cut off.

A model with learned positions (OPT, GPT-2, BART) has no more of them; one with rotary positions (LLaMA, Qwen) was
trained for so many. T5's are relative: it has no such limit.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError, TextTooLongError
from lavis_lite.models.language.families import LMFamily
from lavis_lite.models.plain_text import CutTexts, PlainEncoder, Side, check_files, frame, framed


@dataclass(frozen=True)
class Limits:
    """Most tokens in training; answering does not cut prompts.

    Attributes:
        prompt: of a prompt.
        target: of a target, its end included.
        together: of both, taken from the target; None: no such limit.
        prompt_side: where a long prompt loses tokens.
        row: of a sequence of segments in training, vectors included; the limits above leave sequences alone. None: the
            model's positions.
    """

    prompt: int = 128
    target: int = 256
    together: int | None = None
    prompt_side: Side = "left"
    row: int | None = None

    @property
    def texts(self) -> int:
        """Most tokens of prompt and target."""
        return self.together or self.prompt + self.target

    def __post_init__(self) -> None:
        if self.row is not None and self.row < 2:
            raise ConfigError(f"model.max_row_len: must be at least 2 tokens, not {self.row}.")
        if min(self.prompt, self.target, self.together or 1) < 1:
            raise ConfigError(f"model.max_txt_len, model.max_output_txt_len: must be at least 1, not {self.prompt} and "
                              f"{self.target}.")


class LanguageTokenizer:
    """A language model's tokenizer, loaded when the first text comes.

    Texts become text tokens only: special tokens that a text spells out are split like other words. A prompt may mark
    control tokens (`lavis_lite.processors.text`).

    Args:
        source: folder or hub name; or a transformers tokenizer.
        family: the model's row.
        encoder: whether prompts go to an encoder, which sees them closed by the tokenizer's special tokens.

    Attributes:
        cut_prompts, cut_targets: how many training texts were longer than their limits.
        cut_rows: how many sequences lost tokens from their end.
        lost_rows: how many of them had no token left to learn.
    """

    def __init__(self, source: Any, family: LMFamily, encoder: bool = False) -> None:
        self.source, self.family, self.encoder = source, family, encoder
        self._loaded: Any = None
        self.cut_prompts, self.cut_targets = CutTexts(), CutTexts()
        self.cut_rows, self.lost_rows = CutTexts(), CutTexts()

    @property
    def loaded(self) -> Any:
        """The transformers tokenizer, with the family's special tokens.

        Raises:
            ConfigError: it cannot be loaded, or it lacks a token that is needed.
        """
        if self._loaded is None:
            tokenizer = _load(self.source) if isinstance(self.source, str) else self.source
            if self.family.special_tokens:
                tokenizer.add_special_tokens(dict(self.family.special_tokens))
            self._loaded = tokenizer
        return self._loaded

    @property
    def cut_sequences(self) -> dict[str, CutTexts]:
        """The counts of sequences by what happened to them; empty before the first one."""
        if not self.cut_rows.read:
            return {}
        return {"sequences were cut at their end (model.max_row_len, or the language model's positions)": self.cut_rows,
                "sequences had no token left to learn": self.lost_rows}

    @property
    def end(self) -> int:
        """Id that ends an answer.

        Raises:
            ConfigError: the tokenizer has no such token.
        """
        if self.family.end == "newline":
            ids = self.loaded("\n", add_special_tokens=False)["input_ids"]
            if not ids or ids[-1] == self.loaded.unk_token_id:
                raise ConfigError(f"the tokenizer of {self.source!r} has no token for a line break, which ends answers "
                                  f"in the family {self.family.name!r}; set model.llm_family=general to end by eos.")
            return int(ids[-1])
        if self.loaded.eos_token_id is None:
            raise ConfigError(f"the tokenizer of {self.source!r} has no eos token, so no answer could end; set "
                              "eos_token in its tokenizer_config.json.")
        return int(self.loaded.eos_token_id)

    def check(self, words: int) -> None:
        """Refuse a tokenizer that cannot serve a model of so many words, before anything is done with it.

        Raises:
            ConfigError: it cannot be loaded, lacks a token that is needed, or has more tokens than the model.
        """
        start = self.family.prompt_start
        ids = {"end": self.end} | ({} if start is None else {start: self.loaded.convert_tokens_to_ids(start)})
        for name, id_ in ids.items():
            if id_ is None or not 0 <= id_ < words:
                raise ConfigError(f"the tokenizer of {self.source!r} gives its {name} token the id {id_}, and the "
                                  f"language model has {words} words: they do not belong together; check "
                                  "model.llm_tokenizer.")
        if len(self.loaded) > words + len(self.loaded.get_added_vocab()):  # added tokens need not occur in texts
            raise ConfigError(f"the tokenizer of {self.source!r} has {len(self.loaded)} tokens, and the language model "
                              f"has {words}. Name the model's own tokenizer in model.llm_tokenizer, or raise "
                              "vocab_size in model.llm_args.")

    @cached_property
    def plain(self) -> PlainEncoder:
        """Texts to ids without special tokens."""
        return PlainEncoder(self.loaded)

    def prompts(self, texts: Sequence[str], limit: int | None = None, side: Side = "left") -> list[list[int]]:
        """Ids of prompts, with the special tokens that a prompt has; at most `limit`, cut at `side`."""
        before, after = self.prompt_frame
        whole = self.plain.template(texts)
        rows = [framed(row, before, after, limit, side) for row in whole]
        if limit is not None:
            self.cut_prompts.count(whole, rows, len(before) + len(after))
        return rows

    def targets(self, texts: Sequence[str], limits: Sequence[int] | None = None, end: bool = True) -> list[list[int]]:
        """Ids of targets without a begin token, closed by the end token, which is kept when a text is cut.

        A line break inside a target becomes a space if line breaks end the family's answers.

        Args:
            texts: B strings.
            limits: most ids of each, the end included; None: no limit.
            end: whether the end token closes them.
        """
        rows, close = self.plain([self.one_line(text) for text in texts]), [self.end] if end else []
        if limits is None:
            return [[*row, *close] for row in rows]
        kept = [framed(row, [], close, limit, "right") for row, limit in zip(rows, limits, strict=True)]
        self.cut_targets.count(rows, kept, len(close))
        return kept

    def one_line(self, text: str) -> str:
        """A text that is closed; its line breaks become spaces if line breaks end the family's answers."""
        breaks = self.family.end == "newline" and ("\n" in text or "\r" in text)
        return " ".join(text.splitlines()) if breaks else text

    def continuation(self, prompt: str, text: str) -> str:
        """A target as it stands after its prompt: with a space in front where the tokenizer keeps it with the word."""
        text = text.strip()
        return f" {text}" if prompt and not prompt[-1].isspace() and self._keeps_space() else text

    def _keeps_space(self) -> bool:
        """Whether a space belongs to the word after it (byte-level BPE), or is put in front of every text anyway."""
        first, second, joint = self.plain(["a", " b", "a b"])
        return [*first, *second] == joint

    def decode(self, rows: Sequence[Sequence[int]], stop: Sequence[str] = ()) -> list[str]:
        """Ids to text, special tokens left out, without spaces around; each ends before the first stop string."""
        return [before_stop(self.spelled(row), stop).strip() for row in rows]

    def spelled(self, row: Sequence[int]) -> str:
        """Ids to text, special tokens left out."""
        silent = set(self.family.silent)
        text: str = self.loaded.decode([item for item in row if item not in silent], skip_special_tokens=True)
        return text

    @cached_property
    def prompt_frame(self) -> tuple[list[int], list[int]]:
        """Ids of the special tokens before and after a prompt, which a decoder-only model goes on after: no end."""
        start = self.family.prompt_start
        if start is not None:
            return [int(self.loaded.convert_tokens_to_ids(start))], []
        before, after = frame(self.loaded)
        return before, after if self.encoder else [id_ for id_ in after if id_ != self.loaded.eos_token_id]


def _load(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.llm_model: the tokenizer {source!r} is neither a folder with a tokenizer nor in the local cache, "
            f"and could not be fetched ({str(error).splitlines()[0]}). Get it with `hf download {source}`, or give a "
            "folder.") from error
    check_files(tokenizer, source, "model.llm_tokenizer")
    return tokenizer


def differ(rows: Sequence[Sized]) -> bool:
    """Whether rows differ in length, so that a batch of them has padding."""
    return len(set(map(len, rows))) > 1


def pad_rows(rows: Sequence[Sequence[int]], pad: int, side: Side, device: torch.device,
             least: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids to a rectangle of at least `least` columns: int64[B,L], and bool[B,L], true for real ones."""
    width = max(least, *(len(row) for row in rows))
    ids, mask = [], []
    for row in rows:
        fill, real = [pad] * (width - len(row)), [True] * len(row)
        ids.append([*fill, *row] if side == "left" else [*row, *fill])
        mask.append([*[False] * len(fill), *real] if side == "left" else [*real, *[False] * len(fill)])
    shape = (len(rows), width)
    return (torch.tensor(ids, dtype=torch.long).reshape(shape).to(device, non_blocking=True),
            torch.tensor(mask, dtype=torch.bool).reshape(shape).to(device, non_blocking=True))


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers int64[N] on a device, without waiting for it."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def real_positions(rows: Sequence[Sized], width: int, device: torch.device) -> Tensor:
    """Where the ids of rows stand that were padded behind them to `width`: int64[T] into the flattened rectangle.

    A mask would tell as much, but the host would wait to learn how many it chooses.
    """
    return on_device([row * width + at for row, ids in enumerate(rows) for at in range(len(ids))], device)


def positions_of(config: Any) -> int | None:
    """Most tokens in one row of a model (encoder and decoder each), from its configuration; None: any number."""
    text = config.get_text_config()
    if getattr(text, "relative_attention_num_buckets", None) is not None:
        return None
    found = getattr(text, "max_position_embeddings", None)
    return int(found) if isinstance(found, int) and found > 0 else None


@dataclass(frozen=True)
class Room:
    """The positions of a model and what shares them with a prompt.

    Attributes:
        positions: most tokens in a row; None: any number.
        joint: prompt and answer share the positions (decoder-only); else each side has as many.
    """

    positions: int | None
    joint: bool

    def after(self, vectors: int, prompt: int) -> int | None:
        """Most tokens of an answer behind so many vectors and a prompt of so many tokens; None: any number."""
        if self.positions is None:
            return None
        return self.positions - (vectors + prompt if self.joint else 0)

    def check_answer(self, answer: int) -> None:
        """Refuse answers that are longer than the model's positions by themselves.

        Raises:
            ConfigError: as said.
        """
        if self.positions is not None and answer > self.positions:
            raise ConfigError(f"max_new_tokens is {answer}, and this language model has {self.positions} positions; "
                              "ask for fewer tokens.")

    def check_candidates(self, longest: Sequence[int]) -> None:
        """Refuse candidates that are longer than the model's positions by themselves.

        Args:
            longest: tokens of the longest candidate of each of B rows.

        Raises:
            TextTooLongError: names the rows.
        """
        over = {} if self.positions is None else {row: tokens for row, tokens in enumerate(longest)
                                                  if tokens > self.positions}
        if over:
            first = next(iter(over))
            raise TextTooLongError(
                f"{len(over)} of {len(longest)} rows {'has a candidate' if len(over) == 1 else 'have candidates'} too "
                f"long for the language model: one of row {first} has {over[first]} tokens, and there are "
                f"{self.positions} positions. Shorten the candidate or take it out.", over)

    def check_prompts(self, rows: Sequence[Sequence[int]], vectors: int | Sequence[int],
                      answers: Sequence[int]) -> None:
        """Refuse prompts that leave no room for their answer.

        Args:
            rows: ids of B prompts.
            vectors: beside the ids of each prompt, for all or one by one.
            answers: tokens that may follow each prompt: max_new_tokens, or the longest candidate.

        Raises:
            TextTooLongError: names the rows.
        """
        if self.positions is None:
            return
        counts = [vectors] * len(rows) if isinstance(vectors, int) else vectors
        over = {number: len(row) for number, (row, count, answer) in enumerate(zip(rows, counts, answers, strict=True))
                if len(row) > self.positions - count - (answer if self.joint else 0)}
        if not over:
            return
        first = next(iter(over))
        follows = f" - {answers[first]} for the answer" if self.joint else ""
        room = max(self.positions - counts[first] - (answers[first] if self.joint else 0), 0)
        raise TextTooLongError(
            f"{len(over)} of {len(rows)} prompts {'is' if len(over) == 1 else 'are'} too long for the language model: "
            f"row {first} has {over[first]} tokens, and there is room for {room} ({self.positions} positions - "
            f"{counts[first]} vectors of the picture{follows}). Shorten the text or its examples"
            + (", or ask for fewer new tokens (max_new_tokens; run.max_len)." if follows else "."), over)

    def fit_training(self, vectors: int, prompt: int, target: int) -> tuple[int, int]:
        """Most tokens of a prompt, and of prompt and target together (each side by itself: of the target), in training.

        A prompt that shares the positions with its target leaves it at least half the room.

        Args:
            vectors: of the soft prompt.
            prompt: most tokens of a prompt by the settings.
            target: most tokens of a target by the settings.

        Raises:
            ConfigError: the vectors leave no room for text.
        """
        if self.positions is None:
            return prompt, prompt + target if self.joint else target
        room = self.positions - vectors
        if room < 2:
            raise ConfigError(f"{vectors} vectors of the picture leave no room for text in {self.positions} positions "
                              "of the language model: use fewer queries or frames.")
        if not self.joint:
            return min(prompt, room), min(target, self.positions)
        return min(prompt, max(room - target, room // 2)), room


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop strings in it."""
    return text[:min((at for at in (text.find(one) for one in stop) if at >= 0), default=len(text))]
