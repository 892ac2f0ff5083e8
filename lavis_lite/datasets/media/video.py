"""Video files -> clips, or one clear reason why not; the bad-sample policy is that of images."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from lavis_lite.datasets.media.images import MAX_PIXELS, BadSample, ImageFolder, check_regular
from lavis_lite.datasets.media.video_readers import READERS, VideoReader
from lavis_lite.errors import ConfigError

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
        BadSample: missing, not a video, without frames, or too large.
        ConfigError: the reader is not installed, or none is.
    """
    return _first_that_can(path, reader, lambda cls: cls(Path(path), max_pixels))


def _first_that_can(path: Path | str, reader: ReaderName, work: Callable[[type[VideoReader]], T]) -> T:
    """The result of the first reader that does not fail; the reasons of all where all do."""
    check_regular(path)
    reasons = []
    for name in _in_order(path, installed_readers(reader)):
        try:
            return work(READERS[name])
        except BadSample as fault:
            reasons.append(fault.reason)
    if reader == "auto" and len(reasons) < len(READERS):
        reasons.append("PyAV may know its format: pip install 'lavis_lite[video]'")
    raise BadSample(path, "; ".join(dict.fromkeys(reasons)))


def _in_order(path: Path | str, names: list[str]) -> list[str]:
    """PyAV first for AVI files: their frames have no time stamps, and decord then finds wrong ones near B-frames."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(12)
    except OSError as fault:
        raise BadSample(path, f"cannot be opened ({fault.strerror})") from fault
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

    def view(self, name: str, processor: Callable[..., Any], rng: random.Random | None = None) -> Any:
        """What a video processor makes of a file.

        Where one reader fails, be it in the middle, the next starts again with the same random numbers.

        Raises:
            BadSample: no reader can read it.
        """
        path, generator = self.path(name), rng or random
        state = generator.getstate()

        def work(cls: type[VideoReader]) -> Any:
            generator.setstate(state)
            with cls(path, self.max_pixels) as video:
                return processor(video, rng)

        return _first_that_can(path, self.reader, work)
