"""The hooks of the package: EMA, early stop, profiler, throughput, sample predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lavis_lite.errors import ConfigError
from lavis_lite.runners import checkpointing
from lavis_lite.runners.hooks.early_stop import EarlyStop
from lavis_lite.runners.hooks.ema import EMA
from lavis_lite.runners.runner import Runner
from lavis_lite.tracking.sinks import Sink
from lavis_lite.tracking.tracker import JsonlLog, Tracker, read
from tests.helpers.toy import Toy, ToyData, ToyModel, ToyTask, same, weights

EMA_RUN = {"max_iters": 6, "save_every": 1, "keep_checkpoints": 9}


def hook_of(runner: Runner) -> Any:
    return runner.hooks.hooks[-1]


# EMA ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("warm_up", [False, True])
def test_the_average_is_that_of_its_formula(tmp_path: Path, warm_up: bool) -> None:
    runner = Toy(tmp_path, {**EMA_RUN, "hooks": {"ema": {"decay": 0.7, "warm_up": warm_up}}}).build()
    expected = {name: value.double() for name, value in weights(runner).items()}
    runner.train()
    for step in range(1, 7):
        now = load_file(tmp_path / f"checkpoints/step_{step:08d}/model.safetensors")
        decay = min(0.7, step / (9 + step)) if warm_up else 0.7
        for name in now:
            expected[name] = decay * expected[name] + (1 - decay) * now[name].double()
    found = hook_of(runner).average
    assert sorted(found) == ["hidden.0.bias", "hidden.0.weight", "out.bias", "out.weight", "scale", "tokens"]
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_the_average_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    run = {**EMA_RUN, "hooks": {"ema": {"decay": 0.9}}}
    whole = Toy(tmp_path / "a", run).build()
    whole.train()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    resumed = Toy(tmp_path / "b", run).build()
    resumed.resume(tmp_path / "b/checkpoints/step_00000002")
    resumed.train()
    assert same(hook_of(whole).average, hook_of(resumed).average) and same(weights(whole), weights(resumed))


def test_the_file_of_the_average_is_a_checkpoint_of_the_whole_model(tmp_path: Path) -> None:
    runner = Toy(tmp_path, {**EMA_RUN, "hooks": {"ema": {"decay": 0.5}}}).build()
    runner.train()
    folder = tmp_path / "checkpoints/step_00000006"
    own, average = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    assert own.keys() == average.keys() and torch.equal(own["seen"], average["seen"])
    assert torch.equal(average["out.weight"], hook_of(runner).average["out.weight"])
    assert checkpointing.verify(folder) == []
    (folder / "ema.safetensors").write_bytes((folder / "ema.safetensors").read_bytes()[:-1] + b"x")
    assert "ema.safetensors: its sha256 differs" in checkpointing.verify(folder)[0]


class Watches(ToyTask):
    """Keeps a weight as it was while a split was predicted."""

    seen: list[torch.Tensor]

    def predict(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
        self.seen = [*getattr(self, "seen", []), model.out.weight.detach().clone()]
        return super().predict(model, samples)


def test_with_evaluate_the_average_is_measured_and_the_weights_come_back(tmp_path: Path) -> None:
    run = {"max_iters": 4, "iters_per_inner_epoch": 2, "valid_splits": ["val"], "init_lr": 0.3, "save_every": 2,
           "keep_checkpoints": 9, "hooks": {"ema": {"decay": 0.9, "evaluate": True}}}
    runner = Toy(tmp_path, run, task_class=Watches).build()
    runner.train()
    plain = Toy(tmp_path / "plain", {**run, "hooks": {}}).build()
    plain.train()
    assert same(weights(runner), weights(plain))
    for step, row in ((2, 0), (4, 4)):
        average = load_file(tmp_path / f"checkpoints/step_{step:08d}/ema.safetensors")["out.weight"]
        assert torch.equal(runner.task.seen[row], average)  # type: ignore[attr-defined]
    own = load_file(tmp_path / "checkpoints/step_00000004/model.safetensors")["out.weight"]
    assert torch.equal(own, runner.model.out.weight) and not torch.equal(own, average)  # type: ignore[arg-type,union-attr]


def test_the_best_checkpoint_is_tested_with_its_own_average(tmp_path: Path) -> None:
    class FirstIsBest(Watches):
        def score(self, model: Any, rows: Any, dataset: Any, split: str) -> dict[str, float]:
            self.rounds = getattr(self, "rounds", 0) + 1
            return {"agg_metrics": 1.0 / self.rounds}

    run = {"max_iters": 6, "iters_per_inner_epoch": 2, "valid_splits": ["val"], "test_splits": ["test"],
           "init_lr": 0.3, "hooks": {"ema": {"decay": 0.9, "evaluate": True}}}
    runner = Toy(tmp_path, run, task_class=FirstIsBest).build()
    runner.train()
    assert runner.best is not None and runner.best["step"] == 2
    average = load_file(tmp_path / "checkpoints/step_00000002/ema.safetensors")["out.weight"]
    assert torch.equal(runner.task.seen[-1], average)  # type: ignore[attr-defined]


def test_a_best_checkpoint_that_is_older_than_the_average_is_tested_with_its_own_weights(tmp_path: Path) -> None:
    class FirstIsBest(Watches):
        def score(self, model: Any, rows: Any, dataset: Any, split: str) -> dict[str, float]:
            return {"agg_metrics": 1.0 if self.cfg.max_iters == 2 else 0.0}

    run = {"max_iters": 2, "iters_per_inner_epoch": 2, "valid_splits": ["val"], "test_splits": ["test"], "init_lr": 0.3}
    Toy(tmp_path, run, task_class=FirstIsBest).build().train()
    later = Toy(tmp_path, {**run, "max_iters": 4, "hooks": {"ema": {"evaluate": True}}}, task_class=FirstIsBest).build()
    later.resume(later.store.path(2))
    later.train()
    own = load_file(tmp_path / "checkpoints/step_00000002/model.safetensors")["out.weight"]
    assert later.best is not None and later.best["step"] == 2
    assert torch.equal(later.task.seen[-1], own)  # type: ignore[attr-defined]


def test_an_ema_of_half_precision_weights_is_kept_in_full(tmp_path: Path) -> None:
    runner = Toy(tmp_path, {**EMA_RUN, "hooks": {"ema": {}}}).build()
    runner.model.to(torch.bfloat16)
    hook = hook_of(runner)
    assert isinstance(hook, EMA)
    hook.on_start(runner.context)
    hook.after_step(runner.context, None)  # type: ignore[arg-type]
    assert {value.dtype for value in hook.average.values()} == {torch.float32}


# early stop ---------------------------------------------------------------------------------------------------------
class Falls(ToyTask):
    """The second validation is the best one."""

    SCORES = (0.1, 0.5, 0.4, 0.45, 0.3, 0.2, 0.9)

    def score(self, model: Any, rows: Any, dataset: Any, split: str) -> dict[str, float]:
        self.rounds = getattr(self, "rounds", -1) + 1
        return {"agg_metrics": self.SCORES[min(self.rounds, 6)]}


STOPS = {"max_iters": 40, "iters_per_inner_epoch": 2, "valid_splits": ["val"], "test_splits": ["test"],
         "save_every": 4, "keep_checkpoints": 9, "hooks": {"early_stop": {"patience": 2}}}


def test_a_run_ends_after_validations_without_a_better_score(tmp_path: Path) -> None:
    runner = Toy(tmp_path, STOPS, task_class=Falls).build()
    scores = runner.train()
    assert runner.step == 8 and runner.best == {"step": 4, "metric": 0.5, "split": "val"}
    assert runner.saved_step == 8 and scores["test"]["agg_metrics"] == 0.3


def test_the_count_of_validations_is_resumed(tmp_path: Path) -> None:
    hook = EarlyStop(patience=3)
    hook.best, hook.since = 0.5, 2
    other = EarlyStop(patience=3)
    other.load_state(hook.state())
    assert (other.best, other.since) == (0.5, 2)


def test_scores_of_another_metric_are_not_compared(tmp_path: Path) -> None:
    run = {**STOPS, "max_iters": 4}
    Toy(tmp_path, {**run, "hooks": {"early_stop": {"metric": "rows"}}}).build().train()
    again = Toy(tmp_path, {**run, "hooks": {"early_stop": {"metric": "error", "mode": "min"}}}).build()
    again.resume(again.store.path(4))
    (hook,) = [hook for hook in again.hooks.hooks if isinstance(hook, EarlyStop)]
    assert hook.best == 11
    hook.on_start(again.context)
    assert (hook.best, hook.since, hook.compared) == (None, 0, ["val", "error", "min"])


def test_what_is_not_validated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run.valid_splits has no split 'test'; did you mean|choose one of: val"):
        Toy(tmp_path, {**STOPS, "hooks": {"early_stop": {"split": "test"}}}).build().train()
    with pytest.raises(ConfigError, match="val has no score 'acc'; choose one of: agg_metrics"):
        Toy(tmp_path, {**STOPS, "hooks": {"early_stop": {"metric": "acc"}}}, task_class=Falls).build().train()


# profiler and throughput --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("last", "steps"), [(3, [2, 3]), (99, [2, 3, 4, 5])])
def test_a_trace_covers_its_steps(tmp_path: Path, last: int, steps: list[int]) -> None:
    Toy(tmp_path, {"max_iters": 5, "hooks": {"profiler": {"first": 2, "last": last}}}).build().train()
    trace = json.loads((tmp_path / "profile/trace_rank0.json").read_text())
    updates = [event for event in trace["traceEvents"] if event.get("name", "").startswith("Optimizer.step#AdamW")]
    assert len(updates) == len(steps)
    assert "addmm" in (tmp_path / "profile/operators_rank0.txt").read_text()


def test_speed_and_memory_are_logged(tmp_path: Path) -> None:
    Toy(tmp_path, {"max_iters": 6, "hooks": {"throughput": {"every": 3}}}).build().train()
    found = [row for row in read(tmp_path / "log.jsonl") if row.get("hook") == "throughput"]
    assert [row["step"] for row in found] == [3, 6]
    for row in found:
        assert 0 < row["step_seconds_median"] <= row["step_seconds_max"] and row["host_memory_gib"] > 0.05
        assert row["samples_per_second"] == pytest.approx(4 / row["step_seconds_median"], rel=3.0)


# sample predictions -------------------------------------------------------------------------------------------------
class Pictures(ToyData):
    """Rows with a picture and a question."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = torch.full((3, 2, 2), float(index))
        return {"image": picture, "index": index, "text_input": f"question {index}", "target": self.target[index]}


