"""R2: killed inside a save, a run goes on from the newest checkpoint or the one before, and leaves no half one.

A kill counts if the hidden folder of an unfinished checkpoint is there after it. `--long` counts 200 kills, `--kills N`
another number.
"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from lavis_lite.runners import checkpointing
from tests.reliability.faulty import FaultyModel
from tests.reliability.harness import Case, Job, Zygote, finish, left_behind, outcome, texts

FEW, MANY = 2, 200
STEPS, LONGEST_SAVE = 20, 0.025
CASE = Case(steps=STEPS, env={"DROPOUT": "0.2"}, flags=["--resume", "auto"], options=["run.save_every=1"])


def unfinished(folder: Path) -> list[Path]:
    """Hidden folders of checkpoints that are being written."""
    return list(folder.glob("out/*/checkpoints/.tmp-step_*"))


def kill_inside_a_save(job: Job, folder: Path, before: Iterable[Path], rng: random.Random) -> list[Path]:
    """Kill a run a moment after a save has begun; what is left of that checkpoint: nothing if it was done before.

    Args:
        before: what was left by the kill before this one.
    """
    earlier = {int(path.name[-8:]) for path in folder.glob("out/*/checkpoints/step_*")}
    first = max(earlier, default=0) + rng.randrange(1, 3)
    while job.poll() is None:
        if any(_step(path) >= first for path in set(unfinished(folder)) - set(before)):
            time.sleep(rng.uniform(0.0, LONGEST_SAVE))
            job.signal(signal.SIGKILL)
            break
        time.sleep(0.0003)
    assert finish([job])[0] in (0, -signal.SIGKILL), texts([job])
    return unfinished(folder)


def _step(path: Path) -> int:
    found = re.search(r"step_(\d+)", path.name)
    assert found is not None
    return int(found[1])


def check_newest(folder: Path, strays: Iterable[Path]) -> None:
    """At most the step whose save was cut short is lost, and what is left can be loaded."""
    lost = max(map(_step, strays))
    newest = checkpointing.newest_good(folder / "out")
    assert (0 if newest is None else _step(newest)) == lost - 1
    if newest is not None:
        assert checkpointing.load(newest, FaultyModel())["step"] == lost - 1


@pytest.mark.timeout(3600)
def test_r2_a_kill_inside_a_save_loses_at_most_that_save(zygote: Zygote, tmp_path: Path,
                                                         pytestconfig: pytest.Config) -> None:
    wanted = pytestconfig.getoption("--kills") or (MANY if pytestconfig.getoption("--long") else FEW)
    rng, done, lives, runs = random.Random(2), 0, 0, 0
    whole = tmp_path / "whole"
    whole.mkdir()
    assert finish(CASE.start(zygote, whole)) == [0]
    while done < wanted:
        folder = tmp_path / str(runs)
        folder.mkdir()
        runs += 1
        before: list[Path] = []
        code: int | None = None
        while done < wanted and code != 0:
            (job,) = CASE.start(zygote, folder)
            strays = kill_inside_a_save(job, folder, before, rng)
            code, lives = job.code, lives + 1
            assert not set(strays) & set(before), "the next start leaves what the one before had left"
            if strays:
                check_newest(folder, strays)
                done += 1
            before = strays
        jobs = CASE.start(zygote, folder)
        assert finish(jobs) == [0], texts(jobs)
        assert unfinished(folder) == [] and left_behind(folder, jobs) == []
        assert outcome(folder, STEPS) == outcome(whole, STEPS)
    print(f"R2: {done} kills inside a save of {lives} in {runs} runs: the checkpoint before was good, nothing was left")
