"""`doctor`, `completion`, `--version`, and devices that are not here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import lavis_lite
from lavis_lite.cli import completion, doctor
from lavis_lite.cli.main import COMMANDS, main
from lavis_lite.device import pick_device
from lavis_lite.process import exits


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"lavis_lite {lavis_lite.__version__}\n"


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment of which two requirements are known, both met; its cache folder."""
    monkeypatch.setattr(doctor, "_requirements", lambda: [
        Requirement("torch>=2"), Requirement("peft>=0.1; extra == 'lora'"), Requirement("nosuch; extra == 'odd'")])
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_this_machine_has(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"torch            {torch.__version__}\n" in shown and str(healthy) in shown
    assert "\n0 problems found." in shown
    assert "lora installed, odd (without nosuch)" in shown and "auto means " in shown


def test_what_a_recipe_needs(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "stage1"]) == 0 and "can run here" in capsys.readouterr().out
    assert main(["doctor", "stage2_opt2.7b"]) == exits.PROBLEMS
    shown = capsys.readouterr().out
    assert "cannot run yet" in shown and "problem: missing: model.llm_model: 'facebook/opt-2.7b'" in shown
    assert "lavis_lite fetch --cfg-path" in shown


def test_requirements_that_are_not_met(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: [Requirement("torch>=99"), Requirement("nosuch>=1")])
    assert main(["doctor"]) == exits.PROBLEMS
    shown = capsys.readouterr().out
    assert f"torch>=99 is needed, and {torch.__version__} is installed: pip install 'torch>=99'" in shown
    assert "nosuch>=1 is needed, and it is not installed" in shown and "2 problems found." in shown


# completion -----------------------------------------------------------------------------------------------------------
def completed(*words: str) -> set[str]:
    """What bash offers for the last of the words."""
    typed = " ".join(f"'{word}'" for word in ("lavis-lite", *words))
    script = f"{completion.bash()}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}; _lavis_lite; echo ${{COMPREPLY[@]}}"
    return set(subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_bash_completes_commands_options_and_recipes() -> None:
    assert completed("") == set(COMMANDS)
    assert completed("rec") == {"recipes"} and completed("train", "--res") == {"--resume"}
    assert completed("train", "blip2/stage1_v") == {"blip2/stage1_vitg", "blip2/stage1_vitl"}
    assert completed("data", "ca") == {"card", "capfilt", "cache-features"}
    assert completed("completion", "f") == {"fish"} and completed("nothing", "") == set()


def test_the_other_shells_know_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit && bashcompinit\n_lavis_lite()")
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "complete -c lavis-lite -n '__fish_seen_subcommand_from train' -l cfg-path" in lines
    assert len([line for line in lines if "__fish_use_subcommand" in line]) == len(COMMANDS)
    assert all(line.replace("\\'", "").count("'") % 2 == 0 for line in lines)


# devices --------------------------------------------------------------------------------------------------------------
def test_apples_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["train", "stage1", "--options", "run.device=mps", "run.num_workers=0"]) == 2
    assert "run.device: mps is not here" in capsys.readouterr().err
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "mps" == pick_device("mps").type
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", local_rank=1) == torch.device("cuda:1")
