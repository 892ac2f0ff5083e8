"""Decoding over a cache that is shared, permuted and made smaller, against a plain twin without any cache."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lavis_lite.bench.counters import HostReads
from lavis_lite.errors import ConfigError
from lavis_lite.models.language import GenerationConfig, LanguageModel, packed_t5
from lavis_lite.models.language.cache import RowCache
from lavis_lite.models.search import Search
from tests.models.language.plain_decoding import PlainDecoder, exact_tiny, rounding, written
from tests.models.language.tiny import CAUSAL, SEQ2SEQ, SIZES, soft_prompts, tiny

ROUNDED = {"llama": 1e-5, "qwen2": 1e-5, "gemma2": 1e-4}
"""their norms compute in float32, or all of them does"""
PROMPTS, OWNERS = ["what is it?", "how many", "x", "what colour"], [1, 0, 1, 1]
BEAMS = GenerationConfig(max_new_tokens=5, min_new_tokens=0, num_beams=3)
GREEDY = GenerationConfig(max_new_tokens=6, min_new_tokens=0)
DRAWS = GenerationConfig(max_new_tokens=5, min_new_tokens=0, sample=True, top_p=0.9, num_captions=2, seeds=(1, 2, 3, 4))


def given(model: LanguageModel) -> tuple[Tensor, list[list[int]]]:
    return soft_prompts(model, 2).detach().to(model.dtype), model.tokenizer.prompts(PROMPTS)


@pytest.mark.parametrize(("name", "options"), [
    *[(name, BEAMS) for name in [*CAUSAL, *SEQ2SEQ]], ("opt", GREEDY), ("flan_t5", GREEDY), ("opt", DRAWS),
    ("bart", DRAWS)])
@torch.no_grad()
def test_ids_and_scores_equal_those_without_cache(name: str, options: GenerationConfig) -> None:
    model = exact_tiny(name)
    soft, prompts = given(model)
    expected, plain = written(model, PlainDecoder(model, soft[OWNERS], prompts), options, len(prompts))
    for read, image_index in ((soft[OWNERS], None), (soft, torch.tensor(OWNERS))):
        for beams in {1, options.num_beams}:  # each text a row of its own, or the beams of a sample in one
            decoder, _ = model.decoder_of(model.read(read, prompts, image_index), options.max_new_tokens, beams)
            found, logits = written(model, decoder, options, len(prompts))
            assert found == expected
            for ours, theirs in zip(logits, plain, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDED.get(name, 1e-11))
    assert len({tuple(row) for row in expected}) > 1
    assert model.generate_ids(soft, prompts, options, OWNERS) == expected


@pytest.mark.parametrize("window", [3, 14])
@torch.no_grad()
def test_sliding_windows_are_left_to_transformers(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "gemma2", {**SIZES["gemma2"], "sliding_window": window})
    model = tiny("gemma2")
    soft, prompts = given(model)
    expected, _ = written(model, PlainDecoder(model, soft[OWNERS], prompts), BEAMS, len(prompts))
    assert model.generate_ids(soft, prompts, BEAMS, OWNERS) == expected
    assert not model.can_share(soft, prompts)


def lengths_read(model: LanguageModel, **more: Any) -> list[tuple[int, int]]:
    """Rows and tokens of every pass through a decoder-only model until the first new token."""
    seen: list[tuple[int, int]] = []
    plain = model.hidden

    def hidden(embeds: Tensor, *given: Any) -> Any:
        seen.append((embeds.shape[0], embeds.shape[1]))
        return plain(embeds, *given)

    model.hidden = hidden
    model.generate_ids(options=GenerationConfig(max_new_tokens=1), **more)
    return seen


@torch.no_grad()
def test_soft_prompts_are_read_once_where_prompts_share_them() -> None:
    soft, prompts = given(tiny("opt"))
    longest = max(map(len, prompts))
    given_ids: dict[str, Any] = {"soft_prompt": soft, "prompts": prompts}
    assert lengths_read(tiny("opt"), **given_ids, image_index=OWNERS) == [(2, 4), (4, longest)]
    given_ids["prompts"] = prompts[:2]
    assert lengths_read(tiny("opt"), **given_ids, image_index=[1, 0]) == [(2, 4 + longest)]
    given_ids["prompts"] = [*prompts[:2], []]  # what follows no prompt follows the soft prompt
    assert lengths_read(tiny("opt"), **given_ids, image_index=[1, 0, 0]) == [(3, 4 + longest)]


@pytest.mark.parametrize("name", ["opt", "gpt2", "gemma2", "t5"])
def test_scores_with_owners_equal_those_with_copies(name: str) -> None:
    model, answers = exact_tiny(name), ["yes", "no", "a long one"]
    soft, _ = given(model)
    torch.testing.assert_close(model.score(soft, PROMPTS, answers, image_index=OWNERS),
                               model.score(soft[OWNERS], PROMPTS, answers), rtol=rounding(model, 1e-6, 1e-4), atol=0)
    assert not torch.allclose(model.score(soft[[0, 0, 0, 0]], PROMPTS, answers), model.score(soft[OWNERS], PROMPTS,
                                                                                           answers), rtol=1e-3)


def test_texts_with_owners_in_any_form() -> None:
    model = tiny("opt")
    soft, _ = given(model)
    expected = model.generate(soft[OWNERS], PROMPTS, GREEDY)
    assert model.generate(soft, PROMPTS, GREEDY, OWNERS) == expected
    assert model.generate(soft, PROMPTS, GREEDY, image_index=torch.tensor(OWNERS)) == expected


@pytest.mark.parametrize(("image_index", "words"), [
    ([0, 1], "2 samples came with 4 texts"), ([0, 1, 2, 0], "image_index: 2 is none of the 2 soft prompts"),
    ([0, -1, 0, 0], "image_index: -1"), ([0, 1.0, 0, 0], "image_index: 1.0"), 
    (torch.tensor([True, False, True, True]), "image_index"),
    (1, "image_index: 1 is"), (torch.zeros(4, 1, dtype=torch.long), r"image_index: \[0\]"),
    ("0000", "image_index: '0'")])
def test_impossible_image_index(image_index: Any, words: str) -> None:
    model = tiny("opt")
    soft, _ = given(model)
    with pytest.raises(ConfigError, match=words):
        model.generate(soft, PROMPTS, GREEDY, image_index)
    with pytest.raises(ConfigError, match=words):
        model.score(soft, PROMPTS, ["yes"], image_index=image_index)


@pytest.mark.parametrize("name", ["opt", "flan_t5"])
@torch.no_grad()
def test_beams_share_what_they_have_read_and_move_nothing(name: str) -> None:
    model = tiny(name)
    soft, prompts = given(model)
    decoder: Any = model.decoder_of(model.read(soft, prompts[:2]), 4, 3)[0]
    tokens = torch.arange(6)
    decoder.step(tokens[:2], None)
    decoder.step(tokens, torch.tensor([0, 0, 0, 1, 1, 1]))
    rows: RowCache = decoder.rows
    parts = [rows.cache] if name == "opt" else [rows.cache.self_attention_cache, rows.cache.cross_attention_cache]
    storage = [part.layers[0].keys.data_ptr() for part in parts]
    assert [len(part.layers[0].keys) for part in parts] == [2] * len(parts), "a row for each sample"
    decoder.permute(torch.tensor([1, 0, 0, 5, 4, 4]))
    decoder.step(tokens, None)
    assert [part.layers[0].keys.data_ptr() for part in parts] == storage, "written in place"
    newest = rows.mask[:, :, rows.end - 6:rows.end].long().tolist()
    assert newest[0] == [[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]], "the parents, and themselves"
    decoder.keep(torch.tensor([3, 4, 5]))
    assert len(parts[0].layers[0].keys) == 1


class DeviceReads(TorchDispatchMode):
    """Counts operations whose value the host waits for, Python's own (`tolist`) left out."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.overloadpacket.__name__ in ("_local_scalar_dense", "equal", "nonzero", "masked_select",
                                                        "is_nonzero", "_unique2")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stop", [(), ("a", "e", "9")], ids=["end", "stop"])
