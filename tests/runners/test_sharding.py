"""Blocks shared among two gloo processes, frozen or trained, do what whole ones on each do."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.device import Precision
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.decoding import Decoding
from lavis_lite.models.language.build import recompute_blocks
from lavis_lite.models.language.families import Lora
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.runners.optim import build_optimizer
from lavis_lite.runners.placement import (
    Blocks,
    check,
    move_to_device,
    sharded_names,
    shared_blocks,
    whole_blocks,
)
from lavis_lite.tasks.base import Row
from lavis_lite.tracking.tracker import read
from tests.helpers.processes import run_processes
from tests.helpers.toy import WIDTH, Toy, ToyTask
from tests.models.language.tiny import tiny
from tests.models.test_stage2_twins import exact_norms

RUN = {"max_iters": 4, "save_every": 2, "batch_size_train": 2, "accum_grad_iters": 2, "max_grad_norm": 1.0}
PLAIN = {"max_iters": 2, "accum_grad_iters": 1, "max_grad_norm": None}
EVERYTHING = {"test_splits": ["test"], "valid_splits": ["val"], "val_freq": 1, "iters_per_inner_epoch": 2,
              "hooks": {"ema": {"evaluate": True}}}
"""validation and tests of averages, clipping and accumulation"""
HAS_PEFT = importlib.util.find_spec("peft") is not None
NAMES = ["opt", "t5"]


class Captioner(BaseModel):
    """A picture of six numbers -> three soft-prompt vectors -> a frozen language model; all in float64.

    Shards change the order of a few sums (T5). In float64 that stays below what the tests allow on every machine.
    """

    family, lora, recompute, full, vision = "opt", False, False, False, ""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.language_model = tiny(self.family)
        self.language_model.most_padding = 1.0  # blocks that ranks share run once a step, whole ones here too
        if self.lora:
            from lavis_lite.models.language.adapters import add_adapters

            add_adapters(self.language_model, Lora(r=2, dropout=0.1))
        if self.recompute:
            recompute_blocks(self.language_model.model)
        if self.full:
            self.language_model.unfreeze()
        self.language_model.model.double()
        exact_norms(self.language_model)
        torch.manual_seed(3)
        self.projection = nn.Linear(WIDTH, 3 * self.language_model.hidden_size).double()
        if self.vision:
            self.vision_encoder = Encoder().double()
            self.vision_encoder.blocks[:2 if self.vision == "frozen" else 1].requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: Any) -> Captioner:
        return cls()

    def soft_prompt(self, image: torch.Tensor) -> torch.Tensor:
        image = image.double()
        if self.vision:
            image = self.vision_encoder(image)
        return self.projection(image).unflatten(1, (3, -1))

    def forward(self, samples: dict[str, Any]) -> ModelOutput:
        texts = ["x" * (1 + int(index) % 3) for index in samples["index"]]
        return ModelOutput(self.language_model.loss(self.soft_prompt(samples["image"]), ["what?"] * len(texts), texts))


class Encoder(nn.Module):
    """Two layers that stand for the blocks of a vision encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2)))

    def blocks_to_shard(self, device: torch.device) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.blocks(image)


class Writing(ToyTask):
    """Scores answers by their length; ranks get unequal numbers of batches, and answers have unequal lengths."""

    def predict(self, model: Any, samples: dict[str, Any]) -> list[Row]:
        soft, count = model.soft_prompt(samples["image"]), len(samples["index"])
        texts = model.language_model.generate(soft, ["?"] * count, Decoding(max_new_tokens=2 + count))
        return [{"id": int(index), "text": text, "error": float(len(text))}
                for index, text in zip(samples["index"], texts, strict=True)]

    def predictions(self, rows: list[Row], dataset: Any) -> list[Row]:
        return rows


