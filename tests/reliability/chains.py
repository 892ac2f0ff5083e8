"""A run that is stopped and resumed again and again, and the run that nothing happens to."""

from __future__ import annotations

from pathlib import Path

from tests.reliability.harness import Case, Outcome, Zygote, finish, outcome, texts

STEPS = 16


def chain(ranks: int, workers: int) -> Case:
    """A run with dropout and noise that goes on from its newest checkpoint, which is at most two steps old."""
    return Case(ranks=ranks, workers=workers, steps=STEPS, env={"DROPOUT": "0.2", "STEP_SECONDS": "0.02"},
                flags=["--resume", "auto"],
                options=["run.rendezvous_timeout_minutes=0.15"])  # a rank that is killed at its start never comes


def log_lines(folder: Path) -> int:
    """How many lines the log of the run under a folder has."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("out/*/log.jsonl"))


class Uninterrupted:
    """What a number of ranks makes of the run in one go, without loader workers; each is run once."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self.zygote, self.folder = zygote, folder
        self._found: dict[int, Outcome] = {}

    def outcome(self, ranks: int) -> Outcome:
        """See the class."""
        if ranks not in self._found:
            folder = self.folder / str(ranks)
            folder.mkdir()
            jobs = chain(ranks, 0).start(self.zygote, folder)
            assert finish(jobs) == [0] * ranks, texts(jobs)
            self._found[ranks] = outcome(folder, STEPS)
            assert len(self._found[ranks].log) == STEPS and self._found[ranks].scores
        return self._found[ranks]
