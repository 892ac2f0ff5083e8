"""Hooks: when they are called, what they keep, how they are named and how they end a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite import distributed
from lavis_lite.config.compose import compose_layers
from lavis_lite.config.layers import Layer
from lavis_lite.config.schema import Config, ModelConfig, PreprocessConfig, RunConfig
from lavis_lite.config.typed import check_hooks
from lavis_lite.errors import ConfigError, ContractError, RegistryError
from lavis_lite.preflight import check
from lavis_lite.registry import registry
from lavis_lite.runners.hooks import Hook, RunContext
from lavis_lite.runners.hooks.base import build_hooks
from lavis_lite.tracking.tracker import read
from tests.helpers.processes import run_processes
from tests.helpers.toy import Toy, records, same, weights

CALLS: list[str] = []


@registry.register_hook("recorder")
class Recorder(Hook):
    """Writes down what is called, and counts its steps."""

    def __init__(self, stop_at: int = 0, fail_at: int = 0, only_rank: int = 0, save_at: int = 0) -> None:
        self.stop_at, self.fail_at, self.only_rank, self.count = stop_at, fail_at, only_rank, 0
        self.save_at = save_at

    def on_start(self, run: RunContext) -> None:
        CALLS.append(f"start {run.step} of {run.last_step}")

    def before_step(self, run: RunContext) -> None:
        CALLS.append(f"before {run.step + 1}")

    def after_step(self, run: RunContext, result: Any) -> None:
        self.count += 1
        CALLS.append(f"after {run.step}")
        if run.step == self.fail_at:
            raise RuntimeError("a hook fails")
        if run.step == self.stop_at and distributed.rank() == self.only_rank:
            run.stop("enough")
        if run.step == self.save_at and distributed.rank() == self.only_rank:
            run.save("worth keeping")

    @contextlib.contextmanager
    def during_evaluation(self, run: RunContext) -> Iterator[None]:
        CALLS.append("in")
        yield
        CALLS.append("out")

    def after_evaluation(self, run: RunContext, split: str, scores: Mapping[str, float]) -> None:
        CALLS.append(f"evaluated {split} {sorted(scores)[0]}")

    def on_save(self, run: RunContext) -> None:
        CALLS.append(f"save {run.step}")

    def on_end(self, run: RunContext) -> None:
        CALLS.append(f"end {run.step}")

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "tensor": torch.full((2,), float(self.count))}

    def load_state(self, state: Mapping[str, Any]) -> None:
        assert float(state["tensor"][0]) == state["count"]
        self.count = state["count"]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def test_the_points_come_in_their_order(tmp_path: Path) -> None:
    run = {"max_iters": 4, "hooks": {"recorder": {"every": 2}}, "valid_splits": ["val"], "test_splits": ["test"],
           "iters_per_inner_epoch": 4, "save_every": 3}
    runner = Toy(tmp_path, run).build()
    runner.train()
    assert CALLS == ["start 0 of 4", "before 2", "after 2", "save 3", "before 4", "after 4", "in",
                     "evaluated val agg_metrics", "out", "save 4", "end 4", "in", "evaluated test agg_metrics", "out"]
    assert runner.hooks.hooks[-1].name == "recorder"


def test_no_hook_runs_in_an_evaluation_alone(tmp_path: Path) -> None:
    Toy(tmp_path, {"evaluate": True, "test_splits": ["test"], "hooks": {"recorder": {}}}).build().execute()
    assert CALLS == []


def test_state_is_kept_and_notes_name_hooks_that_come_and_go(tmp_path: Path) -> None:
    run = {"max_iters": 4, "save_every": 2, "hooks": {"recorder": {}}}
    Toy(tmp_path, run).build().train()
    again = Toy(tmp_path, run).build()
    again.resume(tmp_path / "checkpoints/step_00000002")
    assert again.hooks.hooks[-1].count == 2 and again.hooks.state()["recorder"]["count"] == 2  # type: ignore[attr-defined]
    other, lines = Toy(tmp_path, {**run, "hooks": {"ema": {}}}).build(), list[str]()
    other.tracker.log = lines.append  # type: ignore[method-assign]
    other.resume(tmp_path / "checkpoints/step_00000002")
    assert [line for line in lines if line.startswith("note: run.hooks")] == [
        "note: run.hooks.ema is new since the checkpoint; it begins here.",
        "note: run.hooks.recorder was there before and is not now; what it had kept is dropped."]
    other.train()


def test_a_hook_changes_nothing_of_the_training(tmp_path: Path) -> None:
    plain = Toy(tmp_path / "plain").build()
    hooked = Toy(tmp_path / "hooked", {"hooks": {"recorder": {}, "ema": {"evaluate": True}, "throughput": {"every": 3},
                                                 "profiler": {"first": 2, "last": 3}}}).build()
    plain.train()
    hooked.train()
    assert same(weights(plain), weights(hooked))
    assert records(plain.run_dir) == [row for row in records(hooked.run_dir) if "hook" not in row]


def test_an_exception_of_a_hook_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a hook fails"):
        Toy(tmp_path, {"hooks": {"recorder": {"fail_at": 3}}}).build().train()
    assert CALLS[-1] == "after 3" and not list(tmp_path.glob("checkpoints/step_*"))


@registry.register_hook("careless")
class Careless(Hook):
    """Breaks the contract of hooks in the way that it is told."""

    def __init__(self, breaks: str) -> None:
        self.breaks = breaks
        if breaks == "arguments":
            self.after_step = lambda run: None  # type: ignore[assignment, misc]

    def after_step(self, run: RunContext, result: Any) -> None:
        values = {"vector": torch.ones(2), "text": "3", "scalar": torch.tensor(0.5)}
        run.log_scalars("careless", {name: value for name, value in values.items() if name == self.breaks})

    def during_evaluation(self, run: RunContext) -> Any:
        return None if self.breaks == "context" else super().during_evaluation(run)

    def state(self) -> dict[str, Any]:
        return {"seen": [1, {"of": self if self.breaks == "state" else None}]}


@pytest.mark.parametrize(("breaks", "words"), [
    ("arguments", r"run.hooks.careless: Careless.after_step must take \(run, result\): too many positional"),
    ("vector", r"run.hooks.careless: log_scalars takes numbers, and 'vector' is tensor"),
    ("text", "log_scalars takes numbers, and 'text' is '3'"),
    ("context", "run.hooks.careless: during_evaluation must return a context manager, not None"),
    ("state", r"run.hooks.careless: state\(\)\['seen'\]\[1\]\['of'\] is a Careless, which a checkpoint cannot keep"),
])
def test_what_a_hook_does_wrong_names_the_hook(tmp_path: Path, breaks: str, words: str) -> None:
    run = {"max_iters": 1, "valid_splits": ["val"], "hooks": {"careless": {"breaks": breaks}}}
    with pytest.raises(ContractError, match=words):
        Toy(tmp_path, run).build().train()
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_a_tensor_of_one_number_is_logged(tmp_path: Path) -> None:
    Toy(tmp_path, {"max_iters": 1, "hooks": {"careless": {"breaks": "scalar"}}}).build().train()
    assert [row["scalar"] for row in read(tmp_path / "log.jsonl") if row.get("hook") == "careless"] == [0.5]


@registry.register_hook("grad_norms")
class GradNorms(Hook):
    """The norm of all gradients, read from the weights."""

    def after_step(self, run: RunContext, result: Any) -> None:
        norms = [weight.grad.norm() for weight in run.model.parameters() if weight.grad is not None]
        run.log_scalars("grad_norms", {"all": torch.stack(norms).norm()})


def test_gradients_of_the_step_are_there_after_it(tmp_path: Path) -> None:
    Toy(tmp_path, {"max_iters": 2, "hooks": {"grad_norms": {}}}).build().train()
    rows = read(tmp_path / "log.jsonl")
    seen = [row["all"] for row in rows if row.get("hook") == "grad_norms"]
    assert seen == pytest.approx([row["grad_norm"] for row in rows if "grad_norm" in row], rel=1e-4) and len(seen) == 2


# stopping -----------------------------------------------------------------------------------------------------------
def test_a_stop_ends_the_run_as_its_last_step_does(tmp_path: Path) -> None:
    run = {"max_iters": 40, "valid_splits": ["val"], "test_splits": ["test"], "iters_per_inner_epoch": 40,
           "hooks": {"recorder": {"stop_at": 5}}}
    found = Toy(tmp_path, run).build()
    scores = found.train()
    assert found.step == 6 and "test" in scores, "all ranks know it with the next step"
    assert found.saved_step == found.validated_step == 6
    assert [call for call in CALLS if call.startswith("end")] == ["end 6"]
    assert len(read(tmp_path / "log.jsonl")) == 6 + 2


def test_a_checkpoint_that_a_hook_asks_for_is_saved_once_and_resumes(tmp_path: Path) -> None:
    run = {"max_iters": 9, "hooks": {"recorder": {"save_at": 5}}}
    whole = Toy(tmp_path / "whole", run).build()
    lines: list[str] = []
    whole.tracker.log = lines.append  # type: ignore[method-assign]
    whole.train()
    assert [call for call in CALLS if call.startswith("save")] == ["save 6", "save 9"], "known with the next step"
    assert [line for line in lines if "checkpoint:" in line] == ["step 6  checkpoint: worth keeping"]
    again = Toy(tmp_path / "again", run).build()
    again.resume(whole.store.path(6))
    again.train()
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def on_two_ranks(folder: str) -> tuple[int, int, list[int]]:
    run = {"max_iters": 40, "hooks": {"recorder": {"stop_at": 3, "only_rank": 1}}}
    runner = Toy(Path(folder), run).build()
    runner.train()
    stopped = {"max_iters": 40, "valid_splits": ["val"], "iters_per_inner_epoch": 4, "save_last": False,
               "hooks": {"early_stop": {"patience": 1, "metric": "rows", "min_delta": 1.0}}}
    second = Toy(Path(folder) / "second", stopped).build()
    second.train()
    third = Toy(Path(folder) / "third", {"max_iters": 6, "hooks": {"recorder": {"save_at": 3, "only_rank": 1}}}).build()
    third.train()
    return runner.step, second.step, [step for step in range(7) if third.store.path(step).is_dir()]


def test_ranks_stop_and_save_together_even_if_one_alone_asks(tmp_path: Path) -> None:
    assert run_processes(on_two_ranks, 2, str(tmp_path)) == [[4, 8, [4, 6]]] * 2


# names and arguments ------------------------------------------------------------------------------------------------
def faults(hooks: dict[str, Any]) -> list[str]:
    found: list[str] = []
    config = Config(ModelConfig(), PreprocessConfig(), {}, RunConfig(hooks=hooks))
    check_hooks(config, lambda key, message: found.append(f"{key}: {message}"))
    return found


def test_arguments_are_checked_before_anything_is_made() -> None:
    assert faults({"ema": {"decay": 0.5, "every": 2}, "throughput": {"every": 5}, "early_stop": None}) == []
    assert faults({"emma": {}})[0].startswith("run.hooks.emma: unknown hook 'emma': did you mean 'ema'")
    assert faults({"ema": {"decai": 0.5}}) == ["run.hooks.ema.decai: EMA has no such parameter; did you mean 'decay'?"]
    assert faults({"ema": {"decay": "big"}}) == ["run.hooks.ema.decay: must be a number, not 'big'."]
    assert faults({"early_stop": {"mode": "mix"}})[0].startswith("run.hooks.early_stop.mode: 'mix' is not allowed")
    assert faults({"recorder": {"every": 0}}) == [
        "run.hooks.recorder.every: must be a number of steps above 0, not 0."]


def test_a_hook_that_refuses_its_values_says_so_and_null_is_off() -> None:
    with pytest.raises(ConfigError, match="run.hooks.ema.decay: must be at least 0 and below 1, not 1.5"):
        build_hooks(RunConfig(hooks={"ema": {"decay": 1.5}}))
    with pytest.raises(RegistryError, match="unknown hook"):
        build_hooks(RunConfig(hooks={"emma": {}}))
    (hook,) = build_hooks(RunConfig(hooks={"ema": None, "recorder": {"every": 7}}))
    assert (hook.name, hook.every) == ("recorder", 7)


def composed(*runs: dict[str, Any]) -> Any:
    layers = [Layer(f"layer {number}", {"run": run, "datasets": {"mini_world_caption": {}}})
              for number, run in enumerate(runs)]
    return compose_layers(layers, Path("run.yaml"))


def test_a_list_means_the_same_as_a_section_and_layers_add_up() -> None:
    found = composed({"hooks": ["throughput", {"ema": {"decay": 0.9}}]}, {"hooks": {"ema": {"decay": 0.99}}},
                     {"hooks": {"throughput": None, "profiler": {}}})
    assert found.config.run.hooks == {"throughput": None, "ema": {"decay": 0.99}, "profiler": {}}
    assert found.where("run.hooks.ema.decay") == "layer 1"
    with pytest.raises(ConfigError, match="an entry is a name or"):
        composed({"hooks": [3]})


def test_preflight_names_the_layer_of_a_wrong_hook() -> None:
    (fault,) = [one for one in check(composed({"max_iters": 3, "hooks": {"ema": {"dekay": 1}}})) if "hooks" in one]
    assert fault == "layer 0: run.hooks.ema.dekay: EMA has no such parameter; did you mean 'decay'?"
    (fault,) = [one for one in check(composed({"max_iters": 3, "weights": "ema"})) if "weights" in one]
    assert "layer 0: run.weights: selects weights of a run's checkpoint" in fault
