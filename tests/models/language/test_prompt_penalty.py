"""The repetition penalty with the prompt's tokens counted, against transformers' generate with input_ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.models.language import GenerationConfig, LanguageModel
from tests.models.language.tiny import CAUSAL, PAD, soft_prompts, tiny, usually

PROMPTS = ["what is it?", "how many dogs are there", "a"]


def prompts_of_likely_tokens(model: LanguageModel, soft: Tensor) -> list[list[int]]:
    """Prompts that hold the 40 tokens that the model likes best after them, so that the penalty has something to do."""
    rows = []
    for sample, [ids] in enumerate(model.tokenizer.prompts([prompt]) for prompt in PROMPTS):
        decoder, _ = model.decoder_of(model.read(soft[sample:sample + 1], [ids]), 1)
        best = decoder.step(torch.zeros(1, dtype=torch.long), None)[0].topk(40).indices.tolist()
        rows.append([*ids, *best])
    return rows


@torch.no_grad()
@pytest.mark.parametrize("name", usually(CAUSAL))
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_equal_those_of_transformers(name: str, beams: int) -> None:
    """One sample at a time; its vectors stand for the first token of the prompt among the ids that are penalised."""
    model, differ = tiny(name), 0
    soft = soft_prompts(model).detach()
    for sample, ids in enumerate(prompts_of_likely_tokens(model, soft)):
        embeds = torch.cat([soft[sample:sample + 1], model.embed(torch.tensor([ids]))], 1)
        whole = torch.tensor([[*[ids[0]] * soft.shape[1], *ids]])
        given: dict[str, Any] = {"inputs_embeds": embeds, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        found = model.model.generate(**given, max_new_tokens=8, min_new_tokens=1, num_beams=beams, do_sample=False,
                                     repetition_penalty=1.7, eos_token_id=model.tokenizer.end, pad_token_id=PAD)
        expected = found[0, whole.shape[1]:].tolist()
        if model.tokenizer.end in expected:
            expected = expected[:expected.index(model.tokenizer.end)]
        written = {counts: model.generate_ids(soft[sample:sample + 1], [ids], GenerationConfig(
            max_new_tokens=8, min_new_tokens=1, num_beams=beams, repetition_penalty=1.7, penalise_prompt=counts))[0]
            for counts in (True, False)}
        assert written[True] == expected
        differ += written[True] != written[False]
    assert differ, "the option matters"


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, {"num_beams": 3}, {"num_beams": 3, "num_captions": 2},
                                  {"sample": True, "num_captions": 2, "seeds": (1, 2, 3)}])
def test_a_batch_writes_what_its_members_write(kind: dict[str, Any]) -> None:
    model = tiny("opt")
    soft = soft_prompts(model).detach()
    rows = prompts_of_likely_tokens(model, soft)
    assert len({len(row) for row in rows}) == 3
    options = {"max_new_tokens": 8, "repetition_penalty": 1.9, "penalise_prompt": True, **kind}
    together = model.generate_ids(soft, rows, GenerationConfig(**options))
    alone = []
    for sample, row in enumerate(rows):
        own = {**options, "seeds": (kind["seeds"][sample],)} if "seeds" in kind else options
        alone += model.generate_ids(soft[sample:sample + 1], [row], GenerationConfig(**own))
    assert together == alone
    assert together != model.generate_ids(soft, rows, GenerationConfig(**{**options, "penalise_prompt": False}))


@torch.no_grad()
def test_an_empty_prompt_beside_a_long_one_is_penalised_for_nothing() -> None:
    model = tiny("gpt2")
    soft, long = soft_prompts(model, 2).detach(), list(range(250))
    options = GenerationConfig(max_new_tokens=3, repetition_penalty=2.5, penalise_prompt=True)
    together = model.generate_ids(soft, [[], long[:40]], options)
    plain = GenerationConfig(max_new_tokens=3, repetition_penalty=2.5)
    assert together[0] == model.generate_ids(soft[:1], [[]], plain)[0]


@torch.no_grad()
def test_transformers_counts_no_prompt_of_an_encoder_and_neither_do_we() -> None:
    model = tiny("t5")
    soft, rows = soft_prompts(model).detach(), model.tokenizer.prompts(PROMPTS)
    found = [model.generate_ids(soft, rows, GenerationConfig(max_new_tokens=8, repetition_penalty=1.9,
                                                             penalise_prompt=counts)) for counts in (True, False)]
    assert found[0] == found[1]
