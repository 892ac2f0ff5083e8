"""The scripts of this folder are clean under mypy and pyright, mistakes in such scripts are found, and they run."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import lavis_lite
from lavis_lite.datasets.protocols import Captions
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.protocols import Captioner
from lavis_lite.registry import lacking, registry
from lavis_lite.zoo import catalogue
from tests.typing import caption, dataset, model, task, vqa

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith(("test_", "__")))
MISTAKES = {
    'load_model("blip2_opt", "mini").generat({})': '"Tensor" not callable',  # nn.Module may have any part
    'load_model("blip2_opt", "mini").generate({}, num_beam=3)': 'Unexpected keyword argument "num_beam"',
    'load_model("blip2_opt", "mini").predict_answers({}, max_len="3")': 'incompatible type "str"; expected "int"',
    'load_model("blip2", "mini").extract_feature({})': '"Tensor" not callable',
    'samples: Samples = {"imagee": None}': 'Extra key "imagee"',
    'load_model("blip2_opt", "mini", devise="cpu")': 'did you mean "device"?',
    'registry.get_task_class("vqa")(RunConfig()).sumary({})': 'has no attribute "sumary"',
    'load_modell("blip2")': 'Name "load_modell" is not defined',
}


@pytest.mark.long
def test_scripts_are_clean_and_each_mistake_is_told(tmp_path: Path) -> None:
    """`run_scripts/test.sh` runs mypy on the scripts and on mistakes.py; here the words of the messages as well."""
    wrong = tmp_path / "mistakes.py"
    head = ["from lavis_lite import Samples, load_model", "from lavis_lite.config.schema import RunConfig",
            "from lavis_lite.registry import registry"]
    wrong.write_text("\n".join([*head, *MISTAKES]) + "\n")
    done = subprocess.run([sys.executable, "-m", "mypy", *map(str, SCRIPTS), str(wrong)], cwd=ROOT, text=True,
                          capture_output=True, check=False)
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line for line in found if "mistakes.py" not in line] == [], done.stdout + done.stderr
    for number, (line, words) in enumerate(MISTAKES.items(), len(head) + 1):
        assert any(f"mistakes.py:{number}:" in error and words in error for error in found), (line, found)


@pytest.mark.long
def test_pyright_finds_the_mistakes_and_nothing_else() -> None:
    """basedpyright is pyright with everything in its wheel; pyright itself fetches its code when it first runs."""
    pytest.importorskip("basedpyright", reason="basedpyright is not installed")
    done = subprocess.run([sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable,
                           *map(str, SCRIPTS)], cwd=ROOT, text=True, capture_output=True, check=False)
    found = re.findall(r"(\w+)\.py:(\d+):\d+ - error:", done.stdout)
    wrong = [number for number, line in enumerate((ROOT / "tests/typing/mistakes.py").read_text().splitlines(), 1)
             if "# type: ignore[" in line]
    assert {file for file, _ in found} == {"mistakes"}, done.stdout + done.stderr
    assert {int(number) for _, number in found} == set(wrong)


def test_the_names_of_the_typed_signatures_are_those_of_the_registry() -> None:
    stage1 = get_args(catalogue.Stage1Arch) + get_args(catalogue.MatchingArch)
    for names, cls in ((get_args(catalogue.WritingArch), Blip2LLM), (stage1, Blip2Qformer)):
        known = {name: registry.get_model_class(name) for name in registry.model.builtins}
        assert set(names) == {name for name, found in known.items() if issubclass(found, cls)}


def test_public_names_are_complete_for_type_checkers_and_completion() -> None:
    text = (ROOT / "lavis_lite/__init__.py").read_text()
    typed = text[text.index("if TYPE_CHECKING"):text.index("__version__")]
    for name in set(lavis_lite.__all__) - {"__version__"}:
        assert name in typed, name
        assert getattr(lavis_lite, name) is getattr(importlib.import_module(lavis_lite._LAZY[name]), name)
    assert dir(lavis_lite) == sorted(lavis_lite.__all__) and set(lavis_lite._LAZY) < set(dir(lavis_lite))


def test_the_scripts_run() -> None:
    captions, fit, width = caption.main()
    assert len(captions) == 1 and -1 <= fit <= 1 and width > 8
    answers, place = vqa.main()
    assert len(answers) == 1 and place in (0, 1)
    with pytest.raises(TypeError, match="blip2 does not answer questions"):
        vqa.main("blip2")
    assert lacking(dataset.main(), Captions) == []
    assert task.WordCount(task.WordCountConfig()).takes(dataset.Colors())
    name, losses = model.main()
    assert name == "MeanColor" and set(losses) == {"loss"} and not lacking(model.MeanColor, Captioner)
