"""Answers to sequences of segments: a batch against its members, stop strings, streams, scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lavis_lite.conversation import Text
from lavis_lite.errors import ConfigError, DataError, TextTooLongError
from lavis_lite.models.language import GenerationConfig, LanguageModel
from lavis_lite.models.language.answer_text import pieces
from lavis_lite.models.language.answering import written
from lavis_lite.models.language.rows import Segment, Vectors, text_ids
from lavis_lite.models.language.tokens import before_stop
from tests.models.language.plain_decoding import exact_tiny, rounding
from tests.models.language.test_contract import FAMILIES, PROMPTS
from tests.models.language.test_sequences import Sequences, vectors
from tests.models.language.tiny import soft_prompts, tiny

GREEDY = GenerationConfig(max_new_tokens=12, min_new_tokens=0)
WAYS = {
    "greedy": GREEDY, "beams": GenerationConfig(max_new_tokens=6, num_beams=3, num_captions=2),
    "draws": GenerationConfig(max_new_tokens=6, sample=True, top_p=0.9, num_captions=2, seeds=(5, 6, 7, 8))}


def questions(model: LanguageModel) -> Sequences:
    """Pictures of several sizes, an earlier answer, text alone, vectors alone, no vectors in a picture."""
    return [
        [Text("system: "), Vectors(vectors(model, 3)), Text("what is it? "), Text("a dog", learned=True),
         Vectors(vectors(model, 5, 1)), Text("and this?")],
        [Text("hello, who are you?")], [Vectors(vectors(model, 2, 2))],
        [Vectors(vectors(model, 0)), Text("how many "), Vectors(vectors(model, 1, 3)), Text("x", end=True)]]


def ids_of(model: LanguageModel, sequences: Sequences, options: GenerationConfig) -> list[list[int]]:
    rows = model.answer_rows(sequences)
    return written(model, lambda some: model.read_rows([rows[number] for number in some]), text_ids(rows), options)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_a_batch_answers_as_its_members_do(name: str, way: str) -> None:
    model, options = tiny(name), WAYS[way]
    given = questions(model)
    together = ids_of(model, given, options)
    alone = [ids for place, row in enumerate(given)
             for ids in ids_of(model, [row], replace(options, seeds=options.seeds and (options.seeds[place],)))]
    assert together == alone and len({tuple(row) for row in together}) > 2
    assert model.generate(given, options) == model.tokenizer.decode(together)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shortest_sequences_are_answered_and_scored_like_soft_prompt_and_prompt(name: str) -> None:
    model = tiny(name)
    soft = soft_prompts(model).detach()
    given: Sequences = [[Vectors(row), Text(prompt)] for row, prompt in zip(soft, PROMPTS, strict=True)]
    assert model.generate(given, GREEDY) == model.generate(soft, PROMPTS, GREEDY)
    answers = ["yes", "a long one"]
    assert torch.equal(model.score(given, answers), model.score(soft, PROMPTS, answers))


@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
def test_scores_of_a_batch_are_those_of_its_members(name: str) -> None:
    model = exact_tiny(name)
    given, answers = questions(model), [["yes", "no"], ["a long one"], ["x", "yy", "zzz"], ["yes"]]
    found = model.score(given, answers, normalise="mean")
    for row, own, scores in zip(given, answers, found, strict=True):
        torch.testing.assert_close(scores[:len(own)], model.score([row], own, normalise="mean")[0],
                                   rtol=rounding(model, 1e-6, 1e-4), atol=0)
        assert bool((scores[len(own):] == -torch.inf).all())


def test_a_score_is_minus_the_loss_of_the_answer() -> None:
    model = exact_tiny("llama")
    read: list[Segment] = [Text("look: "), Vectors(vectors(model, 3)), Text("what?")]
    learned: list[Segment] = [*read, Text("a dog", learned=True)]
    loss = model.loss([learned]) * model.count_tokens([learned])
    assert float(model.score([read], ["a dog"])) == pytest.approx(-float(loss.detach()), rel=1e-6)


# stop strings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
@pytest.mark.parametrize("way", WAYS)
def test_a_text_ends_before_its_stop_string(name: str, way: str) -> None:
    model, options = tiny(name), replace(WAYS[way], max_new_tokens=12)
    given = questions(model)
    plain = model.tokenizer.spelled(ids_of(model, given, options)[0])
    stop = plain[3:5]
    options = replace(options, stop=(stop, "never written"))
    ids = ids_of(model, given, options)
    texts = model.generate(given, options)
    assert not any(stop in text for text in texts)
    assert all(stop not in model.tokenizer.spelled(row[:-1]) for row in ids), "nothing is written behind it"
    if way != "beams":  # another beam may be the best once one has ended
        assert texts[0] == before_stop(plain, [stop]).strip() and len(ids[0]) < 12
    alone = [row for place, one in enumerate(given) for row in ids_of(
        model, [one], replace(options, seeds=options.seeds and (options.seeds[place],)))]
    assert ids == alone


def test_stop_strings_end_texts_in_calls_with_soft_prompts_too() -> None:
    model = tiny("llama")
    soft = soft_prompts(model).detach()
    plain = model.generate(soft, PROMPTS, GREEDY)
    stop = plain[0][2:4]
    assert model.generate(soft, PROMPTS, replace(GREEDY, stop=(stop,)))[0] == before_stop(plain[0], [stop]).strip()


@pytest.mark.parametrize("stop", ["###", ("",), (1,)])
def test_a_stop_that_is_no_list_of_texts_is_refused(stop: Any) -> None:
    with pytest.raises(ConfigError, match="stop is .*, but must be a tuple or list of texts"):
        GenerationConfig(stop=stop)


def test_processors_of_transformers_work_on_sequences() -> None:
    from transformers import NoRepeatNGramLogitsProcessor, SuppressTokensLogitsProcessor

    model = tiny("llama")
    given, plain = questions(model), ids_of(tiny("llama"), questions(model), GREEDY)
    never = plain[0][0]
    processors = (SuppressTokensLogitsProcessor([never]), NoRepeatNGramLogitsProcessor(2))
    ids = ids_of(model, given, replace(GREEDY, logits_processors=processors))
    assert all(never not in row for row in ids) and ids != plain
    assert all(len(pairs := list(zip(row, row[1:], strict=False))) == len(set(pairs)) for row in ids)


# streams --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
@pytest.mark.parametrize("options", [GREEDY, replace(GREEDY, sample=True, top_p=0.9, seeds=(3,), max_new_tokens=20)])
def test_a_stream_is_the_text_in_pieces(name: str, options: GenerationConfig) -> None:
    model = tiny(name)
    for row in questions(model):
        expected = model.generate([row], options)[0]
        found = list(model.generate_stream([row], options))
        assert "".join(found) == expected and "" not in found
        stop = replace(options, stop=(expected[2:5] or "x", expected[:1] + "?"))
        assert "".join(model.generate_stream([row], stop)) == model.generate([row], stop)[0]


def test_a_stream_leaves_grad_mode_and_autocast_to_its_caller() -> None:
    model = tiny("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in model.generate_stream(questions(model)[:1], GREEDY):
            assert torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("texts", "stop", "words", "expected"), [
    (["a", "a b", "a b\ufffd", "a bé"], (), False, ["a", " b", "é"]),
    ([" a ", " a  b "], (), False, ["a", "  b"]),
    (["a #", "a ##", "a ##b", "a ##b #", "a ##b ###"], ("###",), False, ["a", " ##b"]),
    (["do", "do n", "don't", "don't go"], (), True, ["do", "n't", " go"])])
def test_pieces_are_never_taken_back(texts: list[str], stop: tuple[str, ...], words: bool, expected: list[str]) -> None:
    final = before_stop(texts[-1], stop).strip()
    assert list(pieces(texts, lambda: final, stop, words)) == expected and "".join(expected) == final


def test_a_stream_writes_one_text() -> None:
    model = tiny("llama")
    with pytest.raises(ConfigError, match="one sequence, not 4"):
        next(model.generate_stream(questions(model), GREEDY))
    for options in (replace(GREEDY, num_beams=2), replace(GREEDY, sample=True, num_captions=2)):
        with pytest.raises(ConfigError, match="num_beams=1 and num_captions=1"):
            next(model.generate_stream(questions(model)[:1], options))


# scores of answers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_answers_come_with_their_likelihood(name: str, way: str) -> None:
    model, options = exact_tiny(name), WAYS[way]
    given = questions(model)
    found = model.generate_scored(given, options)
    assert [answer.text for answer in found] == model.generate(given, options)
    ids = ids_of(model, given, options)
    for number, (answer, row) in enumerate(zip(found, ids, strict=True)):
        end = [model.tokenizer.end] if len(row) < options.max_new_tokens else []
        prefix = model.read_rows(model.answer_rows([given[number // options.num_captions]]))
        score = float(model.candidate_scores(prefix, [0], [[*row, *end]], "sum"))
        assert answer.score == pytest.approx(score, rel=1e-6)
    assert len({answer.score for answer in found}) > 2


@torch.no_grad()
def test_a_stop_string_adds_no_end_to_the_likelihood() -> None:
    model = exact_tiny("llama")
    given = questions(model)[:1]
    plain = model.generate(given, GREEDY)[0]
    options = replace(GREEDY, stop=(plain[2:4],))
    [ids] = ids_of(model, given, options)
    prefix = model.read_rows(model.answer_rows(given))
    assert model.generate_scored(given, options)[0].score == pytest.approx(
        float(model.candidate_scores(prefix, [0], [ids], "sum")), rel=1e-6)


# mistakes -------------------------------------------------------------------------------------------------------------
def test_what_cannot_be_answered_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(ConfigError, match="row 1 ends with a learned text"):
        model.generate([[Text("q")], [Text("q"), Text("a", learned=True)]], GREEDY)
    too_long: Sequences = [[Text("q")], [Vectors(vectors(model, 100)), Text("b" * 150)]]
    with pytest.raises(TextTooLongError, match="row 1 has 151 tokens, and there is room for 144") as caught:
        model.generate(too_long, GREEDY)
    assert caught.value.rows == {1: 151}
    with pytest.raises(TextTooLongError, match="row 1 has 151 tokens"):
        model.score(too_long, ["yes", "a longer one"])
    model = tiny("gpt2")
    model.tokenizer.prompt_frame = ([], [])
    with pytest.raises(DataError, match="row 1 has neither text nor vectors"):
        model.generate([[Text("q")], [Text(""), Vectors(vectors(model, 0))]], GREEDY)
    assert model.generate([], GREEDY) == [] and model.score([], ["yes"]).shape == (0, 0)
