"""Ranks share blocks, and one of them has no picture, or nothing to learn: nobody waits for it, and sums are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.models.language.tokens import Limits
from lavis_lite.runners.placement import move_to_device, sharded_names
from tests.helpers.processes import run_processes
from tests.models.test_vision_language import build, talk

PICTURE = {"conversation": [talk(1, "what is it?"), talk(1, "and this?", "a cat")]}


def samples_of(case: str) -> dict[str, Any]:
    """Rank 0 has two pictures; rank 1 has texts alone, or texts of which no learned token is left."""
    if distributed.rank() == 0:
        torch.manual_seed(2)
        return {**PICTURE, "image": torch.randn(2, 3, 64, 64)}
    return {"conversation": [talk(0, "hello " * (40 if case == "nothing to learn" else 1), "hi")]}


def grads(model: nn.Module, case: str) -> tuple[float, dict[str, torch.Tensor]]:
    model.language_model.limits = Limits(row=64)  # type: ignore[union-attr,assignment]
    loss = model(samples_of(case)).loss
    loss.backward()
    return float(loss.detach()), {name: value.grad for name, value in model.named_parameters()
                         if value.grad is not None and not hasattr(value, "full_tensor")}


def unequal() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in ("texts alone", "nothing to learn"):
        for kind in ({}, {"freeze_vit": False}, {"llm_train": "full"}):
            whole, own = grads(build(**kind), case)
            model = move_to_device(build(**kind), RunConfig(fsdp="blocks"), torch.device("cpu"))
            loss, shared = grads(model, case)
            found[f"{case}, {kind}"] = {
                "losses": [whole, loss], "sharded": len(sharded_names(model)), "compared": len(shared),
                "error": max(float((shared[name] - own[name]).abs().max()) for name in shared)}
    return found


def test_a_rank_without_pictures_or_targets_runs_all_blocks() -> None:
    first, second = run_processes(unequal, 2)
    for name in first:
        for found in (first[name], second[name]):
            assert found["sharded"] > 0 and found["error"] < 1e-5, name
            assert abs(found["losses"][0] - found["losses"][1]) < 1e-5, name
        assert first[name]["compared"] > 2
        assert second[name]["losses"][1] == 0.0 or "texts alone" in name
