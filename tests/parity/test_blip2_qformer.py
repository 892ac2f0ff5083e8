"""Stage 1 against LAVIS' recorded outputs: losses, gradients, features, matching, generation; one and two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.models.blip2_qformer import Blip2Qformer
from tests.conftest import find_parity
from tests.helpers.processes import run_processes
from tests.parity.blip2_cases import Recorded, build, case_folders, inject, our_name, rounding_apart

TRAINING = ["pretrain_b2", "pretrain_b4", "retrieval_b2_diff_ids", "retrieval_b2_equal_ids", "retrieval_b4_ids_1123"]
LOSSES = ("loss", "loss_itc", "loss_itm", "loss_lm")
FOLDERS = case_folders(find_parity())


@pytest.fixture(params=FOLDERS or [None], ids=lambda folder: folder.name if folder else "none")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    if request.param is None:
        pytest.skip("recorded stage-1 outputs (../shared/parity, or LAVIS_LITE_PARITY) not here")
    return Recorded(request.param)


@pytest.fixture()
def model(recorded: Recorded) -> Blip2Qformer:
    return build(recorded)


def check_gradients(recorded: Recorded, case: str, norms: dict[str, float], grads: dict[str, Tensor],
                    prefix: str = "grad") -> None:
    """Norm of every parameter's gradient, and whole gradients where they were recorded."""
    for name, norm in norms.items():
        found = float(grads[our_name(name)].norm())
        assert abs(found - norm) <= 1e-4 * norm + 1e-6, f"{name}: {found} for {norm}"
    start = f"{case}/{prefix}/"
    keys = [key for key in recorded.tensors if key.startswith(start)]
    for key in keys:
        recorded.check(key, grads[our_name(key.removeprefix(start))])


