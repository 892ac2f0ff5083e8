"""Named arrays in one file, mapped into memory: opening reads only the header, and processes share the pages.

The layout is safetensors', so that other programs can read the files too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_lite import atomic
from lavis_lite.errors import DataError

Array = NDArray[Any]
Arrays = Mapping[str, "Array | Sequence[Array]"]

_DTYPES: dict[str, type[np.generic]] = {
    "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "I32": np.int32, "I64": np.int64,
    "F16": np.float16, "F32": np.float32, "BF16": np.uint16}
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items() if name != "BF16"}
_MOST_HEADER = 100_000_000


def write_arrays(path: Path, arrays: Arrays, facts: Mapping[str, str], bf16: Sequence[str] = ()) -> None:
    """Write a file that is there whole or not at all.

    Args:
        path: its place.
        arrays: by name; a list of arrays is written as one, joined along the first axis.
        facts: short texts that come back as `Mapped.facts`.
        bf16: names of arrays whose uint16 are the bits of bfloat16.

    Raises:
        OSError: it could not be written; what was there is untouched.
    """
    parts = {name: [value] if isinstance(value, np.ndarray) else list(value) for name, value in arrays.items()}
    names = sorted(parts, key=lambda name: -parts[name][0].dtype.itemsize)  # so that each starts at a multiple of it
    header: dict[str, Any] = {"__metadata__": dict(facts)}
    end = 0
    for name in names:
        first = parts[name][0]
        start, end = end, end + sum(part.nbytes for part in parts[name])
        header[name] = {"dtype": "BF16" if name in bf16 else _NAMES[first.dtype],
                        "shape": [sum(len(part) for part in parts[name]), *first.shape[1:]],
                        "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for part in parts[name]:
                    np.ascontiguousarray(part).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    atomic.sync_folder(path.parent)


class Mapped:
    """The arrays of a file that `write_arrays` (or safetensors) wrote; bfloat16 comes as uint16.

    Args:
        path: the file. It must not change while it is mapped; `write_arrays` puts a new file in its place.

    Attributes:
        facts: its texts.

    Raises:
        DataError: missing, cut short, or not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _MOST_HEADER:
                    raise ValueError(f"its header claims {length:,} bytes")
                header = json.loads(file.read(length))
                size = os.fstat(file.fileno()).st_size
            self.facts: dict[str, str] = header.pop("__metadata__", {})
            self._entries = {name: _entry(entry, length + 8, size) for name, entry in header.items()}
        except FileNotFoundError as fault:
            raise DataError(f"{path}: there is no such file.") from fault
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise DataError(f"{path}: damaged, or not a file of arrays ({fault}).") from fault

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Array:
        dtype, shape, offset = self._entries[name]
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        # copy-on-write: torch refuses read-only memory; nobody writes
        return np.memmap(self.path, dtype, "c", offset, shape).view(np.ndarray)


def _entry(entry: dict[str, Any], data: int, size: int) -> tuple[Any, tuple[int, ...], int]:
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(int(side) for side in entry["shape"])
    start, end = entry["data_offsets"]
    if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize or data + end > size:
        raise ValueError("an array lies outside of the file")
    return dtype, shape, data + start
