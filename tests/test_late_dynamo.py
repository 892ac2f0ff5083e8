"""What loading and using a model imports. torch's compiler and the list of all models come once they are used."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.torchvision_shim import DYNAMO, import_late

REPOSITORY = Path(__file__).resolve().parents[1]
LATE = "import sys\nfrom lavis_lite.torchvision_shim import import_late\nimport_late()\n"
LOADED = "'torch._dynamo.eval_frame' in sys.modules"
OTHER_ROOMS = ("datasets", "tasks", "metrics", "report", "evaluation", "runners", "runs", "tracking", "mini_world",
               "preflight", "engine")
MOST_MODULES = 70
"""own modules that loading a mini model imports, packages counted"""


ANSWERS = LATE + """
import torch
import lavis_lite
model = lavis_lite.load_model("blip2_opt", "mini")
rooms = [name for name in sys.modules if name.split(".")[0] == "lavis_lite"]
optimizer = torch.optim.AdamW(model.parameters())
model.generate({"image": torch.zeros(1, 3, 64, 64)}, max_length=2)
optimizer.step(); optimizer.zero_grad(); optimizer.state_dict()
used = """ + LOADED + """

import transformers
opt, names = transformers.OPTConfig, [type(sys.modules["transformers.models"]).__name__]
package = sys.modules["transformers.models"]
assert package.opt.OPTConfig is opt is package.OPTConfig, "a name that is no submodule needs the list"
from transformers.models import bert
assert bert.BertConfig is transformers.BertConfig and transformers.models.opt.OPTConfig is opt
names.append(type(sys.modules["transformers.models"]).__name__)

traced = {}

@torch.compiler.disable
def hidden(x):
    traced["hidden"] = torch.compiler.is_compiling()
    return x * 2

@torch._dynamo.allow_in_graph
def allowed(x):
    return x + 1

def seen(x):
    if torch.compiler.is_compiling():
        traced["seen"] = True
    return allowed(hidden(x)) - 1

assert hidden(torch.ones(2)).tolist() == [2, 2] and not """ + LOADED + """
graphs = []
def backend(graph, inputs):
    graphs.append(graph.code)
    return graph.forward
x = torch.arange(3.0)
assert torch.equal(torch.compile(seen, backend=backend)(x), seen(x)) and """ + LOADED + """
assert "allowed" in "".join(graphs) and " * " not in "".join(graphs), graphs
from torch._dynamo.utils import counters
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.utils.counters is counters
kind = type(torch._dynamo).__name__
import json
print(json.dumps({"rooms": rooms, "used": used, "names": names, "traced": traced, "kind": kind}))"""


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """What a fresh interpreter says that loads a model, uses it, and then compiles a function."""
    done = subprocess.run([sys.executable, "-c", ANSWERS], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_encoders_language_models_and_optimizers_do_not_import_it(answers: dict[str, Any]) -> None:
    assert answers["used"] is False


def test_marks_made_before_hold_once_something_is_compiled(answers: dict[str, Any]) -> None:
    """A compiled function runs, and neither what was disabled nor what was allowed is traced."""
    assert answers["traced"] == {"hidden": False, "seen": True} and answers["kind"] == "module"


def test_the_files_of_all_models_are_not_read_for_one_of_them(answers: dict[str, Any]) -> None:
    assert answers["names"] == ["LatePackage", "_LazyModule"]


def test_a_mini_model_loads_without_the_rooms_of_training(answers: dict[str, Any]) -> None:
    names = answers["rooms"]
    assert "lavis_lite.models.blip2.llm" in names
    assert [name for name in names if name.split(".")[1:2] and name.split(".")[1] in OTHER_ROOMS] == []
    assert len(names) <= MOST_MODULES, sorted(names)



def test_one_that_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.ModuleType(DYNAMO)
    monkeypatch.setitem(sys.modules, DYNAMO, real)
    import_late()
    assert sys.modules[DYNAMO] is real
