"""A folder of recorded outputs, and comparisons that say which of its tensors they compare.

The recorded keys decide what is compared: a folder without a case has no comparison of it, and a tensor for which
there is no comparison is told of by `uncompared`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

NOT_HERE = "recorded outputs (../shared/parity, or LAVIS_LITE_PARITY) not here"


def folders_with(parity: Path, fits: Callable[[dict[str, Any]], bool]) -> list[Path]:
    """`parity` itself and the folders in it whose config.json fits."""
    folders = [parity, *(sorted(parity.iterdir()) if parity.is_dir() else [])]
    return [folder for folder in folders if (folder / "config.json").is_file()
            and fits(json.loads((folder / "config.json").read_text()))]


class Recording:
    """Everything recorded in one folder.

    Attributes:
        tensors: what is expected, by key `<case>/<tensor>`.
        compared: the keys of `tensors` that were compared since `start`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config, self.expected, self.inputs, self.cases = map(self._json, ("config", "expected", "inputs", "cases"))
        self.tensors = load_file(folder / "expected.safetensors")
        self.given = load_file(folder / "inputs.safetensors")
        self.error: dict[str, float] = self.expected.get("_fp32_vs_fp64_max_abs", {})
        self.compared: set[str] = set()

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return content

    def keys(self, prefix: str, names: Collection[str] | None = None) -> set[str]:
        """Recorded keys that start so; with `names` only those whose rest is one of these."""
        found = {key for key in self.tensors if key.startswith(prefix)}
        return found if names is None else {key for key in found if key.removeprefix(prefix) in names}

    def tolerance(self, key: str) -> float:
        """Largest absolute error: 4 times LAVIS' own float32 error, never asked below 1e-6.

        That error was not recorded for two processes: there that of the same tensor in one process counts, and for
        gradients, whose mean over processes has no twin, 1e-6 of the largest element.
        """
        if key in self.error:
            return max(4 * self.error[key], 1e-6)
        name = key.rsplit("/", 1)[-1]
        alike = [error for other, error in self.error.items() if other.rsplit("/", 1)[-1] == name]
        return max([4 * error for error in alike] + [1e-6 * max(1.0, float(self.tensors[key].abs().max()))])

    def check(self, key: str, found: Tensor, part: Callable[[Tensor], Tensor] = lambda whole: whole) -> None:
        """Compare with a recorded tensor, or with a part of it."""
        self.compared.add(key)
        expected = part(self.tensors[key])
        assert found.shape == expected.shape, f"{key}: {tuple(found.shape)} for {tuple(expected.shape)}"
        worst = float((found.detach() - expected).abs().max()) if expected.numel() else 0.0
        assert worst <= self.tolerance(key), f"{key}: {worst} above {self.tolerance(key)}"

    def check_mask(self, key: str, lengths: Iterable[int]) -> Tensor:
        """Compare a recorded attention mask with the number of real tokens of each row; gives it as bool."""
        self.compared.add(key)
        mask = self.tensors[key]
        assert torch.equal(mask, (mask == 1).to(mask.dtype)), f"{key}: more than zeros and ones"
        assert mask.sum(1).tolist() == list(lengths), f"{key}: other lengths"
        return mask == 1

    def check_integers(self, key: str, found: Tensor) -> None:
        """Compare with recorded ids, exactly."""
        self.compared.add(key)
        assert found.tolist() == self.tensors[key].tolist(), key


Check = Callable[[Any, str], None]


@dataclass(frozen=True)
class Comparison:
    """One comparison of one case.

    Attributes:
        case: its name.
        check: (recording, case) -> None; raises AssertionError.
        keys: the recorded tensors that it compares.
    """

    case: str
    check: Check
    keys: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """For a test's id."""
        return f"{self.case}-{getattr(self.check, '__name__', 'check')}"

    def run(self, recorded: Recording) -> None:
        """Compare; every one of `keys` must have been looked at."""
        recorded.compared.clear()
        self.check(recorded, self.case)
        assert recorded.compared == set(self.keys), f"not compared: {sorted(self.keys ^ recorded.compared)}"


def uncompared(recorded: Recording, comparisons: Iterable[Comparison]) -> list[str]:
    """Recorded tensors that no comparison looks at."""
    return sorted(recorded.tensors.keys() - {key for one in comparisons for key in one.keys})


def changed(tensor: Tensor) -> Tensor:
    """A tensor that a comparison must notice: 1e-3 of itself and 1e-3 away, and one more where it counts."""
    if tensor.dtype.is_floating_point:
        return tensor * 1.001 + 1e-3
    return tensor + 1
