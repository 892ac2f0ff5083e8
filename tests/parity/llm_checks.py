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

from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.blip2.prompts import candidate_prompts
from lavis_lite.models.language import GenerationConfig
from lavis_lite.models.language.weights import output_layer
from tests.parity.lavis_names import our_names
from tests.parity.llm_cases import Recorded, build, call, learn_as_lavis
from tests.parity.recordings import Check, Comparison

LIST_OF_PROMPTS = "predict_class_per_sample_candidates_listprompt"
TRAINING = ("llm_labels", "llm_logits", "llm_inputs_embeds", "llm_attention_mask", "llm_decoder_attention_mask",
            "query_output", "proj")
READ = ("generate_inputs_embeds", "generate_attention_mask")


def comparisons_of(recorded: Recorded) -> list[Comparison]:
    """Everything that a folder's cases can be compared in."""
    found = []
    for case in recorded.names("train"):
        found += [Comparison(case, loss_and_gradients, frozenset(recorded.keys(f"{case}/grad/"))),
                  Comparison(case, what_lies_between, frozenset(recorded.keys(f"{case}/", TRAINING)))]
    for case in recorded.names("generate", "predict_answers", drawn=True):
        cut, read = case.endswith("_truncated"), frozenset(recorded.keys(f"{case}/", READ))
        if case in recorded.names("generate", "predict_answers"):
            found.append(Comparison(case, ids_after_a_cut_question if cut else written_ids))
        if read:
            found.append(Comparison(case, what_is_read_of_a_cut_question if cut else what_is_read, read))
    found += [Comparison(case, ranks_and_losses, frozenset(recorded.keys(f"{case}/loss_call")))
              for case in recorded.names("predict_class")]
    if "error" in recorded.expected.get(LIST_OF_PROMPTS, {}):
        found.append(Comparison(LIST_OF_PROMPTS, a_list_of_prompts))
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
    names, start = our_names(recorded.folder), f"{case}/grad/"
    for key, norm in expected.get("grad_norms", {}).items():
        found = float(grads[names[key]].norm())
        assert abs(found - (norm or 0.0)) <= 1e-4 * (norm or 0.0) + 1e-6, f"{key}: {found} for {norm}"
    for key in recorded.keys(start):
        recorded.check(key, grads[names[key.removeprefix(start)]].reshape(recorded.tensors[key].shape))


@rounding_apart
def what_lies_between(recorded: Recorded, case: str, dtype: torch.dtype) -> None:
    """The Q-Former's answer, the soft prompt, what is read, the targets in order, and the logits that predict them."""
    model, samples = build(recorded, case, dtype), recorded.samples(case)
    learn_as_lavis(model, recorded, case)
    query = model.query_output(samples["image"], samples["text_input"])
    found = {"query_output": query, "proj": model.language_projection(query)}
    for name in found.keys() & {key.rpartition("/")[2] for key in recorded.keys(f"{case}/")}:
        recorded.check(f"{case}/{name}", found[name])
    trained = Trained(model)
    model(samples)
    check_what_is_read(recorded, case, trained)
    check_what_is_learned(recorded, case, trained)


class Trained:
    """What a model's language model reads and learns in its next training step.

    Attributes:
        before, after: ids of each row's prompt and target.
        embeds, mask: float[B,S,D] and bool[B,S], what it reads, soft prompt included.
        logits, targets: float[T,V] and int64[T], of what it learns.
    """

    def __init__(self, model: Blip2LLM) -> None:
        self.language_model: Any = model.language_model
        self.language_model.most_padding = 1.0  # one pass, as it was recorded
        self.queries = model.query_tokens.shape[1]
        self._keep("training_rows", lambda found: setattr(self, "rows", found))
        if self.encodes:
            self._keep("arranged", lambda found: setattr(self, "read", found))
        else:
            self.language_model._base().register_forward_pre_hook(self._embeds, with_kwargs=True)
        plain = self.language_model.likelihoods

        def likelihoods(hidden: Tensor, targets: Tensor) -> Tensor:
            self.logits, self.targets = output_layer(self.language_model.model)(hidden), targets
            found: Tensor = plain(hidden, targets)
            return found

        self.language_model.likelihoods = likelihoods

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.language_model.model.config.is_encoder_decoder)

    def _keep(self, name: str, use: Callable[[Any], None]) -> None:
        plain = getattr(self.language_model, name)

        def call(*given: Any, **options: Any) -> Any:
            found = plain(*given, **options)
            use(found)
            return found

        setattr(self.language_model, name, call)

    def _embeds(self, module: Any, given: Any, options: dict[str, Any]) -> None:
        embeds = options["inputs_embeds"]  # [soft prompt | prompt | target | padding]
        count = embeds.shape[1] - max(len(first) + len(second) for first, second in zip(*self.rows, strict=True))
        lengths = [count + len(first) + len(second) for first, second in zip(*self.rows, strict=True)]
        self.read = embeds, torch.arange(embeds.shape[1])[None] < torch.tensor(lengths)[:, None]


