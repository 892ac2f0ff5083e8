"""torch's compiler and the list of transformers' models are imported once they are used, and then work as ever."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from lavis_lite.torchvision_shim import DYNAMO, import_late

REPOSITORY = Path(__file__).resolve().parents[1]
LATE = "import sys\nfrom lavis_lite.torchvision_shim import import_late\nimport_late()\n"
LOADED = "'torch._dynamo.eval_frame' in sys.modules"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_encoders_language_models_and_optimizers_do_not_import_it() -> None:
    found = run(LATE + "import torch\nfrom lavis_lite import load_model\n"
                "model = load_model('blip2_opt', 'mini')\n"
                "optimizer = torch.optim.AdamW(model.parameters())\n"
                "model.generate({'image': torch.zeros(1, 3, 64, 64)}, max_length=2)\n"
                f"optimizer.step(); optimizer.zero_grad(); optimizer.state_dict()\nprint({LOADED})")
    assert found == "False"


def test_marks_made_before_hold_once_something_is_compiled() -> None:
    """A compiled function runs, and neither what was disabled nor what was allowed is traced."""
    found = run(LATE + """
import torch
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
print(traced, type(torch._dynamo).__name__)""")
    assert found == "{'hidden': False, 'seen': True} module"


def test_one_that_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.ModuleType(DYNAMO)
    monkeypatch.setitem(sys.modules, DYNAMO, real)
    import_late()
    assert sys.modules[DYNAMO] is real


def test_the_files_of_all_models_are_not_read_for_one_of_them() -> None:
    found = run(LATE + """
import transformers
opt = transformers.OPTConfig
package = sys.modules["transformers.models"]
print(type(package).__name__)
assert package.opt.OPTConfig is opt is package.OPTConfig, "a name that is no submodule needs the list"
from transformers.models import bert
assert bert.BertConfig is transformers.BertConfig and transformers.models.opt.OPTConfig is opt
print(type(sys.modules["transformers.models"]).__name__)""")
    assert found.split() == ["LatePackage", "_LazyModule"]
