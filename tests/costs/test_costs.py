"""Costs that are counted on the meta device, beside what torch's own accounting sees in real steps on the CPU."""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from lavis_lite.checkpoints.weights import build_model
from lavis_lite.config.compose import compose
from lavis_lite.config.schema import RunConfig
from lavis_lite.costs.account import Memory, Traffic, memory_of
from lavis_lite.costs.meta import meta_model
from lavis_lite.costs.meter import StepCount, count_step
from lavis_lite.costs.page import costs
from lavis_lite.runners.checkpointing import checkpoint_bytes
from lavis_lite.runners.optim import build_optimizer, state_per_byte
from tests.helpers.toy import Toy

PROJECTS = Path(__file__).parents[2] / "projects"
BATCH = 8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stage 1": ("stage1", {"pack_text": False}),
    "stage 1, encoder trained": ("stage1", {"pack_text": False, "freeze_vit": False}),
    "OPT": ("stage2_opt", {}),
    "T5": ("stage2_t5", {}),
    "OPT, checkpointed": ("stage2_opt", {"llm_grad_checkpoint": True}),
    "OPT, LoRA": ("stage2_opt", {"llm_train": "lora"}),
    "OPT, full": ("stage2_opt", {"llm_train": "full"}),
    "OPT, full, checkpointed": ("stage2_opt", {"llm_train": "full", "llm_grad_checkpoint": True}),
    "T5, full": ("stage2_t5", {"llm_train": "full"}),
}
EVERY_KIND = ("stage 1", "stage 1, encoder trained", "OPT, checkpointed", "OPT, LoRA", "T5, full")
"""frozen, trained, with adapters and checkpointed; the others with --long"""


def section_of(recipe: str, changes: dict[str, Any]) -> Any:
    return compose(str(PROJECTS / f"blip2/{recipe}.yaml"), []).config.model.replaced(load_pretrained=False, **changes)


def predicted(section: Any, run: RunConfig, gpus: int = 1) -> tuple[Any, Memory]:
    model = meta_model(section).eval()  # dropout takes another attention on the CPU
    samples = model.example_samples(BATCH, torch.device("meta"))
    step = count_step(model, lambda: model(samples).loss)
    return step, memory_of(model, run, step, gpus)


def measured(section: Any, run: RunConfig) -> tuple[int, int]:
    """Bytes at the peak of a real step, by torch's profiler of allocations: of all, and of what the step allocates."""
    model = build_model(section).eval()
    optimizer = build_optimizer(model, run)
    samples = model.example_samples(BATCH, torch.device("cpu"))
    for value in model.parameters():
        value.grad = torch.zeros_like(value) if value.requires_grad else None
    optimizer.step()  # makes the moments
    optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        model(samples).loss.backward()
    events = profiler.profiler.kineto_results.events()
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())
               if event.name() == "[memory]"]
    live = max(accumulate(changes))
    states = [value for state in optimizer.state.values() for value in state.values()]
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in [*model.parameters(), *model.buffers(), *states]}
    return sum(held.values()) + live, live


@pytest.mark.parametrize("case", [case if case in EVERY_KIND else pytest.param(case, marks=pytest.mark.long)
                                  for case in CASES])
def test_within_a_tenth_of_what_torch_sees(case: str) -> None:
    pytest.importorskip("peft") if "LoRA" in case else None
    recipe, changes = CASES[case]
    section, run = section_of(recipe, changes), RunConfig()
    step, memory = predicted(section, run)
    total, live = measured(section, run)
    print(f"{case}: counted {memory.peak / 2**20:.1f} MiB, torch {total / 2**20:.1f} MiB; "
          f"live {step.with_gradients / 2**20:.1f}, torch {live / 2**20:.1f} MiB")
    assert abs(memory.peak / total - 1) < 0.1
    assert abs(step.with_gradients / live - 1) < 0.1


# what is derived from the count ---------------------------------------------------------------------------------------
def test_arithmetic_is_that_of_the_matrices() -> None:
    """Of a layer that is frozen: forward, and backward to its input; of one that trains, both gradients."""
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4).requires_grad_(False))
        given = torch.empty(5, 8)
    step = count_step(model, lambda: model(given).sum())
    assert step.flops == 2 * 5 * (2 * 8 * 16 + 2 * 16 * 4)


