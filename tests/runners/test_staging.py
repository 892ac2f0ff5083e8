"""Pictures are copied on a stream of their own; the stream that computes waits for them, the host never."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lavis_lite.processors.pixels import Pixels
from lavis_lite.runners import train_state
from lavis_lite.runners.train_state import staged


class Cuda:
    """Stands in for torch.cuda: writes down what is asked of streams, in order."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.now = "computes"

    def Stream(self, device: torch.device) -> str:  # noqa: N802
        return "copies"

    @contextmanager
    def stream(self, name: str) -> Generator[None, None, None]:
        before, self.now = self.now, name
        yield
        self.now = before

    def current_stream(self, device: torch.device) -> Any:
        cuda = self

        class Computes:
            def wait_stream(self, other: str) -> None:
                cuda.said.append(f"computes waits for {other}")

        return Computes()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(train_state, "_moved", lambda tensor, device: fake.said.append(f"copy on {fake.now}") or tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: fake.said.append(
        f"{tensor.dtype} kept for {type(stream).__name__}"))
    return fake


def batches(closed: list[bool]) -> Generator[dict[str, Any], None, None]:
    try:
        for number in range(2):
            values = torch.full((1, 3, 2, 2), number, dtype=torch.uint8)
            yield {"image": Pixels(values, torch.ones(3, 1, 1), torch.zeros(3, 1, 1)), "text_input": ["a"]}
    finally:
        closed.append(True)


def test_pictures_are_copied_aside_and_kept_for_the_step(cuda: Cuda) -> None:
    found = list(staged(batches([]), torch.device("cuda", 0), cuda))
    assert cuda.said == ["copy on copies", "computes waits for copies", "torch.uint8 kept for Computes"] * 2
    assert [batch["text_input"] for batch in found] == [["a"], ["a"]]
    assert [float(batch["image"].max()) for batch in found] == [0.0, 1.0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_closing_closes_the_loader(device: str, cuda: Cuda) -> None:
    closed: list[bool] = []
    inner = batches(closed)
    outer = staged(inner, torch.device(device), cuda)
    first = next(outer)
    assert isinstance(first["image"], Pixels) and not closed
    outer.close()
    assert closed == [True]
    assert bool(cuda.said) == (device == "cuda")
