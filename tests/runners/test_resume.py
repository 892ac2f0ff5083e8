"""A run that was stopped and resumed is the uninterrupted run, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.annotations.kinds import Field, file_name, text
from lavis_lite.datasets.annotations.rows import read_table
from lavis_lite.datasets.caption import CaptionDataset
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.process.exits import Interrupted
from lavis_lite.runners import checkpointing, resume
from lavis_lite.runners.train_state import picture_sizes
from lavis_lite.tracking.tracker import read
from tests.helpers.toy import Toy, ToyData, ToyTask, records, same, weights

STEPS = 8
RUN = {"max_iters": STEPS, "accum_grad_iters": 2, "save_every": 1, "keep_checkpoints": STEPS, "max_grad_norm": 1.0,
       "iters_per_inner_epoch": 3, "valid_splits": ["val"], "test_splits": ["test"], "warmup_steps": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its last weights."""
    toy = Toy(tmp_path_factory.mktemp("whole"), RUN)
    runner = toy.build()
    runner.train()
    last = toy.build()
    last.resume(runner.store.path(STEPS))
    return toy.run_dir, weights(last)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resumed_at_any_step_it_ends_bit_for_bit_alike(whole, tmp_path, step):
    run_dir, expected = whole
    checkpointing.shutil.copytree(run_dir, tmp_path / "run")
    toy = Toy(tmp_path / "run", RUN)
    runner = toy.build()
    runner.resume(runner.store.path(step))
    runner.train()
    assert records(toy.run_dir) == records(run_dir)
    final = toy.build()
    final.resume(runner.store.path(STEPS))
    assert same(weights(final), expected)


class StopAfter(ToyTask):
    """Raises as a killed process would: at a given call, with nothing cleaned up."""

    calls, at = 0, 0

    def train_step(self, model, samples):
        type(self).calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return super().train_step(model, samples)


def test_lost_steps_are_done_again_and_their_log_lines_dropped(whole, tmp_path):
    StopAfter.calls, StopAfter.at = 0, 10  # in the middle of step 5; saved after steps 2 and 4
    toy = Toy(tmp_path, {**RUN, "save_every": 2}, task_class=StopAfter)
    with pytest.raises(KeyboardInterrupt):
        toy.build().train()
    with open(tmp_path / "log.jsonl", "a") as log:  # what a kill in the middle of a line leaves, and a stale future
        log.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    toy = Toy(tmp_path, {**RUN, "save_every": 2})
    runner = toy.build()
    found = checkpointing.newest_good(tmp_path)
    assert found == runner.store.path(4)
    runner.resume(found)
    runner.train()
    assert records(tmp_path) == records(whole[0])


def test_best_metric_survives(whole, tmp_path):
    run_dir, _ = whole
    best = json.loads((run_dir / "checkpoints/best.json").read_text())
    scores = {row["step"]: row["agg_metrics"] for row in read(run_dir / "log.jsonl") if row.get("split") == "val"}
    assert set(scores) == {3, 6, 8}
    assert best == {"checkpoint": f"step_{best['step']:08d}", "step": max(scores, key=scores.get),
                    "metric": max(scores.values()), "split": "val"}
    checkpointing.shutil.copytree(run_dir, tmp_path / "run")
    runner = Toy(tmp_path / "run", RUN).build()
    runner.resume(runner.store.path(7))
    first = 6 if scores[6] > scores[3] else 3
    assert runner.best == {"step": first, "metric": max(scores[3], scores[6]), "split": "val"}
    checkpointing.shutil.rmtree(runner.store.path(first))
    runner = Toy(tmp_path / "run", RUN).build()
    runner.resume(runner.store.path(7))
    assert runner.best is None, "its weights cannot be tested at the end"


def test_a_run_that_ends_before_the_checkpoint_is_refused(whole, tmp_path):
    with pytest.raises(ConfigError, match=r"is of step 8, and this run ends after 5 .*run.max_iters"):
        Toy(tmp_path, {**RUN, "max_iters": 5}).build().resume(whole[0] / "checkpoints/step_00000008")


