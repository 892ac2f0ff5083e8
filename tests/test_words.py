"""The words of the project: names and prose that a reader of the field expects, and short sentences.

Documentation has no word of the list and no sentence of more than 40 words. Rooms of the package have ceilings in
`tests/words.json`, which may only fall: `python -m tests.test_words` writes the present counts.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lavis_lite"
CEILINGS = Path(__file__).with_name("words.json")
GENERATED = {"modules.md", "config.md", "names.md", "commands.md", "datasets.md"}
"""pages that repeat docstrings and comments, which are counted where they stand"""
DOCS = [*(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name not in GENERATED), ROOT / "README.md",
        *sorted(ROOT.glob("projects/*/README.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
        ROOT / "benchmarks" / "README.md", ROOT / "examples" / "own_data" / "README.md"]

NAMES = {
    "Desk": "EvalProgress", "LongWork": "ProgressHandle", "Journal": "EvalCheckpoint", "take_up": "load",
    "Bounds": "TrainSchedule", "ends_unit": "Interval", "TrainingParts": "TrainState", "Stepper": "TrainStep",
    "rehearse": "warm_up_ddp", "share_out": "move_to_device", "leave_shards_alone": "ignore_in_ddp",
    "may_miss": "allowed_missing", "Need": "WeightSource", "Pictures": "ImageBatch",
    "owners": "image_index", "RoomyLayer": "PreallocatedLayer", "with_room": "preallocate", "settled": "is_dispatched",
    "Setup": "LMLoadOptions", "output_rows": "return_positions", "Remaining": "PendingBatches",
    "SampleOrder": "GlobalSampler", "BlockShuffle": "ShardShuffle", "Thoroughness": "CheckOptions",
    "ByDataset": "TaskRouter", "OptionsTask": "MultipleChoiceTask", "RoundsTask": "VisDialTask",
    "Controlled": "AblatedImages", "of_things": "eval_fingerprint", "WITHOUT_EFFECT": "IGNORED_KEYS",
    "fresh": "atomic_path", "Finished": "CompletedBatches", "Style": "ArchDefaults", "Family": "LMFamily",
    "Origin": "CheckpointMetadata", "Card": "contact sheet",
}
"""whole identifiers (leading underscores aside) -> what the field says"""
PARTS = {
    "desk": "progress", "wish": "request", "wishes": "options", "excuses": "allowed_missing", "spare": "unexpected",
    "misfits": "mismatched", "strangers": "unexpected", "lacks": "missing", "mend": "fix", "told": "reported",
    "say": "log", "said": "logged", "tell": "report", "roomy": "preallocated", "place": "path, index or location",
    "places": "paths, indexes or locations", "thoroughness": "options", "whoever": "caller",
}
"""parts of identifiers (`_told_by_yaml`, `says`) -> what to use"""
PHRASES = {
    r"whose|whoever|nobody|somebody|anybody": "name the subject, or use a relative clause",
    r"told|tells? (?:of|it|which|what|that|where)": "report, message, log",
    r"(?:is|are) none|are there none": "use `no` or `not`",
    r"mend(?:s|ed)?|misfits?|strangers?|excuses?|wishes": "fix, mismatched, unexpected, allowed, options",
    r"faults?|faulty": "error",
    r"asked for|to be had|is had": "requested, available",
    r"the house|in words|without a word": "the package, with a message, silently",
    r"go(?:es)? on|went on|going on": "continue",
    r"as it stands|as they stand|stands? (?:beside|there|in front)": "unchanged, is, precedes",
    r"lies? (?:beside|there|within)": "is",
}
"""phrases of prose -> what to write"""
PROSE = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*]*\s+(?=[\W_]*[A-Z0-9`])|\n\s*\n")
LONG, TOO_LONG = 25, 40
SHARE = 0.1
"""largest share of sentences of a documentation page with more than LONG words"""


# prose ----------------------------------------------------------------------------------------------------------------
def sentences(text: str) -> list[str]:
    """The sentences of a text; headings, list items and the cells of tables stand alone."""
    text = re.sub(r"^```.*?^```", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "`code`", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*\|(.*)\|\s*$", lambda row: re.sub(r"^|[|;]|$", "\n\n", row[1]), text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:#+|[-*]|\d+\.)\s", "\n\n", text, flags=re.MULTILINE)
    return [" ".join(part.split()) for part in SENTENCE_END.split(text) if part.strip()]


def length(sentence: str) -> int:
    """Words of a sentence; numbers and signs alone are not words."""
    return len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", sentence))


# code -----------------------------------------------------------------------------------------------------------------
def parts_of(name: str) -> list[str]:
    """`_told_by_yaml` and `LongWork` -> their words in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name that a file defines: classes, functions, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def texts(tree: ast.AST) -> Iterator[str]:
    """Docstrings and messages: every string of at least four words, f-strings with their values as `code`."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "`x`" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        if len(text.split()) >= 4:
            yield re.sub(r"\n\s+([\w*]+(?:, [\w*]+)*): ", r"\n\n\1: ", text)  # the rows of Args and Raises


@functools.cache
def counts(room: str) -> dict[str, int]:
    """What a room has of each kind."""
    found: Counter[str] = Counter()
    for path in (PACKAGE / room).rglob("*.py") if (PACKAGE / room).is_dir() else [PACKAGE / room]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found["names"] += sum(bad_name(name) for name in [path.stem, *identifiers(tree)])
        lines = [line for text in texts(tree) for line in sentences(text)]
        found["phrases"] += sum(len(PROSE.findall(line)) for line in lines)
        found["over 25 words"] += sum(length(line) > LONG for line in lines)
        found["over 40 words"] += sum(length(line) > TOO_LONG for line in lines)
    return {kind: found[kind] for kind in ("names", "phrases", "over 25 words", "over 40 words")}


def bad_name(name: str) -> bool:
    """Whether an identifier is on the list, or a part of it."""
    return name.lstrip("_") in NAMES or any(part in PARTS for part in parts_of(name))


def rooms() -> list[str]:
    """Folders and top-level modules of the package."""
    return sorted(path.name for path in PACKAGE.iterdir()
                  if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").is_file()))


# tests ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_documentation_has_plain_words_and_short_sentences(page: Path) -> None:
    found = sentences(page.read_text(encoding="utf-8"))
    assert [(phrase, line) for line in found for phrase in PROSE.findall(line)] == []
    assert [line for line in found if length(line) > TOO_LONG] == []
    assert sum(length(line) > LONG for line in found) <= max(1, SHARE * len(found))


@pytest.mark.parametrize("room", rooms())
def test_words_of_a_room_get_fewer(room: str) -> None:
    ceiling = json.loads(CEILINGS.read_text(encoding="utf-8")).get(room, {})
    more = {kind: (count, ceiling.get(kind, 0)) for kind, count in counts(room).items() if count > ceiling.get(kind, 0)}
    assert more == {}, f"lavis_lite/{room}: (count, ceiling); see the word lists of {Path(__file__).name}"


def test_sentences_are_found() -> None:
    text = ("# A title\n\nOne `a. b` is short. Two is (see [x](y.md)) too.\n\n- an item\n- 2. more\n| a | b; c |\n"
            "```text\nno. No.\n```\n")
    assert sentences(text) == [
        "A title", "One `code` is short.", "Two is (see x) too.", "an item", "2. more", "a", "b", "c"]


def test_words_are_counted() -> None:
    assert length("It's 3 x 4: a well-known `code`, isn't it?") == 7


def test_names_of_the_list_are_found() -> None:
    names = ["Desk", "_told_by_yaml", "says", "essay", "LongWork", "placeholder", "with_room"]
    assert [name for name in names if bad_name(name)] == ["Desk", "_told_by_yaml", "LongWork", "with_room"]


def test_phrases_of_the_list_are_found() -> None:
    assert PROSE.findall("A file whose rows are none; nobody told us of 3 Faults, go on.") == [
        "whose", "are none", "nobody", "told", "Faults", "go on"]
    assert PROSE.findall("Default values, mending, foretold, in wordsize.") == []


def test_texts_are_docstrings_and_messages() -> None:
    tree = ast.parse('"""A docstring of words."""\nx = f"there is no {name} in this"\ny = "two words"\n')
    assert list(texts(tree)) == ["A docstring of words.", "there is no `x` in this"]


if __name__ == "__main__":
    CEILINGS.write_text(json.dumps({room: counts(room) for room in rooms()}, indent=1) + "\n", encoding="utf-8")
