"""The shim: a broken torchvision imports, a healthy one is not touched. Each case in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from lavis_lite import torchvision_shim


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def torchvision_is_broken() -> bool:
    return not torchvision_shim.operators_load()


def test_importing_the_shim_imports_neither_torch_nor_torchvision() -> None:
    done = run("import sys, lavis_lite.torchvision_shim\nassert not {'torch', 'torchvision'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_timm_and_transforms_import_after_it() -> None:
    done = run("from lavis_lite.torchvision_shim import ensure_torchvision as ensure\nimport torch\n"
               "before = torch.library.register_fake\nensure(); ensure()\n"
               "assert torch.library.register_fake is before\n"
               "import timm, torchvision.transforms.v2 as transforms\n"
               "print(tuple(transforms.Resize(4)(torch.zeros(3, 8, 8)).shape))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 4, 4)"


def test_a_failed_import_can_be_mended_afterwards() -> None:
    if not torchvision_is_broken():
        pytest.skip("this torchvision's operators load")
    done = run("try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)\n"
               "from lavis_lite.torchvision_shim import ensure_torchvision\nensure_torchvision()\n"
               "import torchvision.transforms.v2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "operator torchvision::nms does not exist"


def test_a_healthy_install_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen = []
    healthy = types.ModuleType("torchvision")
    register_fake = torch.library.register_fake
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torchvision_shim, "operators_load", lambda: True)

    def import_module(name: str) -> types.ModuleType:
        seen.append((name, torch.library.register_fake is register_fake))
        return healthy

    monkeypatch.setattr(torchvision_shim.importlib, "import_module", import_module)
    torchvision_shim.ensure_torchvision()
    assert seen == [("torchvision", True)]


def test_an_imported_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", loaded)
    monkeypatch.setattr(torchvision_shim, "operators_load", lambda: pytest.fail("looked at the operators again"))
    torchvision_shim.ensure_torchvision()
    assert sys.modules["torchvision"] is loaded


def test_only_missing_operators_of_torchvision_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    passed = []
    monkeypatch.setattr(torch.library, "register_fake", lambda op, func=None, **options: passed.append((op, options)))
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("present_operator(Tensor x) -> Tensor")
    with torchvision_shim.skip_missing_operators():
        torch.library.register_fake("torchvision::present_operator", lib=library)
        torch.library.register_fake("other::operator")
        skipped = torch.library.register_fake("torchvision::absent_operator")(len)
    assert passed == [("torchvision::present_operator", {"lib": library}), ("other::operator", {})]
    assert skipped is len
