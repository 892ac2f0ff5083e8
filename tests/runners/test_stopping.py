"""Runs that are killed, and runs that are asked to stop. With loader workers and several ranks: tests/reliability."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest

from lavis_lite.process.exits import Interrupted, SignalWatch
from lavis_lite.runners import checkpointing
from lavis_lite.tracking.tracker import read
from tests.helpers.threads import fork
from tests.helpers.toy import Toy, ToyTask, records, same, weights

RUN = {"max_iters": 30, "accum_grad_iters": 2, "save_every": 1, "iters_per_inner_epoch": 7, "valid_splits": ["val"]}


def go_on(run_dir):
    """Resume the newest good checkpoint, if there is one, and train to the end."""
    runner = Toy(run_dir, RUN).build()
    found = checkpointing.newest_good(run_dir, log=lambda text: None)
    if found is not None:
        runner.resume(found)
    runner.train()
    return runner


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: log, last weights, and the seconds it took."""
    go_on(tmp_path_factory.mktemp("warm"))  # imports what the first run of a process imports
    run_dir = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    runner = go_on(run_dir)
    return records(run_dir), weights(runner), time.monotonic() - start


def kill_after(seconds, run_dir):
    """Train in a forked process and kill it; True if it had finished before."""
    child = fork()
    if child == 0:
        try:
            go_on(run_dir)
        finally:
            os._exit(0)
    time.sleep(seconds)
    finished, _ = os.waitpid(child, os.WNOHANG)
    if not finished:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return bool(finished)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_killed_at_random_points_it_ends_bit_for_bit_alike(whole, tmp_path, seed):
    log, expected, seconds = whole
    rng, kills = random.Random(seed), 0
    for _ in range(12):
        if kill_after(rng.uniform(0.02, 0.4) * seconds, tmp_path):
            if kills >= 2:
                break
            shutil.rmtree(tmp_path)  # the machine is faster than when the whole run was timed: begin again, kill sooner
            tmp_path.mkdir()
            kills, seconds = 0, seconds / 2
        else:
            kills += 1
    assert kills >= 2
    runner = go_on(tmp_path)
    assert records(tmp_path) == log
    assert same(weights(runner), expected)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]


def test_killed_inside_a_save_it_falls_back_to_the_one_before(whole, tmp_path, monkeypatch):
    log, expected, _ = whole
    places = ["save_file", "_write_manifest", "torch.save"]
    for number, place in enumerate(places):
        child = fork()
        if child == 0:
            monkeypatch.setattr(f"lavis_lite.runners.checkpointing.{place}", _die_at(3, checkpointing, place))
            go_on(tmp_path)
        os.waitpid(child, 0)
        assert checkpointing.newest_good(tmp_path) == tmp_path / f"checkpoints/step_{2 * (number + 1):08d}"
        assert [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".tmp-step")]
    runner = go_on(tmp_path)
    assert records(tmp_path) == log and same(weights(runner), expected)


def _die_at(call, module, place):
    """A function that works as before, and kills the process after its `call`-th work but before it returns."""
    for name in place.split("."):
        module = getattr(module, name)
    calls = []

    def dying(*args, **kwargs):
        result = module(*args, **kwargs)
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return dying


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130),
                                              (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_step_saves_and_leaves(tmp_path, number, code):
    class Signalled(ToyTask):
        def train_step(self, model, samples):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 5:
                os.kill(os.getpid(), number)
            return super().train_step(model, samples)

    before = signal.getsignal(number)
    runner = Toy(tmp_path, {"max_iters": 10}, task_class=Signalled).build()
    with pytest.raises(Interrupted) as stop:
        runner.train()
    assert (stop.value.exit_code, stop.value.step) == (code, 5)
    assert stop.value.checkpoint == tmp_path / "checkpoints/step_00000005"
    assert checkpointing.verify(stop.value.checkpoint) == []
    assert [row["step"] for row in read(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]
    assert signal.getsignal(number) is before
    assert (tmp_path / "log.jsonl").read_text().endswith("\n")


def test_the_second_ctrl_c_stops_at_once(capsys):
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
