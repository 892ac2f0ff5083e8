"""Every command and code block of README.md and docs/ is run.

Blocks whose first line is `# file: NAME` are written to a folder that has `projects/` of the repository; then each
YAML of a page is trained, each command of a `bash` block is run (both shown by `SMALL`), and the output of each
`console` block must be what the page shows.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from lavis_lite.cli.main import main, run_command
from tests.end_to_end.conftest import ROOT, SMALL, environment
from tests.helpers.processes import forked, free_port, in_fork, run_as_main

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INSTALLERS = ("bash run_scripts/quickstart.sh", "bash run_scripts/test.sh", "bash run_scripts/test_matrix.sh",
              "source .venv/bin/activate")
"""tested by tests/test_run_scripts.py: they make environments"""
PAPER_SCALE = ("vitg", "vitl", "flant5x", "vicuna", "opt2.7b", "opt6.7b")
SHORT = [*SMALL, "run.max_iters=2", "run.test_splits=[]"]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """NAME of `# file: NAME`."""
        match = re.match(r"# file: (\S+)\n", self.text)
        return match.group(1) if match else None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    return [Block(page.name, *found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


ALL = [block for page in PAGES for block in blocks(page)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A folder as a reader's checkout: recipes, train.py, every file of the docs, and pictures for the examples."""
    for name in ("projects", "train.py", "evaluate.py", "lavis_lite", "benchmarks", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in ALL:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    for number in range(12):
        place = tmp_path / "animals" / "cat"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 * number, 90, 30)).save(place / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") or name.startswith("SLURM"):
            monkeypatch.delenv(name)
    for name, value in environment(cache).items():
        if name.startswith(("LAVIS_LITE", "HF_HUB")):
            monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache folder of these tests."""
    return tmp_path_factory.mktemp("cache")


def test_every_block_has_a_kind_this_file_runs() -> None:
    kinds = {block.language for block in ALL}
    assert kinds <= {"bash", "console", "python", "yaml", "text"}
    assert {"bash", "console", "python", "yaml"} <= kinds


RUNS = [block for block in ALL if block.language == "yaml" and "base:" in block.text]


@pytest.mark.parametrize("block", RUNS, ids=lambda block: f"{block.page}:{block.file}")
def test_the_recipes_of_the_docs_train(block: Block, workplace: Path) -> None:
    assert block.file, "a recipe of the docs needs a first line `# file: NAME`"
    own = re.search("mini_world_(caption|vqa): null", block.text)
    short = [option for option in SHORT if not (own and "mini_world" in option)]
    if "task:" in block.text:
        short = [option for option in short if not option.startswith(("run.k_test", "run.test_splits"))]
        short += [] if "test_splits:" in block.text else ["run.test_splits=[test]"]
    assert run_command("train", ["--cfg-path", block.file, "--options", *short, "run.output_dir=out"]) == 0
    assert list(workplace.glob("out/*/checkpoints/step_00000002/model.safetensors"))


def test_the_row_of_the_docs_is_a_row(workplace: Path) -> None:
    """What stands in configs/datasets: keys of a type are those of a data set's section."""
    import yaml

    from lavis_lite.config.typed import Checker
    from lavis_lite.datasets.builders.images import ImageCaptionBuilder

    rows = yaml.safe_load((workplace / "my_row.yaml").read_text())
    checker = Checker(lambda key: "my_row.yaml")
    checker.section(ImageCaptionBuilder.config_class, rows["default"], "default")
    assert checker.errors == []


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "python" and not block.file],
                         ids=lambda block: block.page)
