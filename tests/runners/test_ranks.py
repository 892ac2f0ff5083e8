"""Two gloo processes do what one does."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.config.typed import run_errors
from lavis_lite.device import set_tf32, wants_tf32
from lavis_lite.errors import CheckpointError, ContractError, DataError, DistributedError
from lavis_lite.process.exits import Interrupted
from lavis_lite.runners.ranks import during_exchange
from lavis_lite.runners.step import DivergedError
from lavis_lite.tracking.tracker import read
from tests.helpers.processes import run_processes
from tests.helpers.toy import ExactModel, Toy, ToyModel, ToyTask, weights

RUN = {"max_iters": 6, "accum_grad_iters": 2, "valid_splits": ["val"], "iters_per_inner_epoch": 3, "save_every": 3,
       "max_grad_norm": 1.0}


class LooksAhead(ExactModel):
    """Its frozen layer may have seen the images before; `seen_ahead` counts how often it had."""

    seen_ahead = 0

    def encode_ahead(self, image):
        assert not torch.is_grad_enabled()
        return self.frozen(image.double())[:, None]

    def forward(self, samples):
        image = samples["image"]
        if image.ndim == 2:
            return super().forward(samples)
        LooksAhead.seen_ahead += 1
        frozen, self.frozen = self.frozen, nn.Identity()
        try:
            return super().forward({**samples, "image": image[:, 0]})
        finally:
            self.frozen = frozen


class Forgets(ExactModel):
    """It has a part that its loss does not use."""

    def __init__(self, dropout=0.0, seed=0):
        super().__init__(dropout, seed)
        self.adapter = nn.Linear(2, 2).double()


class CountSyncs(ToyTask):
    """Notes for every micro-batch whether ranks will exchange gradients after it."""

    def train_step(self, model, samples):
        self.syncs = [*getattr(self, "syncs", []), getattr(model, "require_backward_grad_sync", True)]
        return super().train_step(model, samples)


def train(folder, run, resume=None, nan_rows=frozenset(), dropout=0.0, model=ExactModel):
    toy = Toy(Path(folder), {**RUN, **run}, dropout=dropout, nan_rows=nan_rows, task_class=CountSyncs,
              model_class=model)
    runner = toy.build()
    if resume:
        runner.resume(Path(resume))
    runner.train()
    return weights(runner), runner.task.syncs, runner.train_state.train_step.skipped


def scenarios(folder):
    """Several runs in one group of processes, because starting processes is what costs time."""
    found = {"plain": train(f"{folder}/two", {"batch_size_train": 2})}
    found["resumed"] = train(f"{folder}/two", {"batch_size_train": 2}, f"{folder}/two/checkpoints/step_00000003")
    found["nan"] = train(f"{folder}/nan", {"batch_size_train": 2}, nan_rows=frozenset({5}))
    found["dropout"] = train(f"{folder}/drop", {"batch_size_train": 2}, dropout=0.5)
    found["again"] = train(f"{folder}/drop", {"batch_size_train": 2}, f"{folder}/drop/checkpoints/step_00000003",
                           dropout=0.5)
    found["unused"] = train(f"{folder}/unused", {"batch_size_train": 2, "find_unused_parameters": True})
    found["buckets"] = train(f"{folder}/buckets", {"batch_size_train": 2, "ddp_bucket_mb": 1e-4})
    found["bf16"] = train(f"{folder}/bf16", {"batch_size_train": 2, "gradient_compression": "bf16"})
    for name, resume in (("overlap", None), ("overlap again", f"{folder}/overlap/checkpoints/step_00000003")):
        found[name] = train(f"{folder}/overlap", {"batch_size_train": 2, "overlap_exchange": True}, resume, dropout=0.5,
                            model=LooksAhead)
        found[f"{name}: steps"], LooksAhead.seen_ahead = LooksAhead.seen_ahead, 0
    with pytest.raises(ContractError, match="2 trainable tensors got no gradient: adapter.*find_unused_parameters"):
        train(f"{folder}/forgets", {"batch_size_train": 2}, model=Forgets)
    return found, misfortunes(folder), abandoned(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "file").write_text("a file where a folder should be")
    return folder, *zip(*run_processes(scenarios, 2, str(folder)), strict=True)


def test_two_processes_equal_one_on_the_same_global_batch(two, tmp_path):
    folder, (first, second), *_ = two
    expected, _, _ = train(tmp_path, {"batch_size_train": 4})
    for name, value in expected.items():
        np.testing.assert_array_equal(first["plain"][0][name], second["plain"][0][name])
        np.testing.assert_allclose(first["plain"][0][name], value.numpy(), rtol=1e-9, atol=1e-12)
    ours, theirs = read(tmp_path / "log.jsonl"), read(folder / "two/log.jsonl")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        key = "error" if "split" in one else "loss"
        assert one[key] == pytest.approx(other[key], rel=1e-9)


def test_evaluation_is_shared_without_duplicates(two):
    rows = [row for row in read(two[0] / "two/log.jsonl") if "split" in row]
    assert [(row["step"], row["rows"], row["distinct"]) for row in rows] == [(3, 11, 11), (6, 11, 11)]


def test_gradients_are_exchanged_once_per_step(two):
    assert two[1][0]["plain"][1] == [False, True] * 6


@pytest.mark.parametrize(("whole", "resumed"), [("plain", "resumed"), ("dropout", "again"), ("plain", "buckets"),
                                                 ("dropout", "overlap"), ("dropout", "overlap again")])
def test_runs_that_are_equal_bit_for_bit(two, whole, resumed):
    for rank in two[1]:
        for name, value in rank[whole][0].items():
            np.testing.assert_array_equal(value, rank[resumed][0][name], err_msg=name)


def test_frozen_parts_see_the_images_of_every_later_step_in_advance(two):
    assert [two[1][0][f"{name}: steps"] for name in ("overlap", "overlap again")] == [5, 2]
    logs = [[row["loss"] for row in read(two[0] / name / "log.jsonl") if "loss" in row] for name in ("drop", "overlap")]
    assert logs[0] == logs[1] and len(logs[0]) > 5


def test_bf16_gradients_change_the_weights_a_little(two):
    exact, rounded = (two[1][0][name][0]["out.weight"] for name in ("plain", "bf16"))
    assert 0 < np.abs(exact - rounded).max() < 2e-3
    np.testing.assert_array_equal(rounded, two[1][1]["bf16"][0]["out.weight"])


@pytest.mark.filterwarnings("ignore:.*barrier.*")
def test_work_is_done_before_gradients_are_waited_for():
    """The exchange of this test ends with the work alone, or after half a minute with an error."""
    exchanged = torch.futures.Future()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    guard = threading.Timer(30, lambda: exchanged.set_exception(TimeoutError("DDP waited first")))
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
        buckets = []
        model.register_comm_hook(None, lambda state, bucket: (buckets.append(bucket.buffer()), exchanged)[1])
        loss = model(torch.ones(2, 3)).sum()
        during_exchange(loss, lambda: exchanged.set_result(buckets[-1]))
        guard.start()
        loss.backward()
        assert model.module.weight.grad.tolist() == [[2.0, 2.0, 2.0]]
    finally:
        guard.cancel()
        dist.destroy_process_group()


@pytest.mark.parametrize(("run", "message"), [
    (RunConfig(overlap_exchange=True, fsdp="blocks", max_iters=1), "overlap_exchange"),
    (RunConfig(ddp_bucket_mb=0.0, max_iters=1), "ddp_bucket_mb"),
    (RunConfig(prefetch_factor=0, max_iters=1), "prefetch_factor")])
def test_settings_that_cannot_be_are_refused(run, message):
    assert [key for key, _ in run_errors(run)] == [message]


def test_tf32_is_for_gpus(monkeypatch):
    found = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", found.append)
    for tf32 in (True, False):
        for device in ("cpu", "cuda"):
            set_tf32(RunConfig(tf32=tf32), torch.device(device))
    assert found == ["high", "highest"]


@pytest.mark.parametrize(("settings", "wanted"), [
    ({}, False), ({"amp": True}, True), ({"amp": True, "amp_dtype": "fp32"}, False), ({"amp_dtype": "bf16"}, True),
    ({"amp": True, "tf32": False}, False), ({"tf32": True}, True)])
def test_tf32_goes_with_mixed_precision(settings, wanted):
    assert wants_tf32(RunConfig(**settings)) is wanted


def test_ranks_draw_different_noise(two):
    assert not np.array_equal(two[1][0]["plain"][0]["out.weight"], two[1][0]["dropout"][0]["out.weight"])


def test_a_bad_loss_on_one_rank_skips_the_step_on_both(two):
    (first, _, skipped), (second, _, skipped_there) = (rank["nan"] for rank in two[1])
    assert skipped == skipped_there >= 1
    for name, value in first.items():
        assert np.isfinite(value).all()
        if name != "seen":
            np.testing.assert_array_equal(value, second[name])


def test_unused_parameters_may_be_searched_for(two):
    np.testing.assert_array_equal(two[1][0]["unused"][0]["out.weight"], two[1][0]["plain"][0]["out.weight"])


class SignalOnOne(ToyTask):
    """Rank 1 alone is asked to stop, during its third step."""

    def train_step(self, model, samples):
        self.calls = getattr(self, "calls", 0) + 1
        if distributed.rank() == 1 and self.calls == 5:
            self.runner.watch.code = 143
        return super().train_step(model, samples)


def misfortunes(folder):
    """What each rank meets when something happens to one of them (or, at last, to all)."""
    found = {}
    runner = Toy(Path(folder) / "signal", RUN, task_class=SignalOnOne).build()
    runner.task.runner = runner
    for name, make in {
        "signal": lambda: runner.train(),
        "diverged": lambda: train(f"{folder}/diverged", {}, nan_rows=frozenset(range(40))),
        "unwritable": lambda: train(f"{folder}/file", {}),
    }.items():
        try:
            make()
            found[name] = "nothing"
        except (Interrupted, DivergedError, CheckpointError, DataError) as fault:
            found[name] = f"{type(fault).__name__}: {fault}"
    return found


class LeaveOne(ToyTask):
    """Rank 1 goes without a word in its third step."""

    def train_step(self, model, samples):
        self.calls = getattr(self, "calls", 0) + 1
        if distributed.rank() == 1 and self.calls == 5:
            distributed.shutdown()
            raise KeyboardInterrupt
        return super().train_step(model, samples)


def abandoned(folder):
    """What a rank meets whose only peer has gone; leaves the group broken, so it comes last."""
    try:
        Toy(Path(folder) / "abandoned", RUN, task_class=LeaveOne).build().train()
    except (KeyboardInterrupt, DistributedError) as fault:
        return f"{type(fault).__name__}: {fault}"
    return "nothing"


def test_all_ranks_leave_together_and_for_the_same_reason(two):
    folder, _, (first, second), _ = two
    assert first == second
    assert first["signal"].startswith("Interrupted: stopped by a signal after step 3; saved in")
    assert (folder / "signal/checkpoints/step_00000003/manifest.json").exists()
    assert first["diverged"].startswith("DivergedError")
    assert first["unwritable"].startswith("CheckpointError: ") and "cannot be written" in first["unwritable"]


def test_a_rank_that_dies_does_not_leave_the_other_waiting(two):
    stayed, left = two[3]
    assert left.startswith("KeyboardInterrupt")
    assert stayed.startswith("DistributedError: another process of the run has gone") and "--resume auto" in stayed


class WideModel(ToyModel):
    """Large enough for the order in which three ranks are summed to show in the last bit."""

    def __init__(self, dropout=0.0, seed=0):
        super().__init__(dropout, seed)
        generator = torch.Generator().manual_seed(1)
        self.wide = nn.Sequential(nn.Linear(6, 700), nn.Tanh(), nn.Linear(700, 700), nn.Tanh(), nn.Linear(700, 6))
        for parameter in self.wide.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)

    def forward(self, samples):
        return super().forward({**samples, "image": samples["image"] + self.wide(samples["image"])})


def stop_and_go(folder):
    run = {"max_iters": 4, "save_every": 1, "keep_checkpoints": 9, "batch_size_train": 2}
    whole, resumed = (Toy(Path(folder), run, model_class=WideModel).build() for _ in range(2))
    whole.train()
    resumed.resume(Path(folder) / "checkpoints/step_00000002")
    resumed.train()
    return weights(whole), weights(resumed)


@pytest.mark.slow
def test_three_processes_resume_bit_for_bit(tmp_path):
    for whole, resumed in run_processes(stop_and_go, 3, str(tmp_path)):
        assert whole["seen"] == 4
        for name, value in whole.items():
            np.testing.assert_array_equal(value, resumed[name], err_msg=name)
