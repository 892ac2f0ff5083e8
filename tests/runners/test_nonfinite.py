"""Steps that are not finite: whatever the optimizer, they change nothing, are told of, and too many stop the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.runners import optim
from lavis_lite.runners.outcome import FP16_ALLOWANCE, PATIENCE, DivergedError, SkipCounter
from lavis_lite.tracking.tracker import read
from tests.helpers.processes import run_processes
from tests.helpers.toy import Toy, ToyModel, same, weights

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW fused": {},
    "AdamW": {"optimizer_args": {"fused": False}},
    "Adam fused amsgrad": {"optimizer": "Adam", "optimizer_args": {"amsgrad": True}},
    "SGD": {"optimizer": "sgd"},
    "SGD momentum": {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}},
    "SGD fused momentum": {"optimizer": "SGD", "optimizer_args": {"momentum": 0.9, "fused": True}},
    "Adafactor": {"optimizer": "adafactor"},
    "NAdam": {"optimizer": "NAdam"},
    "RAdam": {"optimizer": "radam"},
    "RMSprop": {"optimizer": "rmsprop", "optimizer_args": {"momentum": 0.9}},
    "Adagrad": {"optimizer": "adagrad"},
    "Adagrad fused": {"optimizer": "adagrad", "optimizer_args": {"fused": True}},
    "Adadelta": {"optimizer": "adadelta"},
    "Muon": {"optimizer": "muon"},
    "AdamW 8 bit": {"optimizer": "adamw8bit", "optimizer_args": {"min_8bit_size": 16}},
}


def needs(name: str) -> None:
    if name == "AdamW 8 bit":
        pytest.importorskip("bitsandbytes")
    if name == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")


def moments(runner: Any) -> dict[str, Any]:
    """The optimizer's memory, flat; what is zero counts as absent, as before an optimizer's first step."""
    found = optim.optimizer_state(runner.train_state.train_step.optimizer)
    flat = {f"{name} {key}": torch.as_tensor(value).clone() for name, state in found.items()
            for key, value in state.items() if value is not None}
    return {key: value for key, value in flat.items() if bool(value.ne(0).any())}


class Poisoned(ToyModel):
    """Loss or gradient is not finite while `poison` says so."""

    poison: str | None = None

    def forward(self, samples: dict[str, Any]) -> Any:
        output = super().forward(samples)
        if self.poison == "loss":
            output.loss = output.loss * float("nan")
        elif self.poison == "gradient":  # the loss itself stays finite
            zero = (self.scale - self.scale.detach()).abs()
            output.loss = output.loss + zero.sqrt()
        return output


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_moments_stay_whatever_the_optimizer(name: str, poison: str, tmp_path: Path) -> None:
    needs(name)
    runner = Toy(tmp_path, {"max_grad_norm": 1.0, "init_lr": 0.05, **OPTIMIZERS[name]}, model_class=Poisoned).build()
    batches = [list(runner.train_state.batches(step, step + 1)) for step in range(4)]
    for step, bad in enumerate([True, False, True, False]):  # the very first, too: nothing is there yet
        runner.model.poison = poison if bad else None
        before = {key: value for key, value in weights(runner).items() if key != "seen"}, moments(runner)
        runner.train_state.train_step.run(step, batches[step])
        after = {key: value for key, value in weights(runner).items() if key != "seen"}, moments(runner)
        assert runner.train_state.train_step.agree().skipped == ([step] if bad else [])
        assert same(before[0], after[0]) is bad, "weights"
        assert same(before[1], after[1]) is (bad or name == "SGD"), "moments"
        assert all(torch.isfinite(value).all() for part in after for value in part.values())


@pytest.mark.parametrize("name", ["AdamW fused", "SGD momentum", "Adafactor", "NAdam", "Muon", "AdamW 8 bit"])
def test_a_run_with_a_bad_row_is_resumed_bit_for_bit(name: str, tmp_path: Path) -> None:
    needs(name)
    toy = Toy(tmp_path, {"max_iters": 10, "save_every": 5, **OPTIMIZERS[name]}, nan_rows=frozenset({5}))
    whole, resumed = toy.build(), toy.build()
    whole.train()
    resumed.resume(tmp_path / "checkpoints/step_00000005")
    resumed.train()
    assert same(weights(whole), weights(resumed)) and whole.train_state.train_step.skipped == 1
    assert all(torch.isfinite(value).all() for value in weights(whole).values())


# what is told -------------------------------------------------------------------------------------------------------
def events(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read(folder / "log.jsonl") if "event" in row]


def test_a_skipped_step_is_logged_with_its_samples_and_losses(tmp_path: Path) -> None:
    runner = Toy(tmp_path, {"max_iters": 10, "accum_grad_iters": 2, "batch_size_train": 2},
                 nan_rows=frozenset({5})).build()
    runner.train()
    (event,) = events(tmp_path)
    (losses,) = event["losses"]
    assert len(losses) == 2 and losses.count("nan") == 1
    keys = runner.train_state.order(event["step"] - 1)
    place = 2 * losses.index("nan")
    assert event["samples"] == [f"toy row {key.index}" for key in keys[place:place + 2]]
    assert "toy row 5" in event["samples"] and event["skipped"] == 1


def test_all_samples_are_listed_if_only_the_gradient_is_not_finite(tmp_path: Path) -> None:
    runner = Toy(tmp_path, {"max_iters": 1}, model_class=Poisoned).build()
    runner.model.poison = "gradient"
    runner.train()
    (event,) = events(tmp_path)
    assert len(event["samples"]) == 4 and isinstance(event["losses"][0][0], float)


def test_the_step_that_stops_the_run_is_logged_too(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="5 steps in a row"):
        Toy(tmp_path, nan_rows=frozenset(range(40))).build().train()
    assert [event["step"] for event in events(tmp_path)] == [1, 2, 3, 4, 5]


class EverySecond(ToyModel):
    """Every second loss is NaN."""

    def forward(self, samples: dict[str, Any]) -> Any:
        output = super().forward(samples)
        if int(self.seen) % 2:
            output.loss = output.loss * float("nan")
        return output


def test_too_large_a_share_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"5 of the last 9 steps.*more than run.max_skipped_share=0.2 allows"):
        Toy(tmp_path, {"max_iters": 30}, model_class=EverySecond).build().train()
    runner = Toy(tmp_path / "allowed", {"max_iters": 12, "max_skipped_share": 1.0}, model_class=EverySecond).build()
    runner.train()
    assert runner.train_state.train_step.skipped == 6


@pytest.mark.parametrize(("share", "every", "stops"), [(0.2, 4, True), (0.2, 6, False), (0.0, 50, True)])
def test_the_share_is_that_of_the_newest_steps(share: float, every: int, stops: bool) -> None:
    counter = SkipCounter(share, fp16=False)
    try:
        for step in range(1000):
            counter.count(step, step % every == every - 1)
            if step % every == every - 1:
                counter.check(step)
    except DivergedError:
        assert stops
    else:
        assert not stops and len(counter.recent) <= 100 / every + 1


def test_fp16_may_look_for_its_scale() -> None:
    counter = SkipCounter(0.2, fp16=True)
    for step in range(FP16_ALLOWANCE):
        counter.count(step, True)
        counter.check(step)
    assert counter.patience == PATIENCE + FP16_ALLOWANCE


def test_the_count_of_skipped_steps_survives_a_resume() -> None:
    counter, other = SkipCounter(0.2, False), SkipCounter(0.2, False)
    for step in (3, 50, 140):
        counter.count(step, True)
    other.load_state(counter.state())
    assert (other.skipped, other.in_a_row, other.recent) == (3, 3, [50, 140])


class BadOnRankOne(ToyModel):
    """The second rank's second micro-batch is not finite in the first step."""

    def forward(self, samples: dict[str, Any]) -> Any:
        from lavis_lite import distributed

        output = super().forward(samples)
        if distributed.rank() == 1 and int(self.seen) == 2:
            output.loss = output.loss * float("inf")
        return output


def two_ranks(folder: str) -> tuple[list[dict[str, Any]], list[str], dict[str, Tensor]]:
    run = {"max_iters": 2, "accum_grad_iters": 2, "batch_size_train": 2}
    runner = Toy(Path(folder), run, model_class=BadOnRankOne).build()
    runner.train()
    keys = runner.train_state.order(0)
    return events(Path(folder)), [f"toy row {key.index}" for key in keys[6:8]], weights(runner)


def test_the_rank_and_micro_batch_are_told(tmp_path: Path) -> None:
    (found, expected, _), _ = run_processes(two_ranks, 2, str(tmp_path))
    (event,) = found
    assert [[value == "inf" for value in rank] for rank in event["losses"]] == [[False, False], [False, True]]
    assert event["samples"] == expected
