"""The step loop: accumulation, clipping, skipped steps, bounds, evaluation."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.utils.data import Subset

from lavis_lite import dry_run, engine
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.device import X86_BF16, Precision, bf16_is_native, pick_device
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.runners import schedules
from lavis_lite.runners.outcome import PATIENCE, DivergedError
from lavis_lite.runners.train_state import refuse_lost_targets
from lavis_lite.tracking.tracker import read
from tests.helpers.toy import ExactModel, Toy, ToyData, ToyModel, ToyTask, records, same, weights


def close(left, right):
    return all(torch.allclose(left[name], right[name], rtol=1e-9, atol=1e-12) for name in left if name != "seen")


def train(toy):
    runner = toy.build()
    runner.train()
    return runner


def losses(runner):
    return [row["loss"] for row in read(runner.run_dir / "log.jsonl") if "lr" in row]


def test_the_loss_falls_and_only_trainable_weights_move(tmp_path):
    toy = Toy(tmp_path, {"max_iters": 60, "init_lr": 0.03}, dropout=0.0)
    start = weights(toy.build())
    runner = train(toy)
    found = losses(runner)
    assert sum(found[-10:]) < 0.6 * sum(found[:10])
    end = weights(runner)
    assert torch.equal(start["frozen.weight"], end["frozen.weight"]) and not runner.model.frozen.training
    assert not torch.equal(start["out.weight"], end["out.weight"])


def test_accumulation_equals_the_large_batch(tmp_path):
    runs = [train(Toy(tmp_path / str(accum), {"accum_grad_iters": accum, "batch_size_train": 8 // accum}, dropout=0.0,
                      model_class=ExactModel)) for accum in (1, 2, 4)]
    for run in runs[1:]:
        assert close(weights(runs[0]), weights(run))
        assert losses(runs[0]) == pytest.approx(losses(run), rel=1e-9)
    assert losses(runs[0])[0] != losses(runs[0])[1]


def test_dropout_is_a_function_of_the_position_alone(tmp_path):
    one, two = Toy(tmp_path / "1", dropout=0.5).build(), Toy(tmp_path / "2", dropout=0.5).build()
    torch.manual_seed(1)
    one.train()
    torch.manual_seed(2)
    two.train()
    assert same(weights(one), weights(two))
    other = train(Toy(tmp_path / "3", {"seed": 7}, dropout=0.5))
    assert not same(weights(one), weights(other))


def test_clipping_bounds_the_step_and_the_logged_norm_is_the_one_before(tmp_path):
    runner = Toy(tmp_path, {"max_grad_norm": 0.5}).build()
    stepper = runner.train_state.train_step
    result = stepper.run(0, list(runner.train_state.batches(0, 1)))
    clipped = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in stepper.parameters))
    assert clipped == pytest.approx(0.5, rel=1e-4)
    assert float(result.grad_norm) > 1.0


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    runner = Toy(tmp_path, {"max_iters": 10, "valid_splits": ["val"]}, nan_rows=frozenset({5})).build()
    before = weights(runner)
    order = runner.train_state.order
    bad = next(step for step in range(10) if any(key.index == 5 for key in order(step)))
    stepper = runner.train_state.train_step
    stepper.run(bad, list(runner.train_state.batches(bad, bad + 1)))
    assert stepper.agree() == ([bad], 0, False)
    after = weights(runner)
    assert all(torch.equal(before[name], after[name]) for name in before if name != "seen")
    runner = train(Toy(tmp_path, {"max_iters": 10}, nan_rows=frozenset({5})))
    rows = read(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if "event" in row] == [bad + 1]
    assert next(row for row in rows if row["step"] == bad + 1)["loss"] == "nan"
    assert all(torch.isfinite(value).all() for value in weights(runner).values())
    assert runner.train_state.train_step.skipped == 1


def test_many_in_a_row_stop_the_run_with_finite_weights(tmp_path):
    runner = Toy(tmp_path, nan_rows=frozenset(range(40))).build()
    with pytest.raises(DivergedError, match=f"{PATIENCE} steps in a row, up to step {PATIENCE}; none of them changed"):
        runner.train()
    assert all(torch.isfinite(value).all() for value in weights(runner).values())


def test_votes_that_are_read_one_step_late_decide_the_same(tmp_path):
    """As on a GPU, where the host does not wait for the device."""
    toys = [Toy(tmp_path / name, {"valid_splits": ["val"]}, nan_rows=frozenset({5})) for name in ("now", "late")]
    now, late = (toy.build() for toy in toys)
    late.train_state.train_step._votes.lag = 1
    now.train()
    late.train()
    assert same(weights(now), weights(late))
    assert now.train_state.train_step.skipped == late.train_state.train_step.skipped == 1
    found = [records(toy.run_dir) for toy in toys]
    assert sorted(found[0], key=str) == sorted(found[1], key=str)


def test_layer_decay_and_schedule_reach_the_optimizer(tmp_path):
    runner = Toy(tmp_path, {"lr_layer_decay": 0.5, "warmup_lr": 0.0, "warmup_steps": 4, "log_freq": 1}).build()
    stepper = runner.train_state.train_step
    result = stepper.run(2, list(runner.train_state.batches(2, 3)))
    assert result.lr == pytest.approx(0.005)
    rates = {name: group["lr"] for group in stepper.optimizer.param_groups for name in group["names"]}
    assert rates["hidden.0.weight"] == pytest.approx(0.00125) and rates["out.weight"] == pytest.approx(0.005)


def test_bf16_runs_under_autocast_and_fp16_is_refused_on_a_cpu(tmp_path):
    exact, rounded = (train(Toy(tmp_path / kind, {"amp_dtype": kind}, dropout=0.0)) for kind in ("fp32", "bf16"))
    assert losses(rounded)[0] == pytest.approx(losses(exact)[0], rel=0.05)
    assert losses(rounded)[0] != losses(exact)[0]
    with pytest.raises(ConfigError, match="fp16 does not train on a CPU"):
        Toy(tmp_path, {"amp_dtype": "fp16"}).build()


@pytest.mark.parametrize(("settings", "native", "note"), [
    ({"amp": True}, False, "run.amp=true has no effect here: this CPU has no instructions for bf16"),
    ({"amp_dtype": "bf16"}, False, "this CPU only emulates bf16"),
    ({"amp": True}, True, None), ({"amp_dtype": "bf16"}, True, None), ({"amp": False}, False, None)])
def test_a_run_names_a_cpu_without_bf16(tmp_path, monkeypatch, settings, native, note):
    monkeypatch.setattr("lavis_lite.device.bf16_is_native", lambda device: native)
    lines = []
    runner = Toy(tmp_path, {**settings, "max_iters": 1}).build()
    monkeypatch.setattr(type(runner.tracker), "log", lambda tracker, line: lines.append(line))
    runner.train()
    logged = "\n".join(lines)
    assert note in logged if note else "bf16:" not in logged and "run.amp" not in logged


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_an_x86_cpu_has_bf16_by_its_own_instructions(monkeypatch, name):
    """mkldnn also reports bf16 where avx512 emulates it."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for each in X86_BF16:
        monkeypatch.setattr(torch.cpu, each, lambda: False)
    assert not bf16_is_native(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert bf16_is_native(torch.device("cpu"))


def test_amp_asks_the_device(monkeypatch):
    cpu = torch.device("cpu")
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("lavis_lite.device.bf16_is_native", lambda device, native=native: native)
        assert Precision.from_run(RunConfig(amp=True), cpu).dtype == dtype
    assert Precision.from_run(RunConfig(amp=False), cpu).dtype == torch.float32
    gpu = torch.device("cuda", 0)
    assert Precision.from_run(RunConfig(amp=True), gpu).dtype == torch.float16
    with pytest.raises(ConfigError, match="'gpu' is not a device"):
        pick_device("gpu")


def test_epochs_and_inner_epochs_differ_in_their_units_only():
    cfg = RunConfig(max_epoch=3, valid_splits=["val"], save_freq=2, val_freq=1)
    by_epochs = schedules.by_epochs(cfg, steps_per_epoch=10)
    assert (by_epochs.total, by_epochs.interval, by_epochs.epoch(10), by_epochs.epoch(11)) == (30, 10, 0, 1)
    assert [step for step in range(1, 31) if by_epochs.saves(step, cfg, 30)] == [20, 30]
    assert [step for step in range(1, 31) if by_epochs.validates(step, cfg, by_epochs.total)] == [10, 20, 30]
    cfg = RunConfig(max_epoch=3, max_iters=25, save_every=7, save_freq=0, valid_splits=["val"], val_freq=2,
                    iters_per_inner_epoch=4, save_last=False, log_freq=10)
    assert schedules.by_epochs(cfg, 10) == schedules.TrainSchedule(25, 10)
    inner = schedules.by_iterations(cfg, 10)
    assert inner == schedules.TrainSchedule(25, 4)
    assert [step for step in range(1, 26) if inner.saves(step, cfg, 30)] == [7, 14, 21]
    assert [step for step in range(1, 26) if inner.validates(step, cfg, inner.total)] == [8, 16, 24, 25]
    assert [step for step in range(1, 26) if inner.logs(step, cfg)] == [1, 10, 20, 25]
    for bound in (schedules.by_epochs, schedules.by_iterations):
        with pytest.raises(ConfigError, match="the run has no end"):
            bound(RunConfig(), 10)
        with pytest.raises(ConfigError, match="at least 1"):
            bound(RunConfig(max_iters=0), 10)


def test_both_runners_take_the_same_steps(tmp_path):
    by_iterations = train(Toy(tmp_path / "iter", {"max_iters": 20}))
    by_epochs = train(Toy(tmp_path / "base", {"runner": "runner_base", "max_iters": None, "max_epoch": 2}))
    assert same(weights(by_iterations), weights(by_epochs))


def test_evaluation_counts_every_row_once_and_leaves_training_mode_alone(tmp_path):
    runner = Toy(tmp_path, {"valid_splits": ["val"], "test_splits": ["test"], "evaluate": True}).build()
    scores = runner.execute()
    assert {split: (score["rows"], score["distinct"]) for split, score in scores.items()} == {
        "val": (11, 11), "test": (7, 7)}
    assert runner.model.training
    written = json.loads((tmp_path / "results/val_step0.json").read_text())
    assert written == {"split": "val", "step": 0, "metrics": scores["val"]}
    assert not (tmp_path / "checkpoints").exists()


def test_the_test_is_taken_with_the_best_checkpoint(tmp_path):
    class GrowsWorse(ToyTask):
        values = iter([-1.0, -0.5, -0.7, -0.9])

        def score(self, model, rows, dataset, split):
            scores = super().score(model, rows, dataset, split)
            return scores | {"agg_metrics": next(self.values)} if split == "val" else scores

    toy = Toy(tmp_path, {"max_iters": 8, "iters_per_inner_epoch": 2, "valid_splits": ["val"], "test_splits": ["test"],
                         "keep_checkpoints": 1}, task_class=GrowsWorse)
    runner = train(toy)
    best = json.loads((tmp_path / "checkpoints/best.json").read_text())
    assert best == {"checkpoint": "step_00000004", "step": 4, "metric": -0.5, "split": "val"}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best.json", "last.json", "step_00000004", "step_00000008"]
    row = next(row for row in read(tmp_path / "log.jsonl") if row.get("split") == "test")
    assert (row["step"], row["checkpoint_step"]) == (8, 4)
    plain = Toy(tmp_path, toy.run).build()
    plain.resume(tmp_path / "checkpoints/step_00000004")
    assert plain.evaluate(["test"])["test"]["error"] == row["error"]
    assert runner.best == {"step": 4, "metric": -0.5, "split": "val"}


def test_the_best_of_another_split_is_not_compared(tmp_path):
    """A run that continues with another validation split has no best yet: the scores mean other things."""
    toy = Toy(tmp_path, {"max_iters": 2, "iters_per_inner_epoch": 2, "valid_splits": ["val"]})
    runner = toy.build()
    runner.best = {"step": 1, "metric": 1e9, "split": "test"}
    runner.train()
    assert runner.best["split"] == "val" and runner.best["step"] == 2


def test_a_split_nobody_has_is_found_before_training(tmp_path):
    with pytest.raises(ConfigError, match="run.valid_splits: no data set has a split 'vall'; did you mean 'val'"):
        Toy(tmp_path, {"valid_splits": ["vall"]}).build()
    with pytest.raises(ConfigError, match="run.train_splits"):
        Toy(tmp_path, {"train_splits": ["training"]}).build().train()


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="one optimizer step needs 64 samples"):
        Toy(tmp_path, {"batch_size_train": 64}).build().train()


