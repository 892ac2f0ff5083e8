"""What is compared with a recorded case of stage 1, one function per comparison.

A folder of cases needs nothing here: `comparisons_of` finds what its keys can be compared with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.models.blip2 import objectives
from lavis_lite.models.blip2.objectives import negative_weights
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from tests.parity.blip2_cases import Recorded, build, inject, rounding_apart
from tests.parity.lavis_names import our_names
from tests.parity.recordings import Check, Comparison

LOSSES = ("loss", "loss_itc", "loss_itm", "loss_lm")
BETWEEN = ("query_output", "text_cls", "image_feats", "text_feat", "sim_i2t_over_temp", "sim_t2i_over_temp",
           "itm_logits", "image_embeds", "lm_logits")
WEIGHTS = ("weights_t2i", "weights_i2t")


def comparisons_of(recorded: Recorded) -> list[Comparison]:
    """Everything that a folder's keys and cases can be compared in, but for two processes and similarity matrices."""
    found = []
    for case in recorded.training:
        found += [Comparison(case, losses_and_gradients, frozenset(recorded.keys(f"{case}/grad/"))),
                  Comparison(case, what_lies_between, frozenset(recorded.keys(f"{case}/", BETWEEN))),
                  Comparison(case, weights_of_negatives, frozenset(recorded.keys(f"{case}/", WEIGHTS)))]
    for pattern, check in BY_NAME.items():
        cases = {key.partition("/")[0] for key in recorded.tensors} | recorded.expected.keys()
        found += [Comparison(case, check, frozenset(recorded.keys(f"{case}/"))) for case in sorted(cases)
                  if re.fullmatch(pattern, case) and "error" not in recorded.expected.get(case, {})]
    return found


def check_gradients(recorded: Recorded, start: str, norms: dict[str, float], grads: dict[str, Tensor]) -> None:
    """Norm of every parameter's gradient, and whole gradients where they were recorded.

    Args:
        start: of the keys of whole gradients; "": none.
    """
    names = our_names(recorded.folder)
    for name, norm in norms.items():
        found = float(grads[names[name]].norm())
        assert abs(found - norm) <= 1e-4 * norm + 1e-6, f"{name}: {found} for {norm}"
    for key in recorded.keys(start) if start else ():
        recorded.check(key, grads[names[key.removeprefix(start)]].reshape(recorded.tensors[key].shape))


