"""Serving: models load in many threads at once, with the weights of a load that is alone. `--long`: 100 loads."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from lavis_lite.zoo import load_model_and_preprocess

MIXED = [("blip2_opt", "mini"), ("blip2_t5", "mini"), ("blip2", "mini"), ("blip2_opt", "mini")]


def digest(model: Any) -> str:
    """Of all weights; a tensor that is on no device has none."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        assert tensor.device.type == "cpu", f"{name} is on {tensor.device}"
        total.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def load(number: int) -> tuple[tuple[str, str], str]:
    kind = MIXED[number % len(MIXED)]
    model, vis, txt = load_model_and_preprocess(*kind, is_eval=True)
    assert vis["eval"] is not None and txt["eval"] is not None
    return kind, digest(model)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_models_load_in_many_threads_at_once(request: pytest.FixtureRequest) -> None:
    count, threads = (100, 20) if request.config.getoption("--long") else (8, 8)
    with ThreadPoolExecutor(threads) as pool:  # first, so that threads meet while transformers is imported
        found = list(pool.map(load, range(count)))
    alone = dict(load(number) for number in range(3))
    assert len(found) == count and all(weights == alone[kind] for kind, weights in found)
    assert torch.get_default_dtype() == torch.float32
