"""A small mini world, made once per session, and train.py run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.cli.main import run_command

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["datasets.mini_world_caption.prepare_args={train: 24, val: 8, test: 8, ood: 4, seed: 3}", "run.num_workers=0",
         "run.batch_size_train=4", "run.log_freq=1", "run.k_test=4", "run.tensorboard=false", "run.warmup_steps=2"]
"""a run of seconds"""

Train = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(cache: Path, **more: str) -> dict[str, str]:
    """This process' environment without a launcher's variables, with its own cache and no network."""
    kept = {key: value for key, value in os.environ.items()
            if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") and "SLURM" not in key}
    return kept | {"LAVIS_LITE_CACHE": str(cache), "LAVIS_LITE_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                   "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache folder of the session; the small world is made in it by the first run."""
    return tmp_path_factory.mktemp("cache")


def command(*options: str, script: str = "train.py", cfg: str = "projects/blip2/stage1.yaml",
            flags: tuple[str, ...] = (), common: Sequence[str] = SMALL) -> list[str]:
    """The words of a run."""
    return [sys.executable, script, "--cfg-path", cfg, *flags, "--options", *common, *options]


@pytest.fixture
def train_here(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """train_here(*options, flags=(), ...) -> the command's end, run in this process: no interpreter to start."""
    monkeypatch.chdir(ROOT)
    given = environment(cache)
    for name in list(os.environ):
        if name not in given:
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def run(*options: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        _, script, *words = command(*options, **kwargs)
        code = run_command(Path(script).stem, words)
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run


def read_log(output: Path) -> list[dict[str, Any]]:
    """Records of the one run under an output folder."""
    (log,) = output.glob("*/log.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def losses(output: Path) -> dict[int, tuple[float, ...]]:
    """step -> (loss, loss_itc, loss_itm, loss_lm) of the training rows."""
    return {row["step"]: tuple(row[name] for name in ("loss", "loss_itc", "loss_itm", "loss_lm"))
            for row in read_log(output) if "split" not in row and "event" not in row}
