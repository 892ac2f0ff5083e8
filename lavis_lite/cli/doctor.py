"""`python -m lavis_lite doctor`: what this machine has, and what a recipe still needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

import lavis_lite
from lavis_lite.cli.console import add_config, command_parser
from lavis_lite.config.compose import compose
from lavis_lite.errors import LavisLiteError, counted
from lavis_lite.io.files import cache_root
from lavis_lite.preflight import check, fetch_hint, missing
from lavis_lite.process import exits
from lavis_lite.process.launch import usable_cores

SHOWN = ("torch", "torchvision", "transformers", "timm", "huggingface_hub", "tokenizers", "omegaconf", "numpy",
         "pillow")
SLOW = "slow for more than the mini models"


def main(argv: Sequence[str]) -> int:
    """Print what is found; returns `exits.PROBLEMS` if a requirement is not met, or if the recipe cannot run."""
    arguments = command_parser("doctor", "Show the machine, versions, devices, caches, and what a recipe still needs.",
                               ["", "stage2_opt2.7b"])
    add_config(arguments, help_="a recipe to check", positional=True)
    chosen = arguments.parse_args(list(argv))
    problems = [*_packages(), *_folders()]
    for name, text in (*_machine(), *_devices(), ("Java", _java()), ("extras", _extras())):
        print(f"{name:16} {text}")
    for name in SHOWN:
        print(f"{name:16} {_version(name) or 'not installed'}")
    if chosen.cfg_path:
        found = _recipe(chosen.cfg_path, chosen.options)
        print(f"\n{chosen.cfg_path}: {'can run here' if not found else 'cannot run yet'}")
        problems += found
    for problem in problems:
        print(f"  problem: {problem}")
    print(f"\n{counted(len(problems), 'problem')} found.")
    if any(problem.startswith("missing: ") for problem in problems):
        print(f"fetch what can be fetched with: {fetch_hint(chosen.cfg_path)}")
    return exits.PROBLEMS if problems else exits.SUCCESS


def _machine() -> Iterator[tuple[str, str]]:
    """Package, interpreter, processor and memory, and where files are kept."""
    cores = usable_cores()
    yield "lavis_lite", f"{lavis_lite.__version__} ({Path(lavis_lite.__file__).parent})"
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}, {cores} cores{_memory()}"
    yield "cache", f"{cache_root()} ({_free(cache_root())} GB free; LAVIS_LITE_CACHE moves it)"
    hub = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    offline = ", offline" if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("LAVIS_LITE_OFFLINE") else ""
    yield "hub cache", f"{hub} ({_free(Path(hub))} GB free; HF_HOME moves it{offline})"


def _memory() -> str:
    """A clause with the memory, or "" if the system does not report it."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return ""
    return f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory"


def _existing(path: Path) -> Path:
    """The path, or its nearest folder that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(_existing(path)).free / 1e9:.0f}"


def _devices() -> Iterator[tuple[str, str]]:
    """The devices that torch sees."""
    import torch

    from lavis_lite.device import bf16_is_native, pick_device

    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    chosen = pick_device("auto")
    if torch.version.cuda is None and not torch.backends.mps.is_available():
        yield "GPU", f"none: torch {torch.__version__} is a build without CUDA; {SLOW}"
    elif chosen.type == "cpu":
        yield "GPU", f"none: torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU; {SLOW}"
    yield "device", f"auto means {chosen}; bf16 is {'native' if bf16_is_native(chosen) else 'emulated'}"


def _java() -> str:
    from lavis_lite.metrics.java_scores import why_no_java

    return why_no_java("METEOR") or f"{shutil.which('java')}: METEOR and SPICE can be computed"


def _requirements() -> list[Requirement]:
    """What the installed package requires, extras included; empty in a checkout that is not installed."""
    try:
        lines = importlib.metadata.requires("lavis_lite") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Requirement(line) for line in lines]


def _version(name: str) -> str:
    """Version of an installed package, or ""."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _packages() -> Iterator[str]:
    """A sentence for every requirement that is missing or has a version outside of its range."""
    for need in _requirements():
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found = _version(need.name)
        if not found or not need.specifier.contains(found, prereleases=True):
            here = f"{found} is installed" if found else "it is not installed"
            yield f"{need} is needed, and {here}: pip install '{need.name}{need.specifier}'"


def _extras() -> str:
    """Names of the extras, with what is missing for each."""
    texts = []
    groups: dict[str, list[Requirement]] = {}
    for need in _requirements():
        for extra in re.findall(r'extra == "(\w+)"', str(need.marker or "")):
            groups.setdefault(extra, []).append(need)
    for extra, needs in groups.items():
        absent = [need.name for need in needs if need.marker and need.marker.evaluate({"extra": extra})
                  and not _version(need.name)]
        if extra not in ("all", "dev"):
            texts.append(f"{extra} (without {', '.join(absent)})" if absent else f"{extra} installed")
    return ", ".join(texts) or "unknown: the package runs from a checkout that is not installed"


def _folders() -> Iterator[str]:
    """A sentence for each folder that the package must write to and cannot."""
    for path in (cache_root(), Path.cwd()):
        if not os.access(_existing(path), os.W_OK):
            yield f"{path} is not writable; choose another working folder, or another cache with LAVIS_LITE_CACHE."


def _recipe(cfg_path: str, options: Sequence[str]) -> list[str]:
    """Why a recipe cannot run here: errors of its settings, missing files."""
    try:
        composition = compose(cfg_path, options)
        return [*check(composition), *(f"missing: {need}" for need in missing(composition.config))]
    except LavisLiteError as error:
        return [str(error)]
