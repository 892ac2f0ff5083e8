"""Annotation files and tars made by chance, with what they say: files as programs write them, and as they break them.

Each has `truth`, the rows that were meant; None if the file cannot say it and must be refused. If a file `must` be
read, a refusal is wrong too.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, Any]]
"""{image, caption: [texts]} of each row"""

WORDS = ["a dog", "two cats", "the", "red", "ball", "on grass", "d\u00e9j\u00e0 vu", "\u72ac", "\U0001f415", "it's",
         "5\" pipe", "50%", "#1", "a\u2028b", "C:\\dir", "[sic]", "{x}", "null", "NaN", "(left)", "\u201cso\u201d",
         "1e5", "007", "--"]
SPICE = {",": ["red, green", ",", "a,b"], ";": ["one; two"], "|": ["left | right"], "\t": ["a\tb"],
         '"': ['say "hi"', '"Less is more', 'more or less"', '"Best" cake', '""', 'x"'], "\n": ["up\ndown", "a\r\nb"],
         " ": [" lead", "trail "]}
NAMES = ["p{}.jpg", "dir/p{}.png", "{:03}.jpg", "a.b{}.jpg", "x y{}.webp", "IMG_{}.JPEG", "v1.0/{}.tiff"]


@dataclass
class Made:
    """One file: its name, its bytes, what was meant, and whether it must be read."""

    kind: str
    name: str
    content: bytes
    truth: Rows | None
    must: bool = False


def caption(rng: random.Random, allowed: str) -> str:
    """Some words, with marks of the kinds that are allowed among them."""
    parts = rng.choices(WORDS, k=rng.randint(1, 4))
    for mark in allowed:
        if rng.random() < 0.25:
            parts.insert(rng.randint(0, len(parts)), rng.choice(SPICE[mark]))
    return " ".join(parts)


def meant(rng: random.Random, allowed: str, texts: int = 1) -> Rows:
    """Rows with different images."""
    pattern = rng.choice(NAMES)
    return [{"image": pattern.format(number), "caption": [caption(rng, allowed) for _ in range(rng.randint(1, texts))]}
            for number in range(1, rng.randint(2, 9))]


def table(rows: Rows, **how: Any) -> str:
    """A table as Python's csv module writes it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, **how)
    writer.writerow(["image", "caption"])
    writer.writerows([row["image"], row["caption"][0]] for row in rows)
    return buffer.getvalue()


def bare(rows: Rows, delimiter: str, end: str = "\n") -> str:
    """A table by joining strings, as scripts write it."""
    lines = [delimiter.join(("image", "caption")), *(delimiter.join((row["image"], row["caption"][0])) for row in rows)]
    return end.join(lines) + end


def whole_quotes(rows: Rows) -> bool:
    """Whether some text is a quoted cell by itself, so that nobody can tell whether it was quoted."""
    return any(row["caption"][0][:1] == '"' == row["caption"][0][-1:] for row in rows)


# --- tables -----------------------------------------------------------------------------------------------------------
def written_csv(rng: random.Random) -> Made:
    mark = rng.choice([",", ",", ";", "|", "\t"])
    rows = meant(rng, ',;|" ' + ("" if mark == "\t" else "\t\n"))
    end = rng.choice(["\n", "\r\n", "\n", "\r"])
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    text = table(rows, delimiter=mark, lineterminator=end, quoting=quoting)
    unquoted = end == "\r" and "\n" in text  # Python's writer quotes the line end it writes, and no other
    return Made("written csv", "a.csv", text.encode("utf-8-sig" if rng.random() < 0.3 else "utf-8"), rows, not unquoted)