@pytest.mark.parametrize("options", [GREEDY, replace(BEAMS, num_beams=5), replace(DRAWS, seeds=None)],
                         ids=["greedy", "beams", "draws"])
@pytest.mark.parametrize("name", ["opt", "llama", "flan_t5", "bart"])
@torch.no_grad()
def test_the_host_reads_once_per_token_at_most(name: str, options: GenerationConfig, stop: tuple[str, ...],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = tiny(name), []
    soft, prompts = given(model)
    plain = type(model).decoder_of

    def decoder_of(self: Any, prefix: Any, *given: Any) -> Any:
        decoder, begin = plain(self, prefix, *given)
        step = decoder.step
        decoder.step = lambda tokens, rows: steps.append(len(tokens)) or step(tokens, rows)
        return decoder, begin

    monkeypatch.setattr(type(model), "decoder_of", decoder_of)
    options = replace(options, max_new_tokens=9, repetition_penalty=1.2, stop=stop)
    with HostReads(torch.device("cpu")) as reads, DeviceReads() as hidden:
        model.generate_ids(soft, prompts, options, OWNERS)
    assert 0 < reads.number <= len(steps) and hidden.number == 0


@pytest.mark.parametrize("name", ["opt", "flan_t5"])
@torch.no_grad()
def test_candidates_are_scored_with_one_read_at_most(name: str) -> None:
    model = tiny(name)
    soft, _ = given(model)
    with HostReads(torch.device("cpu")) as reads, DeviceReads() as hidden:
        model.score(soft[OWNERS], PROMPTS, ["yes", "no way"])
    assert reads.number == hidden.number == 1, "whether all are finite"


FIXED = [("opt", BEAMS), ("llama", BEAMS), ("gpt2", DRAWS), ("flan_t5", BEAMS), ("t5", GREEDY), ("bart", BEAMS)]


@pytest.mark.parametrize(("name", "options"), FIXED)
@torch.no_grad()
def test_a_cache_of_fixed_shape_gives_the_same_ids_and_scores(name: str, options: GenerationConfig) -> None:
    model = exact_tiny(name)
    soft, prompts = given(model)
    found = []
    for fixed in (False, True):
        model.fixed_cache = fixed
        decoder, _ = model.decoder_of(model.read(soft[OWNERS], prompts), options.max_new_tokens, options.num_beams)
        found.append(written(model, decoder, options, len(prompts)))
        layers: Any = getattr(decoder.rows.cache, "self_attention_cache", decoder.rows.cache).layers
        assert ({layer.keys.shape[2] for layer in layers} == {decoder.rows.mask.shape[2]}) == fixed
        assert model.generate_ids(soft[OWNERS], prompts, options) == found[0][0]
    (ids, growing), (same, scores) = found
    assert ids == same
    for one, two in zip(growing, scores, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=ROUNDED.get(name, 1e-12))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "flan_t5"])
