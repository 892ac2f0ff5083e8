"""METEOR and SPICE by the Java programs of pycocoevalcap, each in a watched process.

Captions are tokens (ptb.py), so no line break can shift the lines that Java reads and writes. No shell is used, files
are in a temporary folder, and a program without output for `patience` seconds is ended.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lavis_lite.errors import DataError, MissingExtraError
from lavis_lite.metrics.captions import TokenizedCaptions
from lavis_lite.metrics.ptb import one_line

Floats = NDArray[np.float64]
Scored = tuple[float, Floats]
"""score of a set, and of its images float64[I]"""
PATIENCE = 60.0
"""seconds without output after which a Java program is ended"""
_LAST_LINES = 5


class JavaScoreError(DataError):
    """A Java program of a metric crashed, hung or did not return a score."""


def meteor_scores(captions: TokenizedCaptions, patience: float = PATIENCE) -> Scored:
    """METEOR 1.5 of the set, and of the images float64[I], as in the official evaluation.

    Raises:
        MissingExtraError: Java or pycocoevalcap is not installed.
        JavaScoreError: the program crashed, or had no output for `patience` seconds.
    """
    return meteor_of_parts(captions, [], patience)[0]


def meteor_of_parts(captions: TokenizedCaptions, parts: Sequence[Sequence[int]],
                    patience: float = PATIENCE) -> list[Scored]:
    """`meteor_scores` of the set, then of each part as a separate set, by one run of the program.

    Args:
        captions: the set.
        parts: indices of images.
        patience: seconds without output.
    """
    jar = _package_file("METEOR", "meteor/meteor-1.5.jar")
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    found: list[Scored] = []
    with Java("METEOR", ["-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), *options], patience) as java:
        count = len(captions.ids)
        java.send(_meteor_lines(captions))
        statistics = [java.line() for _ in range(count)]
        for part in [range(count), *parts]:
            java.send([" ||| ".join(["EVAL", *(statistics[index] for index in part)])])
            *each, whole = [java.number() for _ in range(len(part) + 1)]
            found.append((whole, np.array(each)))
    return found


def _meteor_lines(captions: TokenizedCaptions) -> Iterator[str]:
    for prediction, references in zip(captions.predictions, captions.references, strict=True):
        yield " ||| ".join(["SCORE", *map(_line, references), _line(prediction)])


def _line(tokens: Sequence[str]) -> str:
    """A caption as one line for Java."""
    return one_line(" ".join(tokens))


def spice_of_parts(captions: TokenizedCaptions, parts: Sequence[Sequence[int]]) -> list[Scored]:
    """`spice_scores` of the set, then of each part: the mean of its images."""
    whole, each = spice_scores(captions)
    return [(whole, each), *((float(each[list(part)].mean()), each[list(part)]) for part in parts)]


def spice_scores(captions: TokenizedCaptions, patience: float = PATIENCE) -> Scored:
    """SPICE F of the set, and of the images float64[I], as in the official evaluation.

    Raises:
        MissingExtraError: Java, pycocoevalcap or the models of its parser are not installed.
        JavaScoreError: the program crashed, or had no output for `patience` seconds.
    """
    jar = _package_file("SPICE", "spice/spice-1.0.jar")
    if len(list((jar.parent / "lib").glob("stanford-corenlp-*.jar"))) < 2:
        raise MissingExtraError(
            f"SPICE needs the Stanford CoreNLP 3.6.0 program and models in {jar.parent / 'lib'}. Download them once: "
            "python -c 'from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()'")
    asked = [{"image_id": index, "test": _line(prediction), "refs": list(map(_line, references))}
             for index, (prediction, references) in enumerate(zip(captions.predictions, captions.references,
                                                                  strict=True))]
    with tempfile.TemporaryDirectory(prefix="spice-") as folder:
        source, target = Path(folder, "captions.json"), Path(folder, "scores.json")
        source.write_text(json.dumps(asked), encoding="utf-8")
        options = [str(source), "-cache", str(Path(folder, "cache")), "-out", str(target), "-subset"]
        Path(folder, "cache").mkdir()
        with Java("SPICE", ["-Xmx8G", "-jar", str(jar), *options], patience) as java:
            java.finish()
        return _spice_result(target, len(asked))


def _spice_result(path: Path, count: int) -> Scored:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        scores = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in rows}
        values = np.array([scores[index] for index in range(count)])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JavaScoreError(f"SPICE ended without readable scores ({error!r}).") from error
    return float(values.mean()), values


def _package_file(metric: str, name: str) -> Path:
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{metric} needs pycocoevalcap, which is not installed: pip install 'lavis_lite[eval]'")
    path = Path(next(iter(spec.submodule_search_locations)), name)
    if not path.is_file():
        raise MissingExtraError(f"{metric}: {path} is missing; install pycocoevalcap again: "
                                "pip install --force-reinstall pycocoevalcap")
    return path


def find_java(metric: str) -> str:
    """Path of the Java program: in JAVA_HOME, else the first on PATH.

    Raises:
        MissingExtraError: Java is not installed.
    """
    home = os.environ.get("JAVA_HOME")
    own = shutil.which("java", path=str(Path(home, "bin"))) if home else None
    found = own or shutil.which("java")
    if found is None:
        raise MissingExtraError(f"{metric} needs Java, and no `java` is on PATH. Install a Java runtime (for instance "
                                "the package default-jre-headless), or leave the metric out of run.caption_metrics.")
    return found


def why_no_java(metric: str) -> str:
    """Why METEOR or SPICE cannot be computed here, as a sentence; "" if they can."""
    try:
        find_java(metric)
        _package_file(metric, "meteor/meteor-1.5.jar")
    except MissingExtraError as error:
        return str(error)
    return ""


class Java:
    """A Java program with line-by-line input and output; a context manager that always ends it.

    Args:
        metric: its name, for messages.
        arguments: after `java`.
        patience: seconds to wait for a line.
    """

    def __init__(self, metric: str, arguments: list[str], patience: float) -> None:
        self.metric, self.patience = metric, patience
        self._process = subprocess.Popen([find_java(metric), *arguments], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._seen: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Java:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        for line in _pipe(self._process.stdout):
            self._lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._lines.put(None)

    def send(self, lines: Iterable[str]) -> None:
        """Write lines in a thread, so that a full pipe blocks neither side."""
        text = "".join(f"{line}\n" for line in lines)
        threading.Thread(target=self._write, args=(text,), daemon=True).start()

    def _write(self, text: str) -> None:
        pipe = _pipe(self._process.stdin)
        with suppress(BrokenPipeError, ValueError):  # it has ended: `line` raises with its exit code and last output
            pipe.write(text.encode("utf-8", "replace"))
            pipe.flush()

    def line(self) -> str:
        """The next line.

        Raises:
            JavaScoreError: no line came in time, or the program has ended.
        """
        line = self._next()
        if line is None:
            raise JavaScoreError(f"{self.metric}: Java ended with exit code {self._process.wait()} before it had "
                                 f"written all scores. {self._last_words()}")
        return line

    def _next(self) -> str | None:
        try:
            line = self._lines.get(timeout=self.patience)
        except queue.Empty:
            raise JavaScoreError(f"{self.metric}: Java wrote nothing for {self.patience:g} seconds and was ended. "
                                 f"{self._last_words()}") from None
        if line is not None:
            self._seen = [*self._seen[1 - _LAST_LINES:], line]
        return line

    def number(self) -> float:
        """The next line as a number."""
        line = self.line()
        try:
            return float(line)
        except ValueError:
            raise JavaScoreError(f"{self.metric}: Java answered {line[:200]!r} instead of a score.") from None

    def finish(self) -> None:
        """Read until the program ends by itself.

        Raises:
            JavaScoreError: the program had no output for too long, or ended with an error.
        """
        while self._next() is not None:
            pass
        if code := self._process.wait():
            raise JavaScoreError(f"{self.metric}: Java ended with exit code {code}. {self._last_words()}")

    def _last_words(self) -> str:
        return f"Its last lines: {' / '.join(self._seen)[-500:]}" if self._seen else "It wrote nothing."


def _pipe(stream: IO[bytes] | None) -> Any:
    if stream is None:  # only if Popen was called without it
        raise RuntimeError("the process has no pipe")
    return stream
