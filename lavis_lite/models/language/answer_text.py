"""An answer as text while it is written, in pieces that never have to be taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from lavis_lite.models.language.tokens import before_stop


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
