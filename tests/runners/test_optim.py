"""Parameter groups: who decays, whose rate is scaled."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.models.base import decays, freeze
from lavis_lite.runners import optim
from tests.helpers.toy import ToyModel


def test_groups_leave_out_frozen_and_do_not_decay_biases_and_vectors():
    decaying, free = ToyModel().optimizer_groups(RunConfig(weight_decay=0.05))
    assert decaying["names"] == ["scale", "tokens", "hidden.0.weight", "out.weight"]  # 0-dim and 3-dim ones too
    assert free["names"] == ["hidden.0.bias", "out.bias"]
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.05, 0.0)


@pytest.mark.parametrize("recorded", ["lr_scale_1", "lr_scale_0.9"])
def test_rule_gives_the_groups_that_lavis_was_seen_to_make(shared_dir, recorded):
    groups = json.loads((shared_dir / "parity/blip2_qformer/expected.json").read_text())["optimizer_params"][recorded]
    shapes = _shapes(shared_dir / "parity/blip2_qformer")
    for group in groups:
        for name in group["params"]:
            assert decays(name, nn.Parameter(torch.empty(shapes[name]))) == (group["weight_decay"] > 0), name


def _shapes(folder):
    from safetensors import safe_open

    shapes = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}
    return shapes


def test_layer_decay_really_scales_the_rate_of_every_step():
    model = ToyModel()
    optimizer = optim.build_optimizer(model, RunConfig(lr_layer_decay=0.5, beta1=0.8, beta2=0.95))
    optim.set_lr(optimizer, 0.1)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["hidden.0.weight"] == rates["hidden.0.bias"] == pytest.approx(0.025)
    assert rates["out.weight"] == rates["tokens"] == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()  # Adam's first step moves every weight by its rate
    moved = {name: float((before[name] - parameter.detach()).abs().max())
             for name, parameter in model.named_parameters()}
    assert moved["hidden.0.bias"] == pytest.approx(0.025, rel=1e-4)
    assert moved["out.bias"] == pytest.approx(0.1, rel=1e-4)
    assert moved["frozen.weight"] == 0


def test_nothing_to_train_is_an_error():
    model = ToyModel()
    freeze(model)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        optim.build_optimizer(model, RunConfig())


def test_optimizer_state_travels_by_name_and_refuses_other_parameters():
    model, twin = ToyModel(), ToyModel()
    optimizer, other = (optim.build_optimizer(one, RunConfig()) for one in (model, twin))
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    state = optim.optimizer_state(optimizer)
    optim.load_optimizer_state(other, state)
    assert torch.equal(optim.optimizer_state(other)["tokens"]["exp_avg"], state["tokens"]["exp_avg"])
    assert int(optim.optimizer_state(other)["scale"]["step"]) == 1
    freeze(twin.out)
    with pytest.raises(CheckpointError, match="out.bias"):
        optim.load_optimizer_state(optim.build_optimizer(twin, RunConfig()), state)


def test_a_parameter_without_a_gradient_so_far_resumes_without_a_state():
    model, other = ToyModel(), ToyModel()
    optimizer, resumed = (optim.build_optimizer(one, RunConfig()) for one in (model, other))
    model.tokens.sum().backward()
    optimizer.step()
    state = optim.optimizer_state(optimizer)
    assert state["scale"] == {} and state["tokens"]
    optim.load_optimizer_state(resumed, state)
    assert not resumed.state.get(other.scale) and int(resumed.state[other.tokens]["step"]) == 1