def test_a_dry_run_takes_one_step_and_writes_nothing(tmp_path):
    losses = Toy(tmp_path).build().one_step()
    assert set(losses) == {"loss", "loss_fit", "loss_size"}
    assert losses["loss"] == pytest.approx(losses["loss_fit"] + losses["loss_size"])
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_an_evaluation_predicts_one_batch_of_every_split(tmp_path):
    runner = Toy(tmp_path, {"evaluate": True, "valid_splits": ["val"], "test_splits": ["test"]}).build()
    size = runner.run.batch_size_eval
    told = dry_run._first_batches(runner)
    assert told == f"predicted one batch ({size} of toy 'val', {size} of toy 'test')" and list(tmp_path.iterdir()) == []


def test_what_cannot_be_evaluated_is_refused_before_the_model_is_built(tmp_path):
    class Picky(ToyTask):
        def before_evaluation(self, dataset, split):
            raise DataError(f"not {split} of {len(dataset)}")

        def takes(self, dataset):
            return len(dataset) > 5

    config = Toy(tmp_path, {"valid_splits": [], "test_splits": ["test"]}).config()
    task = Picky(config.run)
    with pytest.raises(DataError, match="not test of 9"):
        engine.check_evaluated(task, {"a": {"test": ToyData(5)}, "b": {"test": ToyData(9), "val": 0}}, config)
    with pytest.raises(DataError, match="not test of 5"):
        engine.check_evaluated(task, {"a": {"test": ToyData(5)}}, config)


