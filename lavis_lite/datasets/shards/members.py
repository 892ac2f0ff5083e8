"""The members of a tar from another program -> samples: one picture and one text under one key.

A key ends at the first dot of a member's name, as in webdataset. If names have more dots, it ends at the last one if
only so a picture and a text share a key. A conversation (in `<key>.json`) has any number of pictures, `<key>.jpg` or
`<key>.0.jpg`. Members that belong to no sample are counted by their ending and reported.
"""

from __future__ import annotations

import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

from lavis_lite.datasets.annotations.chats import is_conversation
from lavis_lite.datasets.annotations.rows import RowErrors
from lavis_lite.datasets.annotations.text_files import DECODER, codec_of, json_error
from lavis_lite.datasets.media.images import SUFFIXES
from lavis_lite.errors import listed

PICTURES = {suffix[1:] for suffix in SUFFIXES}
ARRAYS = {"npy", "safetensors"}
"""stand in for a picture where a sample has none"""
TEXTS = {"json", "txt"}
Dots = Literal["auto", "first", "last"]
MOST_TEXT = 16_000_000
"""bytes of a sample's JSON or text that are read"""
HIDDEN = "hidden files"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """A plain file of a tar.

    Attributes:
        name: without "./". first, last: (key, ending), split at the first and at the last dot.
        offset, size: of its content. crc: of a picture. text: content of a text.
    """

    name: str
    first: tuple[str, str]
    last: tuple[str, str]
    offset: int
    size: int
    crc: int = 0
    text: bytes = b""

    @property
    def is_plain(self) -> bool:
        """Whether its name has one dot."""
        return self.first == self.last


@dataclass
class Sample:
    """The members of a tar with one key."""

    key: str
    pictures: list[Member] = field(default_factory=list)
    arrays: list[Member] = field(default_factory=list)
    texts: dict[str, list[Member]] = field(default_factory=dict)

    def add(self, member: Member, ending: str) -> None:
        """Add a member."""
        if ending in PICTURES:
            self.pictures.append(member)
        elif ending in ARRAYS:
            self.arrays.append(member)
        else:
            self.texts.setdefault(ending, []).append(member)

    @property
    def whole(self) -> bool:
        """Whether it has a picture (or an array) and a text."""
        return bool((self.pictures or self.arrays) and self.texts)

    @property
    def image(self) -> Member:
        """Its picture; without one, its array."""
        return (self.pictures or self.arrays)[0]

    def text(self, ending: str = "txt") -> str | None:
        """Its `.json` or `.txt`, decoded.

        Raises:
            UnicodeDecodeError: it is not text.
        """
        encoded = self.texts[ending][0].text if ending in self.texts else None
        return None if encoded is None else encoded.decode(codec_of(encoded)).strip()

    @cached_property
    def content(self) -> dict[str, Any]:
        """The object in its `.json`, a list being the turns of a conversation; {} if it has none.

        Raises:
            ValueError: its JSON is something else; the message is a clause.
        """
        text = self.text("json")
        try:
            content = {} if text is None else DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(json_error(error)) from error
        if isinstance(content, list) and content and all(isinstance(turn, dict) for turn in content):
            content = {"conversations": content}
        if not isinstance(content, dict):
            raise ValueError("its JSON is not an object")
        return content

    @cached_property
    def is_chat(self) -> bool:
        """Whether its JSON is a conversation, and it has no caption."""
        try:
            return is_conversation(list(self.content)) and "caption" not in self.content and "txt" not in self.texts
        except ValueError:  # reported where the content is used
            return False

    def error(self) -> str | None:
        """Why it is not a sample, as a clause; None if it is one."""
        items = self.pictures or self.arrays
        several = [] if self.is_chat and self.pictures else [items]
        twice = next((found for found in (*several, *self.texts.values()) if len(found) > 1), None)
        if not items and not self.is_chat:
            return f"has no image{self._hint()}"
        if not self.texts:
            return f"has no text (.json or .txt){self._hint()}"
        if twice is not None:
            kind = "images" if twice is items else "texts of one ending"
            return f"has {len(twice)} {kind}: {listed([member.name for member in twice], 3)}"
        large = next((one for found in self.texts.values() for one in found if one.size > MOST_TEXT), None)
        if large is not None:
            return f"has a text of {large.size:,} bytes, {large.name}; at most {MOST_TEXT:,} are read"
        return None

    def _hint(self) -> str:
        """Where the dot in a member's name may have parted what belongs together."""
        members = [*self.pictures, *(one for found in self.texts.values() for one in found)]
        dotted = next((member.name for member in members if not member.is_plain), None)
        return f" under the name up to the last dot of {dotted!r}" if dotted else ""


@dataclass
class Contents:
    """The content of a tar.

    Attributes:
        samples: in the order of their first members.
        unused: kind of member -> how many belong to no sample, or are not read. examples: the first of each kind.
    """

    samples: list[Sample] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave(self, kind: str, name: str) -> None:
        """Count a member that is not read."""
        self.unused[kind] += 1
        self.examples.setdefault(kind, name)