def test_optimizer_arguments_that_need_another_state_are_refused(tmp_path):
    """torch would stop with a KeyError in the middle of the first step."""
    Toy(tmp_path, {"optimizer": "sgd", "max_iters": 1, "save_every": 1}).build().train()
    saved = tmp_path / "checkpoints/step_00000001"
    Toy(tmp_path, {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}}).build().resume(saved)
    Toy(tmp_path / "adam", {"optimizer": "adam", "max_iters": 1, "save_every": 1}).build().train()
    with pytest.raises(CheckpointError, match="has no max_exp_avg_sq, which adam keeps with this run's run.optimizer_"):
        Toy(tmp_path / "adam", {"optimizer": "adam", "optimizer_args": {"amsgrad": True}}).build().resume(
            tmp_path / "adam/checkpoints/step_00000001")


class TwoSets(Toy):
    """Each step draws from one of two sets, one of them ever more rarely."""

    factor: float | dict[str, float] = {"0": 1.0, "6": 0.5}  # noqa: RUF012  # tests set another

    def build(self, tracker=None):
        runner = super().build(tracker)
        runner.cfg.datasets["rare"] = DatasetConfig(sampling_factor=self.factor)
        runner.datasets = {**runner.datasets, "rare": {"train": ToyData(16)}}
        return runner


def test_ratios_that_change_continue_where_they_were(tmp_path):
    run = {**RUN, "sampling": "size", "save_every": 4, "valid_splits": [], "test_splits": []}
    first = TwoSets(tmp_path / "first", run)
    first.build().train()
    checkpointing.shutil.copytree(first.run_dir, tmp_path / "second")
    second = TwoSets(tmp_path / "second", run).build()
    second.resume(second.store.path(4))
    second.train()
    assert records(tmp_path / "second") == records(first.run_dir)
    other = TwoSets(tmp_path / "second", run)
    other.factor = 1.0
    with pytest.raises(ConfigError, match=r"ratios was \[40.0, \[\[0, 16.0\], \[6, 8.0\]\]\] and is \[40.0, 16.0\]"):
        other.build().resume(second.store.path(4))


def test_a_finished_run_resumes_to_nothing_but_its_test(whole, tmp_path):
    checkpointing.shutil.copytree(whole[0], tmp_path / "run")
    runner = Toy(tmp_path / "run", RUN).build()
    runner.resume(runner.store.path(STEPS))
    scores = runner.train()
    assert scores["test"]["rows"] == 7
    assert [row["step"] for row in read(tmp_path / "run/log.jsonl") if "loss" in row] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("change", "advice"), [
    ({"batch_size_train": 2}, "change one to make up"), ({"accum_grad_iters": 1}, "change one to make up"),
    ({"seed": 1}, r"\. Start a new")])
def test_another_order_of_samples_is_refused(whole, tmp_path, change, advice):
    with pytest.raises(ConfigError, match=f"would not continue as it began.*{advice}"):
        Toy(tmp_path, {**RUN, **change}).build().resume(whole[0] / "checkpoints/step_00000004")


def test_more_rows_are_refused():
    before = {"sizes": [12], "seed": 1, "global batch": 4, "ratios": None}
    with pytest.raises(ConfigError, match=r"sizes was \[12\] and is \[16\]. Sizes are the rows .* Restore the earlier"):
        resume.check_order(before, {**before, "sizes": [16]}, Path("step"))


def test_pictures_that_have_changed_are_told(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"image": f"{n}.png", "caption": "a"} for n in range(100)]))
    for number in range(99):
        (tmp_path / f"{number}.png").write_bytes(bytes(10 + number))
    table = read_table([tmp_path / "rows.json"], [Field("image", file_name), Field("caption", text)])
    data = CaptionDataset(table, ImageFolder(tmp_path), str, str)
    before = {"annotations": [["own", "h"]], "pictures": [picture_sizes(data)]}
    assert len(before["pictures"][0]) == 64 and (before["pictures"][0][0], before["pictures"][0][-1]) == (10, 0)
    (tmp_path / "99.png").write_bytes(b"is back")
    assert resume.changed_pictures(before, {**before, "pictures": [picture_sizes(data)]}) == []
    (tmp_path / "0.png").write_bytes(b"another")
    assert resume.changed_pictures(before, {**before, "pictures": [picture_sizes(data)]}) == ["own"]
    assert resume.changed_pictures({}, before) == [] and picture_sizes([1, 2]) == []