def test_ratios_by_name(tmp_path):
    runner = Toy(tmp_path, {"train_dataset_ratios": {"toy": 3.0}}).build()
    assert runner.train_state.fingerprint["ratios"] == [3.0]
    with pytest.raises(ConfigError, match="train_dataset_ratios.tory.*did you mean 'toy'"):
        Toy(tmp_path, {"train_dataset_ratios": {"tory": 1.0}}).build().train()


def test_sets_that_would_lose_their_answers_are_not_shuffled_together():
    class Of:
        def __init__(self, *keys):
            self.sample_keys = keys

    captions, questions = Of("image", "text_input"), Of("image", "text_input", "text_output")
    with pytest.raises(ConfigError, match="samples of b have a text_output .*; those of a have none"):
        refuse_lost_targets(["a", "b"], [captions, questions])
    refuse_lost_targets(["a", "b", "c"], [questions, questions, object()])


def test_several_sets_with_one_split_are_told_apart(tmp_path):
    runner = Toy(tmp_path, {"test_splits": ["test"]}).build()
    runner.datasets = {"a": {"test": ToyData(5)}, "b": {"test": ToyData(9)}}
    scores = runner.evaluate()["test"]
    assert (scores["a/rows"], scores["b/rows"]) == (5, 9)
    assert scores["agg_metrics"] == pytest.approx((scores["a/agg_metrics"] + scores["b/agg_metrics"]) / 2)