def written_tsv(rng: random.Random) -> Made:
    rows = meant(rng, rng.choice([',;|" ', ',;|" ', ',"\t', ',"\n']))
    text = table(rows, delimiter="\t", lineterminator="\n", quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    plain = not any(set(row["caption"][0]) & set("\t\n\r") for row in rows)
    return Made("written tsv", "a.tsv", text.encode(), rows, plain)


def bare_tsv(rng: random.Random) -> Made:
    rows = meant(rng, ',;|" ')
    if whole_quotes(rows):
        rows.append({"image": "last.jpg", "caption": ['"open']})
    return Made("bare tsv", "a.tsv", bare(rows, "\t", rng.choice(["\n", "\r\n"])).encode(), rows, True)


def tabs_in_bare_tsv(rng: random.Random) -> Made:
    rows = meant(rng, ',"')
    rows[rng.randrange(len(rows))]["caption"] = ["left\tright"]
    return Made("tab in bare tsv", "a.tsv", bare(rows, "\t").encode(), None)


def bare_csv(rng: random.Random) -> Made:
    rows = meant(rng, rng.choice(["", '"', ',"', ","]))
    if whole_quotes(rows):
        rows = [row for row in rows if not whole_quotes([row])] or meant(rng, "")
    simple = not any(set(row["caption"][0]) & set(',"') for row in rows)
    return Made("bare csv", "a.csv", bare(rows, ",").encode(), rows, simple)


def one_quotation_over_two_rows(rng: random.Random) -> Made:
    rows = meant(rng, "")
    at = rng.randint(0, len(rows) - 1)
    rows[at:at] = [{"image": "q1.jpg", "caption": ['"Less is more']}, {"image": "q2.jpg", "caption": ['more or less"']}]
    if len({row["image"].rpartition(".")[2] for row in rows}) > 1:
        rows = [{**row, "image": f"{number}.jpg"} for number, row in enumerate(rows)]
    suffix, mark = rng.choice([("csv", ","), ("tsv", "\t"), ("csv", ";")])
    return Made("quotation over rows", f"a.{suffix}", bare(rows, mark).encode(), rows, suffix == "tsv")


def broken_table(rng: random.Random) -> Made:
    rows = meant(rng, "")
    mark, suffix = rng.choice([(",", "csv"), ("\t", "tsv"), (";", "csv")])
    lines = bare(rows, mark).rstrip("\n").split("\n")
    at = rng.randint(1, len(lines) - 1)
    broken: dict[str, Callable[[], list[str]]] = {
        "short row": lambda: [*lines[:at], lines[at].split(mark)[0], *lines[at + 1:]],
        "long row": lambda: [*lines[:at], lines[at] + mark + "more", *lines[at + 1:]],
        "no header": lambda: lines[1:],
        "column twice": lambda: [line + mark + line.split(mark)[1] for line in lines],
        "header again": lambda: [*lines[:at], lines[0], *lines[at:]],
        "text behind a nameless column": lambda: [lines[0] + mark, *(line + mark + "more" for line in lines[1:])],
        "null character": lambda: [*lines[:at], lines[at] + "\0", *lines[at + 1:]],
        "header alone": lambda: lines[:1], "nothing": lambda: [],
        "one column": lambda: [line.replace(mark, " ") for line in lines],
    }
    kind = rng.choice(sorted(broken))
    return Made(kind, f"a.{suffix}", "\n".join(broken[kind]()).encode(), None)


def harmless_table(rng: random.Random) -> Made:
    rows = meant(rng, "")
    mark, suffix = rng.choice([(",", "csv"), ("\t", "tsv"), (";", "csv")])
    lines = bare(rows, mark).rstrip("\n").split("\n")
    harmless: dict[str, Callable[[], list[str]]] = {
        "delimiter at the end": lambda: [line + mark for line in lines],
        "rows are numbered": lambda: [mark + lines[0], *(f"{at}{mark}{line}" for at, line in enumerate(lines[1:]))],
        "empty lines": lambda: [part for line in lines for part in (line, "")] + [mark],
        "blanks in the header": lambda: [f" image {mark} caption ", *lines[1:]],
        "another column": lambda: [lines[0] + mark + "id", *(line + mark + "007" for line in lines[1:])],
    }
    kind = rng.choice(sorted(harmless))
    return Made(kind, f"a.{suffix}", "\n".join(harmless[kind]()).encode(), rows, True)


def lists_in_cells(rng: random.Random) -> Made:
    rows = meant(rng, '," ', texts=3)
    how = rng.choice(["json", "python", "numpy", "tuple"])
    write: dict[str, Callable[[list[str]], str]] = {
        "json": json.dumps, "python": repr, "tuple": lambda texts: repr(tuple(texts)),
        "numpy": lambda texts: "[" + " ".join(map(repr, texts)) + "]"}
    cells = [{"image": row["image"], "caption": [write[how](row["caption"])]} for row in rows]
    text = table(cells, lineterminator="\n") if rng.random() < 0.5 else table(cells, delimiter=";", lineterminator="\n")
    lost = how == "numpy" and any(len(row["caption"]) > 1 for row in rows)
    return Made(f"lists as {how}", "a.csv", text.encode(), None if lost else rows, not lost)


# --- JSON -------------------------------------------------------------------------------------------------------------
def json_file(rng: random.Random) -> Made:
    rows = meant(rng, ',;|"\t\n ', texts=3)
    given = [{**row, "caption": row["caption"][0]} if len(row["caption"]) == 1 else row for row in rows]
    ascii_only = rng.random() < 0.5
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in given)
    wrapped = {rng.choice(["data", "annotations", "rows", "samples"]): given, "info": {"version": 1}}
    files = {"list": ("a.json", json.dumps(given, ensure_ascii=ascii_only, indent=rng.choice([None, 2]))),
             "lines": ("a.jsonl", lines),
             "lines with ends": ("a.ndjson", lines.replace("\n", rng.choice(["\r\n", "\r"]))),
             "wrapped": ("a.json", json.dumps(wrapped))}
    kind = rng.choice(sorted(files))
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"])
    return Made(f"json {kind} {encoding}", files[kind][0], files[kind][1].encode(encoding), rows, True)