def test_batch_and_accumulation_may_be_exchanged(whole, tmp_path):
    runner = Toy(tmp_path, {**RUN, "batch_size_train": 8, "accum_grad_iters": 1}).build()
    runner.resume(whole[0] / "checkpoints/step_00000004")
    assert runner.step == 4


class StopInValidation(ToyTask):
    """A signal arrives while the split is predicted."""

    def predict(self, model, samples):
        rows = super().predict(model, samples)
        self.runner.watch.code = 143
        return rows


def test_a_validation_that_was_interrupted_is_done_after_the_resume(whole, tmp_path):
    toy = Toy(tmp_path, RUN, task_class=StopInValidation)
    runner = toy.build()
    runner.task.runner = runner
    with pytest.raises(Interrupted) as stop:
        runner.train()
    assert (stop.value.exit_code, stop.value.checkpoint) == (143, runner.store.path(3))
    assert [row for row in read(tmp_path / "log.jsonl") if "split" in row] == []
    runner = Toy(tmp_path, RUN).build()
    runner.resume(stop.value.checkpoint)
    runner.train()
    assert records(tmp_path) == records(whole[0])


# what may differ ----------------------------------------------------------------------------------------------------
def lines_of_resume(runner, folder):
    """What a resume says to people."""
    said = []
    runner.tracker.log = said.append
    runner.resume(folder)
    return said


def test_a_resume_says_every_setting_that_differs(whole):
    folder = whole[0] / "checkpoints/step_00000004"
    assert lines_of_resume(Toy(whole[0], RUN).build(), folder) == []
    changed = Toy(whole[0], {**RUN, "init_lr": 0.5, "valid_splits": [], "resume_ckpt_path": "x", "max_grad_norm": None})
    assert lines_of_resume(changed.build(), folder) == [
        f"setting changed since step_00000004: run.{line}" for line in (
            "init_lr: 0.01 -> 0.5", "max_grad_norm: 1.0 -> null", 'valid_splits: ["val"] -> []')]


def test_settings_that_one_of_two_runs_lacks_are_said_too(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {init_lr: 0.1, old: 1}\nmodel: {llm_args: {a: [1, 2]}}\n")
    present = f"run: {{init_lr: 0.1, new: {'x' * 200}}}\nmodel: {{llm_args: {{a: [1]}}}}\n"
    said = resume.changed_settings(tmp_path, present)
    assert said == ["run.old: 1 -> (absent)", "model.llm_args.a: [1, 2] -> [1]",
                    f'run.new: (absent) -> "{"x" * 79}...']


def with_rows(toy, rows):
    """A runner whose data set tells the hash of its rows."""
    runner = toy.build()
    data = runner.datasets["toy"]["train"]
    data.content_hash = lambda: rows
    return runner


def test_a_resume_on_other_annotations_is_refused_with_the_way_on(tmp_path):
    toy = Toy(tmp_path, {"max_iters": 2})
    with_rows(toy, "hash 1").train()
    folder = tmp_path / "checkpoints/step_00000002"
    with_rows(toy, "hash 1").resume(folder)
    with pytest.raises(ConfigError, match="annotations of toy .* their content is not.*model.pretrained="):
        with_rows(toy, "hash 2").resume(folder)
    toy.build().resume(folder)  # of a data set that cannot tell, nothing is known


def test_checkpoints_of_earlier_versions_are_resumed(tmp_path):
    toy = Toy(tmp_path, {"max_iters": 4, "save_every": 2})
    runner = toy.build()
    runner.train()
    folder = tmp_path / "checkpoints/step_00000002"
    state = checkpointing.load(folder, runner.model)
    for key in ("losses", "recently_skipped", "micro_batch"):
        del state[key]
    del state["order"]["annotations"]
    resume.check_order(state["order"], runner.train_state.fingerprint, folder)
    runner.train_state.train_step.load_state(state)