def check_what_is_read(recorded: Recorded, case: str, trained: Trained) -> None:
    """Embeddings in order, and how many there are in each row; padding may stand elsewhere."""
    key, (embeds, own) = f"{case}/llm_attention_mask", trained.read
    mask = own
    if key in recorded.tensors:
        mask = recorded.check_mask(key, own.sum(1).tolist())
    if (key := f"{case}/llm_inputs_embeds") in recorded.tensors:
        recorded.check(key, embeds[own], lambda whole: whole[mask])
    if (key := f"{case}/llm_decoder_attention_mask") in recorded.tensors:
        recorded.check_mask(key, [len(row) for row in trained.rows[1]])


def check_what_is_learned(recorded: Recorded, case: str, trained: Trained) -> None:
    """The targets, exactly, and the logits at the positions that predict them."""
    key = f"{case}/llm_labels"
    if key not in recorded.tensors:
        return
    recorded.compared.add(key)
    labels, before = recorded.tensors[key], slice(None)
    if recorded.prefix != "t5":  # position t predicts label t + 1
        labels, before = labels[:, 1:], slice(None, -1)
    learned = labels != -100
    assert trained.targets.tolist() == labels[learned].tolist()
    if (key := f"{case}/llm_logits") in recorded.tensors:
        recorded.check(key, trained.logits, lambda whole: whole[:, before][learned])


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
    model = build(recorded, case)
    kwargs = recorded.expected[case]["generate"][0]["kwargs"]
    options = GenerationConfig(max_new_tokens=kwargs["max_new_tokens"], min_new_tokens=max(kwargs["min_length"] - 1, 0),
                               num_beams=kwargs["num_beams"], length_penalty=kwargs["length_penalty"],
                               repetition_penalty=kwargs.get("repetition_penalty", 1.0), lavis_lengths=True)
    soft_prompt, prompts = cut_question(model, recorded, case)
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
    check_prefix(recorded, case, *seen[0])


def check_prefix(recorded: Recorded, case: str, embeds: Tensor, own: Tensor) -> None:
    """Soft prompt and prompt of every row."""
    key, mask = f"{case}/generate_attention_mask", own
    if key in recorded.tensors:
        mask = recorded.check_mask(key, own.sum(1).tolist())
    if (key := f"{case}/generate_inputs_embeds") in recorded.tensors:
        recorded.check(key, embeds[own], lambda whole: whole[mask])


@rounding_apart
def what_is_read_of_a_cut_question(recorded: Recorded, case: str, dtype: torch.dtype) -> None:
    """As above, of the ids that LAVIS had left."""
    model = build(recorded, case, dtype)
    soft_prompt, prompts = cut_question(model, recorded, case)
    check_prefix(recorded, case, *model.language_model.prefix_embeds(soft_prompt, prompts))  # type: ignore[attr-defined]


def cut_question(model: Blip2LLM, recorded: Recorded, case: str) -> tuple[Tensor, list[list[int]]]:
    """The soft prompt, and the prompt's ids as LAVIS cut them."""
    given = recorded.inputs[case]
    soft_prompt = model.embed_image(recorded.samples(case)["image"], [given["samples"]["text_input"][0]])
    return soft_prompt, given["tokenizer_calls"][-1]["input_ids"]


# candidates -----------------------------------------------------------------------------------------------------------
@rounding_apart
def ranks_and_losses(recorded: Recorded, case: str, dtype: torch.dtype) -> None:
    """Ranks of candidates, and their losses as LAVIS' language model returned them."""
    model, given = build(recorded, case, dtype), recorded.inputs[case]
    losses = lavis_losses(model, recorded, case)
    for number, found in enumerate(losses):
        key = f"{case}/loss_call{number}"
        if key in recorded.tensors:
            recorded.check(key, found.flatten(), torch.flatten)
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
