"""Unusable samples: replaced or left out, recorded, counted, limited."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from lavis_lite.datasets.base import BaseDataset, location_of
from lavis_lite.datasets.loading.policy import BadSampleLog, EvaluationSamples, Failure, TrainingSamples
from lavis_lite.datasets.loading.sampler import SampleKey
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.errors import DataError


class Rows:
    """Twenty rows of which some are bad."""

    sample_keys = ("row", "draw")

    def __init__(self, bad: set[int], size: int = 20) -> None:
        self.bad, self.size = bad, size

    def __len__(self) -> int:
        return self.size

    def location(self, index: int) -> str:
        return f"rows.json:{index + 1}"

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        if index in self.bad:
            raise BadSample(f"{index}.jpg", "is broken")
        return {"row": index, "draw": rng.random()}


def test_raise_names_file_and_row():
    sample = TrainingSamples([Rows({4})], 0)[SampleKey(0, 4, 0, 0)]
    assert isinstance(sample, Failure)
    assert sample.message.startswith("rows.json:5: 4.jpg is broken.")


def test_skip_replaces_by_a_sample_that_only_the_key_decides():
    samples = TrainingSamples([Rows({4, 5})], 0, "skip")
    first = samples[SampleKey(0, 4, 0, 11)]
    assert first["row"] not in {4, 5}
    assert first["bad_samples"][0] == {"file": "4.jpg", "row": "rows.json:5", "reason": "is broken"}
    again = TrainingSamples([Rows({4, 5})], 0, "skip")[SampleKey(0, 4, 0, 11)]
    assert again["row"] == first["row"] and again["draw"] == first["draw"]
    replacements = {samples[SampleKey(0, 4, epoch, 0)]["row"] for epoch in range(20)}
    assert len(replacements) > 5
    assert "bad_samples" not in samples[SampleKey(0, 6, 0, 0)]


def test_every_bad_attempt_is_recorded():
    samples = TrainingSamples([Rows(set(range(18)))], 0, "skip")
    tries = [samples[SampleKey(0, 0, epoch, 0)] for epoch in range(8)]
    found = [sample for sample in tries if not isinstance(sample, Failure)]
    assert found and all(sample["row"] >= 18 for sample in found)
    assert max(len(sample["bad_samples"]) for sample in found) > 1


def test_a_set_without_usable_samples_stops():
    sample = TrainingSamples([Rows(set(range(20)))], 0, "skip")[SampleKey(0, 4, 0, 0)]
    assert isinstance(sample, Failure) and "Is build_info.images.storage the right folder?" in sample.message


def test_evaluation_leaves_bad_rows_out():
    samples = EvaluationSamples(Rows({4}), 0, "skip")
    assert samples[4] == {"bad_samples": [{"file": "4.jpg", "row": "rows.json:5", "reason": "is broken"}]}
    assert samples[5]["row"] == 5 and samples[5]["draw"] == EvaluationSamples(Rows(set()), 0)[5]["draw"]
    assert isinstance(EvaluationSamples(Rows({4}), 0)[4], Failure)


RECORD = {"file": "4.jpg", "row": "rows.json:5", "reason": "is broken"}


def test_log_writes_counts_and_stops(tmp_path):
    log = BadSampleLog(tmp_path / "bad.jsonl", 0.01)
    log.add([], 100, step=1)
    assert not log.path.exists()
    log.add([RECORD], 100, step=2)
    log.check()
    log.check(final=True)
    log.add([RECORD] * 6, 8, step=3)
    with pytest.raises(DataError, match=r"7 of 208 samples.*run.max_bad_fraction=0.01.*bad.jsonl"):
        log.check()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert len(lines) == 7 and lines[0] == {**RECORD, "step": 2}


def test_one_bad_sample_at_the_start_stops_only_at_the_end(tmp_path):
    log = BadSampleLog(tmp_path / "bad.jsonl", 0.01)
    log.add([RECORD], 16)
    log.check()
    with pytest.raises(DataError):
        log.check(final=True)
    strict = BadSampleLog(tmp_path / "strict.jsonl", 0.0)
    strict.add([RECORD], 10_000)
    with pytest.raises(DataError):
        strict.check()


def test_log_goes_on_from_a_checkpoint(tmp_path):
    log = BadSampleLog(tmp_path / "bad.jsonl", 0.5)
    log.add([RECORD], 10, step=1)
    state = log.state_dict()
    log.add([RECORD, RECORD], 10, step=2)
    resumed = BadSampleLog(tmp_path / "bad.jsonl", 0.5)
    resumed.load_state_dict(state)
    assert (resumed.bad, resumed.read) == (1, 10)
    assert len(resumed.path.read_text().splitlines()) == 1


def test_a_data_set_that_defines_place_still_names_its_rows() -> None:
    """`place` was the name of `location`."""

    class Old(BaseDataset):
        def place(self, index: int) -> str:
            return f"old.json:{index}"

    class New(BaseDataset):
        def location(self, index: int) -> str:
            return f"new.json:{index}"

    assert Old().location(3) == "old.json:3" and New().place(4) == "new.json:4" and BaseDataset().place(5) == "row 5"
    assert location_of(Old(), 6) == "old.json:6" and location_of([], 7) == "row 7"
