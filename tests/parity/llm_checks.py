"""What is compared with a recorded case of a model with a language model, one function per comparison.

A folder of cases needs nothing here: `checks_of` finds what its cases can be compared in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.models.blip2_llm import Blip2LLM
from lavis_lite.models.language_model import GenerationConfig
from lavis_lite.models.language_model.head import output_layer
from lavis_lite.models.prompts import candidate_prompts
from tests.parity.llm_cases import Recorded, build, call, learn_as_lavis, our_name

Check = Callable[[Recorded, str], None]
LIST_OF_PROMPTS = "predict_class_per_sample_candidates_listprompt"


def checks_of(recorded: Recorded) -> list[tuple[str, Check]]:
    """(case, comparison) of everything in a folder."""
    found: list[tuple[str, Check]] = []
    for calls, checks in CHECKS.items():
        found += [(case, check) for case in recorded.names(*calls) for check in checks]
    found = [(case, ids_after_a_cut_question) if case.endswith("_truncated") and check is written_ids else (case, check)
             for case, check in found if not (case.endswith("_truncated") and check is what_is_read)]
    if "error" in recorded.expected.get(LIST_OF_PROMPTS, {}):
        found.append((LIST_OF_PROMPTS, a_list_of_prompts))
    return found


def rounding_apart(check: Callable[[Recorded, str, torch.dtype], None]) -> Check:
    """A comparison of tensors in float32 and, where that exceeds the tolerance, in float64.

    Sums in another order round otherwise than LAVIS'; what is right in float64 differed by rounding only.
    """
    @functools.wraps(check)
    def run(recorded: Recorded, case: str) -> None:
        try:
            check(recorded, case, torch.float32)
        except AssertionError:
            check(recorded, case, torch.float64)

    return run


# training -------------------------------------------------------------------------------------------------------------
@rounding_apart
def loss_and_gradients(recorded: Recorded, case: str, dtype: torch.dtype) -> None:
    """The loss, every gradient's norm, and whole gradients where they were recorded."""
    model = build(recorded, case, dtype)
    learn_as_lavis(model, recorded, case)
    output = model(recorded.samples(case))
    expected = recorded.expected[case]
    assert float(output.loss.detach()) == pytest.approx(expected["loss"], rel=1e-5)
    output.loss.backward()
    grads = {key: torch.zeros_like(value) if value.grad is None else value.grad
             for key, value in model.named_parameters() if value.requires_grad}
    assert expected["grad_norms"], "no gradients recorded"
    for key, norm in expected["grad_norms"].items():
        found = float(grads[our_name(key)].norm())
        assert abs(found - (norm or 0.0)) <= 1e-4 * (norm or 0.0) + 1e-6, f"{key}: {found} for {norm}"
    start = f"{case}/grad/"
    for key in [key for key in recorded.tensors if key.startswith(start)]:
        recorded.check(key, grads[our_name(key.removeprefix(start))])


@rounding_apart
def what_lies_between(recorded: Recorded, case: str, dtype: torch.dtype) -> None:
    """The Q-Former's answer, the soft prompt, the targets in order, and the logits that predict them."""
    model, samples = build(recorded, case, dtype), recorded.samples(case)
    learn_as_lavis(model, recorded, case)
    query = model.query_output(samples["image"], samples["text_input"])
    recorded.check(f"{case}/query_output", query)
    recorded.check(f"{case}/proj", model.language_projection(query))
    seen: dict[str, Tensor] = {}
    plain = model.language_model.likelihoods

    def keep(hidden: Tensor, targets: Tensor) -> Tensor:
        seen.update(logits=output_layer(model.language_model.model)(hidden), targets=targets)
        return plain(hidden, targets)

    model.language_model.likelihoods = keep  # type: ignore[method-assign]
    model(samples)
    labels, logits = recorded.tensors[f"{case}/llm_labels"], recorded.tensors[f"{case}/llm_logits"]
    if recorded.prefix != "t5":  # position t predicts label t + 1
        labels, logits = labels[:, 1:], logits[:, :-1]
    learned = labels != -100
    assert seen["targets"].tolist() == labels[learned].tolist()
    recorded.check(f"{case}/llm_logits", seen["logits"], logits[learned])


# writing --------------------------------------------------------------------------------------------------------------
def written_ids(recorded: Recorded, case: str) -> None:
    """Ids, and the texts they become."""
    model = build(recorded, case)
    rows: list[list[int]] = []
    plain = model.language_model.generate_ids

    def keep(*given: Any) -> list[list[int]]:
        found = plain(*given)
        rows.extend(found)
        return found

    model.language_model.generate_ids = keep  # type: ignore[method-assign]
    texts = call(model, recorded, case)
    assert recorded.canonical(rows) == recorded.written(case)
    for ours, theirs, row in zip(texts, recorded.expected[case]["text"], rows, strict=True):
        assert ours == theirs.strip() or splits_a_character(model, row), f"{ours!r} for {theirs!r}"


def splits_a_character(model: Blip2LLM, row: list[int]) -> bool:
    """Whether ids hold single bytes: where they make no whole character, tokenizers of one kind show them otherwise."""
    return any(piece.startswith("<0x") for piece in model.language_model.tokenizer.loaded.convert_ids_to_tokens(row))


