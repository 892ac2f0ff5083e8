"""What is compared with recordings of stage 1 in two processes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from lavis_lite import distributed
from tests.helpers.processes import run_processes
from tests.parity.blip2_cases import Recorded, build, inject
from tests.parity.blip2_checks import BETWEEN, LOSSES, WEIGHTS, between, check_gradients, check_losses, lavis_weights
from tests.parity.recordings import Comparison

CASE = "world_size_2"
GRADIENTS = "ddp_mean_grad/"
SCORES = ("score_i2t", "score_t2i")


def comparisons_of(recorded: Recorded) -> list[Comparison]:
    """One for all cases, since a group of processes takes seconds to form; none where nothing is recorded."""
    if CASE not in recorded.expected:
        return []
    keys = {key for key in recorded.keys(f"{CASE}/") if key.rpartition("/")[2] not in SCORES}
    return [Comparison(CASE, two_processes, frozenset(keys))]


def two_rank_step(recorded: Recorded, case: str) -> dict[str, Any]:
    """One rank's losses, what lies between, and the mean over ranks of the gradients."""
    rank = distributed.rank()
    given = recorded.expected[CASE][f"rank{rank}"][case]
    model = build(recorded, lm_reduction="per_rank")
    inject(model, given)
    samples = {"image": recorded.images[2 * rank:2 * rank + 2], "text_input": given["text_input"]}
    if given["image_id"] is not None:
        samples["image_id"] = torch.tensor(given["image_id"])
    output = model(samples)
    output.loss.backward()
    found, contrast = between(model, samples), model.contrast(model.encode(samples), samples.get("image_id"))
    for name in WEIGHTS:
        similar = getattr(contrast, f"sim_{name.removeprefix('weights_')}")
        found[name] = lavis_weights(similar, contrast.positives)
    grads = {name: distributed.all_reduce_sum(parameter.grad) / 2 for name, parameter in model.named_parameters()
             if parameter.requires_grad}
    return {"losses": {name: float(value) for name, value in output.losses().items()}, "grads": grads,
            "between": {name: found[name] for name in (*BETWEEN, *WEIGHTS)}}


def two_rank_steps(folder: Path) -> dict[str, dict[str, Any]]:
    """Every recorded case, in one group of processes."""
    recorded = Recorded(folder)
    return {case: two_rank_step(recorded, case) for case, found in recorded.expected[CASE]["rank0"].items()
            if set(LOSSES) <= found.keys()}


@functools.cache
def two_ranks(folder: Path) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes found; they are started once."""
    return run_processes(two_rank_steps, 2, folder)


def two_processes(recorded: Recorded, _: str) -> None:
    """Losses, gradients averaged over ranks, and what lies between, rank by rank."""
    ranks = two_ranks(recorded.folder)
    for case in ranks[0]:
        for rank, found in enumerate(ranks):
            check_losses(found[case]["losses"], recorded.expected[CASE][f"rank{rank}"][case])
            start = f"{CASE}/rank{rank}/{case}/"
            for key in recorded.keys(start, (*BETWEEN, *WEIGHTS)):
                recorded.check(key, torch.from_numpy(found[case]["between"][key.removeprefix(start)]))
        grads = {name: torch.from_numpy(grad) for name, grad in ranks[0][case]["grads"].items()}
        norms = recorded.expected[CASE]["rank0"][case].get("ddp_mean_grad_norms", {})
        check_gradients(recorded, f"{CASE}/rank0/{case}/{GRADIENTS}", norms, grads)
