"""Plain containers to dataclasses: every fault is collected, with its place and a suggestion."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from lavis_lite.config.typed import Checker


@dataclass
class Inner:
    size: int = 1


@dataclass
class Outer:
    rate: float = 0.1
    count: int = 2
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    name: str | None = None
    either: str | list[str] | None = None
    inner: Inner = field(default_factory=Inner)
    many: dict[str, Inner] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def check(content):
    checker = Checker(lambda key: "file.yaml")
    return checker.section(Outer, content, "outer"), checker.errors


def test_good_values_are_converted():
    given = {"rate": 1, "count": 3.0, "either": ["x"], "many": {"k": {"size": 4}}, "inner": {"size": 2}}
    section, faults = check(given)
    assert faults == []
    assert (section.rate, section.count, section.either) == (1.0, 3, ["x"])
    assert (section.many["k"].size, section.inner.size) == (4, 2)
    assert isinstance(section.rate, float)
    assert isinstance(section.count, int)


@pytest.mark.parametrize(("content", "words"), [
    ({"cuont": 1}, "unknown key outer.cuont; did you mean 'count'"),
    ({"count": True}, "outer.count: must be a whole number, not True"),
    ({"count": 1.5}, "a whole number"),
    ({"rate": "fast"}, "outer.rate: must be a number, not 'fast'"),
    ({"flag": 1}, "true or false"),
    ({"mode": "c"}, "'c' is not allowed"),
    ({"name": 5}, "must be text"),
    ({"either": 5}, "must be text or a list"),
    ({"inner": 3}, "outer.inner: must be a section"),
    ({"inner": {"siez": 3}}, "unknown key outer.inner.siez; did you mean 'size'"),
    ({"many": {"k": {"size": "x"}}}, "outer.many.k.size"),
    ({"words": "train"}, "must be a list, not 'train'; write [train]"),
    ({"words": [1]}, "outer.words.0"),
])
def test_each_fault_names_file_key_and_what_to_write(content, words):
    _, faults = check(content)
    assert len(faults) == 1
    assert faults[0].startswith("file.yaml: ")
    assert words in faults[0]


def test_all_faults_are_found_in_one_pass():
    _, faults = check({"cuont": 1, "rate": "x", "mode": "c", "inner": {"size": "y"}})
    assert len(faults) == 4
