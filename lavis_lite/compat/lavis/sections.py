"""Sections of a YAML file for classes that have no schema: every key is kept, and checked against what the class reads.

LAVIS hands a class its section as an OmegaConf node. What the class reads of it stands in its source: `cfg.get("key")`,
`cfg["key"]`, `cfg.key`. A key that is not there is reported: as an error if it looks like one that is, else as a note.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import keyword
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from lavis_lite.checkpoints.weights import PACKAGED_PREFIX, packaged, packaged_names
from lavis_lite.compat.lavis.sizes import KEYS as SIZE_KEYS
from lavis_lite.config.compose import Composition, compose
from lavis_lite.config.schema import Config as CoreConfig
from lavis_lite.config.schema import OpenSection, Section
from lavis_lite.errors import ConfigError, ErrorList
from lavis_lite.registry import registry as core

SIMILAR = 0.8
"""likeness above which a key that nothing reads is taken for a misspelt one that something reads"""
READ_ELSEWHERE = ("dataset_card", "arch", "name")
"""keys of LAVIS' files that no class reads, but people or the package do"""
FOREIGN = ("torch.", "transformers.", "builtins", "typing", "abc", "collections.")


def section_class(base: type[Section], reader: type) -> type[Section]:
    """The section of a class: the fields of `base`, and one for each further key that a YAML gives.

    Args:
        base: what the package needs of such sections.
        reader: the class that reads the section.
    """
    return type(f"{reader.__name__}Section", (LavisSection, base), {
        "reader": reader, "base": base, "__module__": base.__module__})


class LavisSection(OpenSection):
    """A section that takes every key, but for those that look misspelt."""

    base: ClassVar[type[Section]]
    brings_backbones = True
    given: ClassVar[frozenset[str]] = frozenset()
    """keys that the YAML files and --options set"""

    @classmethod
    def opened(cls, content: Mapping[str, Any]) -> type[LavisSection]:
        """The class for a section with these keys."""
        fixed = {entry.name for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
        more = [str(key) for key in content if key not in fixed and _is_field_name(str(key))]
        readers = [cls.reader, *_named_in(content)]
        read, mentioned = (frozenset().union(*map(names, readers)) for names in (keys_read, names_in_source))
        suspects = {key for key in more if mentioned and key not in {*mentioned, *READ_ELSEWHERE, *SIZE_KEYS}}
        misspelt = {key for key in suspects if difflib.get_close_matches(key, read, 1, SIMILAR)}
        fields = [(key, Any, dataclasses.field(default=None)) for key in more if key not in misspelt]
        return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), namespace={
            "given": frozenset(map(str, content)), "suggested": frozenset(read | fixed),
            "unread": frozenset(suspects - misspelt), "__module__": cls.__module__})


    def __reduce__(self) -> tuple[Any, ...]:  # the class is made at run time; ranks send sections to each other
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}  # type: ignore[arg-type]
        return _restored, (self.base, self.reader, self.given, values)


def _named_in(section: Mapping[str, Any]) -> Iterator[type]:
    """Classes of a project that a run section names: they read keys of it too."""
    for key, kind in (("runner", core.runner), ("lr_sched", core.lr_scheduler)):
        name = str(section.get(key))
        if kind.is_own(name):
            found: Any = kind.get(name)
            yield getattr(found, "written", found)


def _restored(base: type[Section], reader: type, given: frozenset[str], values: dict[str, Any]) -> LavisSection:
    cls: Any = section_class(base, reader)
    section: LavisSection = cls.opened(dict.fromkeys(given))(**values)
    return section


def _is_field_name(key: str) -> bool:
    return key.isidentifier() and not keyword.iskeyword(key)


def as_node(section: Any) -> DictConfig:
    """The section as LAVIS hands it over: an OmegaConf node of the keys that were given.

    Values such as `mini/opt` that name what ships with this package become paths.
    """
    if isinstance(section, DictConfig):
        return section
    content = dict(section) if isinstance(section, Mapping) else dataclasses.asdict(section)
    if isinstance(section, LavisSection):
        defaults = {entry.name: entry.default for entry in dataclasses.fields(section)}  # type: ignore[arg-type]
        content = {key: value for key, value in content.items()
                   if key in section.given or value != defaults.get(key, dataclasses.MISSING)}
    node: DictConfig = OmegaConf.create(_with_packaged(content))
    return node


