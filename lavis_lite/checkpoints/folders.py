"""A check of weights in a folder of transformers' format, before transformers reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from lavis_lite.checkpoints.manifest import reading_safetensors, weight_files
from lavis_lite.checkpoints.reading import SHOWN, read_content
from lavis_lite.errors import CheckpointError
from lavis_lite.finite import check_weights

PARAMETERS = (".weight", ".bias", ".gamma", ".beta")
"""how names end of what must be real numbers; positions and counters are rightly integers"""


def check_folder(folder: str | Path, key: str, finite: bool = False) -> None:
    """Refuse a folder of transformers' format with weights that transformers would spoil silently.

    It casts integers, which are quantised weights and mean nothing without their scales. While it quantises to 4 bits,
    it makes numbers of NaN.

    Args:
        folder: or a name on the hub, which is not looked at.
        key: of the configuration that names it, for the message.
        finite: read the values too, and refuse NaN and infinity; else only the heads of the files are read.

    Raises:
        CheckpointError: names some of the tensors.
    """
    integers = []
    for file in weight_files(Path(folder).expanduser()):
        for name, tensor in _each_tensor(file, finite):
            if not tensor.is_floating_point() and name.endswith(PARAMETERS):
                integers.append(f"{name} ({str(tensor.dtype).removeprefix('torch.')})")
            elif finite:
                check_weights({name: tensor}, f"{key}: {file}")
    if integers:
        more = f" and {len(integers) - SHOWN} more" if len(integers) > SHOWN else ""
        raise CheckpointError(
            f"{key}: {folder} stores {len(integers)} weights as integers: {', '.join(integers[:SHOWN])}{more}. They "
            "are quantised, and config.json does not say how. Give the folder of the model that they were made of, or "
            "turn them back before they are saved (transformers: model.dequantize()).")


def _each_tensor(file: Path, values: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) one by one; without `values` a tensor may have one value only."""
    if file.suffix != ".safetensors":
        yield from read_content(file).tensors.items()  # mapped into memory: what is not looked at is not read
        return
    with reading_safetensors(file), safe_open(file, "pt") as content:
        for name in content.keys():
            head = content.get_slice(name)
            yield name, content.get_tensor(name) if values else head[(slice(1),) * len(head.get_shape())]