def train(folder: str, resume: str | None = None, fsdp: str = "llm", run: dict[str, Any] | None = None,
          **traits: Any) -> dict[str, Any]:
    toy = Toy(Path(folder), {**RUN, "fsdp": fsdp, **(run or {})}, model_class=type("Kind", (Captioner,), traits),
              task_class=Writing)
    runner = toy.build()
    if resume:
        runner.resume(Path(resume))
    first = keep_first_gradients(runner)
    scores = runner.train()
    inner = list(runner.model.blocks_to_shard())
    held = sum((value.to_local() if isinstance(value, DTensor) else value).numel()
               for block in inner for value in block.parameters() if not value.requires_grad)
    whole = sum(value.numel() for block in inner for value in block.parameters() if not value.requires_grad)
    return {"trained": trained(runner.model), "held": held, "whole": whole,
            "sharded": len(sharded_names(runner.model)), "first": first, "scores": scores, "roots": roots(runner.model)}


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole_of(value.detach()) for name, value in model.named_parameters() if value.requires_grad}


def whole_of(value: Any) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


def roots(model: nn.Module) -> list[int]:
    """How many modules are a root of FSDP, how many contexts of communication there are, how many blocks."""
    states = [module._get_fsdp_state() for module in [model, *shared_blocks(model)] if hasattr(module, "unshard")]
    return [sum(state._is_root for state in states), len({id(state._comm_ctx) for state in states}),
            len(shared_blocks(model))]