@torch.no_grad()
def test_a_compiled_step_takes_all_tokens_with_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a break; the shapes of a cache of fixed shape do not change."""
    model, options = exact_tiny(name), replace(BEAMS, max_new_tokens=6, min_new_tokens=6)
    soft, prompts = given(model)
    model.fixed_cache = True
    expected = model.generate_ids(soft, prompts, options, OWNERS)
    graphs: list[Any] = []
    inner: Any = model.model
    base, attribute = ((packed_t5, "step") if inner.config.is_encoder_decoder else
                       (getattr(inner, inner.base_model_prefix), "forward"))
    plain = getattr(base, attribute)
    compiled = torch.compile(plain, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True,
                             dynamic=False)

    @functools.wraps(plain)
    def forward(*args: Any, **named: Any) -> Any:
        writes = attribute == "step" or (named["inputs_embeds"].shape[1] == options.num_beams
                                         and named.get("past_key_values") is not None)
        return (compiled if writes else plain)(*args, **named)

    monkeypatch.setattr(base, attribute, forward)
    assert model.generate_ids(soft, prompts, options, OWNERS) == expected
    assert len(graphs) == 1


WAITING = [f"{text} {number}"[number % 7:] for number in range(11) for text in PROMPTS[number % 4:number % 4 + 1]]
JOINED: list[GenerationConfig] = [
    GenerationConfig(max_new_tokens=12, min_new_tokens=0, num_beams=3, stop=tuple("aeiou")),
    GenerationConfig(max_new_tokens=12, min_new_tokens=2, num_beams=2, num_captions=2, repetition_penalty=1.3,
                     penalise_prompt=True, lavis_lengths=True, stop=tuple("abcdef")),
    GenerationConfig(max_new_tokens=12, min_new_tokens=3, repetition_penalty=1.5, stop=tuple("aeiou")),
    GenerationConfig(max_new_tokens=12, min_new_tokens=0, sample=True, num_captions=2, seeds=tuple(range(11)),
                     stop=tuple("abcdefgh"))]


JOINING = [("opt", False), ("llama", False), ("flan_t5", False), ("opt", True), ("flan_t5", True)]
WAYS = ("beams", "penalised", "greedy", "draws")


@pytest.mark.parametrize(("options", "name", "fixed"), [  # each model and each way once; all pairs with --long
    pytest.param(options, *model, id="-".join(map(str, (*model, kind))),
                 marks=[] if (at - number) % len(JOINED) == 0 else pytest.mark.long)
    for at, model in enumerate(JOINING) for number, (kind, options) in enumerate(zip(WAYS, JOINED, strict=True))])
@torch.no_grad()
def test_samples_that_wait_take_the_places_of_the_finished_and_get_the_same_texts(
        name: str, fixed: bool, options: GenerationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model, joins, running = exact_tiny(name), list[int](), list[int]()
    soft, prompts = soft_prompts(model, 3).detach().to(model.dtype), model.tokenizer.prompts(WAITING)
    owners = [number // 4 for number in range(len(prompts))]
    expected = model.generate_ids(soft, prompts, options, owners)
    plain, step = Search.join, Search._scores
    monkeypatch.setattr(Search, "join", lambda self, other: joins.append(len(self)) or plain(self, other))
    monkeypatch.setattr(Search, "_scores", lambda self: running.append(len(self)) or step(self))
    model.at_once, model.fixed_cache = 4, fixed
    assert model.generate_ids(soft, prompts, options, owners) == expected
    assert any(joins) and max(running) <= 4 * options.num_captions
    one_by_one = [model.generate_ids(soft[[owner]], [prompt], replace(options, seeds=options.seeds and (number,)))
                  for number, (owner, prompt) in enumerate(zip(owners, prompts, strict=True))]
    assert [text for texts in one_by_one for text in texts] == expected
    assert len({len(text) for text in expected}) > 2, "texts of several lengths"


@pytest.mark.parametrize("name", ["opt", "flan_t5"])
@torch.no_grad()
def test_a_sample_may_take_the_place_of_all_others(name: str) -> None:
    model = exact_tiny(name)
    soft, prompts = given(model)
    expected = model.generate_ids(soft, prompts, JOINED[0], OWNERS)
    model.at_once = 1
    assert model.generate_ids(soft, prompts, JOINED[0], OWNERS) == expected


@torch.no_grad()
def test_where_texts_may_not_join_they_are_written_as_ever() -> None:
    seen: list[int] = []

    def processor(tokens: Tensor, scores: Tensor) -> Tensor:
        seen.append(len(tokens))
        return scores

    for name, options in (("bart", GREEDY), ("opt", replace(GREEDY, logits_processors=(processor,)))):
        model = tiny(name)
        soft, prompts = given(model)
        expected = model.generate_ids(soft, prompts, options, OWNERS)
        model.at_once = 1
        assert model.generate_ids(soft, prompts, options, OWNERS) == expected
    assert max(seen) == len(PROMPTS)
