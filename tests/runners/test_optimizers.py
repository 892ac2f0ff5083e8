"""Optimizers by name: what they are given, what is refused, and the groups that come from the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import RunConfig
from lavis_lite.config.typed import check_optimizer
from lavis_lite.errors import CheckpointError, ConfigError, ContractError, MissingExtraError, RegistryError
from lavis_lite.registry import registry
from lavis_lite.runners import optim
from tests.helpers.toy import Toy, ToyModel, same, weights


def built(**run: Any) -> torch.optim.Optimizer:
    return optim.build_optimizer(ToyModel(), RunConfig(**run))


def faults(**run: Any) -> list[str]:
    found: list[str] = []
    check_optimizer(RunConfig(**run), lambda key, message: found.append(f"{key}: {message}"))
    return found


# names --------------------------------------------------------------------------------------------------------------
def test_adamw_is_the_default_and_fused() -> None:
    optimizer = built(beta2=0.95)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["betas"] == (0.9, 0.95)
    assert all(group["fused"] for group in optimizer.param_groups)
    assert not built(optimizer_args={"foreach": True}).param_groups[0]["fused"]


@pytest.mark.parametrize(("name", "cls"), [("sgd", torch.optim.SGD), ("NAdam", torch.optim.NAdam),
                                           ("RMSPROP", torch.optim.RMSprop), ("asgd", torch.optim.ASGD)])
def test_every_class_of_torch_is_there_in_any_case(name: str, cls: type) -> None:
    optimizer = built(optimizer=name, init_lr=0.02, beta1=0.8)
    assert type(optimizer) is cls and {group["lr"] for group in optimizer.param_groups} == {0.02}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.defaults.get("betas", (0.8, 0.999)) == (0.8, 0.999)


def test_an_optimizer_that_is_not_listed_is_found_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    new = type("Shampoo", (torch.optim.SGD,), {})
    monkeypatch.setattr(torch.optim, "Shampoo", new, raising=False)
    assert registry.get_optimizer_class("shampoo") is new
    with pytest.raises(RegistryError, match="unknown optimizer 'adamv': did you mean 'adam'"):
        registry.get_optimizer_class("adamv")
    with pytest.raises(RegistryError, match="unknown optimizer 'optimizer'"):
        registry.get_optimizer_class("optimizer")


def test_an_optimizer_of_ones_own_is_a_registered_class(tmp_path: Path) -> None:
    @registry.register_optimizer("my_sign")
    class SignDescent(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float = 0.1, scale: float = 1.0) -> None:
            super().__init__(params, {"lr": lr, "scale": scale})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter -= group["lr"] * group["scale"] * parameter.grad.sign()

    run = {"optimizer": "my_sign", "optimizer_args": {"scale": 2.0}, "max_iters": 1, "lr_sched": "constant_lr"}
    assert faults(**{key: run[key] for key in ("optimizer", "optimizer_args")}) == []
    runner = Toy(tmp_path, run).build()
    before = runner.model.out.weight.detach().clone()  # type: ignore[union-attr,operator]
    runner.train()
    moved = (runner.model.out.weight.detach() - before).abs()  # type: ignore[union-attr]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.02))
    registry.optimizer._classes.pop("my_sign")


def test_an_optimizer_that_needs_a_closure_is_refused_before_the_run() -> None:
    class Needy(torch.optim.SGD):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            return closure()

    registry.register_optimizer("needy")(Needy)
    try:
        assert ["Needy.step needs 'closure'" in fault for fault in faults(optimizer="needy")] == [True]
    finally:
        registry.optimizer._classes.pop("needy")


def test_an_optimizer_without_a_learning_rate_is_refused(tmp_path: Path) -> None:
    """A schedule sets `lr` of every group, which such an optimizer never reads."""
    class FixedSteps(torch.optim.SGD):
        def __init__(self, params: Any, rate: float = 0.1) -> None:
            torch.optim.Optimizer.__init__(self, params, {"rate": rate})

    registry.register_optimizer("fixed_steps")(FixedSteps)
    try:
        with pytest.raises(ConfigError, match="fixed_steps has no learning rate.*run.lr_sched would have no effect"):
            Toy(tmp_path, {"optimizer": "fixed_steps", "max_iters": 1}).build().train()
    finally:
        registry.optimizer._classes.pop("fixed_steps")


# arguments ----------------------------------------------------------------------------------------------------------
def test_arguments_are_checked_by_the_signature() -> None:
    assert faults() == faults(optimizer="sgd", optimizer_args={"momentum": 0.9, "nesterov": True}) == []
    assert faults(optimizer="sgd", optimizer_args={"momentun": 0.9}) == [
        "run.optimizer_args.momentun: SGD has no such parameter; did you mean 'momentum'?"]
    assert faults(optimizer="sgd", optimizer_args={"momentum": "high"}) == [
        "run.optimizer_args.momentum: must be a number, not 'high'."]
    assert faults(optimizer_args={"lr": 1.0}) == ["run.optimizer_args.lr: set run.init_lr instead."]
    assert faults(optimizer="adamv")[0].startswith("run.optimizer: unknown optimizer 'adamv'")
    assert faults(optimizer="rprop") == ["run.weight_decay: rprop has no weight decay; set run.weight_decay=0."]
    assert faults(optimizer="rprop", weight_decay=0.0) == []
    assert "LBFGS calls the model several times per step" in faults(optimizer="lbfgs")[0]
    assert faults(optimizer="muon", optimizer_args={"ns_steps": 3}) == faults(optimizer="adamw8bit") == []


def test_values_that_the_optimizer_refuses_are_an_error_in_words() -> None:
    with pytest.raises(ConfigError, match="run.optimizer_args: sgd refuses its arguments: Invalid momentum"):
        built(optimizer="sgd", optimizer_args={"momentum": -1.0})


def test_lists_become_the_pairs_that_torch_wants() -> None:
    assert built(optimizer_args={"betas": [0.5, 0.6]}).defaults["betas"] == (0.5, 0.6)


# Muon and 8 bits ----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    optimizer = built(optimizer="muon", lr_layer_decay=0.5, optimizer_args={"adamw_names": ["out"]})
    muon, adamw = optimizer.parts  # type: ignore[attr-defined]
    assert [name for group in muon.param_groups for name in group["names"]] == ["hidden.0.weight"]
    assert sorted(name for group in adamw.param_groups for name in group["names"]) == [
        "hidden.0.bias", "out.bias", "out.weight", "scale", "tokens"]
    optim.set_lr(optimizer, 0.4)
    assert muon.param_groups[0]["lr"] == 0.1 and muon.param_groups[0]["weight_decay"] == 0.05
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = optim.optimizer_state(optimizer)
    assert set(kept["hidden.0.weight"]) == {"momentum_buffer"} and set(kept["out.bias"]) >= {"exp_avg", "exp_avg_sq"}


def test_a_torch_without_muon_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match="has no Muon, which came with torch 2.9"):
        built(optimizer="muon")


def test_adamw8bit_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(MissingExtraError, match=r"lavis_lite\[quant\]"):
        built(optimizer="adamw8bit")


def test_adamw8bit_keeps_bytes() -> None:
    pytest.importorskip("bitsandbytes")
    optimizer = built(optimizer="adamw8bit", optimizer_args={"min_8bit_size": 32})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = optim.optimizer_state(optimizer)
    assert kept["hidden.0.weight"]["state1"].dtype == torch.uint8
    assert kept["out.bias"]["state1"].dtype == torch.float32


# groups of the model ------------------------------------------------------------------------------------------------
class Grouped(ToyModel):
    """Its output layer learns at a tenth of the rate, without decay; the rest has what the run says."""

    lost: str = ""

    def optimizer_groups(self, run: RunConfig) -> Any:
        named = {name: value for name, value in self.named_parameters() if value.requires_grad and name != self.lost}
        out = [name for name in named if name.startswith("out.")]
        rest = [name for name in named if name not in out]
        return [{"names": out, "params": [named[name] for name in out], "lr_scale": 0.1, "weight_decay": 0.0},
                {"names": rest, "params": [named[name] for name in rest]}]


def test_groups_come_from_the_model() -> None:
    optimizer = optim.build_optimizer(Grouped(), RunConfig(weight_decay=0.3))
    optim.set_lr(optimizer, 1.0)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.0), (1.0, 0.3)]


@pytest.mark.parametrize("lost", ["scale", "out.bias"])
def test_groups_that_lack_a_parameter_are_refused(lost: str) -> None:
    model = Grouped()
    model.lost = lost
    with pytest.raises(ContractError, match=f"must have every trainable parameter exactly once.*{lost}"):
        optim.build_optimizer(model, RunConfig())


# resuming -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adafactor"])
def test_a_run_is_resumed_bit_for_bit(tmp_path: Path, name: str) -> None:
    toy = Toy(tmp_path, {"max_iters": 6, "save_every": 3, "optimizer": name,
                         "optimizer_args": {"momentum": 0.9} if name == "sgd" else {}})
    whole, resumed = toy.build(), toy.build()
    whole.train()
    resumed.resume(tmp_path / "checkpoints/step_00000003")
    resumed.train()
    assert same(weights(whole), weights(resumed))


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    Toy(tmp_path, {"max_iters": 2}).build().train()
    other = Toy(tmp_path, {"max_iters": 2, "optimizer": "sgd"}).build()
    with pytest.raises(CheckpointError, match="has the state of run.optimizer=adamw, and this run has sgd"):
        other.resume(tmp_path / "checkpoints/step_00000002")


def test_a_state_of_before_optimizers_had_names_is_adamws(tmp_path: Path) -> None:
    runner = Toy(tmp_path, {"max_iters": 2}).build()
    runner.train()
    state = runner.train_state.train_step.state()
    assert state.pop("optimizer_name") == "adamw"
    twin = Toy(tmp_path / "twin").build().train_state.train_step
    twin.load_state(state)
    assert torch.equal(twin.state()["optimizer"]["tokens"]["exp_avg"], state["optimizer"]["tokens"]["exp_avg"])