def keep_first_gradients(runner: Any) -> dict[str, Any]:
    """Filled with the gradients of the first step that the runner takes; later ones follow the optimizer's rounding."""
    found: dict[str, Any] = {}
    stepper, take = runner.train_state.train_step, runner.train_state.train_step.run

    def run(*args: Any) -> Any:
        result = take(*args)
        if not found:
            found.update({name: whole_of(value.grad) for name, value in runner.model.named_parameters()
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
    for name in NAMES:
        for fsdp in ("none", "llm"):
            found[f"full {name} {fsdp}"] = train(f"{folder}/full_{name}_{fsdp}", fsdp=fsdp, family=name, full=True,
                                                 recompute=fsdp == "llm", run=PLAIN)
    found["full clipped"] = train(f"{folder}/full_clipped", full=True, run=EVERYTHING)
    checkpoint = f"{folder}/full_clipped/checkpoints/step_00000002"
    found["full resumed"] = train(f"{folder}/full_clipped", checkpoint, full=True, run=EVERYTHING)
    for vision in ("frozen", "last"):
        for fsdp in ("none", "blocks"):
            found[f"{vision} {fsdp}"] = train(f"{folder}/{vision}_{fsdp}", fsdp=fsdp, vision=vision, run=PLAIN)
    found["travelling"], found["refused"] = travelling(), refused()
    return found


def travelling() -> list[list[bool]]:
    """Whether the weights of the next block were on their way when a block ran: forward, then backward."""
    kind = type("Kind", (Captioner,), {"vision": "last"})
    model = move_to_device(kind(), RunConfig(fsdp="blocks"), torch.device("cpu"))
    blocks: list[Any] = [*model.vision_encoder.blocks, *model.blocks_to_shard()]
    found: list[list[bool]] = [[], []]

    def look(direction: int, block: Any) -> Any:
        def on_its_way(*_: Any) -> None:
            found[direction].append(block._get_fsdp_state()._fsdp_param_group._all_gather_result is not None)
        return on_its_way

    inner = [next(part for part in block.modules() if isinstance(part, nn.Linear)) for block in blocks]
    for number, part in enumerate(inner[:-1]):
        part.register_forward_pre_hook(look(0, blocks[number + 1]))
    for number, part in enumerate(inner[2:], 2):
        part.register_full_backward_hook(look(1, blocks[number - 1]))
    model({"image": torch.ones(2, WIDTH), "index": [0, 1]}).loss.backward()
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
    last = max(folder.glob("checkpoints/step_*"))
    return hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()


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


# blocks that train ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_trained_blocks_learn_what_whole_ones_learn(two: Any, name: str) -> None:
    folder, first, second = two
    whole, shared = first[f"full {name} none"], first[f"full {name} llm"]
    assert whole["sharded"] == 0 and shared["sharded"] > 0
    assert close(shared["trained"], second[f"full {name} llm"]["trained"], exact=True), "equal on all ranks"
    assert close(shared["first"], whole["first"], exact=name != "t5")
    assert close(shared["trained"], whole["trained"], exact=name != "t5")
    if name != "t5":
        assert digest(folder / f"full_{name}_llm") == digest(folder / f"full_{name}_none")


def test_two_ranks_learn_what_one_learns(two: Any, tmp_path: Path) -> None:
    """Also from the checkpoint that two ranks wrote, which one rank takes over."""
    alone = {**EVERYTHING, "batch_size_train": 2 * RUN["batch_size_train"]}
    one = train(str(tmp_path / "one"), fsdp="none", full=True, run=alone)
    shared, folder = two[1]["full clipped"], two[0] / "full_clipped"
    assert close(shared["first"], one["first"], exact=False)
    for name, value in one["trained"].items():
        assert torch.allclose(torch.as_tensor(shared["trained"][name]), value, rtol=0, atol=1e-6), name
    assert [row["loss"] for row in read(folder / "log.jsonl") if "loss" in row][:4] == pytest.approx(
        [row["loss"] for row in read(tmp_path / "one/log.jsonl") if "loss" in row], rel=1e-6)
    shutil.copytree(folder, tmp_path / "two")
    taken_over = train(str(tmp_path / "two"), str(folder / "checkpoints/step_00000002"), "none", alone, full=True)
    for name, value in one["trained"].items():
        assert torch.allclose(taken_over["trained"][name], value, rtol=0, atol=1e-6), name


def test_a_resumed_run_of_trained_blocks_is_exact(two: Any) -> None:
    assert close(two[1]["full resumed"]["trained"], two[1]["full clipped"]["trained"], exact=True)
    assert two[1]["full resumed"]["scores"] == two[1]["full clipped"]["scores"]


def test_ranks_answer_unequally_often(two: Any) -> None:
    """Seven samples in batches of three: two batches on one rank, one on the other, answers of many lengths."""
    for rank in (1, 2):
        assert two[rank]["full clipped"]["scores"]["test"]["distinct"] == 7
    assert two[1]["full clipped"]["scores"] == two[2]["full clipped"]["scores"]


@pytest.mark.parametrize("vision", ["frozen", "last"])
def test_blocks_of_the_vision_encoder_too(two: Any, vision: str) -> None:
    whole, shared = two[1][f"{vision} none"], two[1][f"{vision} blocks"]
    assert close(shared["trained"], whole["trained"], exact=True)
    assert shared["sharded"] > two[1]["opt llm"]["sharded"]


def test_one_root_moves_all_weights(two: Any) -> None:
    for name, blocks in (("opt llm", 2), ("t5 llm", 4), ("full opt llm", 2), ("last blocks", 4), ("full clipped", 2)):
        assert two[1][name]["roots"] == [1, 1, blocks], name


def test_the_next_block_travels_while_a_block_computes(two: Any) -> None:
        assert two[1]["travelling"] == [[True] * 3, [True] * 2]


# refusals -----------------------------------------------------------------------------------------------------------
def test_what_cannot_be_shared_is_refused(two: Any) -> None:
    muon, fp16 = two[1]["refused"]
    assert muon.startswith("run.optimizer: muon ") and "take adamw, or set run.fsdp=none" in muon
    assert fp16.startswith("run.amp_dtype: fp16 ") and "Set run.amp_dtype=bf16" in fp16


def refused() -> list[str]:
    found, cpu = [], torch.device("cpu")
    full = type("Kind", (Captioner,), {"full": True})
    run = RunConfig(fsdp="llm", optimizer="muon", device="cpu")
    shared = move_to_device(full(), run, cpu)
    for attempt in (lambda: build_optimizer(shared, run),
                    lambda: check(Blocks([], full().blocks_to_shard()), Precision("cuda", torch.float16))):
        try:
            attempt()
        except ConfigError as error:
            found.append(str(error))
    return found


def test_one_process_shares_with_nobody_and_a_model_needs_a_language_model(tmp_path: Path) -> None:
    assert distributed.world_size() == 1
    model = move_to_device(Captioner(), RunConfig(fsdp="llm"), torch.device("cpu"))
    with whole_blocks(model):
        assert sharded_names(model) == []
    with pytest.raises(ConfigError, match="ToyModel has no transformer blocks"):
        Toy(tmp_path, {"fsdp": "llm"}).build()
