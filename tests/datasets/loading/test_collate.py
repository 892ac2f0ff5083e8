"""Samples to batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lavis_lite.datasets.loading.loader import collate
from lavis_lite.datasets.loading.policy import Failure
from lavis_lite.errors import DataError


def test_kinds_of_values():
    samples = [{"n": n, "x": n / 2, "b": n > 0, "s": f"t{n}", "l": [n], "image": torch.full((3, 2, 2), float(n)),
                "uniform": np.full(2, n / 4), "numpy": np.int64(n)} for n in range(3)]
    batch = collate(samples)
    assert batch["n"].dtype == torch.int64 and batch["n"].tolist() == [0, 1, 2]
    assert batch["x"].dtype == torch.float32 and batch["b"].dtype == torch.bool
    assert batch["numpy"].dtype == torch.int64
    assert batch["s"] == ["t0", "t1", "t2"] and batch["l"] == [[0], [1], [2]]
    assert batch["image"].shape == (3, 3, 2, 2)
    assert batch["uniform"].dtype == torch.float64 and batch["uniform"].shape == (3, 2)


def test_large_ids_stay_exact():
    assert collate([{"image_id": 2**63 - 1}])["image_id"].item() == 2**63 - 1


def test_only_shared_keys_stay():
    assert set(collate([{"a": 1, "b": 2}, {"b": 3, "c": 4}])) == {"b"}


def test_bad_samples_are_gathered_and_dropped_rows_leave_the_batch():
    record = {"file": "f", "row": "r", "reason": "x"}
    batch = collate([{"a": 1}, {"bad_samples": [record]}, {"a": 3, "bad_samples": [record]}])
    assert batch["a"].tolist() == [1, 3] and batch["bad_samples"] == [record, record]
    assert collate([{"bad_samples": [record]}]) == {"bad_samples": [record]}
    assert "bad_samples" not in collate([{"a": 1}])


def test_a_failure_takes_the_batch():
    assert collate([{"a": 1}, Failure("no")]) == Failure("no")


def test_unequal_shapes_name_the_key():
    with pytest.raises(DataError, match=r"'image' of different shapes: \(3, 2, 2\), \(3, 4, 4\)"):
        collate([{"image": torch.zeros(3, 2, 2)}, {"image": torch.zeros(3, 4, 4)}])
