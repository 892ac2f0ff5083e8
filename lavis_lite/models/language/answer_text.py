"""An answer as text while it is written: stop strings, and pieces that never have to be taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lavis_lite.models.language.tokens import before_stop

Spell = Callable[[Sequence[int]], str]
"""ids -> text"""


class StopAtText:
    """A logits processor: a text that contains a stop string ends.

    Its end token then has the likelihood 1, so that every search ends such a text alike and its score stays.

    Args:
        spell: ids to text.
        stop: strings.
        end: id of the end token.
    """

    def __init__(self, spell: Spell, stop: Sequence[str], end: int) -> None:
        self.spell, self.stop, self.end = spell, stop, end

    def __call__(self, written: Tensor, scores: Tensor) -> Tensor:
        """int64[M,T], float[M,V] -> float[M,V]."""
        stopped = torch.tensor([self._stops(row) for row in written.tolist()], device=scores.device)
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.end] = 0.0
        return torch.where(stopped[:, None], ended, scores)

    def _stops(self, row: list[int]) -> bool:
        text = self.spell(row)
        return any(one in text for one in self.stop)


def pieces(texts: Iterable[str], final: Callable[[], str], stop: Sequence[str], whole_words: bool) -> Iterator[str]:
    """What becomes certain of a growing text, piece by piece; all pieces together are its final form.

    Args:
        texts: the text after each token.
        final: the text as `generate` returns it, known when `texts` is at its end.
        stop: strings before which it ends.
        whole_words: the tokenizer changes the space before a word when the word is complete.
    """
    shown = ""
    for text in texts:
        certain = _certain(text, stop, whole_words)
        if len(certain) > len(shown) and certain.startswith(shown):
            yield certain[len(shown):]
            shown = certain
    if rest := final()[len(shown):]:
        yield rest


def _certain(text: str, stop: Sequence[str], whole_words: bool) -> str:
    """The beginning of a growing text that later tokens cannot change."""
    text = before_stop(text, stop).rstrip("\ufffd")  # a character may lack bytes
    held = max((size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])), default=0)
    text = text[:len(text) - held].strip()
    if whole_words:
        head, _, _ = text.rpartition(" ")
        return head.rstrip()
    return text
