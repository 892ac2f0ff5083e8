"""A frozen language model shared out among two gloo processes does what a whole one on each does."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.config.typed import sharding_error
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.language.build import recompute_blocks
from lavis_lite.models.language.families import Lora
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.runners.sharding import shard_frozen, sharded_names
from lavis_lite.tracking.tracker import read
from tests.helpers.processes import run_processes
from tests.helpers.toy import WIDTH, Toy, weights
from tests.models.language.tiny import tiny
from tests.models.test_stage2_twins import exact_norms

RUN = {"max_iters": 4, "save_every": 2, "batch_size_train": 2, "accum_grad_iters": 2, "max_grad_norm": 1.0}
HAS_PEFT = importlib.util.find_spec("peft") is not None
NAMES = ["opt", "t5"]


class Captioner(BaseModel):
    """A picture of six numbers -> three soft-prompt vectors -> a frozen language model; all in float64.

    Shards change the order of a few sums (T5). In float64 that stays below what the tests allow on every machine.
    """

    family, lora, recompute = "opt", False, False

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.language_model = tiny(self.family)
        if self.lora:
            from lavis_lite.models.language.adapters import add_adapters

            add_adapters(self.language_model, Lora(r=2, dropout=0.1))
        if self.recompute:
            recompute_blocks(self.language_model.model)
        self.language_model.model.double()
        exact_norms(self.language_model)
        torch.manual_seed(3)
        self.projection = nn.Linear(WIDTH, 3 * self.language_model.hidden_size).double()

    @classmethod
    def from_config(cls, cfg: Any) -> Captioner:
        return cls()

    def forward(self, samples: dict[str, Any]) -> ModelOutput:
        soft = self.projection(samples["image"].double()).unflatten(1, (3, -1))
        texts = ["x" * (1 + int(index) % 3) for index in samples["index"]]
        return ModelOutput(self.language_model.loss(soft, ["what?"] * len(texts), texts))


def train(folder: str, resume: str | None = None, fsdp: str = "llm", **traits: Any) -> dict[str, Any]:
    toy = Toy(Path(folder), {**RUN, "fsdp": fsdp}, model_class=type("Kind", (Captioner,), traits))
    runner = toy.build()
    if resume:
        runner.resume(Path(resume))
    first = keep_first_gradients(runner)
    runner.train()
    inner = list(runner.model.blocks_to_shard())
    held = sum((value.to_local() if isinstance(value, DTensor) else value).numel()
               for block in inner for value in block.parameters() if not value.requires_grad)
    whole = sum(value.numel() for block in inner for value in block.parameters() if not value.requires_grad)
    trained = {name: value for name, value in weights(runner).items() if not name.startswith("language_model.")
               or ".lora_" in name}
    return {"trained": trained, "held": held, "whole": whole, "sharded": len(sharded_names(runner.model)),
            "first": first}


def keep_first_gradients(runner: Any) -> dict[str, Any]:
    """Filled with the gradients of the first step that the runner takes; later ones follow the optimizer's rounding."""
    found: dict[str, Any] = {}
    stepper, take = runner.train_state.train_step, runner.train_state.train_step.run

    def run(*args: Any) -> Any:
        result = take(*args)
        if not found:
            found.update({name: value.grad.clone() for name, value in runner.model.named_parameters()
                          if value.grad is not None})
        return result

    stepper.run = run
    return found


def scenarios(folder: str) -> dict[str, Any]:
    """Several runs in one group of processes, because starting processes is what costs time."""
    found: dict[str, Any] = {}
    for name in NAMES:
        for fsdp in ("none", "llm"):
            found[f"{name} {fsdp}"] = train(f"{folder}/{name}_{fsdp}", fsdp=fsdp, family=name)
    found["resumed"] = train(f"{folder}/opt_llm", f"{folder}/opt_llm/checkpoints/step_00000002")
    found["recomputed"] = train(f"{folder}/recomputed", recompute=True)
    for fsdp in ("none", "llm") if HAS_PEFT else ():
        found[f"lora {fsdp}"] = train(f"{folder}/lora_{fsdp}", fsdp=fsdp, lora=True, recompute=fsdp == "llm")
    if HAS_PEFT:
        found["lora resumed"] = train(f"{folder}/lora_llm", f"{folder}/lora_llm/checkpoints/step_00000002", lora=True)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharding")
    first, second = run_processes(scenarios, 2, str(folder))
    return folder, first, second


