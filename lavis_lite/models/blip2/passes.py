"""The three passes of stage 1 through the Q-Former (BLIP-2, figure 2), each product computed once.

| pass | who sees whom (`lavis_lite.models.qformer.model`) | objective |
|---|---|---|
| unimodal | queries the image and each other; text itself | ITC: image-text contrast |
| text generation | queries as before; text the queries and earlier text | ITG: captions, word by word |
| matching | queries and text each other, queries the image | ITM: does the text fit the image? |

Queries see the same in the first two, so one pass serves both (`unimodal_and_itg_pass`). ITM is `itm_pass`.
Axes as in `qformer`: B samples, Q queries, L text tokens, P patches, D width; N samples of all ranks, M pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.qformer.model import ImageKV, QFormer, attention_mask, stage1_mask
from lavis_lite.models.text_tokens import TextTokens


@dataclass
class UnimodalAndItg:
    """Result of `unimodal_and_itg_pass`.

    query: float[B,Q,D]. text_cls: float[B,D], of the text's [CLS], which does not see the image. decoder:
    float[B,L-1,D], the hidden states that predict tokens 1 to L-1 from the image and the tokens before. Of a
    packed pass it is float[T,D], without padding.
    """

    query: Tensor
    text_cls: Tensor
    decoder: Tensor


def unimodal_and_itg_pass(qformer: QFormer, query_tokens: Tensor, image: ImageKV, tokens: TextTokens,
                          begin: int) -> UnimodalAndItg:
    """Queries, text alone (ITC) and text after the queries (ITG) in one pass over [queries | text | text].

    `stage1_mask` keeps the two texts apart. The last token predicts nothing and is not an input of ITG. The last layer
    computes only what is used: queries, [CLS], and the positions that predict a token.

    Args:
        qformer: with both halves.
        query_tokens: float[1,Q,D].
        image: keys and values of the B images.
        tokens: the B texts.
        begin: id of [DEC], which takes [CLS]' place where text is generated.
    """
    batch, length = tokens.ids.shape
    count, first = query_tokens.shape[1], query_tokens.shape[1] + length
    decoder_ids = torch.cat([torch.full_like(tokens.ids[:, :1], begin), tokens.ids[:, 1:]], 1)[:, :-1]
    positions = torch.arange(length, device=tokens.ids.device)
    words = qformer.embeddings.words(torch.cat([tokens.ids, decoder_ids], 1), torch.cat([positions, positions[:-1]]))
    hidden = qformer.embeddings([query_tokens.expand(batch, -1, -1), words])
    rows = (slice(0, count + 1), slice(first, first + length - 1))
    mask = stage1_mask(count, tokens.mask)
    hidden = qformer.run_layers(hidden, count, mask, (image,), return_positions=(count, rows))
    query, cls, decoder = hidden.split([count, 1, length - 1], 1)
    return UnimodalAndItg(query, cls[:, 0], decoder)


def itm_pass(qformer: QFormer, query_tokens: Tensor, images: Sequence[ImageKV], tokens: TextTokens) -> Tensor:
    """Queries that see image and text (ITM): float[M,Q,D] for M texts; `images` serve them in order."""
    count = query_tokens.shape[1]
    hidden = qformer.embed(query_tokens.expand(len(tokens.ids), -1, -1), tokens.ids)
    mask = attention_mask("bidirectional", count, tokens.mask)
    return qformer.run_layers(hidden, count, mask, images, return_positions=(count, (slice(0, count),)))


def packed_unimodal_and_itg_pass(qformer: QFormer, query_tokens: Tensor, image: ImageKV, tokens: TextTokens,
                                 begin: int) -> UnimodalAndItg:
    """`unimodal_and_itg_pass` without padding between texts of known lengths; `decoder` is float[T,D]."""
    from lavis_lite.models.qformer.packing import pack_unimodal_and_itg  # of training only

    lengths, count = cast("tuple[int, ...]", tokens.lengths), query_tokens.shape[1]
    text = pack_unimodal_and_itg(lengths, tokens.ids.shape[1], count, tokens.ids.device)
    ids = tokens.ids.flatten().index_select(0, text.rows)
    first, second = ids.split([sum(lengths), sum(lengths) - len(lengths)])
    second = second.masked_fill(text.positions[len(first):] == 0, begin)
    hidden = qformer.run_packed(query_tokens, torch.cat([first, second]), text, (image,))
    query, cls, decoder = hidden.split([len(lengths) * count, len(lengths), len(second)])
    return UnimodalAndItg(query.unflatten(0, (-1, count)), cls, decoder)


def packed_itm_pass(qformer: QFormer, query_tokens: Tensor, images: Sequence[ImageKV], tokens: TextTokens,
                    whole: bool = False) -> Tensor:
    """`itm_pass` without padding between texts of lengths known to the host: float[M,Q,D].

    If `whole`, the last layer computes the text as well, so that all its weights get a gradient, of zeros if need be.
    """
    from lavis_lite.models.qformer.packing import pack_matching

    lengths, count = cast("tuple[int, ...]", tokens.lengths), query_tokens.shape[1]
    text = pack_matching(lengths, tokens.ids.shape[1], count, tokens.ids.device)
    text = replace(text, last=text.layers) if whole else text
    ids = tokens.ids.flatten().index_select(0, text.rows)
    return qformer.run_packed(query_tokens, ids, text, images)[:len(lengths) * count].unflatten(0, (-1, count))


def check_pairs(images: int, texts: int) -> None:
    """Check that images and texts make pairs: as many of both, or one of either.

    Raises:
        ConfigError: other numbers.
    """
    if images != texts and 1 not in (images, texts):
        raise ConfigError(f"{images} images came with {texts} texts to match: give as many, or one of either.")


def paired(image: ImageKV, tokens: TextTokens) -> tuple[ImageKV, TextTokens]:
    """M images and M texts; one image goes with all texts, one text with all images.

    Raises:
        ConfigError: see `check_pairs`.
    """
    images, texts = image.rows, len(tokens.ids)
    check_pairs(images, texts)
    if images < texts:
        return image.repeated(texts), tokens
    return image, tokens.repeated(images) if texts < images else tokens


def image_keys(image_id: Any, batch: int, device: torch.device) -> Tensor:
    """Keys of images, int64[B,2]: equal rows mean the same image, also across ranks.

    Args:
        image_id: int64[B], a list of ints or strings, or None: every sample is its own image.
        batch: B.
        device: of the result.

    Raises:
        DataError: not one id per image.
    """
    if image_id is None:
        number = torch.arange(batch, device=device) + distributed.rank() * batch
        return torch.stack([torch.zeros_like(number), number], 1)
    number = cast(Tensor, image_numbers(image_id)).to(device=device, dtype=torch.long, non_blocking=True)
    if number.numel() != batch:
        raise DataError(f"{batch} images came with {number.numel()} values of image_id; give one for each image.")
    return torch.stack([torch.ones_like(number), number], -1).reshape(batch, 2)


def image_numbers(image_id: Any) -> Tensor | None:
    """Values of image_id as numbers, int64[B]; None stays None."""
    if image_id is None or isinstance(image_id, Tensor):
        return image_id
    return torch.tensor([_as_number(item) for item in image_id], dtype=torch.long)


def _as_number(item: Any) -> int:
    """Integers stay; anything else becomes a 63-bit hash of its text, the same in every process."""
    if isinstance(item, Tensor):
        return int(item)
    if isinstance(item, int):
        return item
    return int.from_bytes(hashlib.blake2b(str(item).encode(), digest_size=8).digest(), "big") >> 1


def gather_texts(tokens: TextTokens, keys: Tensor, pad: int, width: int) -> tuple[TextTokens, Tensor]:
    """Texts and image keys of all ranks, by one collective of small integers.

    Args:
        tokens: this rank's B texts.
        keys: int64[B,2] from `image_keys`.
        pad: id that fills shorter texts.
        width: the most tokens that a text of any rank has. It is fixed, so that no rank waits to learn it.

    Returns:
        N texts, of one rank as they are and of several ranks `width` wide, and int64[N,2].

    Raises:
        DataError: several ranks train and a text is longer.
    """
    if distributed.world_size() == 1:
        return tokens, keys
    if tokens.ids.shape[1] > width:
        raise DataError(f"text_input has {tokens.ids.shape[1]} tokens per row, and model.max_txt_len is {width}. "
                        "Several processes exchange texts of at most that length.")
    tokens = tokens.padded(width, pad)
    ids = tokens.ids.masked_fill(~tokens.mask, -1).int()
    packed = distributed.all_gather(torch.cat([keys.view(torch.int32), ids], 1))          # int32[N,4+width]
    keys, ids = packed[:, :4].contiguous().view(torch.long), packed[:, 4:].long()
    mask = ids >= 0
    return TextTokens(ids.masked_fill(~mask, pad), mask), keys
