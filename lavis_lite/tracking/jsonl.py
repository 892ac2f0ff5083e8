"""log.jsonl: one JSON object per line, complete and in order also after crashes and resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO

from lavis_lite import atomic
from lavis_lite.tracking.sink import Record, Sink


class JsonlLog(Sink):
    """Appends every record to a file. On `open`, lines beyond the start step are dropped in one atomic rewrite."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def open(self, start_step: int, total_steps: int) -> None:
        """Keep what belongs to the first `start_step` steps, go on behind it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [json.dumps(row) for row in read(self.path) if row.get("step", 0) <= start_step and start_step > 0]
            atomic.write_text(self.path, "".join(line + "\n" for line in kept))
        self._append()

    def _append(self) -> TextIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
        return self._file

    def record(self, record: Record) -> None:
        """Write one line, and hand it to the system at once so that `tail -f` and a crash see it."""
        file = self._append()
        file.write(json.dumps(_plain(record)) + "\n")
        file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as strings, also within lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; a last line that a kill cut short is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # only ever the line that was being written when the process died
    return rows