def test_python_blocks_run(block: Block, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in sorted(set(re.findall(r'run="output/([^"]+)"', block.text))):
        assert run_command("train", ["--cfg-path", f"projects/{recipe}.yaml", "--options", *shown(recipe)]) == 0
    exec(compile(block.text, block.page, "exec"), {"__name__": "__main__"})
    assert "Error" not in capsys.readouterr().err


def commands(page: str) -> list[str]:
    """The commands of a page's bash blocks, comments and continued lines resolved."""
    text = "\n".join(block.text for block in ALL if block.page == page and block.language == "bash")
    lines = [line.split("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("page", sorted({block.page for block in ALL if block.language == "bash"}))
def test_commands_run(page: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(page):
        if line.startswith(INSTALLERS):
            assert not line.startswith("bash") or (ROOT / line.split()[1]).is_file()
            continue
        assert run(shlex.split(line)) == 0, (line, capsys.readouterr())


def shown(line: str) -> list[str]:
    """Options that make a documented training one of seconds; none where the recipe is of the paper's scale."""
    if any(name in line for name in PAPER_SCALE):
        return []
    options = [option for option in SHORT if "stage1" in line or not option.startswith("run.k_test")]
    if "examples/sensors" in line or not of_the_mini_world(line):
        options = [option for option in options if not re.search("mini_world|k_test|output_dir", option)]
    if "instructblip" in line:
        options = [option.replace("mini_world_caption", "mini_world_vqa") for option in options]
    return options


def of_the_mini_world(line: str) -> bool:
    """Whether the recipe of a command has data sets of the mini world, itself or by its base."""
    recipe = next((Path(word) for word in line.split() if word.endswith(".yaml")), Path())
    return not recipe.is_file() or re.search("mini_world|base:", recipe.read_text()) is not None


def with_options(words: list[str], before: list[str], after: list[str]) -> list[str]:
    """A command with more options, before and after those that it has."""
    if not before and not after:
        return words
    head, own = words, list[str]()
    if "--options" in words:
        at = words.index("--options")
        head, own = words[:at], words[at + 1:]
    return [*head, "--options", *before, *own, *after]


def run(words: list[str]) -> int:
    """Run one command of the docs in this process, a training shown; torchrun's as one rank.

    An interpreter takes seconds to start. Two ranks under torchrun are in tests/end_to_end/test_train.py.
    """
    if words[:2] == ["torchrun", "--nproc_per_node=2"]:
        words = ["python", *words[2:]]
    if words[:4] == ["python", "-m", "lavis_lite", "train"]:
        words = ["python", "train.py", *words[4:]]
    if "train.py" in words:
        words = with_options(words, [], shown(" ".join(words)))
    elif "evaluate.py" in words and {"--run", "--run-dir", "--resume"} & set(words):  # of a training of this page
        size = shown(" ".join(words)) if "--resume" in words else []
        words = with_options(words, [*size, "run.test_splits=[test]"], [])
    elif "evaluate.py" in words:
        small = [option.replace("mini_world_caption", "mini_world_vqa") if "vqa" in words[-1] else option
                 for option in SMALL]
        words = with_options(words, [], [*small, "run.output_dir=out_docs/eval"])
    if words[0] == "python" and words[1] in ("train.py", "evaluate.py"):
        return run_command(words[1].removesuffix(".py"), words[2:])
    if words[:3] == ["python", "-m", "lavis_lite"] and words[3] in SERVERS:
        return served(words)
    if words[:3] == ["python", "-m", "lavis_lite"]:
        return main(words[3:])
    assert words[0] == "python", words
    if words[1] == "-m":
        return run_as_main(runpy.run_module, words[2:])
    words = [FEWER.get(word, word) for word in words]
    return in_fork(lambda: run_as_main(runpy.run_path, words[1:]))  # a recipe imports the script's classes once more


FEWER = {"2000": "200"}
"""rows that a script writes"""


SERVERS = {"demo": "gradio", "serve": "uvicorn"}
"""commands that run until they are stopped -> the package that each needs"""


def served(words: list[str]) -> int:
    """Start a command that serves, and stop it when it is ready; 0 as well if its package is not installed."""
    if importlib.util.find_spec(SERVERS[words[3]]) is None:
        return 0
    said, stderr = os.pipe()
    child = forked(lambda: main([*words[3:], "--port", str(free_port())]), stderr)
    os.close(stderr)
    with open(said) as lines:
        ready = any("Ctrl+C stops it" in line for line in lines)
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
    return 0 if ready else 1


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "console"], ids=lambda block: block.page)
def test_console_blocks_show_what_is_printed(block: Block, workplace: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    first, _, expected = block.text.partition("\n")
    words = shlex.split(first.removeprefix("$ "))
    captured = (shown_by_train if words[:2] == ["python", "train.py"] else shown_by_command)(words, capsys)
    assert captured.strip() == expected.strip()


def shown_by_train(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that a run prints."""
    run_command("train", words[2:])
    captured = capsys.readouterr()
    return captured.out + captured.err


def shown_by_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints as its result."""
    assert words[:3] == ["python", "-m", "lavis_lite"] and main(words[3:]) == 0
    return capsys.readouterr().out
