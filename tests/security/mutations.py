"""Seeded mutations of what users write: YAML files, options, manifests and annotations."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

LONG_NAME, LONG_PATH = "x" * 5000, "a/" * 3000
TEXTS = ["", " ", "\0", "a\0b", "${", "${}", "${a.b}", "${run.seed}", "${oc.env:LAVIS_LITE_NOWHERE}", "${oc.env:}", "$",
         "${oc.env:HOME}", "${oc.select:run}", "${oc.create:{a: 1}}", "${.seed}", "${..run}", "}", "{", "[", "]", ":",
         "..", "../../x", "..x", ".", "/", "/dev/null", "/nonexistent/x", "~", "~nobody_here/x", "-", "--", "*", "?",
         LONG_NAME, LONG_PATH, "/" + LONG_NAME, "http://[::1", "https://", "http://a b/c", "https://example.org:port/x",
         "hf://", "hf://x", "hf://a/../b", "hf://a/b@", "file://", "file:///etc/passwd", "s3://a/b", "://", "x://",
         "os.system", "builtins:eval", "../../x", "mini/../x", "mini", "mini/", "random", "timm", "train", "blip2",
         "ﬀ", "\u202e", "\ud83d\ude00", "é" * 300, "a\nb", "\r", "\t", "%s", "{}", "{0}", "nan", "1e5", "0x10",
         "{000000..999999}.tar", "x.tar", "a/{1..0}.tar", "x.json", "x.JSONL", "null", "true", "yes", "cuda:99", "meta"]
VALUES: list[Any] = [None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"),
                     10**30, 10**400, [], {}, [None], [1], ["a"], [[]], [{}], {"a": 1}, {"name": 1},
                     {"name": []}, {"name": {}},
                     {1: 2}, {"": 1}, {"a": {"b": {"c": []}}}, ["train", None], ["train", {}], [["train"]], ["\0"],
                     b"x",
                     {"train": 1}, {"train": {"name": "blip_image_eval"}}, {"train": []}, {"train": {"storage": 3}},
                     {"storage": {}}, {"storage": [1]}, {"storage": []}, {"url": [], "storage": ["x"]}, *TEXTS]
WORDS = ["run", "model", "datasets", "preprocess", "imports", "base", "train", "eval", "name", "storage", "url", "type",
         "builder", "build_info", "annotations", "images", "arch", "model_type", "task", "runner", "_target_", "_args_",
         "__class__", "__init__", "get", "faults", "", "a.b", "${x}", "\0", "x" * 300, "sha256", "md5", "prepare"]
RAW = ["\0", "\t", "!!python/object/apply:os.system ['true']", "!!python/name:os.system ''", "!!binary 'eA=='",
       "&a *a",
       "!!set {a, b}", "!!timestamp 2020-01-01", "2020-01-01", "!!omap [a: 1]", "*nothing", "<<: {run: 1}",
       "? [a]\n: b",
       "!!pathlib.PosixPath x", "!!python/object/apply:pathlib.PosixPath [x]", "[" * 2000, "{a: " * 1500, "- " * 1500,
       "'", '"', "|", ">", "%YAML 9.9", "---", "...", "\ufeff", "\ud800", "#", "!x y", "@", "`", "!!float x",
       "!!int x",
       "!!bool x", "!!null x", "&a [*a]", "key: value: value", "1_000", "0o7", "1:30", ".inf", ".nan", "~", "=", "<<"]


def walk(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every node below the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from walk(value, (*path, key))


def parent_of(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def value(rng: random.Random) -> Any:
    """Anything but what is wanted."""
    return copy.deepcopy(rng.choice(VALUES))


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """A copy with one to three nodes replaced, removed, renamed, wrapped or added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(walk(tree))
        if not places:
            return value(rng)
        path = rng.choice(places)
        rng.choice(CHANGES)(parent_of(tree, path), path[-1], rng)
    return tree


def _replace(parent: Any, key: Any, rng: random.Random) -> None:
    parent[key] = value(rng)


def _remove(parent: Any, key: Any, rng: random.Random) -> None:
    del parent[key]


def _rename(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent, dict):
        parent[rng.choice([*WORDS, 1, None, True, 1.5])] = parent.pop(key)


def _wrap(parent: Any, key: Any, rng: random.Random) -> None:
    held = parent[key]
    parent[key] = rng.choice(([held], {rng.choice(WORDS): held}, [held, held], str(held)))


def _add(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent, dict):
        parent[rng.choice(WORDS)] = value(rng)


CHANGES: list[Callable[[Any, Any, random.Random], None]] = [_replace, _replace, _replace, _remove, _rename, _wrap, _add]


def json_values(tree: Any) -> Any:
    """A tree as JSON can hold it."""
    return json.loads(json.dumps(tree, default=str))


def mutated_text(text: str, rng: random.Random) -> str:
    """A text with something cut out, put in, doubled or swapped."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        one, two = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        two = min(two, one + rng.choice((1, 3, 20, 200)))
        raw, other = rng.choice(RAW), rng.choice(TEXTS)
        text = rng.choice((text[:one] + text[two:], text[:one] + raw + text[one:], text[:one] + raw + text[two:],
                           text[:two] + text[one:], text[:one] + other + text[one:]))
    return text


def mutated_yaml(text: str, rng: random.Random) -> str:
    """A YAML file changed as a tree or as text."""
    if rng.random() < 0.4:
        return mutated_text(text, rng)
    tree = mutated_tree(yaml.safe_load(text), rng)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) + rng.choice(("", "", "", rng.choice(RAW)))


def options(keys: list[str], rng: random.Random) -> list[str]:
    """One to three overrides."""
    return [_option(rng.choice(keys), rng) for _ in range(rng.choice((1, 1, 2, 3)))]


def _option(key: str, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        key = mutated_text(key, rng)
    elif kind < 0.2:
        key = f"{key}.{rng.choice(WORDS)}"
    elif kind < 0.25:
        key = key.rpartition(".")[0] or key
    text = rng.choice((lambda: rng.choice(TEXTS), lambda: rng.choice(RAW), lambda: str(value(rng)),
                       lambda: yaml.safe_dump(value(rng), default_flow_style=True).strip()))()
    return rng.choice((f"{key}={text}", f"{key}={text}", f"{key}={text}", key, f"{key}=={text}", text))


def write(path: Path, text: str) -> Path:
    """Write a text, half surrogates and all."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path
