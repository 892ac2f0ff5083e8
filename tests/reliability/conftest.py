"""One warm process for all tests of a worker of pytest."""

from __future__ import annotations

import pytest

from tests.reliability.chains import Uninterrupted
from tests.reliability.harness import Zygote, warm_process


@pytest.fixture(scope="session")
def zygote() -> Zygote:
    """Forks commands of the package."""
    return warm_process()


@pytest.fixture(scope="session")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The runs of `chains` that nothing happens to."""
    return Uninterrupted(zygote, tmp_path_factory.mktemp("uninterrupted"))
