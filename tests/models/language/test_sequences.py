"""Sequences of segments: loss, gradients and limits, against one row at a time and against transformers' own labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lavis_lite.conversation import Picture, Text
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.language import LanguageModel, Limits
from lavis_lite.models.language.rows import Segment, Vectors, insert_pictures
from lavis_lite.models.plain_text import PlainEncoder
from lavis_lite.processors.text import control_token
from tests.models.language.plain_decoding import exact_tiny
from tests.models.language.test_contract import FAMILIES, PROMPTS, TARGETS, next_token_loss
from tests.models.language.tiny import BOS, CAUSAL, EOS, byte_tokenizer, soft_prompts, tiny, usually

Sequences = list[list[Segment]]


def vectors(model: LanguageModel, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = 2 * torch.randn(count, model.hidden_size, generator=generator)
    return values.to(model.dtype).requires_grad_()


def conversations(model: LanguageModel) -> Sequences:
    """Two turns about two pictures, text alone, a caption, no vectors in a picture, an answer that is only read."""
    first, second, third, none = (vectors(model, count, seed) for seed, count in enumerate((3, 1, 4, 0)))
    return [
        [Text("system: "), Vectors(first), Text("what is it? "), Text("a dog", learned=True), Text("and "),
         Vectors(second), Text("this?"), Text("a red cat", learned=True)],
        [Text("hello"), Text("hi", learned=True), Text("bye"), Text("see you", learned=True), Text("?"),
         Text("!", learned=True, end=False)],
        [Vectors(third), Text("a caption\n", learned=True, end=False)],
        [Text("a "), Vectors(none), Text("b"), Text("x", end=True), Text("y"), Text("z", learned=True), Text("read")]]


def inputs(sequences: Sequences) -> list[Tensor]:
    return [segment.values for row in sequences for segment in row if isinstance(segment, Vectors)]


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "t5", "bart"])
def test_a_batch_has_the_loss_and_the_gradients_of_its_rows(name: str) -> None:
    model = exact_tiny(name)
    together = conversations(model)
    loss = model.loss(together)
    grads = torch.autograd.grad(loss, inputs(together))
    alone = conversations(model)
    counts = [model.count_tokens([row]) for row in alone]
    losses = [model.loss([row]) * count for row, count in zip(alone, counts, strict=True)]
    expected = torch.stack(losses).sum() / sum(counts)
    assert model.count_tokens(together) == sum(counts)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for found, plain in zip(grads, torch.autograd.grad(expected, inputs(alone)), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)
    assert min(float(grad.abs().max()) for grad in grads if len(grad)) > 1e-6, "every picture should matter"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shortest_sequences_are_soft_prompt_prompt_and_target(name: str) -> None:
    model = tiny(name)
    soft, again = soft_prompts(model), soft_prompts(model)
    loss = model.loss(soft, PROMPTS, TARGETS)
    sequences = [[Vectors(row), Text(prompt), Text(target, learned=True)]
                 for row, prompt, target in zip(again.unbind(0), PROMPTS, TARGETS, strict=True)]
    found = model.loss(sequences)
    assert torch.equal(found, loss)
    assert torch.equal(*(torch.autograd.grad(one, given)[0] for one, given in ((found, again), (loss, soft))))
    assert model.count_tokens(sequences) == model.count_tokens(PROMPTS, TARGETS, 4)


def letters(text: str) -> list[int]:
    """Ids of the tokenizer of bytes, the same for every family."""
    return PlainEncoder(byte_tokenizer())([text])[0]


def test_all_turns_are_learned_in_one_pass_as_by_labels_of_transformers() -> None:
    model = exact_tiny("llama")
    model.model.loss_function = next_token_loss
    row = conversations(model)[0]
    first, second = inputs([row])
    pieces: list[tuple[Tensor | list[int], bool]] = [
        ([BOS, *letters("system: ")], False), (first, False), (letters("what is it? "), False),
        ([*letters("a dog"), EOS], True), (letters("and "), False), (second, False), (letters("this?"), False),
        ([*letters(" a red cat"), EOS], True)]
    embeds = torch.cat([piece if isinstance(piece, Tensor) else model.embed(torch.tensor(piece))
                        for piece, _ in pieces])
    labels = [id_ for piece, learned in pieces
              for id_ in (piece if learned and isinstance(piece, list) else [-100] * len(piece))]
    expected = model.model(inputs_embeds=embeds[None], labels=torch.tensor([labels])).loss
    found = model.loss([row])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(found, [first, second], retain_graph=True),
                            torch.autograd.grad(expected, [first, second]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_every_turn_is_a_row_of_an_encoder_that_reads_all_before_it() -> None:
    model = exact_tiny("t5")
    row = conversations(model)[0]
    first, second = inputs([row])
    start = [model.embed(torch.tensor(letters("system: "))), first, model.embed(torch.tensor(letters("what is it? ")))]
    more = [*start, *(model.embed(torch.tensor(letters(text))) for text in ("a dog", "and ")), second,
            model.embed(torch.tensor(letters("this?")))]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for read, answer in ((start, "a dog"), (more, "a red cat")):
        embeds, labels = torch.cat([*read, model.embed(torch.tensor([EOS]))]), [*letters(answer), EOS]
        total = total + model.model(inputs_embeds=embeds[None], labels=torch.tensor([labels])).loss * len(labels)
        count += len(labels)
    torch.testing.assert_close(model.loss([row]), total / count, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", usually(CAUSAL))
def test_what_stands_behind_the_last_answer_changes_nothing(name: str) -> None:
    model = tiny(name)
    row = conversations(model)[0]
    assert torch.equal(model.loss([row]), model.loss([[*row, Text("more"), Vectors(vectors(model, 2))]]))


def ids_of(model: LanguageModel, segments: list[Segment]) -> list[tuple[list[int], bool]]:
    [row] = model.training_sequences([segments])
    return [(list(part.ids), part.learned) for part in row if not isinstance(part, Tensor) and len(part)]


def test_ends_follow_what_the_segment_says() -> None:
    model = tiny("llama")
    turns = [Text("q"), Text("a", learned=True, end=False), Text("###", learned=True, end=False), Text("q", end=True),
             Text("a", learned=True)]
    assert ids_of(model, turns) == [
        ([BOS], False), (letters("q"), False), (letters(" a"), True), (letters("###"), True),
        ([*letters("q"), EOS], False), ([*letters(" a"), EOS], True)]


def test_a_line_break_ends_answers_of_opt_and_stays_in_texts_that_are_not_closed() -> None:
    model = tiny("opt")
    [line_break] = letters("\n")
    turns = [Text("a\nb"), Text("c\nd", learned=True, end=False), Text("e"), Text("f\ng", learned=True)]
    assert ids_of(model, turns)[1:] == [(letters("a\nb"), False), (letters(" c\nd"), True), (letters("e"), False),
                                        ([*letters(" f g"), line_break], True)]


def test_marks_become_control_tokens_and_texts_do_not() -> None:
    model = tiny("gpt2")
    turns = [Text("</s>" + control_token("</s>")), Text("a" + control_token("</s>"), learned=True, end=False)]
    assert ids_of(model, turns)[-2:] == [([*letters("</s>"), EOS], False), ([*letters(" a"), EOS], True)]


def test_what_nothing_predicts_is_only_read() -> None:
    model = tiny("opt")
    model.tokenizer.prompt_frame = ([], [])
    assert model.count_tokens([[Text("abc", learned=True)]]) == 3, "two letters and the end"
    assert bool(model.loss([[Text("abc", learned=True)]]).isfinite())


# limits ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("row", "tokens"), [(None, 16), (20, 16), (19, 15), (12, 8), (4, 0)])
def test_a_row_that_is_too_long_loses_its_end(row: int | None, tokens: int) -> None:
    model = tiny("llama", limits=Limits(row=row))
    given = [Vectors(vectors(model, 2)), Text("q"), Text("a" * 14, learned=True)]  # 2 + 1 + 1 + 16 tokens
    assert model.count_tokens([given]) == tokens
    assert model.tokenizer.cut_sequences == {}
    loss = model.loss([given])
    words = model.tokenizer
    assert (words.cut_rows.cut, words.lost_rows.cut) == (int(tokens < 16), int(tokens == 0))
    assert list(model.tokenizer.cut_sequences.values()) == [words.cut_rows, words.lost_rows]
    assert bool(loss.isfinite()) and (float(loss.detach()) > 0) == (tokens > 0)


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_a_batch_without_a_learned_token_left_has_no_loss_and_no_gradient(name: str) -> None:
    model = tiny(name, limits=Limits(row=4))
    given = [Vectors(vectors(model, 5)), Text("q"), Text("a", learned=True)]
    loss = model.loss([given])
    [grad] = torch.autograd.grad(loss, inputs([given]))
    assert float(loss.detach()) == 0.0 and not grad.any() and model.tokenizer.lost_rows.cut == 1


def test_positions_cut_a_row_and_an_encoder_loses_turns_that_it_has_no_room_for() -> None:
    model = tiny("opt")
    assert model.count_tokens([[Text("q"), Text("a" * 300, learned=True)]]) == 256 - 2
    model = tiny("bart")
    turns = [Text("q"), Text("a" * 10, learned=True), Text("b" * 250), Text("c", learned=True)]
    assert model.count_tokens([turns]) == 11
    model.loss([turns])
    assert (model.tokenizer.cut_rows.cut, model.tokenizer.lost_rows.cut) == (1, 1)


# mistakes -------------------------------------------------------------------------------------------------------------
def test_mistakes_name_the_row() -> None:
    model = tiny("llama")
    good: list[Segment] = [Text("q"), Text("a", learned=True)]
    with pytest.raises(DataError, match="row 1 has no text to learn"):
        model.loss([good, [Text("q")]])
    with pytest.raises(ConfigError, match=r"row 1, segment 0: vectors have shape \(n, 16\), not \(2, 8\)"):
        model.loss([good, [Vectors(torch.zeros(2, 8)), *good]])
    with pytest.raises(ConfigError, match="row 0, segment 1: must be Text or Vectors, not 'q'"):
        model.loss([[Text("a"), "q"]])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="row 0: a sequence is a list of Text and Vectors"):
        model.loss(good)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="at least 2 tokens, not 1"):
        Limits(row=1)


def test_pictures_take_their_places() -> None:
    first, second = torch.zeros(2, 4), torch.ones(3, 4)
    parts = [Text("a"), Picture(1), Text("b"), Picture(0), Text("c", learned=True)]
    placed = insert_pictures(parts, [first, second])
    assert [segment for segment in placed if isinstance(segment, Text)] == [parts[0], parts[2], parts[4]]
    assert placed[1].values is second and placed[3].values is first  # type: ignore[union-attr]
    for given in ([first], [first, second, first]):
        with pytest.raises(DataError, match=rf"places for the pictures \[1, 0\], and {len(given)} came"):
            insert_pictures(parts, given)
    with pytest.raises(DataError, match="places for the pictures"):
        insert_pictures([Picture(0), Picture(0)], [first, second])
