"""An evaluation that is killed or stopped goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from lavis_lite import distributed
from lavis_lite.config.compose import compose
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.engine import open_run_folder
from lavis_lite.errors import DataError
from lavis_lite.evaluation.resume import FOLDER, EvalCheckpoint, config_fingerprint, encode_line
from lavis_lite.process.exits import Interrupted
from lavis_lite.report.sample import ReportSample
from lavis_lite.runners import checkpointing
from lavis_lite.tasks.base import BaseTask
from lavis_lite.tracking.tracker import Tracker
from tests.helpers.processes import run_processes
from tests.helpers.threads import fork
from tests.helpers.toy import Toy, ToyData, ToyTask

CELL = Path(__file__).parents[2] / "projects/blip2/eval/mini_vqa_opt.yaml"
RUN = {"batch_size_eval": 2, "on_bad_sample": "skip", "max_bad_fraction": 0.5, "evaluate": True,
       "test_splits": ["test"], "report": False}


class Counting(ToyTask):
    """Notes which ids it predicts, draws a number for each, and can end its process in a batch."""

    gathers_rows = True
    ends_at: int | None = None
    end = signal.SIGKILL

    def __init__(self, cfg):
        super().__init__(cfg)
        self.ids: list[int] = []

    def predict(self, model, samples):
        if "index" not in samples:
            return []
        found = samples["index"].tolist()
        if self.ends_at in found:
            os.kill(os.getpid(), self.end)
        self.ids += found
        rows = super().predict(model, samples)
        return [{**row, "drawn": float(torch.rand(()))} for row in rows]

    def score(self, model, rows, dataset, split):
        total = sum(row["error"] * row["drawn"] for row in rows)
        return {"error": total, "rows": len(rows), "agg_metrics": -total}

    def predictions(self, rows, dataset):
        return rows

    def report(self, rows, dataset, split):
        return [ReportSample(row["id"], scores={"error": row["error"]}) for row in rows]


class Holes(ToyData):
    def __getitem__(self, index):
        if index in (1, 4, 5):
            raise BadSample(f"{index}.jpg", "is truncated")
        return super().__getitem__(index)


def build(folder, task=Counting, said=None, **run):
    runner = Toy(Path(folder), {**RUN, **run}, task_class=task).build(Tracker())
    runner.datasets = {"toy": {"train": ToyData(40), "val": ToyData(11), "test": Holes(13)}}
    if said is not None:
        runner.tracker.log = said.append
    return runner


def evaluate(folder, task=Counting, said=None, **run):
    runner = build(folder, task, said, **run)
    runner.execute()
    return runner


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path):
    runner = evaluate(tmp_path / "whole")
    assert runner.task.ids == [0, 2, 3, 6, 7, 8, 9, 10, 11, 12] and runner.bad_samples.state()["bad"] == 3
    found = files_of(tmp_path / "whole")
    assert not any(".unfinished" in name for name in found) and "bad_samples.jsonl" in found
    return found


def in_a_child(work):
    """Do it in a forked process; returns the signal that ended it."""
    child = fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_between_two_batches(whole, tmp_path, workers):
    folder = tmp_path / "killed"

    class Dies(Counting):
        ends_at = 8

    assert in_a_child(lambda: evaluate(folder, Dies, num_workers=workers)) == -signal.SIGKILL
    said = []
    runner = evaluate(folder, said=said, num_workers=0)
    assert runner.task.ids == [8, 9, 10, 11, 12]
    assert said[0] == "test toy: 8 of 13 samples were finished before"
    assert files_of(folder) == whole and runner.bad_samples.state() == {"bad": 3, "read": 13}


def test_killed_within_a_line_and_again_and_again(whole, tmp_path, monkeypatch):
    folder = tmp_path / "killed"

    def die_within(batch):
        def half(self, entry):
            if entry["batch"] != batch:
                return append(self, entry)
            line = encode_line(entry)
            file = self._file or self._opened()
            file.write(line[:len(line) // 2])
            file.flush()
            return os.kill(os.getpid(), signal.SIGKILL)

        append = EvalCheckpoint.append
        monkeypatch.setattr(EvalCheckpoint, "append", half)
        evaluate(folder)

    for batch in (0, 3, 6):
        assert in_a_child(lambda batch=batch: die_within(batch)) == -signal.SIGKILL
        [journal] = (folder / FOLDER).iterdir()
        assert not journal.read_bytes().endswith(b"\n")
    runner = evaluate(folder)
    assert runner.task.ids == [12] and files_of(folder) == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished_and_says_so(whole, tmp_path, number, code, capsys):
    class Signalled(Counting):
        ends_at = 6
        end = number

    with pytest.raises(Interrupted) as stop:
        evaluate(tmp_path / "stopped", Signalled)
    assert stop.value.exit_code == code and stop.value.checkpoint is None
    assert "is kept in " in str(stop.value) and "the same command continues" in str(stop.value)
    assert "finishing this batch, then leaving" in capsys.readouterr().err
    assert evaluate(tmp_path / "stopped").task.ids == [8, 9, 10, 11, 12]
    assert files_of(tmp_path / "stopped") == whole


def test_what_training_could_not_read_stays_counted_when_an_evaluation_is_stopped(tmp_path):
    class Signalled(Counting):
        ends_at = 6
        end = signal.SIGTERM

    runner = build(tmp_path, Signalled, None)
    unread = {"file": "a.jpg", "row": "train.json:3", "reason": "broken"}
    runner.bad_samples.add([unread], 32)  # since the last log line
    with pytest.raises(Interrupted):
        runner.execute()
    assert runner.bad_samples.state() == {"bad": 1, "read": 32}
    [line] = (tmp_path / "bad_samples.jsonl").read_text().splitlines()
    assert "train.json:3" in line and "split" not in line


def test_finished_splits_of_a_killed_round_are_only_scored_again(tmp_path):
    class Dies(Counting):
        def score(self, model, rows, dataset, split):
            if split == "test":
                raise DataError("the scorer is not here")
            return super().score(model, rows, dataset, split)

    splits = {"valid_splits": ["val"], "test_splits": ["test"]}
    with pytest.raises(DataError):
        evaluate(tmp_path, Dies, **splits)
    runner = evaluate(tmp_path, **splits)
    assert runner.task.ids == [] and not (tmp_path / FOLDER).exists()
    assert json.loads((tmp_path / "results/val_step0.json").read_text())["metrics"]["rows"] == 11


@pytest.mark.parametrize(("change", "reason"), [({"seed": 3}, "run.seed was 42 and is 3"),
                                                ({"resume_evaluation": False}, None)])
def test_another_evaluation_begins_from_the_start(tmp_path, change, reason):
    class Stops(Counting):
        ends_at = 6
        end = signal.SIGTERM

    with pytest.raises(Interrupted):
        evaluate(tmp_path, Stops)
    said = []
    assert evaluate(tmp_path, said=said, **change).task.ids[0] == 0
    assert reason is None or reason in said[0] and "not resumed" in said[0]


def test_a_journal_that_cannot_be_written_stops_nothing(whole, tmp_path):
    (tmp_path / "full" / "results").mkdir(parents=True)
    (tmp_path / "full" / FOLDER).write_text("in the way")
    said = []
    runner = evaluate(tmp_path / "full", said=said)
    assert len(runner.task.ids) == 10 and sum("cannot be written" in line for line in said) == 1
    assert (tmp_path / "full/results/test_step0.json").read_bytes() == whole["results/test_step0.json"]


def test_rows_that_are_not_plain_are_not_kept(tmp_path):
    class Tensors(Counting):
        def predict(self, model, samples):
            return [{**row, "error": row["error"], "image": samples["image"][0]} for row in
                    super().predict(model, samples)]

        predictions = BaseTask.predictions

        def score(self, model, rows, dataset, split):
            [journal] = (tmp_path / FOLDER).iterdir()
            lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
            assert [(line["batch"], line["rows"]) for line in lines] == [(2, [])]  # nothing in it was usable
            return super().score(model, rows, dataset, split)

    assert evaluate(tmp_path, Tensors).task.ids[-1] == 12


def test_a_validation_within_training_goes_on(tmp_path):
    run = {"evaluate": False, "max_iters": 4, "iters_per_inner_epoch": 2, "save_every": 1, "valid_splits": ["val"]}
    expected = files_of_training(tmp_path / "whole", run)

    class Dies(Counting):
        rounds = 0

        def before_evaluation(self, dataset, split):
            Dies.rounds += 1
            self.ends_at = 6 if Dies.rounds == 2 else None

    assert in_a_child(lambda: build(tmp_path / "killed", Dies, **run).train()) == -signal.SIGKILL
    runner = build(tmp_path / "killed", **run)
    runner.resume(checkpointing.newest_good(tmp_path / "killed", log=lambda text: None))
    assert runner.step == 3
    runner.train()
    assert runner.task.ids == [*range(6, 11), 0, 2, 3, *range(6, 13)]
    assert results_of(tmp_path / "killed") == expected and not (tmp_path / "killed" / FOLDER).exists()


def files_of_training(folder, run):
    build(folder, **run).train()
    return results_of(folder)


def results_of(folder):
    return {name: text for name, text in files_of(folder).items() if name.startswith("results")}


# --- several ranks ----------------------------------------------------------------------------------------------------
class LateWish(Counting):
    """Rank 1 is asked to stop in its second batch."""

    def predict(self, model, samples):
        if os.environ["RANK"] == "1" and len(self.ids) >= 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().predict(model, samples)


def two_ranks(folder):
    """Stop in one folder, go on in another that one process has left."""
    try:
        evaluate(f"{folder}/two", LateWish)
        code = 0
    except Interrupted as stop:
        code = stop.exit_code
    runner = evaluate(f"{folder}/one")
    return code, runner.task.ids, runner.bad_samples.state(), distributed.world_size()


def test_the_number_of_ranks_may_change_between(whole, tmp_path):
    class Stops(Counting):
        ends_at = 6
        end = signal.SIGTERM

    with pytest.raises(Interrupted):
        evaluate(tmp_path / "one", Stops)
    [(code0, ids0, state0, _), (code1, ids1, state1, count)] = run_processes(two_ranks, 2, str(tmp_path))
    assert (code0, code1, count) == (143, 143, 2) and state0 == state1 == {"bad": 3, "read": 13}
    assert (ids0, ids1) == ([8, 9, 12], [10, 11])
    done = {entry["batch"] for path in (tmp_path / "two" / FOLDER).glob("*.rank?.jsonl")
            for entry in map(json.loads, path.read_text().splitlines()[1:])}
    assert done == {0, 2, 4, 6, 1, 3}
    assert evaluate(tmp_path / "two").task.ids == [10, 11]
    for folder in ("one", "two"):
        found = files_of(tmp_path / folder)
        assert {name: text for name, text in found.items() if name != "bad_samples.jsonl"} == {
            name: text for name, text in whole.items() if name != "bad_samples.jsonl"}
        assert sorted(found["bad_samples.jsonl"].splitlines()) == sorted(whole["bad_samples.jsonl"].splitlines())


def test_the_engine_takes_up_the_folder_of_an_evaluation_that_was_stopped(tmp_path, capsys):
    def folder(*options, evaluating="true"):
        composed = compose(str(CELL), [f"run.evaluate={evaluating}", f"run.output_dir={tmp_path}", *options])
        return composed, open_run_folder(composed, None)

    composed, first = folder()
    name = next(iter(composed.config.datasets))
    parts = {**config_fingerprint(composed.config, name), "data set": name, "step": 0, "split": "test"}
    journal = EvalCheckpoint(first, f"test_{name}_step0", parts, True, 0)
    journal.append({"key": "k", "value": 1})
    journal.close()
    assert folder("run.num_workers=1")[1] == first and f"stopped in {first}" in capsys.readouterr().out
    assert "num_workers: 1" in (first / "config.yaml").read_text()  # what was asked for last
    assert folder("run.num_beams=2")[1] != first and "run.num_beams was" in capsys.readouterr().out
    assert folder("run.resume_evaluation=false")[1] != first and folder(evaluating="false")[1] != first
    assert capsys.readouterr().out == ""