def test_rows_of_all_ranks_become_one_file_and_sets_that_do_not_fit_are_left_out(tmp_path):
    class Writes(ToyTask):
        gathers_rows = True

        def takes(self, dataset):
            return len(dataset) == 9

        def evaluated(self, dataset):
            return Subset(dataset, range(8))

        def predictions(self, rows, dataset):
            return [{"id": row["id"]} for row in rows]

    runner = Toy(tmp_path).build()
    runner.task = runner.evaluator.task = Writes(runner.run)
    runner.datasets = {"a": {"test": ToyData(5)}, "b": {"test": ToyData(9)}}
    assert runner.evaluate(["test"])["test"]["rows"] == 8
    written = json.loads((tmp_path / "results/test_step0_predictions.json").read_text())
    assert written == [{"id": number} for number in range(8)]


def test_bad_samples_are_listed_counted_and_limited(tmp_path):
    class Holes(ToyData):
        def __getitem__(self, index):
            if index in (3, 17):
                raise BadSample(f"{index}.jpg", "is truncated")
            return super().__getitem__(index)

    run = {"runner": "runner_base", "max_iters": None, "max_epoch": 2, "on_bad_sample": "skip",
           "max_bad_fraction": 0.2}
    runner = Toy(tmp_path, run).build()
    runner.datasets = {"toy": {"train": Holes(40)}}
    runner.train()
    rows = read(tmp_path / "bad_samples.jsonl")
    assert {row["file"] for row in rows} == {"17.jpg", "3.jpg"} and len(rows) >= 4  # a stand-in may be bad as well
    assert all(1 <= row["step"] <= 20 for row in rows)
    assert runner.bad_samples.state() == {"bad": len(rows), "read": 80}
    runner = Toy(tmp_path / "strict", {**run, "max_bad_fraction": 0.0}).build()
    runner.datasets = {"toy": {"train": Holes(40)}}
    with pytest.raises(DataError, match="max_bad_fraction"):
        runner.train()


class SharedData(ToyData):
    """Seven rows of three pictures, the last one first."""

    shares_pictures = True

    def evaluation_order(self):
        return range(len(self) - 1, -1, -1)

    def image_name(self, index):
        return str(index % 3)

    def picture(self, index, rng):
        return self.image[index % 3]

    def sample(self, index, rng, picture=None):
        return {**self[index], "image": self.picture(index, rng) if picture is None else picture}


class TakingModel(ToyModel):
    takes_image_rows = True


@pytest.mark.parametrize(("model", "pictures"), [(ToyModel, 4), (TakingModel, 3)])
def test_only_models_that_take_shared_pictures_get_them(tmp_path, model, pictures):
    seen = []

    class Task(ToyTask):
        def predict(self, model, samples):
            seen.append((samples["index"].tolist(), len(samples["image"]), "image_rows" in samples))
            image = samples["image"][samples["image_rows"]] if "image_rows" in samples else samples["image"]
            return super().predict(model, {**samples, "image": image})

    runner = Toy(tmp_path, {"batch_size_eval": 4}, model_class=model, task_class=Task).build()
    scores = runner.evaluator.split({"toy": SharedData(7)}, "val", 0)
    assert scores["distinct"] == 7
    assert seen == [([6, 5, 4, 3], pictures, pictures == 3), ([2, 1, 0], 3, False)]
