"""Loss, texts and scores of every family against transformers' own plain computation, and against one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.models.language import GenerationConfig, LanguageModel
from lavis_lite.models.language import weights as output_layers
from lavis_lite.models.language.cache import select_rows
from tests.models.language.plain_decoding import exact_tiny, rounding
from tests.models.language.tiny import CAUSAL, PAD, SEQ2SEQ, soft_prompts, tiny, usually

FAMILIES = usually([*CAUSAL, *SEQ2SEQ])
PROMPTS = ["what is it?", "", "how many"]
TARGETS = ["a red dog", "two", "x"]


def causal_rows(model: LanguageModel) -> tuple[list[list[int]], list[list[int]]]:
    before, after = model.training_rows(PROMPTS, TARGETS)
    return before, after


def plain_loss(model: LanguageModel, soft: Tensor) -> Tensor:
    """Mean over all target tokens of transformers' own loss, sample by sample, all logits in memory."""
    total, count = soft.new_zeros(()), 0
    for row in range(len(soft)):
        if model.model.config.is_encoder_decoder:
            ids = torch.tensor([model.tokenizer.prompts([PROMPTS[row]])[0]])
            labels = torch.tensor([model.tokenizer.targets([TARGETS[row]])[0]])
            embeds = torch.cat([soft[row:row + 1], model.embed(ids)], 1)
        else:
            before, after = causal_rows(model)
            ids = torch.tensor([[*before[row], *after[row]]])
            embeds = torch.cat([soft[row:row + 1], model.embed(ids)], 1)
            labels = torch.cat([torch.full((1, embeds.shape[1] - len(after[row])), -100),
                                torch.tensor([after[row]])], 1)
        learned = int((labels != -100).sum())
        total, count = total + model.model(inputs_embeds=embeds, labels=labels).loss * learned, count + learned
    return total / count


def next_token_loss(logits: Tensor, labels: Tensor, *sizes: Any, **more: Any) -> Tensor:
    """As transformers', in the type of the logits."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_equal_the_plain_form(name: str) -> None:
    model = exact_tiny(name)
    if not model.model.config.is_encoder_decoder:  # transformers takes this loss in float32
        model.model.loss_function = next_token_loss
    soft = soft_prompts(model).detach().to(model.dtype).requires_grad_()
    loss = model.loss(soft, PROMPTS, TARGETS)
    (found,) = torch.autograd.grad(loss, soft)
    expected = plain_loss(model, soft)
    (plain,) = torch.autograd.grad(expected, soft)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=rounding(model, 1e-12, 1e-5))
    allowed = rounding(model, 1e-10, 1e-4)
    torch.testing.assert_close(found, plain, rtol=allowed, atol=allowed * float(plain.abs().max()))
    assert float(plain.abs().max()) > 1e-4, "the soft prompt should matter"


def test_chunks_change_nothing_and_logits_exist_for_a_chunk_only() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 31, bias=True).double()
    hidden = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    targets, weight = torch.randint(31, (7,)), torch.rand(7)
    sizes: list[int] = []

    def project(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return 3 * layer(rows)

    plain = output_layers.token_losses_plain(hidden, project, targets)
    (expected,) = torch.autograd.grad((plain * weight).sum(), hidden)
    sizes.clear()
    found = output_layers.token_losses(hidden, project, targets, chunk=3)
    (grad,) = torch.autograd.grad((found * weight).sum(), hidden)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(grad, expected)


OPTIONS = {
    "greedy": GenerationConfig(max_new_tokens=7, min_new_tokens=0),
    "beams": GenerationConfig(max_new_tokens=7, min_new_tokens=2, num_beams=3, length_penalty=-1.0),
    "two captions": GenerationConfig(max_new_tokens=6, num_beams=3, num_captions=2, repetition_penalty=1.5),
}


def ids_of(model: LanguageModel, soft: Tensor, prompts: list[str], options: GenerationConfig) -> list[list[int]]:
    with torch.no_grad():
        return model.generate_ids(soft, model.tokenizer.prompts(prompts), options)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_batch_writes_what_its_members_write(name: str, kind: str) -> None:
    model, options = tiny(name), OPTIONS[kind]
    soft = soft_prompts(model)
    together = ids_of(model, soft, PROMPTS, options)
    alone = [row for place, prompt in enumerate(PROMPTS)
             for row in ids_of(model, soft[place:place + 1], [prompt], options)]
    assert together == alone
    assert len(together) == len(PROMPTS) * options.num_captions
    assert len({tuple(row) for row in together}) > 1


@pytest.mark.parametrize("name", ["opt", "flan_t5"])
def test_a_batch_samples_what_its_members_sample(name: str) -> None:
    model = tiny(name)
    soft, options = soft_prompts(model), GenerationConfig(max_new_tokens=6, sample=True, top_p=0.9, num_captions=2)
    torch.manual_seed(3)
    together = ids_of(model, soft, PROMPTS, options)
    torch.manual_seed(3)
    alone = [row for place, prompt in enumerate(PROMPTS)
             for row in ids_of(model, soft[place:place + 1], [prompt], options)]
    again = ids_of(model, soft, PROMPTS, options)
    assert together == alone and together != again
    with pytest.raises(ConfigError, match="2 seeds for 3 samples"):
        ids_of(model, soft, PROMPTS, GenerationConfig(sample=True, seeds=(1, 2)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_equal_those_of_transformers(name: str, beams: int) -> None:
    """One sample at a time, since padding beside the soft prompt is not transformers' business."""
    model = tiny(name)
    soft = soft_prompts(model, 1).detach()
    prompts = model.tokenizer.prompts(["what is it?"])
    embeds = torch.cat([soft, model.embed(torch.tensor(prompts))], 1)
    given: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long)}
    found = model.model.generate(**given, max_new_tokens=7, min_new_tokens=2, num_beams=beams, do_sample=False,
                                 eos_token_id=model.tokenizer.end, pad_token_id=PAD)[0].tolist()
    expected = found[1:] if model.model.config.is_encoder_decoder else found
    if model.tokenizer.end in expected:
        expected = expected[:expected.index(model.tokenizer.end)]
    options = GenerationConfig(max_new_tokens=7, min_new_tokens=2, num_beams=beams)
    assert ids_of(model, soft, ["what is it?"], options) == [expected]
    shared = model.generate_ids(soft, model.tokenizer.prompts(["how many?!", *["what is it?"] * 2]), options, [0, 0, 0])
    assert shared[1:] == [expected] * 2, "after a soft prompt that other prompts follow too"


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_the_losses_of_one_answer_at_a_time(name: str) -> None:
    model = exact_tiny(name)
    soft, answers = soft_prompts(model).detach().to(model.dtype), ["yes", "no", "a long one"]
    found = model.score(soft, PROMPTS, answers)
    mean = model.score(soft, PROMPTS, answers, normalise="mean", pairs=2)
    for row, prompt in enumerate(PROMPTS):
        for place, answer in enumerate(answers):
            text = model.candidate_texts(prompt, [answer])
            count = len(model.tokenizer.targets(text)[0])
            if model.family.learns_bos and not prompt:
                continue  # the loss also counts the begin token there
            loss = float(model.loss(soft[row:row + 1], [prompt], [answer]))
            allowed = rounding(model, 1e-6, 1e-4)  # scores are float32
            assert float(found[row, place]) == pytest.approx(-loss * count, rel=allowed)
            assert float(mean[row, place]) == pytest.approx(-loss, rel=allowed)


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_every_sample_may_have_its_own_candidates(name: str) -> None:
    model = exact_tiny(name)
    soft = soft_prompts(model).detach().to(model.dtype)
    lists = [["yes", "no"], ["one", "two", "three"], ["x"]]
    found = model.score(soft, PROMPTS, lists, pairs=2)
    for row, texts in enumerate(lists):
        alone = model.score(soft[row:row + 1], PROMPTS[row:row + 1], texts)[0]
        torch.testing.assert_close(found[row, :len(texts)], alone, rtol=1e-6, atol=0)
        assert bool((found[row, len(texts):] == -torch.inf).all())


