"""The walls of the house: sizes, exception handling, and arrows between rooms that point one way.

Read from the source by `ast`; nothing of the package is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "lavis_lite"
FOLDERS = ("lavis_lite", "projects", "benchmarks", "examples")
SOURCES = sorted([*REPOSITORY.glob("*.py"), *(path for name in FOLDERS for path in (REPOSITORY / name).rglob("*.py"))])

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

UPPER = {"runners", "runs", "engine", "capfilt", "cli"}
FORBIDDEN = {
    "models": {"tasks", "datasets", "metrics", "tracking", "zoo", "report"} | UPPER,
    "processors": {"models", "tasks", "datasets", "metrics", "tracking", "zoo", "report"} | UPPER,
    "datasets": {"models", "tasks", "metrics", "tracking", "zoo", "report"} | UPPER,
    "metrics": {"models", "tasks", "datasets", "processors", "tracking", "zoo", "report"} | UPPER,
    "tasks": {"tracking", "zoo"} | UPPER,
    "report": {"models", "tasks", "tracking", "zoo"} | UPPER,
    "runners": {"runs", "engine", "capfilt", "cli", "zoo"},
    "runs": {"models", "tasks", "datasets", "metrics", "tracking", "zoo", "report", "engine", "capfilt", "cli"},
    "tracking": {"models", "tasks", "datasets", "metrics", "zoo", "report"} | UPPER,
    "config": {"models", "tasks", "datasets", "metrics", "tracking", "zoo", "report"} | UPPER,
    "registry": {"config", "models", "tasks", "datasets", "metrics", "processors", "tracking", "zoo"} | UPPER,
    "errors": {"config", "registry", "models", "tasks", "datasets", "metrics", "processors", "tracking", "zoo"} | UPPER,
    "distributed": {"config", "registry", "models", "tasks", "datasets", "metrics", "tracking", "zoo"} | UPPER,
    "engine": {"cli", "capfilt"},
    "capfilt": {"engine", "runners", "tasks", "metrics", "tracking", "zoo", "cli"},
    "zoo": {"engine", "runners", "capfilt", "cli"},
    "loading": {"engine", "runners", "capfilt", "cli", "zoo"},
}
"""room -> rooms it may not import; who is allowed what is the design's picture, read from the top down"""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


TREES = {path: parse(path) for path in SOURCES}


def place(path: Path, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
    return f"{path.relative_to(REPOSITORY)}{line}"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in TREES if path.is_relative_to(PACKAGE)}


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


def imports_of(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """(imported module, where) for every import of a file, those inside functions too."""
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
    parts = module.split(".")
    return parts[1] if parts[0] == "lavis_lite" and len(parts) > 1 else parts[0]


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


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_arrows_point_one_way(room: str) -> None:
    files = [path for module, path in MODULES.items() if room_of(module) == room]
    wrong = [f"{place(path, node)} imports {target}" for path in files for target, node in imports_of(path)
             if target.split(".")[0] == "lavis_lite" and room_of(target) in FORBIDDEN[room]]
    assert wrong == []


def test_nothing_imports_the_adapters_for_other_packages() -> None:
    wrong = [f"{place(path, node)} imports {target}" for module, path in MODULES.items() if room_of(module) != "compat"
             for target, node in imports_of(path) if target.startswith("lavis_lite.compat")]
    assert wrong == []


def test_the_package_knows_no_project() -> None:
    outside = {"projects", "tests", "benchmarks", "examples", "train", "evaluate"}
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


def test_relative_imports_are_resolved() -> None:
    one, two = (ast.parse(text).body[0] for text in ("from . import x", "from ..tasks import y"))
    assert isinstance(one, ast.ImportFrom) and isinstance(two, ast.ImportFrom)
    assert absolute(one, "lavis_lite.models.base", False) == "lavis_lite.models"
    assert absolute(one, "lavis_lite.models", True) == "lavis_lite.models"
    assert absolute(two, "lavis_lite.models.base", False) == "lavis_lite.tasks"
