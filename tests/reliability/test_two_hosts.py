"""Two hosts, as two network namespaces of one machine, under one torchrun rendezvous; then one of them is cut off."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.faulty import write_config
from tests.reliability.harness import REPOSITORY, Case, Zygote, environment, finish, processes_of, texts

STEPS, HOSTS = 60, ("lla", "llb")


def ip(*words: str, check: bool = True) -> None:
    """The ip command."""
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Namespaces 10.77.0.1 and 10.77.0.2 with a cable between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", HOSTS[0], "type", "veth", "peer", "name", HOSTS[1])
        for number, name in enumerate(HOSTS, 1):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", name)
            for device in ("lo", name):
                ip("-n", name, "link", "set", device, "up")
    except subprocess.CalledProcessError as fault:
        pytest.skip(f"no network namespaces here: {fault.stderr}")
    yield
    for name in HOSTS:
        ip("netns", "del", name, check=False)


def start(number: int, folder: Path) -> subprocess.Popen[str]:
    """torchrun on one host."""
    name = HOSTS[number]
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2",
               "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=10.77.0.1:29477", "--rdzv-id=two", f"--local-addr=10.77.0.{number + 1}",
               "--rdzv-conf=last_call_timeout=3,join_timeout=120,keep_alive_interval=1,keep_alive_max_attempt=3,"
               f"is_host={int(not number)}",
               "train.py", "--cfg-path", str(write_config(folder, STEPS)), "--resume", "auto", "--options",
               "run.num_workers=1", "run.dist_timeout_minutes=0.1"]
    env = environment(folder, GLOO_SOCKET_IFNAME=name, STEP_SECONDS="0.3")
    with open(folder / f"host{number}.txt", "w") as said:
        return subprocess.Popen(command, cwd=REPOSITORY, env=env, text=True, stdout=said, stderr=said,
                                start_new_session=True)


def losses(folder: Path) -> list[float]:
    """Every logged loss, by step."""
    (log,) = folder.glob("out/*/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.long
def test_one_host_is_cut_off_and_the_other_goes_on(hosts: None, zygote: Zygote, tmp_path: Path) -> None:
    """It accumulates as many micro-batches as it takes to see the same samples per step."""
    processes = [start(number, tmp_path) for number in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/*/checkpoints/step_0000001*")):
            assert time.monotonic() < deadline and processes[0].poll() is None, (tmp_path / "host0.txt").read_text()
            time.sleep(0.1)
        ip("-n", HOSTS[1], "link", "set", HOSTS[1], "down")
        assert processes[0].wait(180) == 0, (tmp_path / "host0.txt").read_text()
    finally:
        for process in processes:
            for pid in processes_of(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(10)
    said = (tmp_path / "host0.txt").read_text()
    assert "2 processes x 2 x 1" in said and "1 processes x 2 x 2" in said
    assert "now accumulates 2 micro-batches per step" in said
    whole = tmp_path / "whole"
    whole.mkdir()
    jobs = Case(ranks=2, steps=STEPS).start(zygote, whole)
    assert finish(jobs) == [0, 0], texts(jobs)
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)