def broken_json(rng: random.Random) -> Made:
    rows = [{"image": row["image"], "caption": row["caption"][0]} for row in meant(rng, ',"')]
    whole = json.dumps(rows)
    lines = "\n".join(map(json.dumps, rows))
    broken = {
        "cut": ("a.json", whole[:rng.randint(1, len(whole) - 1)]), "list in jsonl": ("a.jsonl", whole),
        "lines in json": ("a.json", lines + "\n" + lines), "cut line": ("a.jsonl", lines[:-rng.randint(1, 9)]),
        "key twice": ("a.json", whole.replace('"caption":', '"caption": "other", "caption":', 1)),
        "key twice in a line": ("a.jsonl", lines.replace('"image":', '"image": "z.jpg", "image":', 1)),
        "two lists": ("a.json", json.dumps({"data": rows, "train": rows})),
        "unknown wrapper": ("a.json", json.dumps({"things": rows})),
        "nested": ("a.json", json.dumps({"data": {"x": rows}})),
        "list twice": ("a.json", whole + whole), "row is a list": ("a.json", json.dumps([*rows, ["x.jpg", "text"]])),
        "two images": ("a.json", json.dumps([*rows, {"image": ["x.jpg", "y.jpg"], "caption": "z"}])),
        "nothing": ("a.json", " \n"),
    }
    kind = rng.choice(sorted(broken))
    return Made(f"json {kind}", broken[kind][0], broken[kind][1].encode(), None)


def other_encoding(rng: random.Random) -> Made:
    rows = meant(rng, "")
    rows[0]["caption"] = ["caf\u00e9 na\u00efve"]
    for row in rows:
        row["caption"] = [row["caption"][0].encode("latin-1", "ignore").decode("latin-1").strip() or "x"]
    encoding = rng.choice(["cp1252", "latin-1", "utf-16-le", "utf-16-be", "utf-16", "utf-8-sig"])
    name, text = rng.choice([("a.csv", bare(rows, ",")), ("a.tsv", bare(rows, "\t")), (
        "a.jsonl", "\n".join(json.dumps({**row, "caption": row["caption"][0]}, ensure_ascii=False) for row in rows))])
    known = encoding in ("utf-16", "utf-8-sig")
    return Made(f"encoding {encoding}", name, text.encode(encoding), rows if known else None, known)


FILES = (written_csv, written_tsv, bare_tsv, tabs_in_bare_tsv, bare_csv, one_quotation_over_two_rows, broken_table,
         harmless_table, lists_in_cells, json_file, broken_json, other_encoding)


def make_file(number: int) -> Made:
    """The file of that number; always the same."""
    rng = random.Random(f"file {number}")
    return FILES[number % len(FILES)](rng)


# --- tars -------------------------------------------------------------------------------------------------------------
@dataclass
class MadeTar:
    """A tar: its bytes, the captions by the bytes of their picture, and whether it must be read."""

    kind: str
    content: bytes
    truth: dict[bytes, list[str]] | None
    must: bool = False


Members = list[tuple[str, bytes]]


