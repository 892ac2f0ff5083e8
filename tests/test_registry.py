"""The registry: its index against the decorators in the source, its checks, and the ways in from outside."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavis_lite.errors import RegistryError
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import Registries, Registry, registry
from lavis_lite.registry_base import OTHER_FAMILIES

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "lavis_lite"
KINDS = ("model", "encoder", "connector", "processor", "builder", "task", "runner", "lr_scheduler", "optimizer", "hook")
BASE = "lavis_lite.processors.base:BaseProcessor"


# the index ------------------------------------------------------------------------------------------------------------
def decorators(source: str, module: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, "module:Class") of every `@registry.register_KIND("name", ...)` on a class."""
    for node in ast.walk(ast.parse(source)):
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else []:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and \
                    call.func.attr.startswith("register_") and ast.unparse(call.func.value) == "registry":
                kind = call.func.attr.removeprefix("register_")
                yield from ((kind, ast.literal_eval(name), f"{module}:{node.name}") for name in call.args)


@functools.cache
def decorated() -> dict[str, dict[str, str]]:
    """kind -> name -> "module:Class", as the package's source has it."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for kind, name, target in decorators(path.read_text(encoding="utf-8"), module):
            assert name not in found[kind], f"{kind} {name!r}: {found[kind][name]} and {target}"
            found[kind][name] = target
    return found


def test_every_kind_is_an_attribute() -> None:
    assert {name for name, value in vars(registry).items() if isinstance(value, Registry)} == set(KINDS)


def test_the_reader_of_decorators_reads() -> None:
    source = "@registry.register_model('a', 'b')\nclass Model: ...\n@dataclass\nclass Other: ...\n"
    assert list(decorators(source, "m")) == [("model", "a", "m:Model"), ("model", "b", "m:Model")]


@pytest.mark.parametrize("kind", KINDS)
def test_index_equals_decorators(kind: str) -> None:
    assert getattr(registry, kind).builtins == decorated()[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_builtin_resolves_to_its_class(kind: str) -> None:
    kind_registry = getattr(registry, kind)
    for name, target in kind_registry.builtins.items():
        cls = kind_registry.get(name)
        assert f"{cls.__module__}:{cls.__qualname__}" == target


@pytest.mark.parametrize("kind", ["model", "task"])
def test_sections_of_the_index_are_those_of_the_classes(kind: str) -> None:
    page = getattr(Registries(), kind)
    assert page.sections.keys() == page.builtins.keys()
    for name in page.builtins:
        assert page.section_of(name) is getattr(registry, kind).get(name).config_class


# its checks -----------------------------------------------------------------------------------------------------------
@pytest.fixture()
def processors() -> Registry[BaseProcessor]:
    return Registry("processor", BASE, {"blip_caption": "lavis_lite.processors.text:BlipCaption"})


class Upper(BaseProcessor):
    """A processor of a user."""


def test_a_class_is_found_under_each_of_its_names(processors: Registry[BaseProcessor]) -> None:
    assert processors.register("upper", "loud")(Upper) is Upper
    assert processors.get("upper") is processors.get("loud") is Upper
    assert processors.names() == ["blip_caption", "loud", "upper"]
    assert "upper" in processors and "blip_caption" in processors and "lower" not in processors


def test_registering_the_same_class_again_is_a_reload(processors: Registry[BaseProcessor]) -> None:
    processors.register("upper")(Upper)
    processors.register("upper")(Upper)
    assert processors.get("upper") is Upper


def test_a_duplicate_names_both_places(processors: Registry[BaseProcessor]) -> None:
    processors.register("upper")(Upper)
    other = type("Other", (BaseProcessor,), {"__module__": "elsewhere"})
    with pytest.raises(RegistryError, match=r"'upper' is registered twice: at .*test_registry\.py:\d+ and at .*Other"):
        processors.register("upper")(other)
    assert processors.get("upper") is Upper


def test_a_builtin_name_is_taken_before_it_is_imported(processors: Registry[BaseProcessor]) -> None:
    with pytest.raises(RegistryError, match="'blip_caption' is registered twice: at lavis_lite.processors.text"):
        processors.register("blip_caption")(Upper)


@pytest.mark.parametrize("thing", [int, lambda item: item])
def test_the_base_class_is_required(processors: Registry[BaseProcessor], thing: type) -> None:
    with pytest.raises(RegistryError, match="must derive from lavis_lite.processors.base.BaseProcessor"):
        processors.register("wrong")(thing)
    assert "wrong" not in processors


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(RegistryError, match="unknown model 'blip_2': did you mean 'blip2'"):
        registry.get_model_class("blip_2")


def test_models_of_lavis_that_are_not_here_name_the_nearest() -> None:
    for archs in OTHER_FAMILIES.values():
        assert not archs.keys() & registry.model.names() and {*archs.values()} <= {"", *registry.model.names()}
    with pytest.raises(RegistryError, match=r"unknown model 'pnp_vqa': .*not LAVIS' PNP-VQA\. Nearest to it: blip2_t5"):
        registry.get_model_class("pnp_vqa")


def test_an_unknown_name_far_from_all_lists_them(processors: Registry[BaseProcessor]) -> None:
    with pytest.raises(RegistryError, match="unknown processor 'zzz': choose one of: blip_caption"):
        processors.get("zzz")


def test_listing_imports_nothing() -> None:
    page = Registries()
    assert page.list_models() == sorted(page.model.builtins)
    assert page.model._classes == {}


# ways in from outside -------------------------------------------------------------------------------------------------
PLUGIN = """
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import registry

@registry.register_processor("shout")
class Shout(BaseProcessor):
    def __call__(self, item, rng=None):
        return item.upper()
"""


def python(code: str, folder: Path) -> str:
    """Standard output of a fresh interpreter that sees this package and `folder`, and works in `folder`."""
    path = os.pathsep.join([str(REPOSITORY), str(folder), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": path},
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture()
def plugin(tmp_path: Path) -> Path:
    """A folder with the module `shouting`."""
    (tmp_path / "shouting.py").write_text(PLUGIN)
    return tmp_path


GET = "from lavis_lite.registry import registry; print(registry.get_processor_class('shout')()('hello'))"


def test_a_plain_import_registers(plugin: Path) -> None:
    assert python(f"import shouting; {GET}", plugin) == "HELLO"


def test_an_entry_point_registers(plugin: Path) -> None:
    info = plugin / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lavis_lite.plugins]\nshouting = shouting\n")
    assert python(GET, plugin) == "HELLO"


def test_without_an_entry_point_the_name_is_unknown(plugin: Path) -> None:
    code = f"from lavis_lite.errors import RegistryError as E\ntry:\n    {GET}\nexcept E as fault:\n    print(fault)"
    assert python(code, plugin).startswith("unknown processor 'shout'")


def test_the_imports_of_a_yaml_register(plugin: Path) -> None:
    code = ("from pathlib import Path; from lavis_lite.config.compose import import_plugins\n"
            f"print(import_plugins(['shouting'], Path('run.yaml')))\n{GET}")
    assert python(code, plugin).splitlines() == ["[]", "HELLO"]


def test_a_missing_import_of_a_yaml_is_a_fault(plugin: Path) -> None:
    code = ("from pathlib import Path; from lavis_lite.config.compose import import_plugins\n"
            "print(import_plugins(['shoutin'], Path('run.yaml')))")
    assert "run.yaml: imports: shoutin: No module named" in python(code, plugin)
