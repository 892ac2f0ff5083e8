"""Stage 2 and InstructBLIP against LAVIS' recorded outputs: losses, gradients, written ids, ranks of candidates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.models.blip2_llm import Blip2LLM
from lavis_lite.models.language_model import GenerationConfig
from lavis_lite.models.language_model.head import output_layer
from tests.conftest import find_parity
from tests.parity.llm_cases import Recorded, build, call, case_folders, our_name

FOLDERS = case_folders(find_parity())
RECORDED = {folder.name: Recorded(folder) for folder in FOLDERS}


def cases(*calls: str) -> list[Any]:
    """(folder, case) of all recorded cases of some calls; one that skips where nothing is recorded."""
    found = [pytest.param(name, case, id=f"{name}-{case}") for name, recorded in RECORDED.items()
             for kind in calls for case in recorded.names(kind)]
    skip = pytest.mark.skip("recorded outputs (../shared/parity, or LAVIS_LITE_PARITY) not here")
    return found or [pytest.param("", "", marks=skip)]


def written(model: Blip2LLM, run: Any) -> tuple[list[list[int]], Any]:
    """Ids that a call wrote, and what it returned."""
    rows: list[list[int]] = []
    plain = model.language_model.generate_ids

    def keep(*arguments: Any) -> list[list[int]]:
        found = plain(*arguments)
        rows.extend(found)
        return found

    model.language_model.generate_ids = keep  # type: ignore[method-assign]
    return rows, run()


@pytest.mark.parametrize(("name", "case"), cases("train"))
def test_loss_and_gradients(name: str, case: str) -> None:
    recorded = RECORDED[name]
    model = build(recorded, case)
    output = model(recorded.samples(case))
    expected = recorded.expected[case]
    assert float(output.loss.detach()) == pytest.approx(expected["loss"], rel=1e-5)
    output.loss.backward()
    grads = {key: torch.zeros_like(value) if value.grad is None else value.grad
             for key, value in model.named_parameters() if value.requires_grad}
    for key, norm in expected["grad_norms"].items():
        found = float(grads[our_name(key)].norm())
        assert abs(found - norm) <= 1e-4 * norm + 1e-6, f"{key}: {found} for {norm}"
    start = f"{case}/grad/"
    for key in [key for key in recorded.tensors if key.startswith(start)]:
        recorded.check(key, grads[our_name(key.removeprefix(start))])


@pytest.mark.parametrize(("name", "case"), cases("train"))
def test_what_lies_between(name: str, case: str) -> None:
    recorded = RECORDED[name]
    model, samples = build(recorded, case), recorded.samples(case)
    texts = samples["text_input"]
    query = model.query_output(samples["image"], texts)
    recorded.check(f"{case}/query_output", query)
    recorded.check(f"{case}/proj", model.language_projection(query))
    check_logits(recorded, model, case, samples)


def check_logits(recorded: Recorded, model: Blip2LLM, case: str, samples: dict[str, Any]) -> None:
    """Logits of the positions that predict a target, and the targets themselves, in order."""
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


@pytest.mark.parametrize(("name", "case"), cases("generate", "predict_answers"))
def test_written_ids(name: str, case: str) -> None:
    recorded = RECORDED[name]
    if case.endswith("_truncated"):
        pytest.skip("LAVIS cuts the end of the question, this package does not: see the test of the recorded ids")
    model = build(recorded, case)
    ids, texts = written(model, lambda: call(model, recorded, case))
    assert ids == recorded.ids(case)
    assert texts == [text.strip() for text in recorded.expected[case]["text"]]


@pytest.mark.parametrize(("name", "case"), [item for item in cases("generate", "predict_answers")
                                            if "_truncated" in str(item.id) or item.values == ("", "")])
def test_ids_after_a_cut_question(name: str, case: str) -> None:
    recorded = RECORDED[name]
    model, given = build(recorded, case), recorded.inputs[case]
    kwargs = recorded.expected[case]["generate"][0]["kwargs"]
    options = GenerationConfig(max_new_tokens=kwargs["max_new_tokens"], min_new_tokens=kwargs["min_length"] - 1,
                               num_beams=kwargs["num_beams"], length_penalty=kwargs["length_penalty"],
                               lavis_lengths=True)
    soft_prompt = model.soft_prompt(recorded.samples(case)["image"])
    prompts = given["tokenizer_calls"][-1]["input_ids"]
    assert model.language_model.generate_ids(soft_prompt, prompts, options) == recorded.ids(case)
    assert call(model, recorded, case) != recorded.expected[case]["text"], "the question should be read whole"


@pytest.mark.parametrize(("name", "case"), cases("generate", "predict_answers"))
def test_what_the_language_model_reads(name: str, case: str) -> None:
    """The embeddings of soft prompt and prompt, in order; padding may stand elsewhere."""
    recorded = RECORDED[name]
    if case.endswith("_truncated"):
        pytest.skip("LAVIS cuts the end of the question, this package does not")
    model, seen = build(recorded, case), []
    plain = model.language_model.prefix_embeds  # type: ignore[attr-defined]

    def keep(*arguments: Any) -> tuple[Tensor, Tensor]:
        seen.append(plain(*arguments))
        return seen[-1]

    model.language_model.prefix_embeds = keep  # type: ignore[attr-defined]
    call(model, recorded, case)
    mask = recorded.tensors[f"{case}/generate_attention_mask"].bool()
    key = f"{case}/generate_inputs_embeds"
    recorded.check(key, seen[0][0][seen[0][1]], recorded.tensors[key][mask])


@pytest.mark.parametrize(("name", "case"), cases("predict_class"))
def test_ranks_and_scores_of_candidates(name: str, case: str) -> None:
    recorded = RECORDED[name]
    model, given = build(recorded, case), recorded.inputs[case]
    found = call(model, recorded, case)
    assert [row.tolist() for row in found] == recorded.expected[case]["ranks"]
    scores = model.score_candidates(recorded.samples(case), given["candidates"])
    calls = sorted(key for key in recorded.tensors if key.startswith(f"{case}/loss_call"))
    if recorded.prefix == "t5" and len(calls) == 1:  # LAVIS' mean of other families depends on the padding
        recorded.check(calls[0], -scores.flatten())


@pytest.mark.parametrize("name", [name for name, recorded in RECORDED.items()
                                  if "predict_class_per_sample_candidates_listprompt" in recorded.inputs])
def test_where_lavis_fails_on_a_list_of_prompts(name: str) -> None:
    recorded, case = RECORDED[name], "predict_class_per_sample_candidates_listprompt"
    assert "error" in recorded.expected[case]
    model, given = build(recorded, case), recorded.inputs[case]
    samples = recorded.samples(case)
    found = model.predict_class(samples, given["candidates"])
    for row, ranks in enumerate(found):
        alone = {key: value[row:row + 1] for key, value in samples.items()}
        assert model.predict_class(alone, given["candidates"][row])[0].tolist() == ranks.tolist()