class Answers(ToyTask):
    """Answers with the weights' sum, so that it changes with training."""

    def predict(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
        assert not model.training
        total = float(model.out.weight.sum())
        return [{"id": int(row), "answer": f"{total:.6f} of {int(row)}"} for row in samples["index"]]


class Kept(Sink):
    """Keeps texts and pictures."""

    def __init__(self) -> None:
        self.texts: list[tuple[int, str, str]] = []
        self.images: list[tuple[int, str, torch.Tensor]] = []

    def text(self, step: int, tag: str, text: str) -> None:
        self.texts.append((step, tag, text))

    def image(self, step: int, tag: str, image: torch.Tensor) -> None:
        self.images.append((step, tag, image))


def shown(tmp_path: Path, arguments: dict[str, Any], task: type[ToyTask] = Answers,
          model: type[ToyModel] = ToyModel) -> Kept:
    sink = Kept()
    run = {"max_iters": 4, "valid_splits": ["val"], "val_freq": 0, "hooks": {"sample_predictions": arguments}}
    runner = Toy(tmp_path, run, task_class=task, model_class=model).build(
        Tracker([sink, JsonlLog(tmp_path / "log.jsonl")]))
    runner.datasets = {"toy": {"train": ToyData(40), "val": Pictures(9)}}
    runner.train()
    return sink


def test_answers_of_fixed_samples_are_shown_again_and_again(tmp_path: Path) -> None:
    sink = shown(tmp_path, {"samples": 3, "every": 2})
    assert [(step, tag) for step, tag, _ in sink.texts] == [(step, "sample_predictions") for step in (0, 2, 4)]
    lines = [text.splitlines() for _, _, text in sink.texts]
    for row, index in enumerate((0, 3, 6)):
        assert all(one[row].startswith(f"{row}. question {index} -> ") for one in lines)
        assert all(one[row].endswith(f" of {index}") for one in lines)
    assert len({one[0] for one in lines}) == 3, "the model has learnt in between"
    assert [tag for _, tag, _ in sink.images] == [f"sample_predictions/{row}" for row in range(3)]
    assert all(0 <= float(image.min()) and float(image.max()) <= 1 for _, _, image in sink.images)
    written = [row for row in read(tmp_path / "log.jsonl") if row.get("text") == "sample_predictions"]
    assert [row["step"] for row in written] == [0, 2, 4] and written[0]["content"] == sink.texts[0][2]


def test_a_task_without_texts_asks_the_model(tmp_path: Path) -> None:
    class Writer(ToyModel):
        def generate(self, samples: dict[str, Any]) -> list[str]:
            return [f"caption {int(picture[0, 0, 0])}" for picture in samples["image"]]

    class Silent(Answers):
        def predict(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
            return [{"id": int(row)} for row in samples["index"]]

    assert shown(tmp_path / "a", {"samples": 2}, Silent, Writer).texts[0][2] == (
        "0. question 0 -> caption 0\n1. question 4 -> caption 4")
    with pytest.raises(ConfigError, match="ToyModel has no `generate` and run.task="):
        shown(tmp_path / "b", {}, Silent)
    with pytest.raises(ConfigError, match="no data set of the run has 'vall'; did you mean 'val'"):
        shown(tmp_path / "c", {"split": "vall"})
