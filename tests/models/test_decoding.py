"""Greedy, nucleus and beam search, over a decoder whose probabilities are a table."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.models.beam_search import BLOCK, best_of
from lavis_lite.models.decoding import Decoding, decode
from lavis_lite.models.text_tokens import SpecialIds
from tests.models.stage1_helpers import tiny_batch, tiny_model

SPECIAL = SpecialIds(vocab_size=5, pad=0, begin=4, end=3)
CPU = torch.device("cpu")


class TableDecoder:
    """Next-token logits depend on the last two tokens and on the sample; its cache is the token history."""

    def __init__(self, batch: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(batch, 5, 5, 5, generator=generator)
        self.sample, self.before = torch.arange(batch), torch.full((batch,), 0)
        self.steps, self.batches = 0, list[int]()

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            self.sample, self.before = self.sample[rows], self.last[rows]
        elif self.steps:
            self.before = self.last
        self.last, self.steps = tokens, self.steps + 1
        self.batches.append(len(tokens))
        return self.table[self.sample, self.before, tokens]


def best_by_trying_all(sample: int, most: int, fewest: int, length_penalty: float) -> list[int]:
    """The text with the best normalised log-probability among all texts."""
    table = TableDecoder(3).table[sample].log_softmax(-1)
    scored = []
    for length in range(1, most + 1):
        for text in itertools.product([0, 1, 2, 4, 3], repeat=length):
            ended = text[-1] == 3
            if 3 in text[:-1] or (not ended and length < most) or (ended and length - 1 < fewest):
                continue
            before, last, total = 0, 4, 0.0
            for token in text:
                total += float(table[before, last, token])
                before, last = last, token
            scored.append((total / length ** length_penalty, list(text[:-1] if ended else text)))
    return max(scored)[1]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("fewest", [0, 2])
def test_wide_beams_find_the_best_text(length_penalty: float, fewest: int) -> None:
    options = Decoding(max_new_tokens=4, min_new_tokens=fewest, num_beams=200, length_penalty=length_penalty)
    found = decode(TableDecoder(3), 3, SPECIAL, options, CPU)
    assert found == [best_by_trying_all(sample, 4, fewest, length_penalty) for sample in range(3)]


def test_beams_of_a_batch_equal_those_of_its_members() -> None:
    model = tiny_model()
    images = tiny_batch()["image"]
    together = model.generate({"image": images}, num_beams=3, max_new_tokens=8, min_new_tokens=2)
    assert together == [model.generate({"image": images[row:row + 1]}, num_beams=3, max_new_tokens=8,
                                       min_new_tokens=2)[0] for row in range(6)]


def test_greedy_follows_the_most_likely_token_and_stops_at_the_end() -> None:
    found = decode(TableDecoder(3), 3, SPECIAL, Decoding(max_new_tokens=6, min_new_tokens=0), CPU)
    for sample, text in enumerate(found):
        table, before, last = TableDecoder(3).table[sample], 0, 4
        for token in [*text, 3][:6]:
            assert int(table[before, last].argmax()) == token
            before, last = last, token


@pytest.mark.parametrize("kind", [{}, {"num_beams": 3, "length_penalty": 0.0}, {"sample": True, "num_captions": 2}])
def test_samples_that_are_over_leave_the_batch_which_changes_no_text(kind: dict[str, Any]) -> None:
    """Sample after sample ends for good: at the first step, the second ..."""
    batch, most = 9, 12

    class Ending(TableDecoder):
        def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
            logits = super().step(tokens, rows).clone()
            logits[:, 3] = torch.where(self.sample < self.steps, 50.0, -50.0)
            return logits

    options = Decoding(max_new_tokens=most, min_new_tokens=0, seeds=tuple(range(batch)), **kind)
    together = Ending(batch)
    found = decode(together, batch, SPECIAL, options, CPU)
    count = options.num_captions
    for sample in range(batch):
        one = Ending(batch)
        one.sample, one.before = one.sample[sample:sample + 1], one.before[:1]
        texts = decode(one, 1, SPECIAL, replace(options, seeds=(sample,)), CPU)
        assert texts == found[count * sample:count * (sample + 1)]
        assert [len(text) for text in texts] == [sample] * count
    width = together.batches[1]
    assert together.batches[1:] == sorted(together.batches[1:], reverse=True)
    assert sum(together.batches) < 0.75 * width * len(together.batches)


def test_minimum_length_is_kept() -> None:
    for beams in (1, 3):
        options = Decoding(max_new_tokens=6, min_new_tokens=4, num_beams=beams)
        assert all(4 <= len(text) <= 6 for text in decode(TableDecoder(3), 3, SPECIAL, options, CPU))


def test_greedy_equals_a_pass_without_cache() -> None:
    model = tiny_model()
    samples = tiny_batch(size=2)
    texts = [list(map(int, text.split())) for text in
             model.generate(samples, num_beams=1, max_new_tokens=6, min_new_tokens=6)]
    features = model.ln_vision(model.encode_image(samples["image"]))
    ids = torch.tensor([[60, *text] for text in texts])
    hidden = model.qformer(model.query_tokens.expand(2, -1, -1), ids, image=features, pattern="multi_modal_causal").text
    logits = model.qformer.logits(hidden)[:, :-1]
    logits[..., 2] = -torch.inf  # six tokens were asked for before the end
    assert logits.argmax(-1).tolist() == [text for text in texts]


def test_nucleus_draws_only_from_the_nucleus_and_varies() -> None:
    torch.manual_seed(0)
    options = Decoding(max_new_tokens=1, min_new_tokens=0, sample=True, top_p=0.9)
    drawn = {tuple(decode(TableDecoder(1, 5), 1, SPECIAL, options, CPU)[0]) for _ in range(200)}
    probabilities = TableDecoder(1, 5).table[0, 0, 4].softmax(0)
    order = probabilities.argsort(descending=True).tolist()
    allowed, mass = set(), 0.0
    for token in order:
        if mass >= 0.9:
            break
        allowed.add(() if token == 3 else (token,))
        mass += float(probabilities[token])
    assert drawn == allowed and len(allowed) > 1


def test_the_smallest_temperature_draws_the_likeliest_tokens() -> None:
    options = Decoding(max_new_tokens=6, min_new_tokens=0)
    cold = replace(options, sample=True, temperature=1e-320)
    assert decode(TableDecoder(3), 3, SPECIAL, cold, CPU) == decode(TableDecoder(3), 3, SPECIAL, options, CPU)


def test_repetition_penalty_discourages_what_was_written() -> None:
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": 1}
    plain = tiny_model().generate(tiny_batch(), **options)
    varied = tiny_model().generate(tiny_batch(), repetition_penalty=50.0, **options)
    assert all(len(set(text.split())) == 8 for text in varied)
    assert min(len(set(text.split())) for text in plain) < 8


def test_lavis_lengths_count_the_begin_token() -> None:
    model, samples = tiny_model(), tiny_batch(size=2)
    assert model.generate(samples, max_length=7, min_length=7) == (
        model.generate(samples, max_new_tokens=6, min_new_tokens=6))


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"num_beams": 0}, {"top_p": 0.0}, {"temperature": 0.0},
                                 {"length_penalty": 1000.0}, {"length_penalty": -1e9}])
def test_impossible_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="generate"):
        Decoding(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [{}, {"num_beams": 3}, {"sample": True}])
def test_scores_that_are_no_numbers_are_told_of_and_write_nothing(kind: dict[str, Any]) -> None:
    for wrong in (torch.nan, torch.inf):
        decoder = TableDecoder(3)
        decoder.table[1, ..., 2] = wrong
        with pytest.raises(CheckpointError, match="NaN or infinite at token 1, in row 1 of the batch"):
            decode(decoder, 3, SPECIAL, Decoding(max_new_tokens=4, **kind), CPU)
    later = TableDecoder(3)
    later.table[1, 4] = torch.nan  # after the begin token and one more
    with pytest.raises(CheckpointError, match="at token 2"):
        decode(later, 3, SPECIAL, Decoding(max_new_tokens=4, min_new_tokens=4, **kind), CPU)


@pytest.mark.parametrize("vocabulary", [30 * BLOCK + 17, 40 * BLOCK, 3 * BLOCK, 5])
def test_the_best_words_by_blocks_are_those_of_topk(vocabulary: int) -> None:
    scores = torch.randn(7, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores[1] = -torch.inf
    scores[1, -1], scores[2, -2] = 0.0, 9.0
    found, expected = best_of(scores, 4), scores.topk(4, dim=1)
    assert torch.equal(found[0], expected.values)
    finite = expected.values > -torch.inf
    assert torch.equal(found[1][finite], expected.indices[finite])
