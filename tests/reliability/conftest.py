"""One warm process for all tests of a worker of pytest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.harness import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks commands of the package."""
    server = Zygote()
    yield server
    server.close()