def packed(members: Members, rng: random.Random, links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    form = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hosts"
            tar.addfile(info)
    return buffer.getvalue()


KEYS = ["{:06}", "photo {}", "IMG.2023.{}", "photo v1.0 final {}", "a/b/{:03}", "./{:03}", "v1.0/{:03}",
        "x" * 150 + "{}",
        "\u72ac{}", "{}.seg.of"]


def samples(rng: random.Random) -> tuple[list[Members], dict[bytes, list[str]]]:
    """The members of some samples, and what they say."""
    pattern = rng.choice(KEYS)
    found, truth = [], {}
    for number in range(rng.randint(1, 6)):
        key, picture = pattern.format(number), rng.randbytes(rng.choice([10, 512, 700]))
        said = [caption(rng, ',"\n') for _ in range(rng.randint(1, 2))]
        members = [(f"{key}.{rng.choice(['jpg', 'png', 'JPG', 'webp'])}", picture)]
        if len(said) == 1 and rng.random() < 0.5:
            said = [said[0].strip().replace("\r\n", "\n")]
            members.append((f"{key}.txt", (said[0] + rng.choice(["", "\n"])).encode()))
        else:
            given = said if len(said) > 1 else said[0]
            members.append((f"{key}.json", json.dumps({"caption": given, "url": "u"}).encode()))
        found.append(members)
        truth[picture] = said
    return found, truth


def make_tar(number: int) -> MadeTar:
    """The tar of that number; always the same."""
    rng = random.Random(f"tar {number}")
    parts, truth = samples(rng)
    flat = [member for members in parts for member in members]
    key, suffix = flat[0][0].rsplit(".", 1)
    text = next(name for name, _ in parts[0] if name.endswith((".txt", ".json")))
    healthy: dict[str, Callable[[], Members]] = {
        "as it is": lambda: flat, "shuffled": lambda: rng.sample(flat, len(flat)),
        "other members": lambda: [*flat, (f"{key}.pkl", b"x"), (f"{key}.cls", b"3"), ("README", b"read"),
                                  ("a.parquet", b"p")],
        "hidden files": lambda: [*flat, ("._0001.jpg", b"mac"), ("__MACOSX/._x.json", b"mac"), (".DS_Store", b"x")],
    }
    broken: dict[str, Callable[[], bytes]] = {
        "no text": lambda: packed([*flat, ("alone.jpg", b"picture")], rng),
        "no image": lambda: packed([*flat, ("alone.json", b'{"caption": "x"}')], rng),
        "image twice": lambda: packed([*flat, (f"{key}.gif", b"other")], rng),
        "member twice": lambda: packed([*flat, flat[0]], rng),
        "text twice": lambda: packed([*flat, (text, b"{}")], rng),
        "link": lambda: packed([member for member in flat if member[0] != flat[0][0]], rng, (f"{key}.{suffix}",)),
        "cut": lambda: packed(flat, rng).rstrip(b"\0")[:-rng.randint(1, 5)],
        "joined": lambda: packed(flat, rng) + packed([("z.jpg", b"z"), ("z.txt", b"z")], rng),
        "broken json": lambda: packed([*flat, ("b.jpg", b"b"), ("b.json", b"{")], rng),
        "null caption": lambda: packed([*flat, ("b.jpg", b"b"), ("b.json", b'{"caption": null}')], rng),
        "no caption": lambda: packed([*flat, ("b.jpg", b"b"), ("b.json", b'{"url": "u"}')], rng),
        "Latin-1 text": lambda: packed([*flat, ("b.jpg", b"b"), ("b.txt", "caf\u00e9".encode("latin-1"))], rng),
        "fields of one sample": lambda: packed([("s.image.jpg", b"b"), ("s.caption.txt", b"t"), *flat], rng),
        "whole or part": lambda: packed([("s.jpg", b"b"), ("s.txt", b"t"), ("s.seg.png", b"c"), ("s.seg.txt", b"u")],
                                        rng),
        "nothing": lambda: packed([("README", b"x")], rng),
        "empty": lambda: packed([], rng), "no tar": lambda: b"x" * 3000,
    }
    if rng.random() < 0.5:
        kind = rng.choice(sorted(healthy))
        return MadeTar(kind, packed(healthy[kind](), rng), truth, True)
    if rng.random() < 0.15:
        masks = [("s.jpg", b"picture"), ("s.txt", b"text"), ("s.seg.png", b"mask")]
        return MadeTar("a mask beside its picture", packed([*flat, *masks], rng), {**truth, b"picture": ["text"]}, True)
    kind = rng.choice(sorted(broken))
    return MadeTar(kind, broken[kind](), None)
