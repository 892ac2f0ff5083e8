"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

# Here and in the processes that tests start, modules are compiled once: else every start would compile them again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what runs in its background like that
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.set_threshold(20_000)  # with the usual 700, looking for garbage takes a twentieth of the time

import pytest  # noqa: E402
import torch  # noqa: E402

from lavis_lite.tracking import tracker  # noqa: E402
from tests.helpers.threads import THREADS  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST = tuple(f"tests/{name}" for name in (
    "reliability/", "end_to_end/", "test_docs.py", "compat/test_projects.py", "runners/", "test_packaging.py",
    "projects/", "costs/", "lab/", "apps/", "models/", "checkpoints/", "test_", "metrics/test_metrics_java.py",
    "tools/"))
"""what takes longest begins first: no process of pytest-xdist is left with a long file at the end"""


TOGETHER = ("tests/reliability/", "tests/end_to_end/")
"""one process of pytest-xdist runs these: they share a server of warm processes, which takes seconds to start"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=None, metavar="N",
                     help="how often each test of random kills kills a run, instead of its own count")
    parser.addoption("--long", action="store_true", default=False,
                     help="run the full counts (hundreds of kills, thousands of mutations) and tests marked `long`")


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist hands out files as they are sorted here, not those with the most tests first."""
    config.option.loadscopereorder = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, folders of TOGETHER stay whole as well."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "server" if file.startswith(TOGETHER) else file

    return ByServer(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `long` run only with --long; others ask `request.config.getoption("--long")` for their counts."""
    items.sort(key=lambda item: next((at for at, name in enumerate(FIRST) if item.nodeid.startswith(name)), len(FIRST)))
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="takes long: add --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be searched for garbage again and again."""
    gc.freeze()


def find_shared() -> Path:
    """The shared material: LAVIS_LITE_SHARED, else `shared` beside the checkout or beside the folder that holds it."""
    named = os.environ.get("LAVIS_LITE_SHARED")
    places = [Path(named)] if named else [REPOSITORY.parent / "shared", REPOSITORY.parents[1] / "shared"]
    return next((place for place in places if place.is_dir()), Path("/nonexistent"))


def find_parity() -> Path:
    """The folder of recorded cases: LAVIS_LITE_PARITY (one case folder, or a folder of them), else shared/parity."""
    named = os.environ.get("LAVIS_LITE_PARITY")
    return Path(named) if named else find_shared() / "parity"


@pytest.fixture(autouse=True, scope="session")
def torch_threads() -> Iterator[None]:
    """Tests share few cores: one thread is faster than many that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """No test outlives a power cut: what is written need not reach the disk before the test goes on."""
    with mock.patch.object(os, "fsync", lambda descriptor: None):
        yield


@pytest.fixture(autouse=True, scope="session")
def undrawn() -> Iterator[Callable[..., bool]]:
    """Trainings of tests draw no curves.png, a quarter of a second each, but with the fixture `curves`."""
    drawn, tracker.draw = tracker.draw, lambda rows, picture: False
    yield drawn
    tracker.draw = drawn


@pytest.fixture
def curves(undrawn: Callable[..., bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of this test draw their curves."""
    monkeypatch.setattr(tracker, "draw", undrawn)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of the shared material; skips where it is absent."""
    folder = find_shared()
    if not folder.is_dir():
        pytest.skip("shared material (../shared, or LAVIS_LITE_SHARED) not here")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of recorded LAVIS outputs; skips where it is absent."""
    folder = find_parity()
    if not folder.is_dir():
        pytest.skip("recorded outputs (../shared/parity, or LAVIS_LITE_PARITY) not here")
    return folder
