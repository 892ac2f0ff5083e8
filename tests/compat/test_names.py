"""`lavis` becomes importable, only when asked for; what is not carried is refused in words."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lavis_lite.compat.lavis  # noqa: F401  (makes `lavis` importable)
from lavis_lite.compat.lavis.names import MODULES
from tests.compat.lavis_imports import pairs
from tests.end_to_end.conftest import ROOT

OUT_OF_SCOPE = ("lavis.models.gpt_models.gpt_dialogue", "lavis.processors.gpt_processors",
                "lavis.tasks.vqa_reading_comprehension")
"""modules for GPT-2's dialogues and for PNP-VQA"""


def resolves(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
        return name == "*" or getattr(found, name) is not None
    except ImportError:
        return False


@pytest.mark.filterwarnings("ignore:The 'torchvision.transforms")
def test_every_name_that_lavis_imports_resolves_or_is_of_another_family() -> None:
    everywhere = {pair for found in pairs().values() for pair in found}
    lacking = {pair for pair in everywhere if not resolves(*pair)}
    assert len(everywhere) > 100
    assert lacking == {pair for pair in everywhere if pair[0] in OUT_OF_SCOPE}


@pytest.mark.filterwarnings("ignore:The 'torchvision.transforms")
def test_every_row_of_the_table_resolves() -> None:
    lacking = [(module, name) for module, names in MODULES.items() for name in names if not resolves(module, name)]
    assert lacking == []


def test_star_imports_bring_the_names() -> None:
    space: dict[str, object] = {}
    exec("from lavis.models import *\nfrom lavis.tasks import *", space)
    assert {"Blip2OPT", "load_model", "CaptionTask"} <= space.keys()


@pytest.mark.parametrize(("statement", "words"), [
    ("import lavis.models.albef_models.albef_vqa", "not this family of models"),
    ("import lavis.modles", "did you mean 'lavis.models'"),
    ("from lavis.models import Blip2OPTT", "did you mean 'Blip2OPT'"),
    ("from lavis.datasets.builders.audio_caption_builder import AudioCapsCapBuilder", "data list"),
])
def test_what_is_not_carried_is_refused_in_words(statement: str, words: str) -> None:
    with pytest.raises(ImportError, match=words):
        exec(statement, {})


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, check=False)
    return done.stdout + done.stderr


def test_without_it_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    code = ("import sys, lavis_lite, lavis_lite.cli.main, lavis_lite.engine\n"
            "print([m for m in sys.modules if m.startswith(('lavis_lite.compat', 'lavis.'))])\n"
            "try:\n    import lavis\nexcept ModuleNotFoundError as error:\n    print(error)")
    assert run(code, tmp_path).splitlines()[-2:] == ["[]", "No module named 'lavis'"]


def test_a_real_lavis_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "lavis").mkdir()
    (tmp_path / "lavis" / "__init__.py").write_text("")
    said = run("import lavis_lite.compat.lavis", tmp_path)
    assert "a package 'lavis' is here already" in said and "pip uninstall salesforce-lavis" in said


def test_the_package_itself_does_not_import_it() -> None:
    """Loaded only when asked for: no module outside of the room names it."""
    room = ROOT / "lavis_lite" / "compat"
    named = [path for path in (ROOT / "lavis_lite").rglob("*.py") if not path.is_relative_to(room)
             and "lavis_lite.compat" in path.read_text(encoding="utf-8")]
    assert named == []
