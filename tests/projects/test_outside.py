"""Projects stand outside: they use public names of the package only, and their classes are short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "projects"
MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))
MOST = {"frozen/model.py": 30, "flamingo/model.py": 150}
"""module -> most lines of code, imports, docstrings and empty lines aside"""


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(tree: ast.AST) -> list[str]:
    """Underscored names that a module imports, or reads from anything but itself."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)  # one of a base class would be replaced
    return [name for name in found if is_private(name)]


def code_lines(tree: ast.Module) -> int:
    """Lines with code, without imports and docstrings."""
    left_out: set[int] = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = {line for node in ast.walk(tree) if hasattr(node, "lineno") and hasattr(node, "end_lineno")
             and not isinstance(node, (ast.ClassDef, ast.FunctionDef))
             for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines |= {node.lineno for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    return len(lines - left_out)


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_is_used(name: str) -> None:
    assert private_names(ast.parse((ROOT / name).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", MOST)
def test_classes_are_short(name: str) -> None:
    assert code_lines(ast.parse((ROOT / name).read_text(encoding="utf-8"))) <= MOST[name]


def test_the_checks_find_what_they_look_for() -> None:
    tree = ast.parse("from a._b import c\nimport d\n\nclass E(d.F):\n    'G'\n    def _h(self):\n        self._i()\n")
    assert private_names(tree) == ["a._b.c", "_h", "_i"] and code_lines(tree) == 3