def check_losses(found: dict[str, float], expected: dict[str, Any]) -> None:
    """Of ITC, ITM and ITG, and their sum."""
    for name in LOSSES:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def grads_of(model: Blip2Qformer, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of every parameter that has one."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# training -------------------------------------------------------------------------------------------------------------
@rounding_apart
def losses_and_gradients(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    """Every loss, the norm of every gradient of each, and whole gradients of their sum."""
    expected = recorded.expected[case]
    inject(model, expected)
    output = model(recorded.samples(case))
    check_losses({name: float(value) for name, value in output.losses().items()}, expected)
    check_gradients(recorded, f"{case}/grad/", expected.get("grad_norms", {}), grads_of(model, output.loss))
    for part in LOSSES[1:]:
        if f"grad_norms_{part}" in expected:
            norms = {name: norm for name, norm in expected[f"grad_norms_{part}"].items() if norm is not None}
            grads = grads_of(model, getattr(output, part))
            zero = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
            check_gradients(recorded, "", norms, zero | grads)


@rounding_apart
def what_lies_between(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    """Features, similarities and logits."""
    inject(model, recorded.expected[case])
    found = between(model, recorded.samples(case))
    for key in recorded.keys(f"{case}/", BETWEEN):
        name = key.rpartition("/")[2]
        if name == "lm_logits":  # where a token is predicted; LAVIS also computes padding
            width, mask = found[name].shape[1], found["text_mask"]
            recorded.check(key, found[name][mask], lambda whole: whole[:, :width][mask])  # noqa: B023 - called at once
        else:
            recorded.check(key, found[name])


def between(model: Blip2Qformer, samples: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a training step under LAVIS' names."""
    encoded = model.encode(samples)
    contrast = model.contrast(encoded, samples.get("image_id"))
    image_feats = objectives.common_space(encoded.hidden.query, model.vision_proj)
    text_feats = objectives.common_space(encoded.hidden.text_cls, model.text_proj)
    logits = model.itm_logits(encoded, contrast, model.draw_negatives(contrast, None))
    match, text_negative, image_negative = logits.chunk(3)
    mask = encoded.tokens.mask[:, 1:]
    return {"query_output": encoded.hidden.query, "text_cls": encoded.hidden.text_cls, "image_feats": image_feats,
            "text_feat": text_feats, "sim_i2t_over_temp": contrast.sim_i2t, "sim_t2i_over_temp": contrast.sim_t2i,
            "itm_logits": torch.cat([match, image_negative, text_negative]),
            "image_embeds": model.ln_vision(model.encode_image(samples["image"])),
            "lm_logits": padded(model.qformer.logits(encoded.hidden.decoder), mask), "text_mask": mask}


def padded(packed: Tensor, mask: Tensor) -> Tensor:
    """float[T,V] of the real tokens of bool[B,L] -> float[B,L,V] with zeros for the others."""
    return packed.new_zeros(*mask.shape, packed.shape[-1]).masked_scatter(mask[..., None], packed)


@rounding_apart
def weights_of_negatives(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    """The chances of the hard negatives.

    LAVIS masks positives by one large number, so that a row of positives alone draws among them with equal chances;
    here such a row has no negative, and no weights.
    """
    samples = recorded.samples(case)
    contrast = model.contrast(model.encode(samples), samples.get("image_id"))
    for name in WEIGHTS:
        key, similar = f"{case}/{name}", getattr(contrast, f"sim_{name.removeprefix('weights_')}")
        if key in recorded.tensors:
            recorded.check(key, lavis_weights(similar, contrast.positives))


def lavis_weights(similar: Tensor, positives: Tensor) -> Tensor:
    """Ours, and LAVIS' equal chances in rows of positives alone."""
    found = negative_weights(similar, positives).float()
    return torch.where(positives.all(1, keepdim=True), torch.full_like(found, 1 / found.shape[1]), found)


# use ------------------------------------------------------------------------------------------------------------------
@rounding_apart
def features(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    """extract_features of images, of texts, of both."""
    keys = recorded.keys(f"{case}/")
    texts = recorded.texts(case) if recorded.inputs[case].get("tokenizer_calls") else []
    samples = {"image": recorded.images[:len(recorded.tensors[min(keys)])], "text_input": texts}
    found = model.extract_features(samples, case.removeprefix("extract_"))  # type: ignore[arg-type]
    for key in keys:
        name = key.rpartition("/")[2]
        real = model.tokenize(texts).mask if name.startswith("text_") else slice(None)
        assert getattr(found, name).shape == recorded.tensors[key].shape
        recorded.check(key, getattr(found, name)[real], lambda whole: whole[real])  # noqa: B023 - called at once


@rounding_apart
def matching(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    """One image with one text."""
    head, at = case.split("_")[1], recorded.inputs[case]["image_index"]
    samples = {"image": recorded.images[at:at + 1], "text_input": recorded.texts(case)}
    recorded.check(f"{case}/score", model.match(samples, head))  # type: ignore[arg-type]


@rounding_apart
def itm_by_parts(recorded: Recorded, model: Blip2Qformer, case: str) -> None:
    """compute_itm, forward_image and forward_text."""
    call = recorded.inputs[case]["tokenizer_calls"][0]
    ids, mask = torch.tensor(call["input_ids"]), torch.tensor(call["attention_mask"])
    query, inputs = model.forward_image(recorded.images[:len(ids)])
    computed: dict[str, Callable[[], Tensor]] = {
        "forward_image_query": lambda: query, "image_inputs": lambda: inputs, "forward_image_vit": lambda: inputs,
        "forward_text": lambda: model.forward_text({"input_ids": ids, "attention_mask": mask}),
        "logit": lambda: model.compute_itm(inputs, ids, mask)}
    for key in recorded.keys(f"{case}/", computed):
        recorded.check(key, computed[key.rpartition("/")[2]]())


def greedy_captions(recorded: Recorded, case: str) -> None:
    """What stage 1 writes."""
    given = recorded.cases[case]["call"]
    count = int(re.findall(r"\[:(\d+)\]", recorded.cases[case]["images"])[0])
    model = build(recorded)
    assert model.generate({"image": recorded.images[:count]}, **given) == recorded.expected[case]["captions"]


BY_NAME: dict[str, Check] = {
    "extract_(image|text|multimodal)": features,
    r"match_(itm|itc)_\d+": matching,
    "compute_itm": itm_by_parts,
    r"qformer_generate_beams\d+": greedy_captions,
}
"""pattern of a case's name -> how it is compared"""
