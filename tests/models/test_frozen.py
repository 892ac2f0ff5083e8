"""What "frozen" means, as a table: for the vision encoder, the language model, and what is between them."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lavis_lite.checkpoints import load_state
from lavis_lite.datasets.annotations.rows import collector_paused
from lavis_lite.models.base import BaseModel, freeze
from lavis_lite.models.blip2.llm import OPT, T5, Blip2LLM
from lavis_lite.models.vision.encoder import VisionEncoder
from tests.models.language.tiny import tiny
from tests.models.stage1_helpers import tiny_batch, tiny_model
from tests.models.test_blip2_llm import CAPTIONS, model_of

VIT = {"depth": 2, "width": 16, "heads": 2, "patch_size": 4, "mlp_ratio": 2.0}


def encoder(precision: str = "fp32") -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder("eva_clip_g", image_size=8, precision=precision, frozen=True, **VIT)  # type: ignore[arg-type]


def whole(name: str = "opt") -> Blip2LLM:
    """A model whose vision encoder is real, and keeps 16-bit weights as the language model does."""
    model = model_of(name, OPT if name == "opt" else T5)
    vision = encoder("bf16")
    model.vision_encoder = nn.Sequential(vision, freeze(nn.Linear(16, model.qformer.cfg.vision_width)))
    model.language_model = tiny(name, precision="bf16")
    return model.train()


def images() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def frozen_parts(model: Blip2LLM) -> dict[str, nn.Module]:
    return {"vision encoder": model.vision_encoder[0], "language model": model.language_model.model}


PARTS = ["vision encoder", "language model"]


@pytest.fixture(scope="module", params=["opt", "t5"])
def trained(request: pytest.FixtureRequest) -> Blip2LLM:
    """After one step of training, under autocast."""
    model = whole(request.param)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model({"image": images(), "text_input": CAPTIONS, "text_output": ["x", "y", "z z"]}).loss
    loss.backward()
    return model


@pytest.mark.parametrize("part", PARTS)
def test_no_weight_has_autograd_state(trained: Blip2LLM, part: str) -> None:
    parameters = list(frozen_parts(trained)[part].parameters())
    assert parameters and not any(value.requires_grad or value.grad is not None for value in parameters)


def test_gradients_flow_through_to_the_soft_prompt_and_on(trained: Blip2LLM) -> None:
    for name, value in trained.named_parameters():
        if value.requires_grad:
            assert value.grad is not None and torch.isfinite(value.grad).all(), name
    projection = trained.language_projection.weight.grad
    assert projection is not None and float(projection.abs().max()) > 0
    assert trained.query_tokens.grad is not None and float(trained.query_tokens.grad.abs().max()) > 0


@pytest.mark.parametrize("part", PARTS)
def test_eval_mode_survives_train(trained: Blip2LLM, part: str) -> None:
    trained.eval().train()
    assert trained.qformer.training
    assert not any(module.training for module in frozen_parts(trained)[part].modules())


@pytest.mark.parametrize("part", PARTS)
def test_its_own_type_stays(trained: Blip2LLM, part: str) -> None:
    def types() -> set[torch.dtype]:
        return {value.dtype for value in frozen_parts(trained)[part].parameters()}

    assert types() == {torch.bfloat16}
    trained.to("cpu")
    assert types() == {torch.bfloat16}
    assert trained.qformer.embeddings.norm.weight.dtype == torch.float32


def test_to_another_type_leaves_the_language_model_alone() -> None:
    model = tiny("opt", precision="bf16")
    assert {value.dtype for value in model.to(torch.float64).parameters()} == {torch.bfloat16}
    assert {value.device.type for value in model.to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("amp", [False, True])
def test_autocast_around_changes_nothing_inside(amp: bool) -> None:
    """The same soft prompt gives the same loss, bit for bit, and the same picture the same features."""
    model, vision = tiny("opt"), encoder()
    soft = torch.randn(2, 3, model.hidden_size, generator=torch.Generator().manual_seed(0))
    plain, features = model.loss(soft, ["a", "b"], ["c", "d"]), vision(images())
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        assert torch.equal(model.loss(soft, ["a", "b"], ["c", "d"]), plain)
        assert torch.equal(vision(images()), features)


def test_it_is_in_no_checkpoint_and_may_be_absent_when_one_is_read(trained: Blip2LLM) -> None:
    kept = {name: value.clone() for name, value in trained.trainable_state().items()}
    assert {name.split(".")[0] for name in kept} == {"query_tokens", "ln_vision", "qformer", "language_projection"}
    report = load_state(trained, kept, "checkpoint")
    assert {name.split(".")[0] for name in report.frozen_missing} == {"vision_encoder", "language_model"}


class Mixed(BaseModel):
    """A frozen part that has a buffer and, later, something inside that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.part = freeze(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
        self.free = nn.BatchNorm1d(2)

    @classmethod
    def from_config(cls, cfg: Any) -> Mixed:
        return cls()


def test_buffers_of_a_frozen_part_stay_out_though_something_in_it_trains() -> None:
    model = Mixed()
    free = {"free.weight", "free.bias", "free.running_mean", "free.running_var", "free.num_batches_tracked"}
    assert set(model.trainable_state()) == free
    model.part[1].weight.requires_grad_(True)  # type: ignore[index, union-attr]
    assert set(model.trainable_state()) == free | {"part.1.weight"}
    load_state(model, model.trainable_state(), "checkpoint")


# seen before its turn -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["opt", "stage 1"])
def test_images_that_were_encoded_ahead_give_the_same_loss(name: str) -> None:
    model = whole() if name == "opt" else tiny_model()
    samples = tiny_batch() if name == "stage 1" else {"image": images(), "text_input": CAPTIONS[:3]}
    state = torch.get_rng_state()
    ahead = model.encode_ahead(samples["image"])
    assert ahead.ndim == 3 and not ahead.requires_grad and torch.equal(torch.get_rng_state(), state)
    losses = []
    for image in (samples["image"], ahead):
        torch.manual_seed(0)
        losses.append(model({**samples, "image": image}).loss)
    assert torch.equal(*losses)


def test_videos_and_what_an_encoder_learns_from_stay() -> None:
    video, none, images_ = torch.randn(2, 3, 2, 4, 4), torch.empty(0, 3, 4, 4), tiny_batch()["image"]
    model = tiny_model()
    assert model.encode_ahead(video) is video and model.encode_ahead(none) is none
    assert tiny_model(freeze_vit=False).encode_ahead(images_) is images_
    assert BaseModel().encode_ahead(images_) is images_


def test_a_model_is_freed_when_nobody_has_it() -> None:
    model = copy.deepcopy(whole())
    parts = [weakref.ref(part) for part in (model, model.vision_encoder[0], model.language_model)]
    again = pickle.loads(pickle.dumps(model.vision_encoder[0]))
    assert again.train() is again and not again.training and model.vision_encoder[0].train() is model.vision_encoder[0]
    with collector_paused():
        del model
        assert [part() for part in parts] == [None, None, None]
