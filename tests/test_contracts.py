"""Contracts have names: how often a model, a data set or a section is `Any`, and how often abilities are guessed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lavis_lite"
NAMES = {"model", "dataset", "section"}
MOST_ANY = 20
"""arguments called `model`, `dataset` or `section` that are annotated `Any`; transformers' own models are among them"""
MOST_HASATTR = 14
"""calls of hasattr: about the platform and libraries, not about models and data sets"""


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Sources of the package, but for `compat`: what classes written elsewhere take and have is not ours to type."""
    for path in sorted(path for path in PACKAGE.rglob("*.py") if "compat" not in path.parts):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def any_arguments(tree: ast.AST) -> list[str]:
    """`function argument` of every argument of NAMES whose annotation is Any."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [f"{function.name} {argument.arg}" for function in functions
            for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
            if argument.arg in NAMES and isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Any"]


def guesses(tree: ast.AST) -> list[str]:
    """Every call of hasattr."""
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name) and node.func.id == "hasattr"]


def test_models_data_sets_and_sections_have_types() -> None:
    found = [f"{path}: {text}" for path, tree in trees() for text in any_arguments(tree)]
    assert 0 < len(found) <= MOST_ANY, "\n".join(found)


def test_abilities_are_asked_by_protocol() -> None:
    found = [f"{path}: {text}" for path, tree in trees() for text in guesses(tree)]
    assert 0 < len(found) <= MOST_HASATTR, "\n".join(found)


def test_the_counts_see_what_they_count() -> None:
    tree = ast.parse("def f(model: Any, *, dataset: Any, other: Any, section: Section): return hasattr(model, 'x')")
    assert any_arguments(tree) == ["f model", "f dataset"] and guesses(tree) == ["hasattr(model, 'x')"]
