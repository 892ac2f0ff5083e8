"""A wheel built from setup.py, installed into another environment and used from another folder, without the network."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.end_to_end.conftest import SMALL

pytest.importorskip("setuptools", minversion="70.1", reason="building a wheel needs setuptools (dev extra)")

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "NOTICE", "README.md", "lavis_lite", "projects")


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that must succeed; neither the checkout nor the network are in its sight."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


def package_files() -> set[str]:
    """Everything below lavis_lite/ that belongs to the package, and the recipes where the wheel has them."""
    files = [path.relative_to(REPOSITORY).as_posix() for folder in ("lavis_lite", "projects")
             for path in (REPOSITORY / folder).rglob("*") if path.is_file() and path.suffix not in {".pyc", ".pyo"}]
    return {f"lavis_lite/recipes/{name}" if name.startswith("projects/") else name for name in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, copy / name)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, ".", cwd=copy)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin folder of an environment with the wheel, and with this interpreter's packages for its dependencies."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    bin_folder = home / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "pip", "--python", bin_folder / "python", "install", "-q", "--no-deps", wheel, cwd=home)
    site_packages = run(bin_folder / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home)
    # a plain path line: packages are found behind the wheel's, while an editable install's own .pth is not read
    (Path(site_packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert "lavis_lite/py.typed" in names


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What the wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


def test_the_wheel_says_what_it_needs(metadata: Message) -> None:
    named = {Requirement(line).name for line in metadata.get_all("Requires-Dist", [])}
    assert {"torch", "transformers", "timm", "omegaconf", "iopath", "decord", "webdataset", "pycocotools",
            "pycocoevalcap", "fairscale"} <= named
    assert metadata["Name"] == "lavis_lite" and metadata["Requires-Python"] == ">=3.10"
    extras = {"dev", "track", "lora", "quant", "devices", "video", "parquet", "hdf5", "eval", "all", "docs",
              "onnx", "demo", "serve"}
    assert extras == set(metadata.get_all("Provides-Extra", []))
    texts = [path.read_text(encoding="utf-8") for folder in ("lavis_lite", "docs", "projects")
             for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml")]
    named_in_texts = {name for text in texts for name in re.findall(r"lavis_lite\[(\w+)\]", text)}
    assert named_in_texts <= extras and "eval" in named_in_texts


def test_constraints_pin_every_requirement_within_its_range(metadata: Message) -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    asked = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    installed = [need for need in asked if "extra" not in str(need.marker) or 'extra == "dev"' in str(need.marker)]
    outside = [str(need) for need in installed if not need.specifier.contains(pins.get(need.name.lower(), "0"))]
    assert len(installed) > 20 and outside == []


def third_party_imports() -> set[str]:
    """Top-level modules that the package imports, inside functions too, without the standard library's."""
    names: set[str] = set()
    for path in (REPOSITORY / "lavis_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and (
                    node.args and isinstance(node.args[0], ast.Constant)):
                names.add(str(node.args[0].value).split(".")[0])
    return names - set(sys.stdlib_module_names) - {"lavis_lite"}


NAMED_OTHERWISE = {"PIL": "pillow", "yaml": "pyyaml"}


def test_everything_imported_is_declared(metadata: Message) -> None:
    declared = {Requirement(line).name.lower() for line in metadata.get_all("Requires-Dist", [])}
    declared |= {"lmms_eval", "vlmeval"}  # they import the adapters, not the other way round
    declared.add("spacy")  # used where it is found with its model, which no requirement can name
    assert {name for name in third_party_imports() if NAMED_OTHERWISE.get(name, name.lower()) not in declared} == set()


def test_everything_declared_is_imported_or_explained(metadata: Message) -> None:
    """Every requirement and extra (not dev) is imported, or docs/reference/libraries.md says why it is installed."""
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    declared = {need.name.lower() for need in needed 
                if not re.search(r'extra == "(dev|docs)"', str(need.marker))}
    imported = {NAMED_OTHERWISE.get(name, name.lower()) for name in third_party_imports()}
    page = REPOSITORY / "docs" / "reference" / "libraries.md"
    section = page.read_text(encoding="utf-8").partition("## Not imported")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^- `(\w+)`: ", section, re.MULTILINE))
    assert declared - imported == explained


