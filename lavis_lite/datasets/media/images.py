"""Image files -> RGB pictures, or one clear reason why not.

The files are not trusted: the pixel count is checked from the header before anything is decoded, only picture formats
are tried (Pillow's PostScript reader would run a program), and a name may not lead out of the image folder.

JPEGs are decoded by libjpeg-turbo directly (simplejpeg), with Pillow's settings (accurate DCT, smooth chroma), so that
the pixels are Pillow's without the way through its image memory. If simplejpeg is not installed, or refuses a file,
Pillow decodes it. A JPEG that has lost bytes in its middle is refused: only simplejpeg passes libjpeg's warning on, and
Pillow paints the rest grey. Decoding at 1/2 or 1/4 of the size in the DCT would be faster still, but moves values by up
to 14 grey levels, so it is not done.
"""

from __future__ import annotations

import base64
import io
import os
import random
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lavis_lite.datasets.annotations.kinds import BETWEEN_NAMES
from lavis_lite.datasets.files.columnar import CELL, Cells
from lavis_lite.datasets.files.image_paths import Confinement, is_embedded, is_system_file, why_absent
from lavis_lite.errors import DataError
from lavis_lite.processors.image import orientation, to_rgb, upright

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

Pixels = NDArray[np.uint8]
"""uint8[H, W, 3], upright RGB"""
_START = b"\xff\xd8\xff"
_MARKER, _SCAN, _NOTES = 0xFF, 0xDA, 0xE1
"""first byte of every segment; kind of the segment before the compressed data; kind of EXIF and XMP"""
_LOST = ("premature end of data segment", "bad Huffman code", "instead of RST")
"""libjpeg's warnings of gaps in a picture's data; others, such as superfluous bytes, concern sound pictures too"""
_COLOUR_SPACES = ("YCbCr", "RGB", "Gray")
"""CMYK is left to Pillow, which knows Adobe's inverted kind"""
MAX_PIXELS = 64_000_000
"""largest width x height that is decoded: 192 MB as RGB"""
MOST_BYTES = 64 * 2**20
"""largest file that is read as a whole; of larger ones Pillow reads what it needs"""
_MOST_FOLDERS = 100_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
"""of pictures in a folder; a named file may have any suffix"""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")
"""Pillow's names, in the order they are tried; its JPEG reader takes MPO too"""


class BadSample(DataError):
    """One sample cannot be used, because of the file `path`; `reason` is a clause. See `run.on_bad_sample`."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def load_rgb(path: Path | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file to an upright RGB image (first frame of animations, transparency on white, 16 bits scaled).

    Raises:
        BadSample: missing, not a regular file, not a picture, truncated or with a gap, or larger than `max_pixels`.
    """
    return Image.fromarray(load_pixels(path, max_pixels))


