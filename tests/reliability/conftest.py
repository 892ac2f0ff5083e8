"""One warm process for all tests of a worker of pytest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.chains import Uninterrupted
from tests.reliability.harness import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks commands of the package."""
    server = Zygote()
    yield server
    server.close()


@pytest.fixture(scope="session")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The runs of `chains` that nothing happens to."""
    return Uninterrupted(zygote, tmp_path_factory.mktemp("uninterrupted"))