def read_contents(path: Path, errors: RowErrors, dots: Dots = "auto") -> Contents:
    """Walk through a tar once.

    Args:
        path: the tar.
        errors: receives damage, links, and incomplete samples.
        dots: at which dot keys end; auto: at the first, or at the last if that makes samples.
    """
    contents, members = Contents(), []
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for info in tar:
                member = _member(path, info, file, contents, errors)
                if member is not None:
                    members.append(member)
            _check_end(path, tar, file, members, errors)
    except (tarfile.TarError, OSError, ValueError) as error:
        after = members[-1].name if members else "none"
        errors.add(f"{path}:{len(members)}", f"cut short or damaged after member {after} ({_why(path, error)})")
    for sample in _samples(path, members, dots, contents, errors):
        if reason := sample.error():
            errors.add(f"{path}:{sample.key}", reason)
        else:
            contents.samples.append(sample)
    if not members and not errors.count:
        errors.add(str(path), "holds no image and no text")
    return contents


def _why(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return "it is compressed; unpack it with gunzip first" if packed else str(error)


def _check_end(path: Path, tar: tarfile.TarFile, file: BinaryIO, members: list[Member], errors: RowErrors) -> None:
    """A tar ends in zeros; anything after them would not be read."""
    file.seek(tar.offset)
    after = members[-1].name if members else "none"
    if file.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.offset >= path.stat().st_size:
        errors.add(f"{path}:{len(members)}", f"cut short or damaged at byte {tar.offset}, after member {after}")
        return
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            errors.add(f"{path}:{len(members)}", f"continues after its end, after member {after}, as if two tars were "
                                                 "joined; join them with `tar --concatenate`")
            return


def _member(path: Path, info: tarfile.TarInfo, file: BinaryIO, contents: Contents, errors: RowErrors) -> Member | None:
    """A picture or a text; others are counted."""
    name = "/".join(part for part in info.name.split("/") if part not in ("", "."))
    folder, _, base = name.rpartition("/")
    if info.isdir():
        return None
    if base.startswith(".") or "__MACOSX" in name.split("/"):
        contents.leave(HIDDEN, name)
        return None
    ending = base.rpartition(".")[2].lower() if "." in base else ""
    if ending not in PICTURES | ARRAYS | TEXTS:
        contents.leave(f".{ending}" if ending else "files without an ending", name)
        return None
    if not info.isreg() or info.issparse():
        errors.add(f"{path}:{name}", "is a link, a sparse file or no plain file; such members are not read")
        return None
    prefix = f"{folder}/" if folder else ""
    first, last = base.partition("."), base.rpartition(".")
    named = (name, (prefix + first[0], first[2].lower()), (prefix + last[0], ending), info.offset_data, info.size)
    file.seek(info.offset_data)
    if ending in PICTURES | ARRAYS:
        return Member(*named, crc=_crc(file, info))
    return Member(*named, text=file.read(info.size) if info.size <= MOST_TEXT else b"")


def _crc(file: BinaryIO, info: tarfile.TarInfo) -> int:
    left, crc = info.size, 0
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise ValueError(f"{info.name} is cut short")
        left, crc = left - len(chunk), zlib.crc32(chunk, crc)
    return crc


# --- members to samples ----------------------------------------------------------------------------------------------
def _samples(path: Path, members: list[Member], dots: Dots, contents: Contents, errors: RowErrors) -> Iterator[Sample]:
    """Members by their keys, in the order of first appearance."""
    by_last = _grouped(members, "last")
    plain = _grouped([member for member in members if member.is_plain], "first")
    found: dict[str, Sample] = {}
    for member in members:
        key, ending = member.last
        if dots == "first" or (dots == "auto" and not member.is_plain):
            parent = plain.get(member.first[0])
            part = parent is not None and (parent.whole or parent.is_chat)
            if dots == "first" or (part and not by_last[key].whole):
                key, rest = member.first
                ending = ending if parent is not None and parent.is_chat and ending in PICTURES else rest
            elif part and member.first[0] != key:
                errors.add(f"{path}:{member.name}", f"may be of a sample of its own or a part of {member.first[0]!r}; "
                                                    "set --dots last or --dots first")
        if ending in PICTURES | ARRAYS | TEXTS:
            found.setdefault(key, Sample(key)).add(member, ending)
        else:
            contents.leave(f".{ending}", member.name)
    for sample in found.values():
        for member in sample.arrays if sample.pictures or not sample.texts else ():
            contents.leave(f".{member.last[1]}", member.name)
    yield from (sample for sample in found.values() if sample.pictures or sample.texts)


def _grouped(members: list[Member], where: str) -> dict[str, Sample]:
    groups: dict[str, Sample] = {}
    for member in members:
        key, ending = getattr(member, where)
        groups.setdefault(key, Sample(key)).add(member, ending)
    return groups

