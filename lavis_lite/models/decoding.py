"""Text token by token: greedy, nucleus and beam search over a cache.

A decoder is anything with `step(tokens int64[M], rows int64[M] | None) -> logits float[M,V]`: it first keeps the
batch rows `rows` of its cache (in that order, with repetition), then appends one token per row. Beams and repeated
samples are multiplied after the first step, so the common beginning is computed once.

A batch gives the same texts as its members one by one (`lavis_lite.models.search`). The host reads from the device
once per token at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError
from lavis_lite.models.qformer.model import Cache, QFormer
from lavis_lite.models.search import Draws, Search
from lavis_lite.models.text_tokens import SpecialIds

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""as in transformers: (new tokens so far int64[M,T], scores float[M,V]) -> scores float[M,V]"""
Stops = Callable[[Sequence[int]], bool]
"""ids of a running text -> whether it ends here"""


@dataclass(frozen=True)
class Decoding:
    """How text is written; lengths count new tokens, the end included.

    num_captions: texts per sample: the best of the beams, or as many draws.
    seeds: one number per sample for its random stream when sampling; None: drawn from torch's generator.
    lavis_lengths: reproduce the texts of LAVIS' beam search (transformers 4.33). It counts the start token in the
        length of texts that reach max_new_tokens, in the decision to stop, and for repetition_penalty.
    penalise_prompt: repetition_penalty also looks at the tokens of the prompt, as transformers does for decoder-only
        models; LAVIS looks at written tokens only.
    stop: a language model's text ends before the first of these strings. Its tokens up to there are written.
    logits_processors: applied in order to the log-probabilities of every step, after the penalty and the lengths; those
        of transformers fit.
    """

    max_new_tokens: int = 30
    min_new_tokens: int = 1
    num_beams: int = 1
    sample: bool = False
    top_p: float = 1.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    num_captions: int = 1
    seeds: tuple[int, ...] | None = None
    lavis_lengths: bool = False
    penalise_prompt: bool = False
    logits_processors: Sequence[LogitsProcessor] = ()
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: the first value out of range, with the range.
        """
        for name in ("max_new_tokens", "min_new_tokens", "num_beams", "num_captions"):
            value: float = getattr(self, name)
            least = 0 if name == "min_new_tokens" else 1
            _require(isinstance(value, int) and value >= least, name, value, f"a whole number, at least {least}")
        _require(self.min_new_tokens <= self.max_new_tokens, "min_new_tokens", self.min_new_tokens,
                f"at most max_new_tokens, which is {self.max_new_tokens} (LAVIS: min_length and max_length)")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (all tokens)")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            _require(0 < value < math.inf, name, value, "above 0; 1 changes nothing")
        largest = self.length_penalty * math.log(self.max_new_tokens + 1)
        _require(abs(largest) < 700, "length_penalty", self.length_penalty,
                 "a finite number, so near to 0 that lengths to this power are finite too")
        stop: object = self.stop
        _require(isinstance(stop, tuple | list) and all(isinstance(text, str) and text for text in stop), "stop", stop,
                "a tuple or list of texts that are not empty")
        _require(self.sample or self.num_captions <= self.num_beams, "num_captions", self.num_captions,
                f"at most num_beams, which is {self.num_beams}; sampling (use_nucleus_sampling) has no such limit")

    def check_batch(self, batch: int) -> None:
        """Raise ConfigError unless there is one seed per sample, if there are any."""
        if self.seeds is not None and len(self.seeds) != batch:
            raise ConfigError(f"generate: {len(self.seeds)} seeds for {batch} samples; give one for each.")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"generate: {name} is {value!r}, but must be {wanted}.")


class Decoder(Protocol):
    """A model with a cache that continues M texts by one token at a time."""

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Keep the `rows` of the cache, append tokens int64[M], return the logits of the next ones, float[M,V]."""


class QFormerDecoder:
    """A Q-Former that continues after its queries (multi-modal causal pattern)."""

    def __init__(self, qformer: QFormer, cache: Cache) -> None:
        self.qformer, self.cache = qformer, cache

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """int64[M] -> float[M,V]."""
        if rows is not None:
            self.cache = self.cache.select(rows)
        output = self.qformer(text_ids=tokens[:, None], cache=self.cache, use_cache=True)
        self.cache = output.cache
        logits: Tensor = self.qformer.logits(output.text[:, -1])
        return logits.float()


def begin(decoder: Decoder, batch: int, special: SpecialIds, options: Decoding, device: torch.device,
          context: Sequence[Sequence[int]] | None = None, stops: Stops | None = None) -> Search:
    """The search that the options ask for; arguments as `Search`."""
    kind: type[Search] = Draws
    if options.num_beams > 1 and not options.sample:
        from lavis_lite.models.beam_search import Beams as kind  # a model is often used without
    return kind(decoder, batch, special, options, device, context, stops)


def decode(decoder: Decoder, batch: int, special: SpecialIds, options: Decoding, device: torch.device,
           context: Sequence[Sequence[int]] | None = None, stops: Stops | None = None) -> list[list[int]]:
    """Write texts, starting from the begin token (special.begin; below 0: the decoder needs none).

    Args:
        decoder: what gives the next tokens' logits.
        batch: number of samples.
        special: ids with a role.
        options: how to write.
        device: where the decoder is.
        context: ids of each sample's prompt, which repetition_penalty then counts as written; None: it does not.
        stops: of texts that end without an end token; None: no such rule.

    Returns:
        Ids of the new tokens, the end left out: num_captions texts of each of the `batch` samples, samples in order.

    Raises:
        ConfigError: not one seed per sample.
        CheckpointError: a row's logits are NaN or infinite; it has no likeliest token.
    """
    search = begin(decoder, batch, special, options, device, context, stops)
    while len(search):
        search.step()
    return search.texts()


def decode_in_turn(searches: Iterator[Search], at_once: int) -> list[list[int]]:
    """As `decode`, of searches that begin when there is place; the texts of all of them, in their order.

    Args:
        searches: not begun, with equal options; their decoders join.
        at_once: samples that are written at the same time. As soon as enough are finished, the next search joins.
    """
    running: Search | None = None
    for search in searches:
        begun = len(search)
        search.step()
        if running is None:
            running = search
        else:
            running.join(search)
        while len(running) > max(at_once - begun, 0):
            running.step()
    while running is not None and len(running):
        running.step()
    return [] if running is None else running.texts()


def stream(decoder: Decoder, special: SpecialIds, options: Decoding, device: torch.device,
           context: Sequence[Sequence[int]] | None = None, stops: Stops | None = None) -> Iterator[list[int]]:
    """As `decode` for one sample, token by token: after each one all ids so far, the end left out.

    Raises:
        ConfigError: several beams or texts, of which only the end shows which one is returned.
    """
    if options.num_captions > 1 or (options.num_beams > 1 and not options.sample):
        raise ConfigError("a stream writes one text, greedily or by sampling: set num_beams=1 and num_captions=1.")
    search = Draws(decoder, 1, special, options, device, context, stops)
    while len(search):
        search.step()
        yield list(search.written[0])
