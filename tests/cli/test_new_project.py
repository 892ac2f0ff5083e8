"""`new-project`: the skeleton trains, its own test passes, and names that cannot work are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavis_lite.cli.main import main
from tests.end_to_end.conftest import environment
from tests.helpers.processes import in_fork


@pytest.mark.slow
def test_the_project_passes_its_own_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Its test trains two steps, in a fork and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    assert main(["new-project", "my_trial"]) == 0
    written = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "my_trial").iterdir()) == [
        "README.md", "model.py", "recipe.yaml", "test_my_trial.py"]
    assert "train my_trial/recipe.yaml" in written and not any("$" in path.read_text() for path in
                                                               (tmp_path / "my_trial").iterdir())
    for name, value in environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junit-xml={tmp_path}/found.xml", "my_trial"]
    assert in_fork(lambda: int(pytest.main(words))) == 0
    assert 'errors="0" failures="0" skipped="0" tests="1"' in (tmp_path / "found.xml").read_text()


@pytest.mark.parametrize(("name", "message"), [
    ("my-trial", "such as my_trial"), ("Trial", "such as trial"), ("class", "Python name"),
    ("blip2_opt", "a model of the package"), ("taken", "exists")])
def test_names_that_cannot_be(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    assert main(["new-project", name]) == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
