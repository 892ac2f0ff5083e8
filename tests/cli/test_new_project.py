"""`new-project`: the skeleton trains, its own test passes, and names that cannot work are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lavis_lite.cli.main import main
from tests.end_to_end.conftest import environment


@pytest.mark.slow
def test_the_project_passes_its_own_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Its test trains two steps, in a process and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    assert main(["new-project", "my_trial"]) == 0
    written = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "my_trial").iterdir()) == [
        "README.md", "model.py", "recipe.yaml", "test_my_trial.py"]
    assert "train my_trial/recipe.yaml" in written and not any("$" in path.read_text() for path in
                                                               (tmp_path / "my_trial").iterdir())
    result = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_trial"], cwd=tmp_path,
                            env=environment(tmp_path / "cache"), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(("name", "message"), [
    ("my-trial", "such as my_trial"), ("Trial", "such as trial"), ("class", "Python name"),
    ("blip2_opt", "a model of the package"), ("taken", "exists")])
def test_names_that_cannot_be(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    assert main(["new-project", name]) == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
