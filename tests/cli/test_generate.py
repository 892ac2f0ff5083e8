"""`python -m lavis_lite generate` and `zoo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_lite import zoo
from lavis_lite.cli.generate import QUIET
from lavis_lite.cli.main import main
from lavis_lite.config.layers import read_yaml
from lavis_lite.config.named import CONFIGS, MODEL_CONFIG_HOME, model_types
from lavis_lite.process import exits
from lavis_lite.registry import registry


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for transformers ends with the test."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 0, 1, 10 (in the order of their names), and a broken one."""
    for number in (0, 1, 10):
        Image.new("RGB", (40 + number, 30), (20 * number, 90, 30)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_text("no picture")
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


class Writer:
    """Writes how green an image is, and what it was asked."""

    device = torch.device("cpu")

    def generate(self, samples: dict[str, Any], num_captions: int = 1, num_beams: int = 5, **more: Any) -> list[str]:
        """See the class."""
        self.last = {**more, "num_beams": num_beams}
        return [f"{samples.get('prompt', '')}{round(float(image.mean()), 3)}/{count}" for image in samples["image"]
                for count in range(num_captions)]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    """In place of a model of the zoo."""
    made = Writer()
    images = {"eval": lambda image: torch.full((3, 2, 2), float(image.size[0]))}
    monkeypatch.setattr(zoo, "load_model_and_preprocess", lambda *names, **wishes: (made, images, {}))
    return made


def test_every_picture_is_told_and_what_is_broken_costs_no_other(folder: Path, writer: Writer,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "blip2_opt", "--image", str(folder), "nowhere.jpg", "--prompt", "wide ",
             "--batch-size", "2", "--num-beams", "3", "--penalise-prompt"]
    assert main(words) == exits.PROBLEMS
    told = capsys.readouterr()
    assert told.out.splitlines() == [f"{folder / name}.png: wide {width}.0/0" for name, width in
                                     (("0", 40), ("1", 41), ("10", 50))]
    assert told.err.splitlines() == ["error: nowhere.jpg: there is no such file",
                                     f"error: {folder / 'broken.jpg'}: is not an image of a known format"]
    assert writer.last == {"num_beams": 3, "penalise_prompt": True}


def test_json_is_a_line_for_each(folder: Path, writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "blip2_opt", "--image", str(folder / "0.png"), str(folder / "broken.jpg"),
             "--num-captions", "2", "--nucleus", "--json"]
    assert main(words) == exits.PROBLEMS
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"image": str(folder / "0.png"), "texts": ["40.0/0", "40.0/1"]},
                    {"image": str(folder / "broken.jpg"), "error": "is not an image of a known format"}]
    assert writer.last["seeds"] == (42,) and writer.last["use_nucleus_sampling"]


@pytest.mark.parametrize(("more", "words"), [
    (["--num-beams", "0"], "num_beams is 0"), (["--num-captions", "9"], "at most num_beams, which is 5"),
    (["--nucleus", "--top-p", "2"], "top_p is 2.0"), (["--batch-size", "0"], "--batch-size: must be at least 1"),
    (["--model", "blip2_op"], "unknown model 'blip2_op'"), (["--model", "blip2", "--prompt", "x"], "without a prompt"),
    (["--model", "blip2", "--num-captions", "2"], "--num-captions: blip2 has no such setting"),
    (["--model", "blip2", "--penalise-prompt"], "--penalise-prompt: blip2 has no such setting"),
    (["--image", "nowhere.jpg"], "no pictures found: nowhere.jpg: there is no such file"),
    (["--max-new-tokens", "3", "--min-new-tokens", "5"], "at most max_new_tokens, which is 3"),
])
def test_mistakes_are_told_before_a_model_is_loaded(more: list[str], words: str, folder: Path,
                                                    monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(zoo, "load_model_and_preprocess", lambda *names, **wishes: pytest.fail("it was loaded"))
    assert main(["generate", "--model", "blip2_opt", "--image", str(folder), *more]) == 2
    assert words in capsys.readouterr().err


def test_a_real_model_of_the_zoo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "blip2", "--type", "mini", "--image", str(folder / "0.png"), "--num-beams", "1",
             "--max-new-tokens", "3"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"{folder / '0.png'}: ")


def test_a_prompt_longer_than_the_language_model_is_one_clear_error(folder: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "blip2_opt", "--image", str(folder / "0.png"), "--num-beams", "1",
             "--max-new-tokens", "20", "--prompt", "blue " * 10_000]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "1 of 1 prompts is too long for the language model: row 0 has 10001 tokens" in told
    assert "there is room for 224 (256 positions - 12 vectors of the picture - 20 for the answer)" in told
    assert "Traceback" not in told and len(told) < 500


def test_the_zoo_tells_what_runs_offline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("blip2_opt ") and " pretrain_opt2.7b " in line)
    assert "not run on released files" in row and "blip2_pretrained_opt2.7b.pth + facebook/opt-2.7b" in row
    told = lines[lines.index(row) + 1]
    assert "after stage 2" in told and "VQAv2 test-dev 52.3" in told
    assert main(["zoo", "blip2_x*"]) == 2


def test_the_zoo_as_json_has_every_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--json"]) == 0
    rows = {(row["arch"], row["model_type"]): row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [(arch, kind) for arch, kinds in zoo.model_zoo for kind in kinds]
    for (arch, kind), row in rows.items():
        assert row["status"] == (zoo.RUNS_OFFLINE if kind.startswith("mini") else zoo.NOT_RUN)
        if arch in registry.model.builtins:  # not what other tests registered
            assert row["what"] and (row["size"] or kind.startswith("mini")), f"{arch}/{kind}: see configs/zoo.yaml"


def test_facts_are_about_types_that_exist() -> None:
    for arch, facts in read_yaml(Path(str(CONFIGS / "zoo.yaml"))).items():
        assert arch not in MODEL_CONFIG_HOME and set(facts) <= set(model_types(arch))


def test_attention_is_drawn_for_each_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        pictures.append(str(tmp_path / folder / "x.png"))
        Image.new("RGB", (64, 48), "red").save(pictures[-1])
    words = ["generate", "--model", "blip2_opt", "--num-beams", "1", "--max-new-tokens", "4", "--image"]
    assert main([*words, *pictures, "--attention", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out.splitlines()[0].partition(": ")[2]
    drawn = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in drawn] == ["0_x.png", "1_x.png"]
    assert Image.open(drawn[0]).width == (1 + min(len(text.split()), 5)) * 200 + 8
    assert main([*words, pictures[0], "--attention", str(tmp_path / "new" / "one.png")]) == 0
    assert (tmp_path / "new" / "one.png").is_file()


def test_attention_that_cannot_be_drawn_is_refused(folder: Path, writer: Writer,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "blip2_opt", "--image", str(folder)]
    assert main([*words, "--attention", "one.png"]) == 2
    assert "one.png is one file for 4 pictures; name a folder, such as one." in capsys.readouterr().err
    assert not hasattr(writer, "last") and not Path("one.png").exists()
