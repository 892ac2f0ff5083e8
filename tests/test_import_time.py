"""What a plain import loads. The time itself is measured by benchmarks/import_time.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "transformers", "timm", "matplotlib", "pandas", "PIL", "decord", "fairscale")


def heavy_after(statement: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    names = result.stdout.strip().splitlines()[-1]
    return [name for name in HEAVY if repr(name) in names]


def test_the_check_sees_a_heavy_import() -> None:
    assert heavy_after("import PIL") == ["PIL"]


@pytest.mark.parametrize("statement", [
    "import lavis_lite",
    "import lavis_lite; dir(lavis_lite)",
    "from lavis_lite.registry import registry; registry.list_models(), registry.list_tasks()",
    "import lavis_lite.errors, lavis_lite.config.schema",
    "import lavis_lite; assert 'blip2' in str(lavis_lite.list_models())",
    "from lavis_lite import load_model, load_model_and_preprocess, load_preprocess, model_zoo; str(model_zoo)",
    "from lavis_lite.cli.main import main; main(['--help'])",
])
def test_light_imports_stay_light(statement: str) -> None:
    assert heavy_after(statement) == []


def test_public_names_are_the_same_at_every_look() -> None:
    """A lazy name that is a submodule's name too would first be the object and then the module."""
    import lavis_lite

    submodules = {path.stem for path in (REPOSITORY / "lavis_lite").iterdir()}
    assert submodules.isdisjoint(name for name in lavis_lite.__all__ if name != "__version__")


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import lavis_lite

    with pytest.raises(AttributeError, match="no attribute 'lod_model'"):
        lavis_lite.lod_model  # noqa: B018
