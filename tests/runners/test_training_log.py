"""A log line tells what happened since the last one, the same after a resume."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_lite import distributed
from lavis_lite.runners.outcome import LossMeter
from lavis_lite.runners.train_state import Speed
from lavis_lite.tracking.tracker import read
from tests.helpers.processes import run_processes
from tests.helpers.toy import Toy, ToyData, ToyModel, records

CPU = torch.device("cpu")
RUN = {"max_iters": 12, "log_freq": 5, "save_every": 1, "keep_checkpoints": 12, "accum_grad_iters": 2}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read(folder / "log.jsonl") if "lr" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    Toy(folder, RUN, nan_rows=frozenset({5})).build().train()
    return folder


def test_the_losses_of_a_line_are_means_since_the_last_one(whole: Path, tmp_path: Path) -> None:
    Toy(tmp_path, {**RUN, "log_freq": 1}, nan_rows=frozenset({5})).build().train()
    every, some = {row["step"]: row for row in lines(tmp_path)}, lines(whole)
    assert [row["step"] for row in some] == [1, 5, 10, 12]
    before, skipped = 0, 0
    for row in some:
        steps = [every[step] for step in range(before + 1, row["step"] + 1)]
        good = [one for one in steps if one["loss"] != "nan"]
        for name in ("loss", "loss_fit", "loss_size", "grad_norm"):
            assert row[name] == pytest.approx(sum(one[name] for one in good) / len(good), rel=1e-12)
        assert row["skipped_steps"] == len(steps) - len(good)
        skipped, before = skipped + row["skipped_steps"], row["step"]
    assert skipped == 2, "the bad row comes once per epoch"


def test_a_line_tells_samples_and_waiting(whole: Path) -> None:
    for row in lines(whole):
        assert row["samples_seen"] == 8 * row["step"] and 0 <= row["data_wait"] <= 1
        assert "peak_memory_gib" not in row, "there is no device memory on a CPU"


def test_what_got_no_gradient_is_named_once(tmp_path: Path) -> None:
    class Forgotten(ToyModel):
        def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
            super().__init__(dropout, seed)
            self.adapter = nn.Linear(2, 2)

    lines: list[str] = []
    toy = Toy(tmp_path, {**RUN, "max_iters": 6}, model_class=Forgotten)
    runner = toy.build()
    runner.tracker.log = lines.append  # type: ignore[method-assign]
    runner.train()
    assert [line for line in lines if "no gradient" in line] == [
        "note: 2 trainable tensors got no gradient: adapter.weight, adapter.bias in the first step. Unless other "
        "batches use them, they do not train: use them in the loss, or freeze them."]


@pytest.mark.parametrize("step", range(1, 12))
def test_a_run_resumed_between_two_lines_logs_the_same_numbers(whole: Path, tmp_path: Path, step: int) -> None:
    shutil.copytree(whole, tmp_path / "run")
    runner = Toy(tmp_path / "run", RUN, nan_rows=frozenset({5})).build()
    runner.resume(tmp_path / f"run/checkpoints/step_{step:08d}")
    runner.train()
    assert records(tmp_path / "run") == records(whole)


def on_two_ranks(folder: str) -> list[list[dict[str, Any]]]:
    run = {**RUN, "batch_size_train": 2, "max_iters": 8}
    Toy(Path(folder) / "whole", run).build().train()
    distributed.barrier()
    runner = Toy(Path(folder) / "resumed", run).build()
    runner.resume(Path(folder) / "whole/checkpoints/step_00000003")
    runner.train()
    distributed.barrier()
    return [records(Path(folder) / name) for name in ("whole", "resumed")]


def test_two_ranks_resumed_between_two_lines_log_the_same_numbers(tmp_path: Path) -> None:
    whole, resumed = run_processes(on_two_ranks, 2, str(tmp_path))[0]
    assert resumed == [row for row in whole if row["step"] > 3] and len(resumed) == 2


def test_a_slow_data_set_shows(tmp_path: Path) -> None:
    class Slow(ToyData):
        def __getitem__(self, index: int) -> dict[str, Any]:
            time.sleep(0.01)
            return super().__getitem__(index)

    runner = Toy(tmp_path, {"max_iters": 4, "log_freq": 4}).build()
    runner.datasets = {"toy": {"train": Slow(40)}}
    runner.train()
    assert lines(tmp_path)[-1]["data_wait"] > 0.5


def test_pauses_are_neither_work_nor_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lavis_lite.runners.train_state.time.monotonic", lambda: now[0])
    speed = Speed(8)
    speed.steps = 3
    with speed.waiting():
        now[0] += 1
    with speed.paused():
        now[0] += 100
    now[0] += 3
    assert speed.lap() == {"images_per_second": 6.0, "data_wait": 0.25}


def test_means_of_nothing_but_skipped_steps_are_nan() -> None:
    meter = LossMeter(CPU)
    meter.add({"loss": torch.tensor(float("nan"))}, torch.tensor(1.0))
    means, skipped = meter.take()
    assert means["loss"] != means["loss"] and skipped == 1
    meter.add({"loss": torch.tensor(2.0)}, torch.tensor(0.0))
    assert meter.take() == ({"loss": 2.0}, 0)


def test_a_part_that_some_steps_lack_is_averaged_over_those_that_have_it() -> None:
    meter = LossMeter(CPU)
    meter.add({"loss": torch.tensor(2.0), "loss_lm": torch.tensor(1.0)}, torch.tensor(0.0))
    meter.add({"loss": torch.tensor(4.0)}, torch.tensor(0.0))
    assert meter.take() == ({"loss": 3.0, "loss_lm": 1.0}, 0)