def ids_after_a_cut_question(recorded: Recorded, case: str) -> None:
    """LAVIS' OPT cuts the end of a long question; from the same ids the same is written, but here it is read whole."""
    model, given = build(recorded, case), recorded.inputs[case]
    kwargs = recorded.expected[case]["generate"][0]["kwargs"]
    options = GenerationConfig(max_new_tokens=kwargs["max_new_tokens"], min_new_tokens=max(kwargs["min_length"] - 1, 0),
                               num_beams=kwargs["num_beams"], length_penalty=kwargs["length_penalty"],
                               repetition_penalty=kwargs.get("repetition_penalty", 1.0), lavis_lengths=True)
    soft_prompt = model.soft_prompt(recorded.samples(case)["image"], [given["samples"]["text_input"][0]])
    prompts = given["tokenizer_calls"][-1]["input_ids"]
    assert model.language_model.generate_ids(soft_prompt, prompts, options) == recorded.written(case)
    assert call(model, recorded, case) != recorded.expected[case]["text"], "the question should be read whole"


@rounding_apart
def what_is_read(recorded: Recorded, case: str, dtype: torch.dtype) -> None:
    """The embeddings of soft prompt and prompt, in order; padding may stand elsewhere."""
    model, seen = build(recorded, case, dtype), []
    plain = model.language_model.prefix_embeds  # type: ignore[attr-defined]

    def keep(*given: Any) -> tuple[Tensor, Tensor]:
        seen.append(plain(*given))
        return seen[-1]

    model.language_model.prefix_embeds = keep  # type: ignore[attr-defined]
    call(model, recorded, case)
    mask = recorded.tensors[f"{case}/generate_attention_mask"].bool()
    key = f"{case}/generate_inputs_embeds"
    recorded.check(key, seen[0][0][seen[0][1]], recorded.tensors[key][mask])


# candidates -----------------------------------------------------------------------------------------------------------
@rounding_apart
def ranks_and_losses(recorded: Recorded, case: str, dtype: torch.dtype) -> None:
    """Ranks of candidates, and their losses as LAVIS' language model returned them."""
    model, given = build(recorded, case, dtype), recorded.inputs[case]
    losses = lavis_losses(model, recorded, case)
    for number, found in enumerate(losses):
        key = f"{case}/loss_call{number}"
        if key in recorded.tensors:
            recorded.check(key, found.flatten(), recorded.tensors[key].flatten())
    ranks = recorded.expected[case]["ranks"]
    if recorded.prefix == "llm" and given.get("call_kwargs", {}).get("n_segments", 1) > 1:
        joined = torch.tensor([[value for part in losses for value in row_of(part, row)]
                                      for row in range(len(ranks))])
        assert joined.argsort(1).tolist() == ranks
    else:
        assert [row.tolist() for row in call(model, recorded, case)] == ranks


def row_of(part: Tensor, row: int) -> list[float]:
    values: list[float] = part[row].tolist()
    return values


def lavis_losses(model: Blip2LLM, recorded: Recorded, case: str) -> list[Tensor]:
    """Our scores as LAVIS' losses, float[B,C'] of every call of its language model.

    LAVIS takes T5's sum over a candidate's tokens, and Vicuna's sum divided by the length of the padded batch, which
    changes from segment to segment and ranks nothing within one; this package always ranks by the sum.
    """
    given, samples = recorded.inputs[case], recorded.samples(case)
    candidates, segments = given["candidates"], given.get("call_kwargs", {}).get("n_segments", 1)
    scores = model.score_candidates(samples, candidates)
    batches = [(slice(None), candidates)]
    if not isinstance(candidates[0], str):
        batches = [(slice(row, row + 1), texts) for row, texts in enumerate(candidates)]
    prompts = candidate_prompts(samples, model.prompt, len(samples["image"]))
    losses = []
    for rows, texts in batches:
        size = len(texts) // segments
        edges = [*(size * number for number in range(segments)), len(texts)]
        for start, end in pairwise(edges):
            length = 1 if recorded.prefix == "t5" else padded_length(model, samples, prompts[rows], texts[start:end])
            losses.append(-scores[rows, start:end] / length)
    return losses


def padded_length(model: Blip2LLM, samples: dict[str, Any], prompts: list[str], candidates: list[str]) -> int:
    """Predicting positions of a batch as LAVIS pads it: soft prompt, longest prompt, longest candidate, less one."""
    tokenizer, image = model.language_model.tokenizer, samples["image"]
    queries = model.query_tokens.shape[1] * (image.shape[2] if image.ndim == 5 else 1)
    longest = [max(map(len, rows)) for rows in (tokenizer.prompts(prompts), tokenizer.targets(candidates, end=False))]
    return queries + sum(longest) - 1


def a_list_of_prompts(recorded: Recorded, case: str) -> None:
    """With a prompt and a list of candidates per sample LAVIS fails; here a batch ranks as its members do."""
    model, given = build(recorded, case), recorded.inputs[case]
    samples = recorded.samples(case)
    for row, ranks in enumerate(model.predict_class(samples, given["candidates"])):
        alone = {key: value[row:row + 1] for key, value in samples.items()}
        assert model.predict_class(alone, given["candidates"][row])[0].tolist() == ranks.tolist()


CHECKS: dict[tuple[str, ...], list[Check]] = {
    ("train",): [loss_and_gradients, what_lies_between],
    ("generate", "predict_answers"): [written_ids, what_is_read],
    ("predict_class",): [ranks_and_losses],
}
"""what was called -> what is compared"""