def check_losses(found: dict[str, float], expected: dict[str, Any]) -> None:
    for name in LOSSES:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def grads_of(model: Blip2Qformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("case", TRAINING)
@rounding_apart
def test_losses_and_gradients(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    expected = recorded.expected[case]
    inject(model, expected)
    output = model(recorded.samples(case))
    check_losses({name: float(value) for name, value in output.losses().items()}, expected)
    check_gradients(recorded, case, expected["grad_norms"], grads_of(model, output.loss))
    for part in ("loss_itc", "loss_itm", "loss_lm"):
        if f"grad_norms_{part}" in expected:
            norms = {name: norm for name, norm in expected[f"grad_norms_{part}"].items() if norm is not None}
            grads = grads_of(model, getattr(output, part))
            zero = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
            check_gradients(recorded, "", norms, zero | grads)


@pytest.mark.parametrize("case", TRAINING)
@rounding_apart
def test_what_lies_between(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    samples = recorded.samples(case)
    inject(model, recorded.expected[case])
    encoded = model.encode(samples)
    contrast = model.contrast(encoded, samples.get("image_id"))
    image_feats, text_feats = model._project(encoded.joint.query, encoded.joint.text_cls)
    logits = model.itm_logits(encoded, contrast, model.draw_negatives(contrast, None))
    match, text_negative, image_negative = logits.chunk(3)
    found = {"query_output": encoded.joint.query, "text_cls": encoded.joint.text_cls, "image_feats": image_feats,
             "text_feat": text_feats, "sim_i2t_over_temp": contrast.sim_i2t, "sim_t2i_over_temp": contrast.sim_t2i,
             "itm_logits": torch.cat([match, image_negative, text_negative]),
             "image_embeds": model.ln_vision(model.encode_image(samples["image"]))}
    for name, value in found.items():
        recorded.check(f"{case}/{name}", value)
    if f"{case}/lm_logits" in recorded.tensors:
        check_lm_logits(recorded, model, case, encoded)


def check_lm_logits(recorded: Recorded, model: Blip2Qformer, case: str, encoded: Any) -> None:
    """Where a token is predicted; LAVIS also computes padding."""
    expected = recorded.tensors[f"{case}/lm_logits"]
    found = model.qformer.logits(encoded.joint.decoder)
    mask = encoded.tokens.mask[:, 1:]
    worst = (found - expected[:, :found.shape[1]])[mask].detach().abs().max()
    assert float(worst) <= recorded.tolerance(f"{case}/lm_logits")


@pytest.mark.parametrize("case", [case for case in TRAINING if case != "retrieval_b2_equal_ids"])
@rounding_apart
def test_weights_of_negatives(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    from lavis_lite.models.objectives import negative_weights

    samples = recorded.samples(case)
    contrast = model.contrast(model.encode(samples), samples.get("image_id"))
    recorded.check(f"{case}/weights_t2i", negative_weights(contrast.sim_t2i, contrast.positives).float())
    recorded.check(f"{case}/weights_i2t", negative_weights(contrast.sim_i2t, contrast.positives).float())


def test_a_pair_without_a_negative_adds_no_term_where_lavis_draws_the_positive(
        recorded: Recorded, model: Blip2Qformer) -> None:
    samples = recorded.samples("retrieval_b2_equal_ids")
    contrast = model.contrast(model.encode(samples), samples["image_id"])
    drawn = model.draw_negatives(contrast, None)
    assert not drawn.image_valid.any() and not drawn.text_valid.any()
    output = model(samples)
    assert float(output.loss_itm.detach()) != pytest.approx(
        recorded.expected["retrieval_b2_equal_ids"]["loss_itm"], rel=1e-3)


@rounding_apart
def test_features(recorded: Recorded, model: Blip2Qformer) -> None:
    samples = recorded.samples("pretrain_b2")
    image, text = model.extract_features(samples, "image"), model.extract_features(samples, "text")
    recorded.check("extract_image/image_embeds", image.image_embeds)
    recorded.check("extract_image/image_embeds_proj", image.image_embeds_proj)
    for name in ("text_embeds", "text_embeds_proj"):
        check_real_tokens(recorded, f"extract_text/{name}", getattr(text, name), model.tokenize(samples["text_input"]))
    multimodal = model.extract_features(samples).multimodal_embeds
    recorded.check("extract_multimodal/multimodal_embeds", multimodal)


def check_real_tokens(recorded: Recorded, key: str, found: Tensor, tokens: Any) -> None:
    worst = (found - recorded.tensors[key])[tokens.mask].abs().max()
    assert found.shape == recorded.tensors[key].shape and float(worst) <= recorded.tolerance(key)


@pytest.mark.parametrize("head", ["itm", "itc"])
@rounding_apart
def test_matching(recorded: Recorded, model: Blip2Qformer, head: str) -> None:
    texts = recorded.inputs["pretrain_b4"]["text_input"]
    for number in range(3):
        samples = {"image": recorded.images[number:number + 1], "text_input": [texts[(number + 1) % 4]]}
        recorded.check(f"match_{head}_{number}/score", model.match(samples, head))


@rounding_apart
def test_compute_itm(recorded: Recorded, model: Blip2Qformer) -> None:
    call = recorded.inputs["compute_itm"]["tokenizer_calls"][0]
    ids, mask = torch.tensor(call["input_ids"]), torch.tensor(call["attention_mask"])
    query, features = model.forward_image(recorded.images)
    recorded.check("compute_itm/forward_image_query", query)
    recorded.check("compute_itm/image_inputs", features)
    recorded.check("compute_itm/forward_text", model.forward_text({"input_ids": ids, "attention_mask": mask}))
    recorded.check("compute_itm/logit", model.compute_itm(features, ids, mask))


def test_greedy_captions(recorded: Recorded, model: Blip2Qformer) -> None:
    given = {"num_beams": 1, "max_length": 10, "min_length": 3}
    assert model.generate({"image": recorded.images[:2]}, **given) == (
        recorded.expected["qformer_generate_beams1"]["captions"])


# two processes ------------------------------------------------------------------------------------------------------
def two_rank_step(folder: Path, case: str) -> dict[str, Any]:
    """One rank's losses, similarities and the mean over ranks of the gradients."""
    recorded, rank = Recorded(folder), distributed.rank()
    given = recorded.expected["world_size_2"][f"rank{rank}"][case]
    model = build(recorded, lm_reduction="per_rank")
    inject(model, given)
    samples = {"image": recorded.images[2 * rank:2 * rank + 2], "text_input": given["text_input"]}
    if given["image_id"] is not None:
        samples["image_id"] = torch.tensor(given["image_id"])
    output = model(samples)
    output.loss.backward()
    contrast = model.contrast(model.encode(samples), samples.get("image_id"))
    grads = {name: distributed.all_reduce_sum(parameter.grad) / 2 for name, parameter in model.named_parameters()
             if parameter.requires_grad}
    return {"losses": {name: float(value) for name, value in output.losses().items()}, "grads": grads,
            "sim_i2t_over_temp": contrast.sim_i2t, "sim_t2i_over_temp": contrast.sim_t2i}


def two_rank_steps(folder: Path) -> dict[str, dict[str, Any]]:
    """Both recorded cases in one group of processes."""
    return {case: two_rank_step(folder, case) for case in ("world_size_2_pretrain", "world_size_2_retrieval")}


def test_two_processes(recorded: Recorded) -> None:
    ranks = run_processes(two_rank_steps, 2, recorded.folder)
    for case in ranks[0]:
        for rank, found in enumerate(ranks):
            check_losses(found[case]["losses"], recorded.expected["world_size_2"][f"rank{rank}"][case])
            for name in ("sim_i2t_over_temp", "sim_t2i_over_temp"):
                recorded.check(f"world_size_2/rank{rank}/{case}/{name}", torch.from_numpy(found[case][name]))
        first = recorded.expected["world_size_2"]["rank0"][case]
        grads = {name: torch.from_numpy(grad) for name, grad in ranks[0][case]["grads"].items()}
        check_gradients(recorded, f"world_size_2/rank0/{case}", first["ddp_mean_grad_norms"], grads, "ddp_mean_grad")
