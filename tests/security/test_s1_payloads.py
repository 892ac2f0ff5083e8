"""S1: what a checkpoint, an array or a shard brings along is read as data: 60 payloads, none of them runs."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis_lite.checkpoints.reading import read_tensors
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.errors import LavisLiteError

PROTOCOLS = range(6)
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Runs:
    """Runs a function with arguments when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def payloads(marker: Path) -> dict[str, Any]:
    """By name; each writes the marker if it is unpickled by a reader that runs things."""
    return {
        "system": Runs(os.system, f"touch {marker}"),
        "popen": Runs(subprocess.check_call, ["touch", str(marker)]),
        "eval": {"model": {"w": torch.ones(2), "x": Runs(eval, f"open({str(marker)!r}, 'w')")}},
        "open": {"w": torch.ones(2), "nested": [{"deep": (Runs(open, str(marker), "w"),)}]},
    }


def raw(path: Path, payload: Any, protocol: int) -> None:
    path.write_bytes(pickle.dumps(payload, protocol))


def torch_zip(path: Path, payload: Any, protocol: int) -> None:
    """torch.save's layout with the payload in the place of its own pickle."""
    torch.save({"w": torch.ones(2)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(path, "w") as out:
        for name in source.namelist():
            out.writestr(name, pickle.dumps(payload, protocol) if name.endswith("data.pkl") else source.read(name))


LAYOUTS: list[Callable[[Path, Any, int], None]] = [raw, torch_zip]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", ["system", "popen", "eval", "open"])
def test_s1_no_checkpoint_runs_anything(tmp_path: Path, name: str, layout: Callable[[Path, Any, int], None],
                                        protocol: int) -> None:
    marker, path = tmp_path / "it ran".replace(" ", "_"), tmp_path / "model.pth"
    payload = payloads(marker)[name]
    layout(path, payload, protocol)
    try:
        read_tensors(path)
    except LavisLiteError as error:
        assert str(path) in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_s1_nothing_in_a_shard_is_unpickled(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "it_ran"
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for name in ("0001.pkl", "0001.pyd", "0001.pth", "0001.npy", "0001.json", "0001.jpg"):
            content = pickle.dumps(payloads(marker)["system"], protocol)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(LavisLiteError):
        index_folder(folder, log=lambda text: None)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pkl", ".pickle", ".joblib", ".safetensors"])
def test_s1_other_files_of_objects_are_refused(tmp_path: Path, suffix: str) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / f"model{suffix}"
    payload = np.array([payloads(marker)["system"]], dtype=object)
    if suffix == ".npy":
        np.save(path, payload, allow_pickle=True)
    elif suffix == ".npz":
        np.savez(path, w=payload)
    else:
        path.write_bytes(pickle.dumps(payload))
    with pytest.raises(LavisLiteError, match="model"):
        read_tensors(path)
    assert not marker.exists()
