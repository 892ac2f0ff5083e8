"""R7: resumed with other ranks, loader workers and accumulation, a run sees the same samples and logs the same losses.

The model is one of stage 2, whose loss is a mean over the tokens of a step. `--long`: 1, 2 and 4 ranks in every order.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.toy import records
from tests.reliability.captions import CONFIG, SIZE
from tests.reliability.harness import Zygote, environment, finish, free_port, left_behind, start, texts

STEPS, GLOBAL_BATCH, TOLERANCE = 9, 8, 1e-5
Step = list[tuple[int, str]]


@dataclass(frozen=True)
class Life:
    """One command of a run: processes, loader workers of each, and micro-batches per step."""

    ranks: int
    workers: int
    accum: int

    def __str__(self) -> str:
        return f"{self.ranks}r{self.workers}w{self.accum}a"


FEW = [(Life(1, 0, 2), Life(2, 2, 1))]
MANY = [tuple(Life(ranks, workers, accum) for ranks, workers, accum in zip(order, workers, accums, strict=True))
        for order, workers, accums in zip(itertools.permutations((1, 2, 4)),
                                          itertools.cycle([(0, 2, 0), (2, 0, 2)]),
                                          itertools.cycle([(4, 2, 1), (2, 1, 2), (1, 2, 2)]), strict=False)]
MANY += [(Life(1, 0, 4), Life(1, 4, 1), Life(1, 2, 2)), (Life(2, 0, 1), Life(2, 4, 2), Life(2, 2, 4))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --long every order of 1, 2 and 4 ranks, else one change."""
    if "lives" in metafunc.fixturenames:
        metafunc.parametrize("lives", FEW + MANY if metafunc.config.getoption("--long") else FEW,
                             ids=lambda lives: "-".join(map(str, lives)))


def live(life: Life, zygote: Zygote, folder: Path, steps: int = 0) -> list[Step]:
    """Go on with the run in a folder, for at most so many steps (0: to its end); what each of them saw."""
    config = folder / "captions.yaml"
    config.write_text(CONFIG.format(steps=STEPS, batch=GLOBAL_BATCH // life.ranks // life.accum, accum=life.accum,
                                    workers=life.workers, output=folder / "out"))
    seen = folder / f"seen{len(list(folder.glob('seen*')))}"
    seen.mkdir()
    rehearsed = life.ranks > 2  # a first micro-batch that leaves no trace
    group = {"WORLD_SIZE": str(life.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    jobs = []
    for rank in range(life.ranks):
        own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if life.ranks > 1 else {}
        stop = str(rehearsed + steps * life.accum) if steps else "0"
        env = environment(folder, SEEN=str(seen), STOP_AT=stop, **own)
        jobs.append(start(zygote, folder, "train", ["--cfg-path", str(config), "--resume", "auto"], env))
    assert finish(jobs, 120) == [143 if steps else 0] * life.ranks, texts(jobs)
    assert left_behind(folder, jobs) == []
    ranks = [[json.loads(line) for line in path.read_text().splitlines()][rehearsed:] for path in seen.iterdir()]
    return [sorted((index, pixels) for rank in ranks for micro in rank[first:first + life.accum]
                   for index, pixels in micro) for first in range(0, len(ranks[0]), life.accum)]


def losses(folder: Path) -> list[float]:
    """By step."""
    (run,) = (folder / "out").iterdir()
    return [row["loss"] for row in records(run) if "loss" in row]


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Step], list[float]]:
    """What one process without workers and accumulation sees and logs."""
    zygote.ask({"import": "tests.reliability.captions"})
    folder = tmp_path_factory.mktemp("whole")
    seen = live(Life(1, 0, 1), zygote, folder)
    assert len(seen) == STEPS and all(len(step) == GLOBAL_BATCH for step in seen)
    assert len({pixels for step in seen for _, pixels in step}) > 2 * SIZE  # other views in every epoch
    return seen, losses(folder)


@pytest.mark.timeout(600)
def test_r7_other_ranks_see_the_same_and_log_the_same(lives: tuple[Life, ...], zygote: Zygote, tmp_path: Path,
                                                      uninterrupted: tuple[list[Step], list[float]]) -> None:
    seen: list[Step] = []
    for life in lives[:-1]:
        seen += live(life, zygote, tmp_path, steps=3)
        assert 3 <= len(seen) < STEPS
    seen += live(lives[-1], zygote, tmp_path)
    assert seen == uninterrupted[0]
    assert losses(tmp_path) == pytest.approx(uninterrupted[1], rel=TOLERANCE, abs=0)