def decode_rgb(content: bytes, name: Path | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`load_rgb` of a file's bytes; `name` is for messages."""
    return Image.fromarray(decode_pixels(content, name, max_pixels))


def load_pixels(path: Path | str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The pixels of `load_rgb` as uint8[H, W, 3]; errors as `load_rgb`."""
    check_regular(path)
    try:
        with open(path, "rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size > MOST_BYTES:
                return np.array(_pillow_image(path, path, max_pixels), copy=True)
            content = stream.read()
    except OSError as error:
        raise BadSample(path, _reason(error)) from error
    return decode_pixels(content, path, max_pixels)


def decode_pixels(content: bytes, name: Path | str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """`load_pixels` of a file's bytes, such as a shard's member; `name` is for messages, errors as `load_rgb`."""
    with _named_errors(name):
        pixels = decode_jpeg(content, max_pixels)
    return np.array(_pillow_image(io.BytesIO(content), name, max_pixels), copy=True) if pixels is None else pixels


def decode_jpeg(content: bytes, max_pixels: int) -> Pixels | None:
    """Upright RGB pixels of a JPEG's bytes; None: no JPEG, too large, damaged or rare: Pillow decodes or refuses it.

    Raises:
        ValueError: part of its data is lost.
    """
    if simplejpeg is None or not content.startswith(_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if width * height > max_pixels or colours not in _COLOUR_SPACES:
            return None
        pixels: Any = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        if any(warning in str(error) for warning in _LOST):
            raise ValueError(f"part of the picture is lost: {error}") from error
        return None
    if not _has_notes(content):
        return pixels
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return upright(pixels, orientation(image))


def _has_notes(content: bytes) -> bool:
    """Whether there is EXIF or XMP that may say how to turn the picture; True if the segments cannot be followed."""
    at = 2
    while at + 4 <= len(content) and content[at] == _MARKER:
        kind = content[at + 1]
        if kind in (_SCAN, _NOTES):
            return kind == _NOTES
        # a marker may be padded with more bytes 255
        at += 1 if kind == _MARKER else 2 + int.from_bytes(content[at + 2:at + 4], "big")
    return True


def _pillow_image(source: Any, name: Path | str, max_pixels: int) -> Image.Image:
    """The picture in a path or stream."""
    with _named_errors(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken EXIF, and Pillow's own about sizes, which are checked here
        with Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(name, f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
            image.load()  # first: some damaged files fail only once, and reading their EXIF would be that time
            return to_rgb(image)


@contextmanager
def _named_errors(name: Path | str) -> Iterator[None]:
    """Whatever a decoder raises becomes a BadSample with the file's name."""
    try:
        yield
    except BadSample:
        raise
    except Exception as error:  # decoders of hostile bytes raise anything from SyntaxError to struct.error
        raise BadSample(name, _reason(error)) from error


@lru_cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_regular(path: Path | str) -> None:
    """Check that a path is a regular file: a named pipe would hang the reader.

    Raises:
        BadSample: missing, or not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            raise BadSample(path, f"cannot be opened ({error})") from error
        why = why_absent(path)
        raise BadSample(path, f"there is no such file{'; ' if why else ''}{why}") from error
    if not stat.S_ISREG(mode):
        raise BadSample(path, "is not a regular file")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "its header claims an absurd number of pixels"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image of a known format"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    return f"cannot be decoded ({type(error).__name__}: {error})"


Stamp = tuple[int, int, int]
"""bytes of an image's file, time of its last change in ns (0: it has none of its own), CRC-32"""
NO_STAMP: Stamp = (0, 0, 0)


class ImageFolder:
    """A folder of images; no name leads out of it.

    Args:
        root: the folder; it may itself be a symbolic link.
        max_pixels: see `load_rgb`.
        follow_links: whether symbolic links in the folder may lead out of it, but to no system file.
    """

    key = "image"
    """what samples call a view of a file"""
    has_previews = True
    """whether a person can be shown what is in the folder"""

    def __init__(self, root: Path | str, max_pixels: int = MAX_PIXELS, follow_links: bool = True) -> None:
        self.root, self.max_pixels, self.follow_links = Path(root), max_pixels, follow_links
        self.cells: Cells | None = None
        """the pictures that are in the annotation files"""
        self._confinement = Confinement(root)
        self._safe: set[str] = set()
        """folders whose plain files may be read, links followed"""

    def path(self, name: str) -> Path:
        """Path of an image by the name that annotations use.

        Raises:
            BadSample: the name leads out of the folder by `..` or as an absolute path, or a link does that may not.
        """
        if ".." in name:  # "sub/../x.png" is x.png, even if sub is a link
            name = os.path.normpath(name)
        path = self.root / name
        folder, file = os.path.split(name)
        if folder in self._safe and file not in ("", ".", "..") and not os.path.islink(path):
            return path  # resolving the whole path would take as long as all else around the decoder
        try:
            inside = self._confinement.holds_name(name)
            real, real_folder = os.path.realpath(path), os.path.realpath(self.root / folder)
        except (OSError, ValueError) as error:
            raise BadSample(name, f"is not a usable file name ({error})") from error
        if not inside:
            raise BadSample(path, f"leads out of the image folder {self.root} (to {real}); set "
                                  "build_info.images.storage to a folder that holds all images")
        if not self._reaches(real):
            raise BadSample(path, f"is a symbolic link to {real}; links to system files are not followed"
                            if self.follow_links else
                            f"is a symbolic link that leads out of the image folder {self.root} (to {real}); set "
                            "build_info.images.follow_links to true if the link is your own")
        if self._reaches(real_folder) and len(self._safe) < _MOST_FOLDERS:
            self._safe.add(folder)
        return path

    def _reaches(self, real: str) -> bool:
        return self._confinement.holds_file(real) or (self.follow_links and not is_system_file(real))

    def embedded(self, name: str) -> bytes | None:
        """The picture of a `data:` address or of a cell of the annotations; None: the name is that of a file.

        Raises:
            BadSample: it is not in base64, or there is no such cell.
        """
        if not is_embedded(name):
            return None
        if name.startswith(CELL):
            content = self.cells.read(name) if self.cells else None
            if content is None:
                raise BadSample(name, "is not in the annotation files")
            return content
        try:
            return base64.b64decode(name.partition(",")[2], validate=True)
        except ValueError as error:
            raise BadSample(f"{name[:40]}...", f"is not in base64 ({error})") from error

    def source(self, name: str) -> tuple[Path | bytes, str]:
        """(path of a file, or the content of a picture that is not a file; its name in messages); errors as `path`."""
        content = self.embedded(name)
        return (self.path(name), name) if content is None else (content, name[:40])

    def file_size(self, name: str) -> int:
        """Bytes of an image's file; 0 if it has none of its own, or cannot be found."""
        try:
            return 0 if is_embedded(name) else os.stat(self.path(name)).st_size
        except (BadSample, OSError):  # whoever reads it is told
            return 0

    def stamp(self, name: str) -> Stamp:
        """What tells an image from what it was before."""
        try:
            content = self.embedded(name)
            found = None if content is not None else os.stat(self.path(name))
            content = self.read(name) if content is None else content
            return len(content), found.st_mtime_ns if found else 0, zlib.crc32(content)
        except (BadSample, OSError):  # whoever reads it is told
            return NO_STAMP

    def still(self, name: str, stamp: Stamp) -> Stamp | None:
        """The stamp with the present time, if an image is still the one of `stamp`; else None.

        A file of the same size and time is not read. A copied folder has other times, so there the content counts. An
        image that cannot be compared keeps its stamp.
        """
        try:
            found = None if is_embedded(name) else os.stat(self.path(name))
        except (BadSample, OSError):
            return stamp
        if found is not None and (found.st_size != stamp[0] or found.st_mtime_ns == stamp[1]):
            return stamp if found.st_size == stamp[0] else None
        now = self.stamp(name)
        return now if now[::2] == stamp[::2] else None

    def load(self, name: str) -> Image.Image:
        """The image of that name, as `load_rgb`."""
        return Image.fromarray(self._pixels(name))

    def _pixels(self, name: str) -> Pixels:
        source, label = self.source(name)
        return (decode_pixels(source, label, self.max_pixels) if isinstance(source, bytes) else
                load_pixels(source, self.max_pixels))

    def read(self, name: str) -> bytes:
        """The file's bytes as they are.

        Raises:
            BadSample: see `path`; missing, unreadable or not a regular file.
        """
        source, _ = self.source(name)
        if isinstance(source, bytes):
            return source
        check_regular(source)
        try:
            return source.read_bytes()
        except OSError as error:
            raise BadSample(source, f"cannot be read ({error.strerror or error})") from error

    def preview(self, name: str) -> bytes | Image.Image:
        """What a person can be shown of a file: its bytes, or of a video its middle frame; errors as `read`."""
        return self.read(name)

    def view(self, name: str, processor: Callable[..., Any], rng: random.Random | None = None) -> Any:
        """What an image processor makes of a file: decoded straight to pixels where the processor takes those."""
        takes_pixels = getattr(processor, "takes", "image") == "pixels"
        return processor(self._pixels(name) if takes_pixels else self.load(name), rng)


class ImagesFolder(ImageFolder):
    """A folder of images of which a row shows several: names joined by `BETWEEN_NAMES`."""

    def preview(self, name: str) -> bytes | Image.Image:
        """The first of them."""
        return super().preview(name.partition(BETWEEN_NAMES)[0])

    def view(self, name: str, processor: Callable[..., Any], rng: random.Random | None = None) -> Any:
        """What an image processor makes of each, float32[3, T, H, W]."""
        import torch  # the package reads rows without it

        names = name.split(BETWEEN_NAMES)
        return torch.stack([super(ImagesFolder, self).view(one, processor, rng) for one in names], 1)
