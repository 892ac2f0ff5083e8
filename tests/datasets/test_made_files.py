"""Hundreds of files of known truth: rows are read as meant, or the file is refused; none is lost or merged silently.

`LAVIS_LITE_MADE_FILES=5000 pytest tests/datasets/test_made_files.py` tries that many.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from lavis_lite.config.schema import FileConfig
from lavis_lite.datasets.annotations.rows import Field, file_name, read_table, texts
from lavis_lite.datasets.shards.dataset import open_shards
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.errors import DataError
from tests.datasets.made_files import FILES, Made, MadeTar, make_file, make_tar

COUNT = int(os.environ.get("LAVIS_LITE_MADE_FILES", "240"))
TARS = COUNT // 5
FIELDS = [Field("image", file_name), Field("caption", texts)]


def outcome(made: Made, path: Path) -> str:
    """read | refused, or what is wrong."""
    path.write_bytes(made.content)
    try:
        table = read_table([path], FIELDS)
    except DataError as fault:
        if str(path) not in str(fault):
            return f"the file is not named: {fault}"
        return f"must be read: {fault}" if made.must else "refused"
    rows = [table[index] for index in range(len(table))]
    if made.truth is None:
        return f"must be refused, but gives {rows}"
    return "read" if rows == made.truth else f"gives {rows} for {made.truth}"


def tar_outcome(made: MadeTar, folder: Path) -> str:
    """read | refused, or what is wrong."""
    folder.mkdir()
    (folder / "0.tar").write_bytes(made.content)
    try:
        index_folder(folder, log=lambda text: None)
    except DataError as fault:
        return f"must be read: {fault}" if made.must else "refused"
    opened = open_shards(FileConfig(storage=str(folder)), "shards", FIELDS)
    rows = [opened.table[index] for index in range(len(opened.table))]
    found = {opened.images.read(row["image"]): row["caption"] for row in rows}
    if made.truth is None:
        return f"must be refused, but gives {rows}"
    return "read" if found == made.truth and len(rows) == len(found) else f"gives {found} for {made.truth}"


@pytest.mark.parametrize("writer", range(len(FILES)), ids=[writer.__name__ for writer in FILES])
def test_rows_are_read_as_meant_or_refused(writer: int, tmp_path: Path) -> None:
    wrong, outcomes = [], Counter[str]()
    for number in range(writer, COUNT - TARS, len(FILES)):
        made = make_file(number)
        found = outcome(made, tmp_path / made.name)
        outcomes[found if found in ("read", "refused") else "wrong"] += 1
        if found not in ("read", "refused"):
            wrong.append(f"{number} {made.kind}: {found}\n{made.content!r}")
    assert not wrong, f"{len(wrong)} of {outcomes.total()} files\n" + "\n".join(wrong[:5])
    assert outcomes.total() >= (COUNT - TARS) // len(FILES)


def test_tars_are_read_as_meant_or_refused(tmp_path: Path) -> None:
    wrong, outcomes = [], Counter[str]()
    for number in range(TARS):
        made = make_tar(number)
        found = tar_outcome(made, tmp_path / str(number))
        outcomes[found if found in ("read", "refused") else "wrong"] += 1
        if found not in ("read", "refused"):
            wrong.append(f"{number} {made.kind}: {found}")
    assert not wrong, f"{len(wrong)} of {TARS} tars\n" + "\n".join(wrong[:5])
    assert outcomes["read"] and outcomes["refused"]
