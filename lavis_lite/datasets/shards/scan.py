"""The index of shards from another program, made by reading their headers once.

Layouts: <key>.<picture> with <key>.json, <key>.txt or both, as img2dataset and webdataset write them; or this
package's own. Its index is then the same again. Conversations in <key>.json have any number of pictures. Every tar is
read, none is unpacked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.chats import COLUMNS
from lavis_lite.datasets.annotations.rows import Field, RowErrors, checked_row, describe, file_name, texts
from lavis_lite.datasets.annotations.tables import Row
from lavis_lite.datasets.files.locate import file_hash
from lavis_lite.datasets.files.mapped import Mapped
from lavis_lite.datasets.shards.cache import LocalShards
from lavis_lite.datasets.shards.index import (
    EXPLODED,
    INDEX,
    PARTS,
    Part,
    Shard,
    ShardIndex,
    part_facts,
    part_path,
    write_index,
)
from lavis_lite.datasets.shards.members import Contents, Dots, Member, Sample, read_contents
from lavis_lite.datasets.shards.writer import SKIPPED, Log, joined
from lavis_lite.errors import DataError, counted
from lavis_lite.io import atomic
from lavis_lite.io.files import check_regular
from lavis_lite.process.children import worker_pool

_MOST_LISTED = 100_000
"""errors of one tar that are listed in skipped.jsonl; the others are counted"""
CHAT_IMAGES = COLUMNS["image"]
_OTHER_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def index_folder(folder: Path, keep: Sequence[str] = (), skip_bad: bool = False, workers: int = 1,
                 log: Log = print, dots: Dots = "auto") -> ShardIndex:
    """Write the index of all tars in a folder; finished tars are not read again if this is interrupted.

    Args:
        folder: of the tars.
        keep: further fields of the samples' JSON for the rows, besides the caption.
        skip_bad: leave out samples without an image or a text, and everything after damage.
        workers: processes that read.
        log: receives lines of progress, and on members that are not read.
        dots: at which dot of a member's name the sample's key ends, see `members.read_contents`.

    Raises:
        DataError: no tars, no samples, two images of one name, or a field of `keep` that no sample has; or, without
            `skip_bad`, up to 20 errors, all in one message.
    """
    names = sorted(path.name for path in folder.glob("*.tar"))
    if not names:
        raise DataError(f"{folder}: there are no shards (*.tar) in it.")
    for name in names:
        check_regular(folder / name)
    (folder / PARTS).mkdir(exist_ok=True)
    settings = json.dumps([list(keep), dots])
    missing = [name for name in names if not _scanned(folder, name, settings)]
    try:
        _scan_all(missing, partial(scan_shard, folder, keep=tuple(keep), dots=dots, settings=settings), workers, log)
    finally:
        atomic.remove_strays(folder / PARTS)  # of processes that were killed
    facts = [Mapped(part_path(folder, name)).facts for name in names]
    _report_unused(folder, facts, log)
    _judge(folder, facts, skip_bad, log)
    _check_found(folder, facts, keep)
    index = write_index(folder, names, folder.name)
    for name in names:
        part_path(folder, name).unlink()
    return index


def _scan_all(names: Sequence[str], scan: Callable[[str], None], workers: int, log: Log) -> None:
    if workers <= 1:
        for done, name in enumerate(names, 1):
            scan(name)
            log(f"{name} read ({done} of {len(names)})")
    else:
        with worker_pool(workers, "reading shards") as pool:
            for done, _ in enumerate(pool.map(scan, names), 1):
                log(f"{names[done - 1]} read ({done} of {len(names)})")


def _scanned(folder: Path, name: str, settings: str) -> bool:
    facts = part_facts(folder, name) or {}
    return facts.get("settings") == settings and facts.get("stamp") == _stamp(folder / name)


def _stamp(path: Path) -> str:
    """What tells a tar from what it was, also in a folder that was copied with its times."""
    return f"{path.stat().st_mtime_ns} {file_hash(path)}"


def scan_shard(folder: Path, name: str, keep: tuple[str, ...], dots: Dots = "auto", settings: str = "") -> None:
    """Read one tar and write its part of the index."""
    path, errors = folder / name, RowErrors(_MOST_LISTED)
    contents = read_contents(path, errors, dots)
    images, rows, samples = [], [], 0
    for sample in contents.samples:
        if sample.is_chat:
            found, pictures = [_conversation(path, sample)], {_name(path, one): one for one in sample.pictures}
        else:
            found = _rows(path, sample, keep, errors, contents)
            pictures = {found[0]["image"]: sample.image} if found else {}
        images += [(name, one.offset, one.size, one.crc) for name, one in pictures.items()]
        samples += bool(found)
        rows += [(samples, row) for row in found]
    kinds = {"image": file_name.__name__} if all("image" in row for _, row in rows) else {}
    if rows and all(EXPLODED in row for _, row in rows):
        kinds[EXPLODED] = texts.__name__
    shard = Shard(name, path.stat().st_size, samples, atomic.file_sha256(path), file_hash(path))
    kept = {key: sum(key in row for _, row in rows) for key in keep}
    Part(shard, images, rows, kinds).save(
        folder, settings=settings, stamp=_stamp(path), faults=json.dumps(errors.shown), count=str(errors.count),
        unused=json.dumps([contents.unused, contents.examples]), kept=json.dumps(kept))


def _rows(path: Path, sample: Sample, keep: tuple[str, ...], errors: RowErrors, contents: Contents) -> list[Row]:
    """The rows of a sample; none if its JSON or text is wrong. A second text is counted in `contents`."""
    where, before = f"{path}:{sample.key}", errors.count
    try:
        content, text = sample.content, sample.text()
    except (ValueError, RecursionError) as error:
        errors.add(where, f"its text cannot be read ({error})")
        return []
    if isinstance(content.get("image"), str) and text is None:  # written by `data shard`: the row as it was
        kept = list(_own_rows(where, content, errors))
    else:
        caption = content.get(EXPLODED)
        if text and isinstance(caption, str) and caption.strip() not in ("", text):
            contents.leave("texts in .txt other than the caption in the .json", sample.image.name)
        row = {"image": _name(path, sample.image), EXPLODED: text if caption in (None, "", []) else caption}
        if row[EXPLODED] is None and EXPLODED not in content:
            row = {"image": row["image"], **{key: value for key, value in content.items() if key != "image"}}
        kept = [checked_row(where, row, [Field("image", file_name), Field(EXPLODED, texts)], errors)
                | {key: content[key] for key in keep if key in content}]
    return joined(kept) if errors.count == before else []


def _conversation(path: Path, sample: Sample) -> Row:
    """The row of a conversation: what its JSON has, with the sample's pictures in the order that the JSON lists."""
    listed: list[Any] = next((names for key in CHAT_IMAGES if isinstance(names := sample.content.get(key), list)), [])
    order = {str(name).rpartition("/")[2]: number for number, name in enumerate(listed)}
    pictures = sorted(sample.pictures, key=lambda one: order.get(one.name.rpartition("/")[2], len(order)))
    own = {key: value for key, value in sample.content.items() if key not in CHAT_IMAGES}
    return {**own, "images": [_name(path, one) for one in pictures]} if pictures else own


