"""Commands that are used wrongly: one clear line, the right exit code, and nothing written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lavis_lite import zoo
from lavis_lite.cli import main as command_line
from lavis_lite.cli.generate import QUIET
from lavis_lite.cli.main import main
from lavis_lite.io.files import why_not_writable
from lavis_lite.process import exits
from lavis_lite.processors.base import BaseProcessor

GENERATE = ["generate", "--model", "blip2_opt", "--image", "a.png"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a picture, annotations, a file, an empty folder; no model is loaded."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(zoo, "load_model_and_preprocess", lambda *names, **more: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("a.png")
    Path("ok.csv").write_text("image,caption\na.png,a red thing\n")
    Path("file").write_text("x")
    Path("dir").mkdir()
    return tmp_path


@pytest.mark.parametrize(("line", "message"), [
    ("train", "one of the arguments --cfg-path RECIPE is required. `"),
    ("train stage1 --options run=3", "--options run=3: a key is section.name; this is a whole section.\n"),
    ("generate --model blip2_opt --image a.png --nucleus --seed 1e30", "not a whole number of at most 64 bits"),
    ("chat --model blip2_opt --message hi --seed 99999999999999999999", "not a whole number of at most 64 bits"),
    ("train stage1 --reusme auto", "unrecognized arguments: --reusme auto; did you mean --resume?"),
    ("data check", "the following arguments are required: NAME|FILE|DIR. `"),
    ("data check ok.csv --sheet file/x.png", "argument --sheet: 'file/x.png' cannot be written ("),
    ("data check ok.csv --sheet x.odd", "its name ends in .png, .jpg or .jpeg"),
    ("data check ok.csv --write-yaml file/x.yaml", "file is a file); choose another path"),
    ("data check ok.csv --write-yaml dir", "dir is a folder); choose another path"),
    ("data check ok.csv --max-tokens 0", "--samples and --max-tokens at least 1"),
    ("data check dir", "neither annotation files (JSON, CSV, Parquet ...) nor tars"),
    ("data check file", "and this name has no ending"),
    ("data index dir --workers 0", "--workers must be at least 1, not 0"),
    ("data shard --dataset mini_world_caption --out file", "argument --out: 'file' cannot be written"),
    ("data capfilt --dataset mini_world_caption --ranker blip2:mini --out file/x", "argument --out: 'file/x' cannot"),
    ("data cache-features --cfg-path stage1 --out file", "argument --out: 'file' cannot be written"),
    ("recipes --copy blip2/stage1 --to file/x.yaml", "argument --to: 'file/x.yaml' cannot be written"),
    ("recipes --copy blip2/stage1 --eval", "argument --eval: not allowed with argument --copy"),
    ("recipes --to x.yaml", "--to x.yaml is the file of --copy; add --copy NAME."),
    ("new-project json", "'json' is a Python module already, which the project would hide"),
    ("new-project torch", "'torch' is a Python module already"),
    ("models odd*", "no model matches 'odd*'; choose one of: "),
    ("compare file file", "file is a file; give the run folder, or its results/.\n"),
    ("lab itg --report-only --out file", "argument --out: 'file' cannot be written"),
    ("bench stage1 --batch 0", "--batch is 0, but must be at least 1"),
    ("bench stage1 --json dir", "dir is a folder); choose another path"),
    ("bench loader --json /dev/null", "/dev/null is not a regular file); choose another path"),
    ("convert --to lite --checkpoint x.pth --out file/x", "argument --out: 'file/x' cannot be written"),
    ("convert --to hf --checkpoint x.pth --out x --public", "--public makes a repository of --push public"),
    ("demo --port 65536", "argument --port: '65536' is not a port, a number from 0 to 65535"),
    ("demo --folder nowhere", "--folder: there is no folder nowhere."),
    ("serve --port -1", "argument --port: '-1' is not a port"),
    ("chat --model blip2_opt --message hi --top-p 0.5", "--top-p belongs to sampling: add --temperature"),
    ("generate --model blip2_opt --image a.png --top-p 0.5", "--top-p belongs to sampling: add --nucleus"),
    ("generate --model blip2_opt --image a.png --temperature 2", "--temperature belongs to sampling: add --nucleus"),
    ("generate --model blip2_opt --image a.png --attention file", "--attention file cannot be written ("),
    ("generate --model blip2_opt --image a.png --attention file/x.png", "--attention file/x.png cannot be written ("),
    ("generate --model blip2_opt --image a.png --attention a.png", "a.png would replace the picture"),
    ("generate --model blip2_opt --image a.png --attention .", "--attention . would replace the picture"),
    (f"generate --model blip2_opt --image {'a' * 300}.png", ".png: File name too long\n"),
    (f"train {'a' * 300}.yaml", ".yaml: File name too long. --traceback shows which step"),
])
def test_one_line_and_nothing_written(line: str, message: str, folder: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert main(line.split()) == exits.USER_ERROR
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and message in shown.err and shown.err.count("\n") == 1, shown.err
    assert not shown.out and sorted(folder.rglob("*")) == before


def test_an_argument_without_a_character_is_no_defect_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "blip2", "", "--jsn"]) == exits.USER_ERROR
    assert "unrecognized arguments:  --jsn; did you mean --json? `" in capsys.readouterr().err
    assert main(["zoo", "blip2", ""]) == exits.USER_ERROR


def test_a_path_that_the_system_refuses_is_no_defect_of_the_package(monkeypatch: pytest.MonkeyPatch,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    for path, code in (("photos/a.jpg", exits.USER_ERROR), (command_line.__file__, exits.UNEXPECTED)):
        def refuse(argv: object, path: str = path) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

        monkeypatch.setattr("lavis_lite.cli.zoo.main", refuse)
        assert main(["zoo"]) == code
    assert "error: photos/a.jpg: Permission denied. --traceback shows which step" in capsys.readouterr().err


def test_what_the_system_or_an_outside_class_lacks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "~nosuchuser/x.csv"]) == exits.USER_ERROR
    assert "error: a path begins with ~, but this system does not know the home folder" in capsys.readouterr().err
    assert main(["train", "stage1", "--options", "run.output_dir=~nosuchuser/x"]) == exits.USER_ERROR
    assert "run.output_dir: ~nosuchuser/x: this system has no such user" in capsys.readouterr().err
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["train", "stage1", "--print-config"]) == exits.USER_ERROR
    assert capsys.readouterr().err == "error: the working folder does not exist any more; change to another folder.\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lavis_lite.cli.zoo.main", lambda argv: BaseProcessor()(None))
    assert main(["zoo"]) == exits.USER_ERROR
    assert "error: BaseProcessor must define __call__; its base class says what that is." in capsys.readouterr().err


def test_why_a_path_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert not why_not_writable(tmp_path / "new" / "x.png") and not why_not_writable(tmp_path / "file")
    assert not why_not_writable(tmp_path / "dir", folder=True) and not why_not_writable(tmp_path / "x/y", folder=True)
    assert why_not_writable(tmp_path / "link" / "x", folder=True).endswith("a symbolic link that leads nowhere")
    assert not list(tmp_path.glob("new*"))


def test_closed_streams_and_a_full_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def overflow(argv: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `print` does with `> /dev/full`

    monkeypatch.setattr("lavis_lite.cli.zoo.main", overflow)
    assert main(["zoo"]) == exits.USER_ERROR
    assert "error: the output cannot be written: No space left on device." in capsys.readouterr().err
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{name}", None)
    assert main(["models", "blip2"]) == exits.SUCCESS


INTERRUPT = """
import importlib.abc, os, runpy, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv, sys.orig_argv = [{started!r}, "models"], [sys.executable, *{original!r}]
{start}
"""
REPOSITORY = Path(__file__).resolve().parents[2]
STARTS = {"-m": ("-m", ["-m", "lavis_lite", "models"], "runpy.run_module('lavis_lite', run_name='__main__')"),
          "lavis-lite": ("bin/lavis-lite", ["bin/lavis-lite"], "from lavis_lite.cli.main import entry; entry()"),
          "train.py": (str(REPOSITORY / "train.py"), [str(REPOSITORY / "train.py")],
                       "import sys; from lavis_lite.cli.main import main; sys.exit(main())")}


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("module", ["lavis_lite.moved", "lavis_lite.process.exits", "lavis_lite.cli.models"])
def test_ctrl_c_while_a_command_is_imported(how: str, module: str) -> None:
    started, original, start = STARTS[how]
    text = INTERRUPT.format(module=module, started=started, original=original, start=start)
    ended = subprocess.run([sys.executable, "-c", text], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr, ended.stderr


@pytest.mark.parametrize(("started", "original"), [("mine.py", ["mine.py"]), (str(REPOSITORY / "train.py"), ["-c"])])
def test_ctrl_c_belongs_to_other_programs_and_to_loader_workers(started: str, original: list[str]) -> None:
    text = INTERRUPT.format(module="lavis_lite.moved", started=started, original=original, start="import lavis_lite")
    ended = subprocess.run([sys.executable, "-c", text], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode != 130 and "KeyboardInterrupt" in ended.stderr
