"""Hostile numbers in `run` are refused, stop the run in words, or train. No checkpoint holds a non-finite weight.

`--long` tries 1,000 settings.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lavis_lite.config.compose import compose
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import LavisLiteError
from lavis_lite.preflight import check
from tests.helpers.toy import Toy
from tests.reliability.faulty import write_config

FEW, MANY = 20, 1000
RATES = ["init_lr", "min_lr", "warmup_lr", "weight_decay", "max_grad_norm"]
SHARES = ["beta1", "beta2", "lr_decay_rate", "lr_layer_decay", "max_skipped_share", "max_bad_fraction"]
COUNTS = ["warmup_steps", "seed", "log_freq", "save_freq", "val_freq", "keep_checkpoints", "iters_per_inner_epoch",
          "shuffle_window", "report_samples"]
CHOICES = {"lr_sched": ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "constant_lr"], "amp": ["true", "false"],
           "amp_dtype": ["auto", "bf16", "fp16", "fp32"]}
IMPOSSIBLE = [".inf", "-.inf", ".nan", "1e400", "-1", "-1e300", str(-2**63), str(2**64)]
EXTREME = ["1e308", "3.5e38", "3e38", "1e20", "1e10", "1000", "1", "0", "-0.0", "1e-45", "1e-308", "5e-324"]


def hostile(rng: random.Random) -> dict[str, str]:
    """One to four numbers that nobody means, now and then an impossible one, and how steps are computed."""
    keys = rng.sample([*RATES * 3, *SHARES, *COUNTS], rng.randint(1, 4))
    settings = {key: rng.choice(IMPOSSIBLE) if rng.random() < 0.1 else _number(key, rng) for key in keys}
    settings.update({key: rng.choice(values) for key, values in CHOICES.items() if rng.random() < 0.4})
    return settings


def _number(key: str, rng: random.Random) -> str:
    """One that its key may take, from the whole range of its type."""
    if key in COUNTS:
        return str(rng.choice([1, 2, 3, 2**31, 2**63 - 1]))
    if key in SHARES:
        return repr(rng.choice([0.0, 1.0, 1.0 - 2**-53, rng.random()]))
    largest = rng.choice([6, 308])
    return rng.choice(EXTREME) if rng.random() < 0.5 else repr(10.0 ** rng.uniform(-3, largest))


def attempt(config: Path, folder: Path, settings: dict[str, str]) -> str:
    """refused | stopped | trained"""
    try:
        composition = compose(config, [f"run.{key}={value}" for key, value in settings.items()])
        if check(composition):
            return "refused"
    except LavisLiteError:
        return "refused"
    run: dict[str, Any] = {key: getattr(composition.config.run, key) for key in settings}
    try:
        Toy(folder, {**run, "max_iters": 6, "save_every": 2}).build().train()
    except LavisLiteError:
        return "stopped"
    return "trained"


def not_finite(folder: Path) -> list[str]:
    """Checkpoints that hold a weight which is NaN or infinite."""
    return [str(file) for file in folder.glob("checkpoints/*/model.safetensors")
            if not all(torch.isfinite(weight).all() for weight in load_file(file).values())]


def test_every_number_of_a_run_is_tried_or_would_only_take_long() -> None:
    numbers = {name for name, kind in RunConfig.__annotations__.items()
               if kind.partition(" ")[0] in ("int", "float")}
    takes_long = {"max_epoch", "max_iters", "accum_grad_iters", "batch_size_train", "batch_size_eval", "num_workers",
                  "save_every", "decode_at_once", "ddp_bucket_mb", "prefetch_factor",
                  "dist_timeout_minutes", "rendezvous_timeout_minutes", "world_size"}
    assert numbers == {*RATES, *SHARES, *COUNTS} | takes_long


@pytest.mark.timeout(3600)
def test_hostile_settings_never_leave_a_weight_that_is_not_finite(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    rng, found = random.Random("hostile"), Counter[str]()
    config = write_config(tmp_path)
    for number in range(MANY if pytestconfig.getoption("--long") else FEW):
        settings, folder = hostile(rng), tmp_path / str(number)
        try:
            found[attempt(config, folder, settings)] += 1
        except Exception as error:
            raise AssertionError(f"a raw {type(error).__name__} from {settings}") from error
        assert not_finite(folder) == [], settings
        shutil.rmtree(folder, ignore_errors=True)
    assert set(found) == {"refused", "stopped", "trained"}, found
    print(f"hostile settings: {dict(found)}; no weight in a checkpoint was not finite")
