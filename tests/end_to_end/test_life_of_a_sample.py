"""docs/design.md names the functions of one training step in the order in which they are entered."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import FrameType

import pytest

from tests.end_to_end.conftest import ROOT, Train

DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
LIFE = DESIGN.partition("## The life of a sample")[2].partition("\n## ")[0]
HOPS = re.findall(r"`([\w.]+):([\w.]+)`", LIFE)


def first_line(module: str, name: str) -> tuple[str, int]:
    """(file, line) at which a function starts, its decorators included."""
    file = ROOT.joinpath("lavis_lite", *module.split(".")).with_suffix(".py")
    nodes: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = next(node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part)
        nodes = found.body
    return str(file), min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])


def test_there_are_ten_hops() -> None:
    assert re.findall(r"^(\d+)\. `", LIFE, re.MULTILINE) == [str(number) for number in range(1, 11)]


@pytest.mark.slow
def test_the_hops_are_entered_in_this_order(train_here: Train, tmp_path: Path) -> None:
    hops = {first_line(*hop): f"{hop[0]}:{hop[1]}" for hop in HOPS}
    entered: dict[str, None] = {}

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            hop = hops.get((frame.f_code.co_filename, frame.f_code.co_firstlineno))
            if hop is not None:
                entered.setdefault(hop)

    sys.setprofile(profile)
    try:
        result = train_here("run.max_iters=1", "run.test_splits=[]", "run.warmup_steps=0", f"run.output_dir={tmp_path}")
    finally:
        sys.setprofile(None)
    assert result.returncode == 0, result.stderr
    assert list(entered) == list(hops.values())
