"""Reference captions that stand in a file of their own, apart from the list of a split's images (NoCaps)."""

from __future__ import annotations

from pathlib import Path

from lavis_lite.datasets.annotations.rows import Field, Row, RowTable, identifier, read_table, text, texts
from lavis_lite.errors import DataError

MOST_SHOWN = 5


def with_references(table: RowTable, path: Path, split: str) -> RowTable:
    """The rows of a split with the captions that a COCO captions file has for their image_id; its `domain` comes along.

    Args:
        table: rows with image and image_id; captions of their own are replaced.
        path: COCO captions file, or a list of {image_id, caption}.
        split: for messages.

    Raises:
        DataError: the file is faulty, a row has no image_id, or the file has no caption for one.
    """
    found = _captions(path)
    rows = [(file, place, row) for file, place, row in table.items()]
    bare = [table.place(at) for at, (_, _, row) in enumerate(rows) if row.get("image_id") is None]
    if bare:
        raise DataError(f"{len(bare)} of {len(rows)} images of split {split!r} have no image_id, so their captions "
                        f"cannot be looked up in {path}; the first is {bare[0]}. Name the column in columns.image_id.")
    lost = [row["image_id"] for _, _, row in rows if row["image_id"] not in found]
    if lost:
        shown = ", ".join(map(repr, lost[:MOST_SHOWN])) + (", ..." if len(lost) > MOST_SHOWN else "")
        raise DataError(f"{path}: has no caption for {len(lost)} of the {len(rows)} images of split {split!r}; image "
                        f"ids: {shown}. It belongs to another split.")
    return RowTable(((file, place, {**row, **found[row["image_id"]]}) for file, place, row in rows), table.files)


def _captions(path: Path) -> dict[int | str, Row]:
    fields = [Field("image_id", identifier), Field("caption", texts), Field("domain", text, required=False)]
    table = read_table([path], fields)
    found: dict[int | str, Row] = {}
    for index in range(len(table)):
        row = table[index]
        known = found.setdefault(row["image_id"], {"caption": []})
        known["caption"] += row["caption"]
        if row.get("domain"):
            known["domain"] = row["domain"]
    return found