def whole_node(section: Section) -> DictConfig:
    """As `as_node`, with the defaults of keys that were not given; null only where it is given or no default."""
    given: frozenset[str] = getattr(section, "given", frozenset())
    given |= {entry.name for entry in dataclasses.fields(section) if entry.default is not None}  # type: ignore[arg-type]
    content = {key: value for key, value in dataclasses.asdict(section).items()  # type: ignore[call-overload]
               if value is not None or key in given}
    node: DictConfig = OmegaConf.create(_with_packaged(content))
    return node


def _with_packaged(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_packaged(entry) for key, entry in value.items()}
    if isinstance(value, str) and value.startswith(PACKAGED_PREFIX):
        return str(packaged(value) or value)
    return value


def given_name(path: str) -> str:
    """What a YAML calls a file: `mini/opt` for what ships with this package, else its path."""
    return next((name for name in packaged_names() if str(packaged(name)) == path), path)


@contextlib.contextmanager
def reading(section: str, reader: type) -> Iterator[None]:
    """Names the section and the class if a key that is read within is not there.

    Raises:
        ConfigError: it is not.
    """
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigError(f"{section}.{error.full_key}: {reader.__name__} needs this key, and the section does not "
                          "have it.") from error


# what a class reads -------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=256)
def keys_read(cls: type) -> frozenset[str]:
    """Keys that a class's source reads of a configuration: `x.get("key")`, `x["key"]`, `cfg.key`."""
    return frozenset(key for tree in _sources(cls) for node in ast.walk(tree) for key in _read_by(node))


@functools.lru_cache(maxsize=256)
def names_in_source(cls: type) -> frozenset[str]:
    """All names and strings in the source of a class's modules. Nothing there reads a key that is not among them.

    Empty if there is no source to look into.
    """
    found: set[str] = set()
    for tree in _sources(cls):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, (ast.arg, ast.keyword)):
                found.add(str(node.arg))
    return frozenset(found)


def _read_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        yield from _text(node.args[0])
    elif isinstance(node, ast.Subscript):
        yield from _text(node.slice)
    elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(("cfg", "config")):
        yield node.attr


def _text(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _sources(cls: type) -> list[ast.Module]:
    """The parsed modules of a class and of its bases, this room's own among them, the libraries' left out."""
    modules = dict.fromkeys(base.__module__ for base in cls.__mro__)
    kept = [name for name in modules if not f"{name}.".startswith(FOREIGN)
            and (not name.startswith("lavis_lite.") or name.startswith("lavis_lite.compat."))]
    return [tree for name in kept if (tree := _parsed(name)) is not None]


@functools.lru_cache(maxsize=256)
def _parsed(module: str) -> ast.Module | None:
    try:
        return ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError, SyntaxError):
        return None


# all sections of a run ------------------------------------------------------------------------------------------------
class Config:
    """run_cfg, model_cfg and datasets_cfg of a run, as OmegaConf nodes.

    Args:
        args: with cfg_path, and options (a list, or None), as LAVIS' scripts parse them; or a composed run.

    Raises:
        LavisLiteError: the files and options do not make a run; all errors at once.
    """

    def __init__(self, args: Any) -> None:
        if isinstance(args, CoreConfig):
            self.core = args
        else:
            composition: Composition = compose(args.cfg_path, list(getattr(args, "options", None) or []))
            if composition.errors:
                raise ErrorList(f"{args.cfg_path} cannot run:", composition.errors)
            self.core = composition.config
        sections = {"run": whole_node(self.core.run), "model": whole_node(self.core.model),
                    "datasets": {name: whole_node(section) for name, section in self.core.datasets.items()}}
        self.config: DictConfig = OmegaConf.create(sections)

    @property
    def run_cfg(self) -> Any:
        """The section `run`."""
        return self.config.run

    @property
    def model_cfg(self) -> Any:
        """The section `model`."""
        return self.config.model

    @property
    def datasets_cfg(self) -> Any:
        """The section `datasets`."""
        return self.config.datasets

    def get_config(self) -> DictConfig:
        """All of it."""
        return self.config

    def to_dict(self) -> Any:
        """All of it, as plain containers."""
        return OmegaConf.to_container(self.config)

    def pretty_print(self) -> None:
        """Print all of it as JSON."""
        print(json.dumps(self.to_dict(), indent=4, sort_keys=True))