def _name(path: Path, member: Member) -> str:
    return f"{path.stem}/{member.name}"


def _own_rows(where: str, content: dict[str, Any], errors: RowErrors) -> Iterator[Row]:
    inner = content.get("rows")
    fields = [Field("image", file_name), Field(EXPLODED, texts, required=False)]
    for row in inner if isinstance(inner, list) and inner else [content]:
        if isinstance(row, dict):
            yield row | checked_row(where, row, fields, errors)
        else:
            errors.add(where, f"its 'rows' must be objects, not {describe(row)}")


def _report_unused(folder: Path, facts: Sequence[dict[str, str]], log: Log) -> None:
    """One line for each kind of member, and of file, that no sample is made of."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for one in facts:
        unused, first = json.loads(one["unused"])
        counts.update(unused)
        examples = first | examples
    for kind, count in sorted(counts.items()):
        log(f"not read: {kind[:60]} ({count}, such as {examples[kind][:80]})")
    packed = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(_OTHER_TARS))
    if packed:
        log(f"not read: compressed archives ({len(packed)}, such as {packed[0]}); unpack them to .tar files")
    deeper = sorted(folder.glob("*/*.tar"))
    if deeper:
        first = deeper[0].relative_to(folder)
        log(f"not read: tars in folders below ({len(deeper)}, such as {first}); index each folder separately")


def _judge(folder: Path, facts: Sequence[dict[str, str]], skip_bad: bool, log: Log) -> None:
    """Stop if something is wrong, or list what is left out."""
    shown = [error for one in facts for error in json.loads(one["faults"])]
    count = sum(int(one["count"]) for one in facts)
    if not count:
        return
    if not skip_bad:
        raise DataError(f"{counted(count, 'error')} in the shards of {folder}:\n" + "\n".join(shown[:20])
                        + "\nFix them, or add --skip-bad to leave these samples out.")
    atomic.write_text(folder / SKIPPED, "".join(json.dumps({"fault": error.strip()}) + "\n" for error in shown))
    log(f"{counted(count, 'error')}; what they concern is left out: {folder / SKIPPED}")


def _check_found(folder: Path, facts: Sequence[dict[str, str]], keep: Sequence[str]) -> None:
    if not sum(int(json.loads(one["shard"])["samples"]) for one in facts):
        raise DataError(f"{folder}: the tars hold no samples: <key>.jpg with <key>.json or <key>.txt beside it, in one "
                        "tar. No index was written.")
    nowhere = [key for key in keep if not sum(json.loads(one["kept"])[key] for one in facts)]
    if nowhere:
        raise DataError(f"{folder}: no sample's JSON has the field {nowhere[0]!r} that --keep names.")


def needs_index(folder: Path, again: bool) -> bool:
    """Whether there is none, or a new one is asked for; the old one is removed then.

    Raises:
        DataError: there is one, and the tars are others.
    """
    if not again and (folder / INDEX).exists():
        shards = LocalShards(folder, ShardIndex(folder).shards)
        shards.refuse_others()
        for number in range(len(shards.shards)):
            shards.path(number)
    if again:
        (folder / INDEX).unlink(missing_ok=True)
    return not (folder / INDEX).exists()
