"""Features of a data set's images by a frozen vision encoder, computed once and read instead of the images.

    DIR/manifest.json                 which encoder, weights and processor; without it nothing is used
    DIR/features-000000.safetensors   features dtype[K, P, Dv] of K images, and the hashes of their names
    DIR/names.safetensors             file, row and stamp of each image

Exact if the processor has nothing random: then an image always gives the same features. An image that has changed since
is refused when training asks for its features. Images that are not there are not compared.
"""

from __future__ import annotations

import mmap
import random
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lavis_lite.datasets.files.mapped import Mapped
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.shards.index import name_hash
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.io import atomic, files

FORMAT = 3
MANIFEST, NAMES = "manifest.json", "names.safetensors"
COMMAND = "python -m lavis_lite data cache-features"


class FeatureFolder(ImageFolder):
    """Features by the name of their image, used like an `ImageFolder`.

    Args:
        root: folder that `writer` filled.
        images: what the features were made of, to be compared with; None: nothing is compared.

    Raises:
        DataError: it is not complete, or damaged.
    """

    has_previews = False

    def __init__(self, root: Path, images: ImageFolder | None = None) -> None:
        self.root, self.images = root, images
        self.manifest = _manifest(root)
        names = self._mapped(NAMES)
        self._hash, self._file, self._row, self._crc, self._stamp = (
            names.lazy(key) for key in ("hash", "file", "row", "crc", "stamp"))
        self._maps: dict[int, Any] = {}
        self._times = np.frombuffer(mmap.mmap(-1, 8 * max(1, len(self._hash))), np.int64)
        """of each image the time at which it was found to be the same (0: not yet); forked workers share it"""

    def __reduce__(self) -> Any:
        return type(self), (self.root, self.images)

    def view(self, name: str, processor: Callable[..., Any], rng: random.Random | None = None) -> Any:
        """As `load`: the images are processed already."""
        return self.load(name)

    def load(self, name: str) -> Any:
        """float[P, Dv] in the dtype that was kept.

        Raises:
            BadSample: the folder lacks the image, its bytes are damaged, or the image has changed since.
            DataError: the file of names is damaged.
        """
        index = self._hash.find(np.uint64(name_hash(name)))
        if index is None:
            raise BadSample(name, f"has no features in {self.root}; run {COMMAND} again to add what is new")
        if self.images is not None:
            self._compare(name, index, self.images)
        file, row = int(self._file[index]), int(self._row[index])
        content = self._features(file)[row].copy()
        if zlib.crc32(content) != int(self._crc[index]):
            raise BadSample(f"{self.root}/{file_of(file)}:{name}", "its features are not those that were written")
        import torch  # builders list their splits without it

        tensor = torch.from_numpy(content)
        return tensor.view(torch.bfloat16) if self.manifest["dtype"] == "bf16" else tensor

    def _compare(self, name: str, index: int, images: ImageFolder) -> None:
        """Check that an image is the one that its features were made of; it is read once in a copied folder."""
        size, time, crc = self._stamp[index].tolist()
        found = images.still(name, (size, int(self._times[index]) or time, crc))
        if found is None:
            raise BadSample(name, f"has changed since its features in {self.root} were made; run {COMMAND} again")
        self._times[index] = found[1]

    def file_size(self, name: str) -> int:
        """Bytes of the image that the features were made of; 0 if it is not here."""
        return 0 if self.images is None else self.images.file_size(name)

    def _features(self, file: int) -> Any:
        if file not in self._maps:
            self._maps[file] = self._mapped(file_of(file)).lazy("features").unchecked()  # each row has its checksum
        return self._maps[file]

    def _mapped(self, name: str) -> Mapped:
        """One of the folder's files, checked to be the one that the manifest was written with."""
        remedy = f"Remove it and run again: {COMMAND}"
        mapped = Mapped(self.root / name, remedy)
        if mapped.digest != self.manifest["files"].get(name, {}).get("digest"):
            raise DataError(f"{mapped.path}: not the file that {MANIFEST} was written with. {remedy}")
        return mapped

    def check_encoder(self, encoder: Mapping[str, Any]) -> None:
        """Refuse features of another encoder.

        Args:
            encoder: the model's, see `weights.encoder_identity`.

        Raises:
            ConfigError: names what differs.
        """
        held = self.manifest["encoder"]
        other = [f"{key} {held.get(key)!r} there, {encoder[key]!r} in the model" for key in encoder
                 if held.get(key) != encoder[key]]
        if other:
            raise ConfigError(f"{self.root}: these features are of another vision encoder: {'; '.join(other)}. Make "
                              f"new ones with: {COMMAND}")


def file_of(number: int) -> str:
    """Name of a file of features."""
    return f"features-{number:06d}.safetensors"


def _manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        content = _checked(atomic.read_sealed(path))
        short = [name for name, file in content["files"].items() if (root / name).stat().st_size != file["bytes"]]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: there is no such file, so the features are not complete. Write what is "
                        f"missing with: {COMMAND}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be used as a manifest of features ({error}). Rewrite it with: "
                        f"{COMMAND}") from error
    if short:
        raise DataError(f"{root / short[0]}: its size is not what {MANIFEST} says; remove it and run {COMMAND} again.")
    return content


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """The content, if it is of the right format; a ValueError else."""
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}, and this version reads {FORMAT}")
    if not all(isinstance(content.get(key), dict) for key in ("encoder", "processor", "files")):
        raise ValueError("its encoder, processor or files are missing")
    if content.get("dtype") not in ("bf16", "fp16", "fp32"):
        raise ValueError("its dtype is missing")
    names = {NAMES, *(file_of(number) for number in range(len(content["files"]) - 1))}
    if set(content["files"]) != names or not all(isinstance(file, dict) and {"bytes", "digest"} <= file.keys()
                                                 for file in content["files"].values()):
        raise ValueError("its list of files is not one")
    return content


def open_features(folder: str, key: str, processor: Mapping[str, Any] | None, vis: Any,
                  images: ImageFolder) -> FeatureFolder:
    """The features that a data set's section names, if its training processor is the one they were made with.

    Args:
        folder: the section's `features`.
        key: the section's key in the configuration.
        processor: its vis_processor.train. vis: that processor. images: what the features were made of.

    Raises:
        ConfigError: the processor is random or another one. DataError: see `FeatureFolder`.
    """
    given = dict(processor or {})
    refuse_random(vis, key, given)
    features = FeatureFolder(files.resolve(folder), images)
    held = features.manifest["processor"]
    if held != given:
        raise ConfigError(f"{key}.features: {folder} was made with the processor {held}, but {key}.vis_processor.train "
                          f"is {given}.")
    return features


def refuse_random(vis: Any, key: str, processor: Mapping[str, Any]) -> None:
    """Raise a ConfigError where an image's features would differ from one time to the next, and for videos."""
    if getattr(vis, "takes", "image") == "video":
        raise ConfigError(f"{key}: features are kept of images, not of videos. Train without {key}.features.")
    if getattr(vis, "is_random", True):
        raise ConfigError(f"{key}.vis_processor.train: {processor.get('name')} changes images at random, and kept "
                          f"features would be always the same. Set {key}.vis_processor.train.name=blip_image_eval, "
                          f"or train without {key}.features.")
