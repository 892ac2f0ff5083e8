"""The structure of the package: sizes, exception handling, and arrows between rooms that point one way.

A room is a folder or a top-level module of lavis_lite.

Read from the source by `ast`; nothing of the package is imported.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "lavis_lite"
FOLDERS = ("lavis_lite", "projects", "benchmarks", "examples", "tools")
SOURCES = sorted([*REPOSITORY.glob("*.py"), *(path for name in FOLDERS for path in (REPOSITORY / name).rglob("*.py"))])

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

BASE = {"errors", "conversation", "finite", "redaction", "registry", "moved", "process"}
SETTINGS = BASE | {"config", "io", "distributed"}
DATA_AND_MODELS = SETTINGS | {"processors", "models", "datasets", "torchvision_shim"}
RUN = DATA_AND_MODELS | {"device", "checkpoints", "metrics", "report", "tasks", "tracking"}

ALLOWED: dict[str, set[str]] = {
    "moved": set(),
    "conversation": set(),
    "torchvision_shim": set(),
    "redaction": set(),
    "products": set(),
    "errors": {"redaction"},
    "finite": {"errors"},
    "registry_base": {"errors"},
    "registry": {"errors", "registry_base"},
    "process": {"errors", "redaction"},
    "io": {"errors", "redaction", "process"},
    "distributed": BASE,
    "config": BASE,
    "device": {"errors", "config"},
    "metrics": {"errors", "finite"},
    "mini_world": {"errors", "process", "io"},
    "processors": BASE | {"config"},
    "models": BASE | {"config", "distributed", "processors", "products", "torchvision_shim"},  # no io: no files
    "datasets": SETTINGS | {"processors", "mini_world"},  # a row's `prepare:` names a generator
    "checkpoints": SETTINGS | {"models", "processors", "torchvision_shim"},
    "tracking": SETTINGS,
    "report": SETTINGS | {"datasets", "processors"},
    "tasks": (DATA_AND_MODELS - {"io"}) | {"metrics", "report"},  # no io: tasks write no files
    "evaluation": RUN,
    "runners": RUN | {"evaluation"},
    "runs": SETTINGS | {"checkpoints", "evaluation", "runners"},
    "preflight": SETTINGS | {"checkpoints", "metrics", "processors"},
    "zoo": SETTINGS | {"checkpoints", "device", "models", "processors", "runs"},
    "capfilt": DATA_AND_MODELS | {"checkpoints"},  # a captioner and a ranker are loaded
    "engine": RUN | {"evaluation", "runners", "runs"},
    "costs": RUN | {"runners"},
    "lab": SETTINGS | {"checkpoints", "datasets", "engine", "preflight", "report", "runs"},  # it runs recipes
    "dry_run": RUN | {"costs", "engine", "runners"},
    "bench": RUN | {"costs", "runners", "mini_world", "products", "zoo"},
    "apps": SETTINGS | {"datasets", "models", "processors", "report", "runs", "zoo"},
    "cli": RUN | {"evaluation", "runners", "runs", "zoo", "capfilt", "engine", "dry_run", "preflight", "bench", "lab",
                  "apps"},
    "compat": RUN | {"engine", "runners", "zoo"},  # adapters for other packages; nothing imports them
    "__main__": {"cli"},
    "": {"moved"},
}
"""room -> rooms that its imports may name, those inside functions too; "" is lavis_lite/__init__.py"""

BY_NAME: dict[str, set[str]] = {
    "": {"errors", "datasets", "models", "runners", "tasks", "zoo"},  # public names, resolved on first use
    "registry": {"models", "processors", "datasets", "tasks", "runners"},  # the index of built-in names
    "models": {"zoo"},  # LAVIS' spelling `from lavis_lite.models import load_model`
}
"""room -> rooms that it names in strings such as "lavis_lite.models.base:BaseModel", imported when somebody asks"""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""(room, room it imports against the arrows) -> why; a test fails while a row is here that nothing needs"""

FOLDER_CIRCLES: dict[tuple[str, str], str] = {
    ("checkpoints", "checkpoints.formats"): "formats read and report with the modules that choose them",
    ("runners", "runners.hooks"): "sample predictions gather blocks that ranks share",
    ("datasets.annotations", "datasets.files"): "tables are mapped files; paths are checked against rows",
    ("datasets", "datasets.loading"): "ablations draw from the random streams; the loader knows the base class",
}
"""folders of one room that import each other (their modules make no circle) -> why; likewise only what is needed"""

FAMILIES = ("vision", "qformer", "language")
"""rooms of models/ that model families are made of; they know no family"""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


TREES: dict[Path, ast.Module] = {}


@pytest.fixture(autouse=True, scope="module")
def trees() -> None:
    """All sources are parsed when the first test runs, not wherever tests are collected."""
    TREES.update({path: parse(path) for path in SOURCES})


