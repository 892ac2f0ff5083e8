"""The watched Java programs of METEOR and SPICE: with programs that stand in for Java, and METEOR's own where it is."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lavis_lite.errors import MissingExtraError
from lavis_lite.metrics import java_scores
from lavis_lite.metrics.captions import TokenizedCaptions, tokenized
from lavis_lite.metrics.java_scores import JavaScoreError, meteor_of_parts, meteor_scores, spice_of_parts, spice_scores

PAIR = TokenizedCaptions([8, 9], [["a", "cat"], []], [[["a", "cat"], ["cats"]], [["dog"]]])
METEOR = """while IFS= read -r line; do echo "$line" >> {log}; case "$line" in
EVAL*) echo 0.5; echo 0.25; echo 0.375;; *) echo "1 2";; esac; done"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as pycocoevalcap, with the models of SPICE."""
    for name in ("meteor/meteor-1.5.jar", "spice/spice-1.0.jar", "spice/lib/stanford-corenlp-3.6.0.jar",
                 "spice/lib/stanford-corenlp-3.6.0-models.jar"):
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(java_scores, "_package_file", lambda metric, name: tmp_path / "package" / name)
    return tmp_path / "package"


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "home" / "bin" / "java"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))


def test_meteor_asks_once_per_image_and_once_for_all(package: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, METEOR.format(log=tmp_path / "log"))
    whole, each = meteor_scores(PAIR)
    assert whole == 0.375 and each.tolist() == [0.5, 0.25]
    assert (tmp_path / "log").read_text().splitlines() == [
        "SCORE ||| a cat ||| cats ||| a cat", "SCORE ||| dog ||| ", "EVAL ||| 1 2 ||| 1 2"]


def test_a_part_is_asked_for_by_its_images_statistics(package: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, """while IFS= read -r line; do echo "$line" >> LOG; n=$((n + 1)); case "$line" in
EVAL*"|||"*"|||"*) echo 0.5; echo 0.25; echo 0.375;; EVAL*) echo 0.7; echo 0.7;; *) echo "$n 2";; esac; done
""".replace("LOG", str(tmp_path / "log")))
    whole, part = meteor_of_parts(PAIR, [[1]])
    assert whole[0] == 0.375 and part[0] == 0.7 and part[1].tolist() == [0.7]
    assert (tmp_path / "log").read_text().splitlines()[2:] == ["EVAL ||| 1 2 ||| 2 2", "EVAL ||| 2 2"]


def test_no_token_ends_a_line(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, METEOR.format(log=tmp_path / "log"))
    odd = TokenizedCaptions([8, 9], [["a\u2028cat\n"], ["\ud800"]], [[["x|||y\r", "\0z"]], [["dog\x85"]]])
    assert meteor_scores(odd)[1].tolist() == [0.5, 0.25]
    assert (tmp_path / "log").read_text().split("\n")[:2] == ["SCORE ||| x y   z ||| a cat ", "SCORE ||| dog  ||| ?"]


@pytest.mark.parametrize(("script", "words"), [
    ("exec sleep 30", "wrote nothing for 0.3 seconds and was ended. It wrote nothing"),
    ("echo Out of memory; exit 3", "exit code 3 before it had written all scores. Its last lines: Out of memory"),
    ("while read line; do echo what; done", "answered 'what' instead of a score"),
])
def test_a_program_that_fails_is_told(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str,
                                      words: str) -> None:
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(JavaScoreError, match=words):
        meteor_scores(PAIR, patience=0.3 if "sleep" in script else 20)


def test_spice_reads_the_file_that_java_writes(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps([{"image_id": place, "scores": {"All": {"f": score}}}
                         for place, score in ((1, 0.25), (0, 0.5))])
    stand_in(tmp_path, monkeypatch, f"cp $4 {tmp_path}/asked; echo parsing; echo '{answer}' > $8")
    whole, each = spice_scores(PAIR)
    assert whole == 0.375 and each.tolist() == [0.5, 0.25]
    assert [score for score, _ in spice_of_parts(PAIR, [[1], [0, 1]])] == [0.375, 0.25, 0.375]
    asked, _ = json.loads((tmp_path / "asked").read_text())
    assert asked == {"image_id": 0, "test": "a cat", "refs": ["a cat", "cats"]}
    stand_in(tmp_path, monkeypatch, "echo '{}' > $8")
    with pytest.raises(JavaScoreError, match="without readable scores"):
        spice_scores(PAIR)
    stand_in(tmp_path, monkeypatch, "echo broken; exit 1")
    with pytest.raises(JavaScoreError, match="exit code 1. Its last lines: broken"):
        spice_scores(PAIR)


def test_what_is_missing_is_named(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MissingExtraError, match="METEOR needs Java"):
        meteor_scores(PAIR)
    (package / "spice/lib/stanford-corenlp-3.6.0-models.jar").unlink()
    with pytest.raises(MissingExtraError, match="SPICE needs the Stanford CoreNLP 3.6.0 program and models"):
        spice_scores(PAIR)
    monkeypatch.undo()
    monkeypatch.setattr(java_scores, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="METEOR needs pycocoevalcap"):
        meteor_scores(PAIR)


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("java") or not find_spec("pycocoevalcap"), reason="needs Java and pycocoevalcap")
def test_meteor_is_the_official_one(shared_dir: Path) -> None:
    """Loading its paraphrases takes Java longer than scoring 5,000 images; the dialogue with it is tested above."""
    folder = shared_dir / "data" / "metrics"
    captions = json.loads((folder / "human_loo_val2017.json").read_text(encoding="utf-8"))
    expected = json.loads((folder / "expected_human_loo.json").read_text(encoding="utf-8"))
    found = tokenized({key: said[0] for key, said in captions["cands"].items()}, captions["refs"])
    whole, each = meteor_scores(found, patience=300)
    assert whole == pytest.approx(expected["scores"]["METEOR"], abs=1e-9)
    assert each == pytest.approx(np.array([expected["per_image"]["METEOR"][key] for key in found.ids]), abs=1e-9)