def close(one: dict[str, Any], other: dict[str, Any], exact: bool) -> bool:
    assert one.keys() == other.keys() and one
    pairs = [(torch.as_tensor(value), torch.as_tensor(other[name])) for name, value in one.items()]
    return all(torch.equal(*pair) if exact else torch.allclose(*pair, rtol=1e-9, atol=1e-12) for pair in pairs)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoints/step_00000004/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", [*NAMES, pytest.param("lora", marks=pytest.mark.skipif(
    not HAS_PEFT, reason="peft (extra lora) is not installed"))])
def test_losses_gradients_and_weights_are_those_of_whole_models(two: Any, name: str) -> None:
    folder, first, second = two
    whole, shared = first[f"{name} none"], first[f"{name} llm"]
    assert close(shared["trained"], second[f"{name} llm"]["trained"], exact=True), "equal on all ranks"
    # sums over a decoder's blocks come in another order (T5); else the arithmetic is the same
    assert close(shared["first"], whole["first"], exact=name != "t5")
    if name != "t5":
        assert close(shared["trained"], whole["trained"], exact=True)
    ours, theirs = (read(folder / f"{name}_{fsdp}/log.jsonl") for fsdp in ("llm", "none"))
    assert len(ours) == len(theirs) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    if name != "t5":
        assert digest(folder / f"{name}_llm") == digest(folder / f"{name}_none")


@pytest.mark.parametrize("name", NAMES)
def test_each_rank_holds_half_of_the_frozen_blocks(two: Any, name: str) -> None:
    shared, whole = two[1][f"{name} llm"], two[1][f"{name} none"]
    assert whole["sharded"] == 0 and whole["held"] == whole["whole"] == shared["whole"]
    assert shared["sharded"] > 0
    assert shared["held"] + two[2][f"{name} llm"]["held"] == whole["whole"]
    assert abs(shared["held"] / whole["whole"] - 0.5) < 0.02


def test_a_resumed_run_is_exact(two: Any) -> None:
    assert close(two[1]["resumed"]["trained"], two[1]["opt llm"]["trained"], exact=True)
    if HAS_PEFT:
        assert close(two[1]["lora resumed"]["trained"], two[1]["lora llm"]["trained"], exact=True)


def test_recomputed_blocks_borrow_again(two: Any) -> None:
    assert close(two[1]["recomputed"]["trained"], two[1]["opt llm"]["trained"], exact=True)


# refusals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [{"evaluate": True}, {"valid_splits": ["val"]}, {"test_splits": ["test"]}])
def test_a_shared_model_does_not_answer(change: dict[str, Any], tmp_path: Path) -> None:
    assert sharding_error(RunConfig(**change)) is None
    assert "train but not generate" in str(sharding_error(RunConfig(fsdp="llm", **change)))
    with pytest.raises(ConfigError, match=r"run.fsdp: .*llm_device_map=auto"):
        shard_frozen(Captioner(), RunConfig(fsdp="llm", **change), torch.device("cpu"))


def test_one_process_shares_with_nobody_and_a_model_needs_a_language_model(tmp_path: Path) -> None:
    model, run = Captioner(), RunConfig(fsdp="llm")
    assert distributed.world_size() == 1
    shard_frozen(model, run, torch.device("cpu"))
    assert sharded_names(model) == []
    with pytest.raises(ConfigError, match="ToyModel has no frozen transformer blocks"):
        Toy(tmp_path, {"fsdp": "llm"}).build()