def test_autocast_halves_what_layers_keep() -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(4)))
        given = torch.empty(4096, 256)
    full, half = (count_step(model, lambda: model(given).sum(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.flops == full.flops and 0.4 < half.activations / full.activations < 0.7


@pytest.mark.parametrize("optimizer, vectors, matrices", [("adamw", 2, 2), ("sgd", 0, 0), ("muon", 2, 1)])
def test_states_of_optimizers_are_counted(optimizer: str, vectors: float, matrices: float) -> None:
    assert state_per_byte(RunConfig(optimizer=optimizer)) == (vectors, matrices)


def test_shared_blocks_take_their_part() -> None:
    section = section_of("stage2_opt", {"llm_train": "full"})
    model = meta_model(section)
    step = StepCount(0, 0, 0)
    alone, whole = (memory_of(model, RunConfig(), step, gpus) for gpus in (1, 4))
    shared = memory_of(model, RunConfig(fsdp="llm"), step, 4)
    blocks = sum(value.nbytes for block in model.blocks_to_shard() for value in block.parameters())
    assert whole.weights == alone.weights and whole.gathered == 0
    assert whole.weights - shared.weights == pytest.approx(0.75 * blocks, rel=0.02)
    assert whole.moments - shared.moments == pytest.approx(1.5 * blocks, rel=0.02)
    assert shared.gathered == pytest.approx(4 * blocks / len(model.blocks_to_shard()), rel=0.02)
    sent, more = Traffic.of(model, RunConfig(), 4), Traffic.of(model, RunConfig(fsdp="llm", accum_grad_iters=2), 4)
    trained = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    assert (sent.gradients, sent.blocks) == (round(1.5 * trained), 0)
    assert more.gradients == round(1.5 * (trained - blocks)) and more.blocks == round(0.75 * 3 * blocks * 2)


def test_a_checkpoint_is_as_large_as_counted(tmp_path: Path) -> None:
    toy = Toy(tmp_path, {"max_iters": 1, "save_every": 1})
    runner = toy.build()
    runner.train()
    counted = checkpoint_bytes(runner.model, runner.run)
    kept = load_file(tmp_path / "checkpoints/step_00000001/model.safetensors")
    state = torch.load(tmp_path / "checkpoints/step_00000001/training_state.pt", weights_only=True)["optimizer"]
    assert counted == sum(value.nbytes for value in kept.values()) + sum(
        value.nbytes for own in state.values() for key, value in own.items() if key != "step")


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    composition = compose(str(PROJECTS / "blip2/stage2_opt.yaml"), ["run.fsdp=llm"])
    page = "\n".join(costs(composition.config, 8))
    assert page.startswith("costs per GPU of 8, run.fsdp=llm: ")
    for word in ("weights", "gathered", "activations", "peak", "TFLOP", "A100 80 GB", "a prediction, not a measurement",
                 "sent", "checkpoint", "features"):
        assert word in page, word


def test_the_page_of_many_gpus_predicts_weak_scaling() -> None:
    settings = ["run.batch_size_train=64"]
    slow, fast = ("\n".join(costs(compose(str(PROJECTS / "blip2/stage1.yaml"), [*settings, *more]).config, 64))
                  for more in ([], ["run.gradient_compression=bf16", "run.tf32=true", "run.overlap_exchange=true"]))
    found = [re.search(r"weak scaling +(0.\d\d) at 8, .* (0.\d\d) at 1,024 H200", page) for page in (slow, fast)]
    assert all(found) and found[0][2] < found[1][2], (slow, fast)
    assert "objectives" in slow and "a prediction" in slow
    assert "weak scaling" not in "\n".join(costs(compose(str(PROJECTS / "blip2/stage1.yaml"), []).config, 1))


def test_traffic_has_the_objectives_in_every_micro_batch() -> None:
    model = meta_model(section_of("stage1", {}))
    once, twice, half = (Traffic.of(model, RunConfig(batch_size_train=8, **more), 4) for more in (
        {}, {"accum_grad_iters": 2}, {"gradient_compression": "bf16"}))
    assert once.objectives == round(0.75 * sum(model.exchanged(8, 4, torch.float32)[:3])) > 0
    assert twice.objectives == 2 * once.objectives and twice.gradients == once.gradients == 2 * half.gradients


PAPER = ["blip2/stage1_vitg", "blip2/stage1_vitl", "blip2/stage2_opt2.7b", "blip2/stage2_opt6.7b", "frozen/paper",
         "blip2/stage2_flant5xl", "blip2/stage2_flant5xxl", "blip2/stage2_vicuna7b", "blip2/caption_coco_opt2.7b",
         "blip2/vqa_flant5xl", "blip2/retrieval_coco_vitg", "instructblip/vicuna7b", "instructblip/vicuna13b",
         "instructblip/flant5xl", "instructblip/flant5xxl", "llava/stage1", "llava/stage2", "llava/stage2_lora",
         "minigpt4/stage1", "minigpt4/stage2", "mplug_owl/stage1", "mplug_owl/stage2", "flamingo/openflamingo_9b"]


@pytest.mark.parametrize("recipe", [PAPER[0], *(pytest.param(name, marks=pytest.mark.long) for name in PAPER[1:])])
def test_recipes_at_the_papers_scale_say_what_they_cost(recipe: str) -> None:
    page = costs(compose(str(PROJECTS / f"{recipe}.yaml"), []).config, 8)
    peak = next(float(line.split()[1]) for line in page if line.split()[0] == "peak")
    assert 1 < peak < 400, page
