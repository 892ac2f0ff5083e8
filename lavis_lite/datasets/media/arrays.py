"""Arrays in the place of images: features of any encoder, or raw input of an encoder of your own.

An item is one array, or one of each of several streams (sound and video, several encoders). Features are [P, Dv]. P may
differ from item to item: rows of NaN fill it up, and the Q-Former's attention leaves them out. Whatever forgets about
them becomes NaN itself, not slightly wrong.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.errors import ConfigError, MissingExtraError, did_you_mean
from lavis_lite.io import files

HDF5 = (".h5", ".hdf5")
_TENSOR = "features"
"""the tensor's name in a safetensors file that has several"""


class ArraySource(Protocol):
    """Where the arrays of one stream come from."""

    def array(self, name: str) -> Any:
        """The array of an item as it is stored; raises a BadSample."""


@dataclass
class FolderArrays:
    """One file per item, .npy or .safetensors, in a folder or in shards.

    Attributes:
        folder: reads bytes by name.
        suffix: appended to the item's name.
    """

    folder: ImageFolder
    suffix: str = ""

    def array(self, name: str) -> Any:
        """The array in an item's file."""
        path = name + self.suffix
        content = self.folder.read(path)
        with _named_errors(path, "is not an array in .npy or .safetensors"):
            if path.endswith(".safetensors"):
                from safetensors.numpy import load

                return _only(load(content))
            return np.load(io.BytesIO(content), allow_pickle=False)


class FileArrays:
    """All items in one HDF5 or safetensors file; the item's name is the array's name in it.

    Raises:
        MissingExtraError: an HDF5 file, and h5py is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: Any = None
        if path.suffix in HDF5:
            try:
                import h5py  # noqa: F401
            except ImportError as error:
                raise MissingExtraError(f"{path}: HDF5 files need h5py: pip install 'lavis_lite[hdf5]'") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # each process opens the file itself

    def array(self, name: str) -> Any:
        """The array of that name."""
        with _named_errors(f"{self.path}:{name}", "cannot be read"):
            if self.path.suffix in HDF5:
                import h5py

                self._open = self._open or h5py.File(self.path, "r")
                return self._open[name][()]
            from safetensors import safe_open

            self._open = self._open or safe_open(self.path, "np")
            return self._open.get_tensor(name)


@contextmanager
def _named_errors(name: str, clause: str) -> Iterator[None]:
    """What the libraries raise for an array that they cannot read becomes a BadSample."""
    from safetensors import SafetensorError

    try:
        yield
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise BadSample(name, f"{clause} ({error})") from error


@dataclass(frozen=True)
class Stream:
    """One array of each item.

    Attributes:
        source: where it is read.
        tokens: P to which shorter features are filled up; None: as they are, equal for all items.
    """

    source: ArraySource
    tokens: int | None = None


class ArrayFolder(ImageFolder):
    """Arrays by the name of their item, used like an `ImageFolder`.

    Args:
        root: of the folder or the shards that annotations speak of.
        streams: by name, in the order in which their features are joined.
    """

    has_previews = False

    def __init__(self, root: Path, streams: Mapping[str, Stream]) -> None:
        super().__init__(root)
        self.streams = dict(streams)

    def load(self, name: str) -> Any:
        """As `view`, without a processor."""
        return self.view(name, lambda array, rng: array)

    def view(self, name: str, processor: Callable[..., Any], rng: random.Random | None = None) -> Any:
        """The item's arrays through the processor, filled up and joined along their first axis.

        Raises:
            BadSample: an array is missing, has no numbers or another shape, is not finite, or is longer than `tokens`.
        """
        import torch

        parts = [self._part(name, key, stream, processor, rng) for key, stream in self.streams.items()]
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = ", ".join(f"{key} {tuple(part.shape)}" for key, part in zip(self.streams, parts, strict=True))
            raise BadSample(name, f"has streams of different widths ({shapes}); bring them to one width first")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, name: str, key: str, stream: Stream, processor: Callable[..., Any],
              rng: random.Random | None) -> Any:
        import torch

        array = np.asarray(stream.source.array(name))
        label = f"{name} (stream {key})"
        if array.dtype.kind not in "fiu" or not array.size:
            raise BadSample(label, f"is not an array of numbers (dtype {array.dtype}, shape {array.shape})")
        tensor = torch.from_numpy(array if array.dtype in (np.float16, np.float32) else array.astype(np.float32))
        tensor = processor(tensor, rng)
        if not bool(torch.isfinite(tensor).all()):
            raise BadSample(label, "has values that are NaN or infinite")
        return tensor if stream.tokens is None else _filled(label, tensor, stream.tokens)


def _filled(label: str, features: Any, tokens: int) -> Any:
    """float[P,Dv] -> float[tokens,Dv], NaN after the P rows."""
    if features.ndim != 2 or len(features) > tokens:
        raise BadSample(label, f"has shape {tuple(features.shape)}; features have shape (P, width), and `tokens` "
                               f"allows P up to {tokens}")
    filled = features.new_full((tokens, features.shape[1]), float("nan"))
    filled[:len(features)] = features
    return filled


def _only(tensors: Mapping[str, Any]) -> Any:
    """The one tensor of a file, or the one called `features`."""
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    if _TENSOR not in tensors:
        raise KeyError(f"it has {len(tensors)} tensors, none of them called {_TENSOR!r}")
    return tensors[_TENSOR]


def open_source(key: str, storage: str | None, suffix: str, items: ImageFolder) -> ArraySource:
    """Where a stream's arrays are read.

    Args:
        key: of the stream in the configuration.
        storage: a folder, an HDF5 or a safetensors file; None: the folder or the shards of `items`.
        suffix: appended to an item's name.
        items: the folder that annotations speak of.

    Raises:
        ConfigError: there is no such folder or file.
    """
    if storage is None:
        return FolderArrays(items, suffix)
    path = files.resolve(storage)
    if path.is_dir():
        return FolderArrays(ImageFolder(path), suffix)
    if not path.is_file() or path.suffix not in (*HDF5, ".safetensors"):
        what = "it is no HDF5 or safetensors file" if path.is_file() else "there is no such folder or file"
        near = did_you_mean(path.name, [each.name for each in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ConfigError(f"{key}.storage: {path}: {what}. {near}".rstrip())
    return FileArrays(path)
