"""R8: a loss that is NaN or infinite on one rank costs one step on all ranks, and no weight is ever lost.

Which step, gradients, every optimizer, and when a run stops: tests/runners/test_nonfinite.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.reliability.harness import Case, Zygote, damaged, finish, left_behind, texts

STEPS = 12


@pytest.mark.parametrize("value", ["nan", pytest.param("inf", marks=pytest.mark.long)])
def test_r8_all_ranks_skip_the_step_together(value: str, zygote: Zygote, tmp_path: Path) -> None:
    jobs = Case(f"loss:{value}", ranks=2, steps=STEPS).start(zygote, tmp_path)
    assert finish(jobs) == [0, 0], texts(jobs)
    (log,) = tmp_path.glob("out/*/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    (event,) = [row for row in rows if "event" in row]
    assert event["skipped"] == 1 and len(event["samples"]) == 2  # of the rank and micro-batch that it came from
    assert [[isinstance(loss, str) for loss in rank] for rank in event["losses"]] == [[False], [True]]
    assert sum(row.get("skipped_steps", 0) for row in rows) == 1
    files = list(tmp_path.glob("out/*/checkpoints/*/model.safetensors"))
    assert len(files) == 2 and damaged(tmp_path) == [] and left_behind(tmp_path, jobs) == []
    for weights in map(load_file, files):
        assert all(torch.isfinite(weight).all() for weight in weights.values())
