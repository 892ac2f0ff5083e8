"""Video files -> clips, or one clear reason why not; the bad-sample policy is that of images.

Two readers: decord, which LAVIS uses, and PyAV, which is maintained and knows newer codecs. Both give upright frames by
their index in the order of presentation, so that variable frame rates and odd or shifted time stamps change nothing. A
file is opened in the process that reads it, with one thread.
"""

from __future__ import annotations

import importlib
import os
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from lavis_lite.datasets.media.containers import stated_size
from lavis_lite.datasets.media.images import MAX_PIXELS, BadSample, ImageFolder, Pixels, check_regular
from lavis_lite.errors import ConfigError, UndefinedMethodError

_MOST_MISSING = 2
"""frames by which a container's own count may be too high (packed B-frames of AVI): the last one stands in for them"""


class VideoReader:
    """An open video: `len` frames, and any of them by number.

    Args:
        path: the file.
        max_pixels: width x height above which frames are refused.

    Raises:
        BadSample: not a video, without frames, or of a kind this reader does not know.
        ImportError: the reader's package is not installed.
    """

    package = ""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path, self.max_pixels = path, max_pixels
        self._frames = 0

    def __len__(self) -> int:
        return self._frames

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""

    def frames(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        """Upright RGB frames uint8[H, W, 3] by number, decoded one at a time.

        Args:
            numbers: 0 .. len-1, not decreasing; a number may come several times.

        Raises:
            BadSample: a frame cannot be decoded, is too large, or has another size than the first.
        """
        shape: tuple[int, ...] = ()
        for frame in self._decoded(numbers):
            self._check_size(frame.shape[1], frame.shape[0])
            if shape and frame.shape != shape:
                raise BadSample(self.path, f"changes its frame size from {shape[1]} x {shape[0]} to "
                                           f"{frame.shape[1]} x {frame.shape[0]} pixels")
            shape = frame.shape
            yield frame

    def _decoded(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        raise UndefinedMethodError.of(self, "_decoded")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise BadSample(self.path, f"{width} x {height} pixels are more than the limit of {self.max_pixels:,}")

    def _bad(self, doing: str, error: Exception) -> BadSample:
        """A native library's message as one clause, without line breaks and references to its source."""
        words = re.sub(r"\[[\d:]+\]\s*|\S+\.(cc|h|c):\d+:\s*", "", str(error)).strip().split("\n")[0][:160]
        return BadSample(self.path, f"cannot be {doing} ({type(error).__name__}: {words.strip()})")


class DecordReader(VideoReader):
    """decord; it turns frames upright itself and seeks by its own index of key frames."""

    package = "decord"

    def __init__(self, path: Path, max_pixels: int) -> None:
        super().__init__(path, max_pixels)
        decord = importlib.import_module("decord")
        decord.logging.set_level(decord.logging.QUIET)  # its errors come as exceptions too
        try:
            self._video: Any = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
            self._frames = len(self._video)
        except Exception as error:  # its errors derive from RuntimeError or from Exception, by the place that raises
            raise self._bad("opened", error) from error
        if not self._frames:
            raise BadSample(path, "has no frames")

    def close(self) -> None:
        """Ends decord's decoding thread."""
        self._video = None

    def _decoded(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        for number in numbers:
            try:
                frame = self._video[number]
            except Exception as error:  # see above
                raise self._bad(f"decoded at frame {number} of {len(self)}", error) from error
            # an array of decord's, or of the framework that decord.bridge was set to
            pixels = frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)
            if pixels.shape[-1] != 3:  # decord takes the padding of rows of less than 64 pixels for a fourth channel
                raise BadSample(self.path, "is too narrow for decord")
            yield pixels


class AvReader(VideoReader):
    """PyAV: a first pass reads packets only (time stamps, key frames), a second decodes from a key frame on."""

    package = "av"

    def __init__(self, path: Path, max_pixels: int) -> None:
        super().__init__(path, max_pixels)
        self._av = importlib.import_module("av")
        try:
            with self._av.open(str(path)) as container:
                packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(self._stream(container))
                           if packet.size and not packet.is_discard]
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise self._bad("opened", error) from error
        self._frames = len(packets)
        if not packets:
            raise BadSample(path, "has no frames")
        times, keys = {pts for pts, _ in packets if pts is not None}, {pts for pts, key in packets if key}
        # without a time stamp of its own for every frame, frames are counted from the first one
        self._times = sorted(times) if len(times) == len(packets) else []
        self._keys = [number for number, time in enumerate(self._times) if time in keys]

    def _stream(self, container: Any) -> Any:
        """The video stream; its size is checked before anything is decoded."""
        if not container.streams.video:
            raise BadSample(self.path, "has no video stream")
        stream = container.streams.video[0]
        stream.thread_count = 1
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        return stream

    def _decoded(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        number = -1
        try:
            with self._av.open(str(self.path)) as container:
                stream, shown, frame = self._stream(container), -1, None
                decoder = container.decode(stream)
                for number in numbers:
                    last = bisect_right(self._keys, number)
                    key = self._keys[last - 1] if last else -1  # -1: frames must be counted
                    if key > shown + 1:
                        container.seek(self._times[key], stream=stream)
                        decoder, shown = container.decode(stream), key - 1
                    while shown < number:
                        following = next(decoder, None)
                        if following is None:
                            if frame is None or len(self) - 1 - shown > _MOST_MISSING:
                                raise BadSample(self.path, f"ends after {shown + 1} of its {len(self)} frames")
                            break
                        frame, shown = following, self._number(following, shown)
                    yield _upright(frame)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise self._bad(f"decoded at frame {number} of {len(self)}", error) from error

    def _number(self, frame: Any, shown: int) -> int:
        """Index of a decoded frame: by its time stamp, which holds after a seek too, else the next."""
        after = bisect_right(self._times, frame.pts) if self._times and frame.pts is not None else 0
        return after - 1 if after else shown + 1


def _upright(frame: Any) -> Pixels:
    """A PyAV frame turned by its display matrix (degrees, counter-clockwise)."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))) if frame.rotation else pixels


READERS: dict[str, type[VideoReader]] = {reader.package: reader for reader in (DecordReader, AvReader)}
"""by package, in the order in which they are tried"""


ReaderName = Literal["auto", "decord", "av"]
T = TypeVar("T")


def open_video(path: Path | str, max_pixels: int = MAX_PIXELS, reader: ReaderName = "auto") -> VideoReader:
    """A video of which single frames can be had; what the video processors take. Close it, or use it in a `with`.

    Args:
        path: the file.
        max_pixels: width x height above which it is refused.
        reader: decord, av (PyAV), or auto: the first of them that is installed and can open the file, PyAV before
            decord for AVI files.

    Raises:
        BadSample: missing, cut off, not a video, without frames, or too large.
        ConfigError: the reader is not installed, or none is.
    """
    return _first_that_can(path, reader, lambda cls: cls(Path(path), max_pixels))


def _first_that_can(path: Path | str, reader: ReaderName, work: Callable[[type[VideoReader]], T]) -> T:
    """The result of the first reader that does not fail; if all fail, the reasons of all."""
    check_regular(path)
    reasons = []
    names = _in_order(path, installed_readers(reader))
    _check_whole(path)
    for name in names:
        try:
            return work(READERS[name])
        except BadSample as error:
            reasons.append(error.reason)
    if reader == "auto" and len(reasons) < len(READERS):
        reasons.append("PyAV may know its format: pip install 'lavis_lite[video]'")
    raise BadSample(path, "; ".join(dict.fromkeys(reasons)))


def _check_whole(path: Path | str) -> None:
    """Raise a BadSample if a file was cut off: readers would take what is left for a shorter video."""
    stated, length = stated_size(path), os.path.getsize(path)
    if stated > length:
        raise BadSample(path, f"is cut off: it has {length:,} of its {stated:,} bytes; fetch or copy it again")


def _in_order(path: Path | str, names: list[str]) -> list[str]:
    """PyAV first for AVI files: their frames have no time stamps, and decord then finds wrong ones near B-frames."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(12)
    except OSError as error:
        raise BadSample(path, f"cannot be opened ({error.strerror})") from error
    av_first = sorted(names, key=lambda name: name != "av")
    return av_first if head[:4] == b"RIFF" and head[8:] == b"AVI " else names


def installed_readers(reader: ReaderName = "auto") -> list[str]:
    """Packages that can be used, the preferred one first.

    Raises:
        ConfigError: none is installed.
    """
    wanted = list(READERS) if reader == "auto" else [reader]
    found = [name for name in wanted if find_spec(name)]
    if not found:
        raise ConfigError(f"videos are read by {' or '.join(wanted)}, not installed here: "
                          "pip install 'lavis_lite[video]' installs PyAV (av).")
    return found


class VideoFolder(ImageFolder):
    """A folder of videos; no name leads out of it.

    Args:
        root: the folder; it may itself be a symbolic link.
        max_pixels: width x height above which a video is refused.
        reader: see `open_video`.
        follow_links: see `ImageFolder`.
    """

    key = "video"

    def __init__(self, root: Path | str, max_pixels: int = MAX_PIXELS, reader: ReaderName = "auto",
                 follow_links: bool = True) -> None:
        super().__init__(root, max_pixels, follow_links)
        self.reader: ReaderName = reader

    def load(self, name: str) -> VideoReader:  # type: ignore[override]
        """The open video of that name, as `open_video`."""
        return open_video(self.path(name), self.max_pixels, self.reader)

    def preview(self, name: str) -> Image.Image:
        """The middle frame."""
        with self.load(name) as video:
            return Image.fromarray(next(iter(video.frames([len(video) // 2]))))

    def view(self, name: str, processor: Callable[..., Any], rng: random.Random | None = None) -> Any:
        """The result of a video processor for a file; a BadSample if no reader can read it.

        If one reader fails, even in the middle, the next starts again with the same random numbers.
        """
        path, generator = self.path(name), rng or random
        state = generator.getstate()

        def work(cls: type[VideoReader]) -> Any:
            generator.setstate(state)
            with cls(path, self.max_pixels) as video:
                return processor(video, rng)

        return _first_that_can(path, self.reader, work)