@pytest.mark.parametrize("name", ["opt", "flan_t5"])
def test_frozen_means_constant_in_eval_and_in_its_own_type(name: str) -> None:
    model = tiny(name, precision="bf16")
    model.train()
    assert not any(module.training for module in model.model.modules())
    assert not any(value.requires_grad for value in model.parameters())
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    soft = soft_prompts(model)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model.loss(soft, PROMPTS, TARGETS)
    loss.backward()
    assert loss.dtype == torch.float32 and soft.grad is not None and soft.grad.dtype == torch.float32
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize(("prompts", "targets", "words"), [
    ("one", TARGETS, "3 samples came with one string"), (PROMPTS[:2], TARGETS, "3 samples came with 2 texts")])
def test_not_one_text_per_sample(prompts: Any, targets: list[str], words: str) -> None:
    model = tiny("opt")
    with pytest.raises(ConfigError, match=words):
        model.loss(soft_prompts(model), prompts, targets)


@pytest.mark.parametrize(("candidates", "words"), [
    ([], "must be a list of answers"), ("yes", "must be a list of answers"), ([["a"], ["b"]], "2 lists of candidates"),
    ([["a"], [], ["b"]], "sample 1 has no candidates"), (["a", " "], "^the candidates: number 1 .* is empty \\(' '\\)"),
    ([["a"], ["b", "c"], [""]], "^the candidates of sample 2: number 0")])
def test_impossible_candidates(candidates: Any, words: str) -> None:
    model = tiny("opt")
    with pytest.raises(ConfigError, match=words):
        model.score(soft_prompts(model).detach(), PROMPTS, candidates)


def test_a_soft_prompt_of_another_width() -> None:
    model = tiny("llama")
    with pytest.raises(ConfigError, match=r"shape \(B, Q, 16\)"):
        model.loss(torch.zeros(3, 2, 7), PROMPTS, TARGETS)


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_likelihoods_that_are_no_numbers_are_told_of(name: str) -> None:
    model = tiny(name)
    soft = soft_prompts(model).detach().clone()
    soft[1] = torch.nan
    with pytest.raises(CheckpointError, match="likelihoods of sample 1 are NaN"):
        model.score(soft, ["a"] * 3, ["b", "c"])


def test_states_of_recurrent_layers_are_copied_with_their_cache() -> None:
    class Layer:
        def __init__(self) -> None:
            self.states = {0: torch.arange(3)}

        def reorder_cache(self, rows: torch.Tensor) -> None:
            self.states[0] = self.states[0][rows]

    class Cache:
        def __init__(self) -> None:
            self.layers = [Layer()]

        def reorder_cache(self, rows: torch.Tensor) -> None:
            for layer in self.layers:
                layer.reorder_cache(rows)

    given = Cache()
    chosen = select_rows(given, torch.tensor([2, 2]))
    assert chosen.layers[0].states[0].tolist() == [2, 2] and given.layers[0].states[0].tolist() == [0, 1, 2]


def test_prompts_of_an_encoder_stand_behind_the_soft_prompt_without_a_gap() -> None:
    model = tiny("t5")
    _, mask = model.prefix_embeds(soft_prompts(model, batch=2), [[5, 6, 7], [5]])  # type: ignore[operator]
    assert mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]