def test_it_works_from_another_folder(environment: Path, tmp_path: Path) -> None:
    code = ("import lavis_lite; from lavis_lite.config.named import model_types, dataset_names\n"
            "print(lavis_lite.__file__, lavis_lite.__version__, sep='\\n')\n"
            "print(*model_types('blip2')); print(*dataset_names())")
    where, version, types, datasets = run(environment / "python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(environment.parent)
    assert version in (REPOSITORY / "lavis_lite" / "__init__.py").read_text()
    configs = REPOSITORY / "lavis_lite" / "configs"
    assert set(types.split()) == {path.stem for path in (configs / "models" / "blip2").glob("*.yaml")} != set()
    assert set(datasets.split()) == {path.stem for path in (configs / "datasets").glob("*.yaml")} != set()


def test_the_command_is_there(environment: Path, tmp_path: Path) -> None:
    assert "train" in run(environment / "lavis-lite", "--help", cwd=tmp_path)


def test_the_wheel_says_what_it_is(metadata: Message) -> None:
    assert metadata["Author"] == "the lavis_lite authors" and metadata["License"] == "BSD-3-Clause"
    assert "License :: OSI Approved :: BSD License" in metadata.get_all("Classifier", [])
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"] and "LAVIS" in metadata["Keywords"]
    links = re.findall(r"\]\((?!https?:)", str(metadata.get_payload()))
    assert links == [], "links into the repository lead nowhere from a package index"


def in_one_interpreter(environment: Path, commands: list[list[str]], cwd: Path) -> list[str]:
    """What commands of the installed package print; each interpreter would take seconds to import it."""
    code = ("from lavis_lite.cli.main import main\n"
            f"for words in {commands!r}:\n    assert main(words) == 0\n    print({CUT!r})")
    return run(environment / "python", "-c", code, cwd=cwd).split(CUT)[:-1]


CUT = "---- next command ----"


def test_recipes_are_found_from_any_folder(environment: Path, tmp_path: Path) -> None:
    """By short name, by the path of a checkout, as `base:`, and with modules of their own."""
    (tmp_path / "own.yaml").write_text("base: projects/blip2/stage1.yaml\nrun: {seed: 7}\n")
    recipes = ("stage1", "projects/blip2/stage1.yaml", "own.yaml", "flamingo/mini")
    commands = [*(["train", one, "--print-config"] for one in recipes), ["recipes"]]
    shown = dict(zip([*recipes, "recipes"], in_one_interpreter(environment, commands, cwd=tmp_path), strict=True))
    assert [recipe for recipe in recipes if "run.max_iters: " not in shown[recipe]] == []
    assert "run.seed: 7" in shown["own.yaml"] and "blip2/stage1 " in shown["recipes"]


def test_from_an_empty_folder_to_a_trained_model(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 request: pytest.FixtureRequest) -> None:
    """Installing is the first of three commands; the training is whole with --long."""
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    options = () if request.config.getoption("--long") else ("--options", *SMALL, "run.max_iters=2")
    [picture] = environment.parent.glob("lib/**/lavis_lite/assets/mini/scene.jpg")
    commands = [["train", "stage1", *options], ["generate", "--model", "blip2_opt", "--image", str(picture)]]
    trained, answer = in_one_interpreter(environment, commands, cwd=tmp_path)
    assert "text R@1" in trained and "triangle" in answer
    assert len(list(tmp_path.glob("output/blip2/stage1/**/report.html"))) == 1


@pytest.fixture(scope="module")
def source_package(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files of a source package, without its folder."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY).splitlines():
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(REPOSITORY / name)
    run(sys.executable, "setup.py", "-q", "sdist", "-d", out, cwd=copy)
    [built] = out.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_a_source_package_is_the_repository(source_package: set[str]) -> None:
    """Everything that is tracked but what only a checkout needs, so that tests and documentation run from it."""
    tracked = run("git", "ls-files", cwd=REPOSITORY).splitlines()
    wanted = {name for name in tracked if not name.startswith((".", "benchmarks/"))}
    assert wanted - source_package == set() and len(wanted) > 500