def place(path: Path, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
    return f"{path.relative_to(REPOSITORY)}{line}"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES if path.is_relative_to(PACKAGE)}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def walk_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not is_type_checking(child):
            yield from walk_at_run_time(child)


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module that a `from ... import` names, relative dots resolved."""
    if not node.level:
        return node.module or ""
    base = module.split(".") if is_package else module.split(".")[:-1]
    base = base[: len(base) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


@functools.cache
def imports_of(path: Path) -> list[tuple[str, ast.AST]]:
    """(imported module, where) for every import of a file, those inside functions too."""
    return list(find_imports(path))


def find_imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """As `imports_of`."""
    module = module_name(path)
    for node in walk_at_run_time(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, path.name == "__init__.py")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in MODULES else base), node


def room_of(module: str) -> str:
    """`lavis_lite.models.base` -> `models`; the package itself is ""."""
    return module.split(".")[1] if "." in module else ""


@functools.cache
def named_modules(path: Path) -> list[tuple[str, ast.AST]]:
    """(module, where) for strings that name modules of the package: registry indexes and lazy imports."""
    texts = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    named = [(re.fullmatch(r"(lavis_lite(?:\.\w+)+)[.:]?(?::\w+)?", str(node.value)), node) for node in texts]
    return [(match[1], node) for match, node in named if match and room_of(match[1]) in ALLOWED]


def against(room: str, find: Callable[[Path], list[tuple[str, ast.AST]]], allowed: set[str]) -> list[str]:
    """Imports of a room that lead to a room outside of `allowed`."""
    files = [path for module, path in MODULES.items() if room_of(module) == room]
    return [f"{place(path, node)} names {target}" for path in files for target, node in find(path)
            if target.startswith("lavis_lite.") and room_of(target) not in allowed | {room}]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def handlers(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))


def find_circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle as a list of modules, first one repeated at the end; empty when there is none."""
    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module):], module]
        if module in finished:
            return []
        for target in sorted(edges.get(module, ())):
            if circle := visit(target, [*trail, module]):
                return circle
        finished.add(module)
        return []

    return next((circle for module in sorted(edges) if (circle := visit(module, []))), [])


def swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a handler does nothing at all with what it caught."""
    return all(isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
               for line in handler.body)


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 15 and "lavis_lite.registry" in MODULES


def test_files_are_short() -> None:
    counts = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: count for name, count in counts.items() if count >= MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {f"{place(path, node)} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
               for path, tree in TREES.items() for node in functions(tree)}
    assert {name: length for name, length in lengths.items() if length >= MAX_FUNCTION_LINES} == {}


def test_no_bare_except() -> None:
    assert [place(path, node) for path, tree in TREES.items() for node in handlers(tree) if node.type is None] == []


def test_no_swallowed_exception() -> None:
    """`contextlib.suppress` says openly what a handler made of `pass` hides."""
    assert [place(path, node) for path, tree in TREES.items() for node in handlers(tree) if swallows(node)] == []


def test_no_circle_of_imports() -> None:
    edges = {module: {target for target, _ in imports_of(path) if target in MODULES and target != module}
             for module, path in MODULES.items()}
    assert find_circle(edges) == []


def test_every_room_has_a_row() -> None:
    assert {room_of(module) for module in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_point_one_way(room: str) -> None:
    exceptions = {target for origin, target in EXCEPTIONS if origin == room}
    assert against(room, imports_of, ALLOWED[room] | exceptions) == []
    assert against(room, named_modules, ALLOWED[room] | BY_NAME.get(room, set())) == []


def test_no_circle_of_rooms() -> None:
    """The allowed arrows make no circle, so only EXCEPTIONS can."""
    assert find_circle(ALLOWED) == []


def test_every_exception_is_needed() -> None:
    assert [row for row in EXCEPTIONS if not against(row[0], imports_of, set(ALLOWED) - {row[1]})] == []


def test_every_name_is_needed() -> None:
    for room, targets in BY_NAME.items():
        assert [target for target in targets if not against(room, named_modules, set(ALLOWED) - {target})] == [], room


def folder_of(module: str) -> str:
    """The folder of a module as a dotted name below lavis_lite."""
    return ".".join(MODULES[module].parent.relative_to(PACKAGE).parts)


def test_folders_of_a_room_make_no_circle() -> None:
    edges = {(folder_of(module), folder_of(target)) for module, path in MODULES.items()
             for target, _ in imports_of(path) if target in MODULES and room_of(target) == room_of(module)}
    circles = {pair for pair in edges if pair[0] < pair[1] and pair[::-1] in edges}
    assert circles == set(FOLDER_CIRCLES), "new circles need a reason; rows that nothing needs are deleted"


def test_parts_know_no_family() -> None:
    paths = [path for name in FAMILIES for path in (PACKAGE / "models" / name).glob("*.py")]
    wrong = [f"{place(path, node)} imports {target}" for path in paths for target, node in imports_of(path)
             if target.startswith("lavis_lite.models.blip2")]
    assert paths and wrong == []


def test_the_package_knows_no_project() -> None:
    outside = {"projects", "tests", "benchmarks", "examples", "tools", "train", "evaluate"}
    wrong = [f"{place(path, node)} imports {target}" for path in MODULES.values() for target, node in imports_of(path)
             if target.split(".")[0] in outside]
    assert wrong == []


# the checks themselves ------------------------------------------------------------------------------------------------
def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_swallowing_handler_is_found() -> None:
    tree = ast.parse("try:\n    f()\nexcept ValueError:\n    pass\nexcept OSError:\n    log()\n")
    assert [swallows(node) for node in handlers(tree)] == [True, False]


def test_a_named_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'a = "lavis_lite.zoo"; b = "lavis_lite.models.base:BaseModel"; c = f"lavis_lite.cli.{a}"; d = "lavis_lite.x"'
    monkeypatch.setitem(TREES, PACKAGE / "x.py", ast.parse(text))
    assert [module for module, _ in named_modules(PACKAGE / "x.py")] == [
        "lavis_lite.zoo", "lavis_lite.models.base", "lavis_lite.cli"]


def test_relative_imports_are_resolved() -> None:
    one, two = (ast.parse(text).body[0] for text in ("from . import x", "from ..tasks import y"))
    assert isinstance(one, ast.ImportFrom) and isinstance(two, ast.ImportFrom)
    assert absolute(one, "lavis_lite.models.base", False) == "lavis_lite.models"
    assert absolute(one, "lavis_lite.models", True) == "lavis_lite.models"
    assert absolute(two, "lavis_lite.models.base", False) == "lavis_lite.tasks"
