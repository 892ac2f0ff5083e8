"""What a language model reads: lists of segments, these as rows of tokens and vectors, and rows as one batch.

A segment is a text, or vectors in the space of its words:

    [Text("USER: "), Vectors(patches), Text(" What is it? ASSISTANT:"), Text("A cup.", learned=True)]

A row's prompt is what comes before its first learned text. The tokenizer's begin token precedes the first text of the
prompt, and what closes a prompt (T5: the end token) follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lavis_lite.conversation import Picture, Text
from lavis_lite.errors import ConfigError, DataError, shown
from lavis_lite.models.language.tokens import LanguageTokenizer, Room
from lavis_lite.models.plain_text import Side


@dataclass(frozen=True)
class Vectors:
    """Vectors that stand where words stand: query tokens, patches, frames. They are read, never learned.

    Attributes:
        values: float[n,D], n >= 0.
    """

    values: Tensor


Segment = Text | Vectors
Segments = Sequence[Segment]
"""one sample, in order"""


def insert_pictures(parts: Sequence[Text | Picture], vectors: Sequence[Tensor]) -> list[Segment]:
    """A conversation's parts with the vectors of each picture in its place.

    Args:
        parts: texts and pictures in order.
        vectors: float[n,D] of each picture of the row; n may differ.

    Raises:
        DataError: the parts do not point to every picture exactly once.
    """
    given = [part.index for part in parts if isinstance(part, Picture)]
    if sorted(given) != list(range(len(vectors))):
        raise DataError(f"the conversation has places for the pictures {given}, and {len(vectors)} came; it must have "
                        "one place for each picture, counted from 0.")
    return [Vectors(vectors[part.index]) if isinstance(part, Picture) else part for part in parts]


def check_segments(sequences: Sequence[Segments], width: int) -> None:
    """Refuse what is no list of segments.

    Args:
        sequences: B lists of segments.
        width: D, of the word embeddings.

    Raises:
        ConfigError: names the row and the segment.
    """
    for row, segments in enumerate(sequences):
        if isinstance(segments, (str, Text, Vectors)) or not isinstance(segments, Sequence):
            raise ConfigError(f"row {row}: a sequence is a list of Text and Vectors, not {shown(segments)}.")
        for number, segment in enumerate(segments):
            if isinstance(segment, Vectors):
                shape = tuple(segment.values.shape)
                if len(shape) != 2 or shape[1] != width:
                    raise ConfigError(f"row {row}, segment {number}: vectors have shape (n, {width}), not {shape}.")
            elif not isinstance(segment, Text):
                raise ConfigError(f"row {row}, segment {number}: must be Text or Vectors, not {shown(segment)}.")


# rows -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tokens:
    """Ids of a text.

    Attributes:
        ids: without the end token, unless `closed` wrote it.
        learned: whether they are targets.
        is_closed: whether the end token follows.
    """

    ids: Sequence[int]
    learned: bool = False
    is_closed: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def closed(self, end: int) -> Tokens:
        """With the end token, if one follows."""
        return replace(self, ids=[*self.ids, end], is_closed=False) if self.is_closed else self


Part = Tensor | Tokens
Row = Sequence[Part]
"""tokens, and vectors float[n,D], in order; with n = 0 they still keep a text in the graph of gradients"""


def short_rows(soft_prompt: Tensor, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]] = ()) -> list[Row]:
    """The shortest rows: soft prompts float[B,Q,D], ids that are read, and ids that are learned (or none)."""
    rows: list[Row] = [[vectors, Tokens(first)] for vectors, first in zip(soft_prompt.unbind(0), before, strict=True)]
    return [[*row, Tokens(last, learned=True)] for row, last in zip(rows, after, strict=True)] if after else rows


# from segments --------------------------------------------------------------------------------------------------------
def tokenise(sequences: Sequence[Segments], tokenizer: LanguageTokenizer) -> list[list[Part]]:
    """B lists of segments as tokens and vectors, without begin and end tokens; all texts are tokenised at once."""
    texts = [text for segments in sequences for text in _texts(segments, tokenizer)]
    ids = iter(tokenizer.plain.template(texts))
    return [[Tokens(next(ids), segment.learned, segment.is_closed) if isinstance(segment, Text) else segment.values
             for segment in segments] for segments in sequences]


def _texts(segments: Segments, tokenizer: LanguageTokenizer) -> Iterator[str]:
    """Texts as they are tokenised: what is learned stands behind what is read as a target behind its prompt."""
    before, continues = "", True
    for segment in segments:
        if isinstance(segment, Vectors):
            before, continues = ("", True) if len(segment.values) else (before, continues)
            continue
        text = segment.text
        ending = "" if segment.is_closed else text[len(text.rstrip()):]
        if segment.learned and continues and not tokenizer.encoder and text != ending:
            text = tokenizer.continuation(before, text) + ending
        yield tokenizer.one_line(text) if segment.is_closed else text
        before, continues = before + segment.text, not segment.learned


def tail(segments: Segments) -> str:
    """The text that an answer to the segments follows; "" directly behind vectors."""
    texts: list[str] = []
    for segment in segments:
        if isinstance(segment, Text):
            texts.append(segment.text)
        elif len(segment.values):
            texts.clear()
    return "".join(texts)


def tokenised_to_learn(sequences: Sequence[Segments], tokenizer: LanguageTokenizer, width: int) -> list[list[Part]]:
    """As `tokenise`, of sequences to train on; vectors have `width` numbers.

    Raises:
        ConfigError: something is no segment.
        DataError: a sequence has no text to learn.
    """
    check_segments(sequences, width)
    for row, segments in enumerate(sequences):
        if not any(isinstance(segment, Text) and segment.learned for segment in segments):
            raise DataError(f"row {row} has no text to learn: mark the answer, Text(answer, learned=True).")
    return tokenise(sequences, tokenizer)


def tokenised_to_answer(sequences: Sequence[Segments], tokenizer: LanguageTokenizer, width: int) -> list[list[Part]]:
    """As `tokenise`, of sequences to answer: earlier answers are read, too.

    Raises:
        ConfigError: something is no segment, or a sequence ends with a learned text.
    """
    check_segments(sequences, width)
    for row, segments in enumerate(sequences):
        if segments and isinstance(segments[-1], Text) and segments[-1].learned:
            raise ConfigError(f"row {row} ends with a learned text; leave it out, so that the model can answer.")
    return [[replace(part, learned=False) if isinstance(part, Tokens) else part for part in parts]
            for parts in tokenise(sequences, tokenizer)]


def framed_prompt(parts: Row, tokenizer: LanguageTokenizer) -> list[Part]:
    """A prompt's parts with the special tokens of a prompt.

    Where a family learns the begin token (LAVIS' OPT), it is learned if vectors and no text stand before the answer.
    """
    before, after = tokenizer.prompt_frame
    first = next((index for index, part in enumerate(parts) if isinstance(part, Tokens)), len(parts))
    learns = tokenizer.family.learns_bos and size(parts[:first]) > 0 and size(parts[first:]) == 0
    return [*parts[:first], Tokens(before, learned=learns), *parts[first:], Tokens(after)]


def split_prompt(parts: Row) -> tuple[Row, Row]:
    """(the prompt, everything from the first learned text on)."""
    first = next((index for index, part in enumerate(parts) if is_learned(part)), len(parts))
    return parts[:first], parts[first:]


def is_learned(part: Part) -> bool:
    """Whether a part is a target."""
    return isinstance(part, Tokens) and part.learned


def closed(parts: Row, tokenizer: LanguageTokenizer) -> list[Part]:
    """Parts with the end tokens that follow them."""
    end = tokenizer.end
    return [part.closed(end) if isinstance(part, Tokens) else part for part in parts]


def size(row: Row) -> int:
    """Tokens and vectors of a row."""
    return sum(map(len, row))


def check_room(room: Room, rows: Sequence[Row], longest: Sequence[int]) -> None:
    """Refuse rows that are too long, or empty.

    Args:
        room: of the model that reads them.
        rows: B of them.
        longest: tokens that may follow each.

    Raises:
        TextTooLongError: rows without room for what follows.
        DataError: a row without a token or a vector.
    """
    for number, row in enumerate(rows):
        if not size(row):
            raise DataError(f"row {number} has neither text nor vectors, so there is nothing to answer.")
    ids = text_ids(rows)
    vectors = [size(row) - len(own) for row, own in zip(rows, ids, strict=True)]
    room.check_prompts(ids, vectors, longest)


def text_ids(rows: Sequence[Row]) -> list[list[int]]:
    """Ids of each row's texts."""
    return [[id_ for part in row if isinstance(part, Tokens) for id_ in part.ids] for row in rows]


# training rows that are too long --------------------------------------------------------------------------------------
def cut_end(row: Row, limit: int | None) -> list[Part]:
    """A row of at most so many tokens; what stands behind its last learned token goes as well."""
    kept: list[Part] = []
    room = size(row) if limit is None else limit
    for part in row:
        if isinstance(part, Tokens):
            part = replace(part, ids=part.ids[:room])
        kept.append(part)
        room -= len(part)
        if room <= 0:
            break
    last = max((index for index, part in enumerate(kept) if is_learned(part)), default=-1)
    return kept[:last + 1]


def counted(whole: Sequence[Row], cut: Sequence[Row], tokenizer: LanguageTokenizer) -> list[Row]:
    """The rows of `cut` that have tokens to learn; the tokenizer counts what was lost on the way from `whole`."""
    lengths = [range(size(row)) for row in whole]
    tokenizer.cut_rows.count(lengths, [range(size(row)) for row in cut], 0)
    learned = [bool(learned_tokens(row)[0]) for row in cut]
    tokenizer.lost_rows.count(lengths, [length if left else () for length, left in zip(lengths, learned, strict=True)],
                              0)
    return [row for row, left in zip(cut, learned, strict=True) if left]


# to a batch -----------------------------------------------------------------------------------------------------------
def arrange(rows: Sequence[Row], embed: Callable[[Tensor], Tensor], pad: int, side: Side, device: torch.device,
            least: int = 0) -> tuple[Tensor, Tensor]:
    """Rows as a rectangle of embeddings float[B,S,D], and bool[B,S], true where no padding is.

    Args:
        rows: B of them.
        embed: int64[1,N] -> float[1,N,D].
        pad: id of padding.
        side: where shorter rows are padded.
        device: of the result.
        least: S is not less.
    """
    source, word = _source(rows, embed, pad, device)
    lengths = [size(row) for row in rows]
    width, last = max(*lengths, least), len(source) - 1
    index, mask = [], []
    for order, length in zip(_orders(rows, word), lengths, strict=True):
        fill, none, real = [last] * (width - length), [False] * (width - length), [True] * length
        index.append([*fill, *order] if side == "left" else [*order, *fill])
        mask.append([*none, *real] if side == "left" else [*real, *none])
    chosen = torch.tensor(index, dtype=torch.long).reshape(len(rows), width).to(device, non_blocking=True)
    embeds = source.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
    return embeds, torch.tensor(mask, dtype=torch.bool).reshape(chosen.shape).to(device, non_blocking=True)


def in_a_row(rows: Sequence[Row], embed: Callable[[Tensor], Tensor], pad: int, device: torch.device) -> Tensor:
    """The embeddings of all rows behind each other, float[T,D]; arguments as `arrange`."""
    source, word = _source(rows, embed, pad, device)
    order = [index for row in _orders(rows, word) for index in row]
    return source.index_select(0, torch.tensor(order, dtype=torch.long).to(device, non_blocking=True))


def _source(rows: Sequence[Row], embed: Callable[[Tensor], Tensor], pad: int,
            device: torch.device) -> tuple[Tensor, int]:
    """All vectors, all tokens' embeddings and that of padding, float[N,D]; and where the tokens begin."""
    vectors = [part for row in rows for part in row if isinstance(part, Tensor)]
    ids = [id_ for row in rows for part in row if isinstance(part, Tokens) for id_ in part.ids]
    words = embed(torch.tensor([[*ids, pad]]).to(device, non_blocking=True))[0]
    source = torch.cat([*(part.to(words) for part in vectors), words])
    return source, len(source) - len(words)


def _orders(rows: Sequence[Row], word: int) -> Iterator[list[int]]:
    """Of each row, where its parts lie: all vectors from 0 on, all tokens from `word` on."""
    vector = 0
    for row in rows:
        order: list[int] = []
        for part in row:
            start = vector if isinstance(part, Tensor) else word
            order.extend(range(start, start + len(part)))
            vector, word = (start + len(part), word) if isinstance(part, Tensor) else (vector, start + len(part))
        yield order


def learned_tokens(row: Row) -> tuple[list[int], list[int]]:
    """(positions that predict, ids that are learned) of a row. What stands first is predicted by nothing: only read."""
    positions: list[int] = []
    ids: list[int] = []
    at = 0
    for part in row:
        if isinstance(part, Tokens) and part.learned:
            skipped = int(at == 0)
            positions.extend(range(at + skipped - 1, at + len(part) - 1))
            ids.extend(part.ids[skipped:])
        at += len(part)
    return positions, ids
