"""BLEU, ROUGE-L and CIDEr against the official scores, hand-made values, odd characters and bad input."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics import caption_report as report_module
from lavis_lite.metrics.caption_report import caption_report
from lavis_lite.metrics.captions import CaptionScores, caption_scores, tokenized
from lavis_lite.metrics.ngrams import Corpus
from lavis_lite.metrics.rouge import one_rouge_l, rouge_l_scores

WORDS = "a the red dog cat man street on in rides ball two green. Sitting, t-shirt dog's U.S. can't 5 (left)".split()
BREAKS = "\n \r \x0b \x0c \x1c \x1d \x1e \x85 \u2028 \u2029 \0 \r\n |||".split(" ")


@pytest.mark.shared
def test_scores_are_the_official_ones(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "metrics"
    captions = json.loads((folder / "human_loo_val2017.json").read_text(encoding="utf-8"))
    expected = json.loads((folder / "expected_human_loo.json").read_text(encoding="utf-8"))
    found = caption_scores({key: one[0] for key, one in captions["cands"].items()}, captions["refs"])
    assert len(found.ids) == 5000 and not found.empty
    for name, score in found.scores.items():
        assert score == pytest.approx(expected["scores"][name], abs=1e-9)
        wanted = [expected["per_image"][name][key] for key in found.ids]
        assert found.per_image[name] == pytest.approx(np.array(wanted), abs=1e-9), name


def sentence(dice: random.Random) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(1, 9)))


def assert_same(one: CaptionScores, two: CaptionScores) -> None:
    for name, values in one.per_image.items():
        places = [two.ids.index(key) for key in one.ids]
        assert values == pytest.approx(two.per_image[name][places], abs=1e-12), name
        assert one.scores[name] == pytest.approx(two.scores[name], abs=1e-12)


def test_line_breaks_of_any_kind_shift_nothing() -> None:
    dice = random.Random(5)
    clean = {key: [sentence(dice) for _ in range(5)] for key in range(500)}
    odd = {key: [text.replace(" ", dice.choice(BREAKS), dice.randint(0, 2)) + dice.choice(["", *BREAKS])
                 for text in texts] for key, texts in clean.items()}

    def scores(captions: dict[int, list[str]], order: list[int]) -> CaptionScores:
        return caption_scores({key: captions[key][0] for key in order}, {key: captions[key][1:] for key in order})

    keys = list(clean)
    straight = scores(clean, keys)
    assert_same(straight, scores(odd, keys))
    dice.shuffle(keys)
    assert_same(straight, scores(odd, keys))


def test_rouge_of_all_at_once_is_that_of_one_by_one() -> None:
    dice = random.Random(8)
    words = [*"abcdefg", "3\u00a01/2"]

    def tokens(most: int) -> list[str]:
        return dice.choices(words[:dice.choice([3, 7, 8])], k=dice.randint(0, most))

    predictions = [tokens(dice.choice([0, 5, 62, 63, 64, 130])) for _ in range(300)]
    references = [[tokens(dice.choice([0, 4, 12, 90])) for _ in range(dice.randint(1, 4))] for _ in predictions]
    found = rouge_l_scores(Corpus.of(predictions, references), predictions, references)
    assert found == pytest.approx([one_rouge_l(*pair) for pair in zip(predictions, references, strict=True)], abs=1e-15)
    assert one_rouge_l([], [[]]) == 1 and one_rouge_l(["a", "b", "c"], [["a", "x", "c"]]) == pytest.approx(2 / 3)


def test_scores_by_hand() -> None:
    found = caption_scores({1: "a red dog runs fast", 2: "...", 3: ""},
                           {1: ["A red dog runs fast."], 2: ["a cat"], 3: ["a cat", "two cats"]})
    assert found.empty == [2, 3]
    for name, values in found.per_image.items():
        assert values[0] == pytest.approx(10 if name == "CIDEr" else 1) and values[1:] == pytest.approx([0, 0])
    assert found.scores["ROUGE_L"] == pytest.approx(1 / 3)


def test_captions_that_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="no captions to score"):
        caption_scores({}, {1: ["a"]})
    with pytest.raises(DataError, match=r"25 of 26 captions have no reference.*ids: 1, 2, .*20 and 5 more\."):
        caption_scores({key: "a" for key in range(26)}, {0: ["a"], 1: []})
    with pytest.raises(DataError, match=r"1 of 1 predicted captions are not text; ids: 7\."):
        caption_scores({7: ["a"]}, {7: ["a"]})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="not a list of texts; ids: 7"):
        caption_scores({7: "a"}, {7: "a cat"})


def test_a_part_of_the_images_keeps_its_captions() -> None:
    part = tokenized({1: "a", 2: "b", 3: "c"}, {1: ["x"], 2: ["y", "z"], 3: ["w"]}).of([3, 2])
    assert (part.ids, part.predictions, part.references) == ([3, 2], [["c"], ["b"]], [[["w"]], [["y"], ["z"]]])


def test_scores_that_need_java_are_left_out_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                                caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with caplog.at_level(logging.WARNING):
        found = caption_report({1: "a cat"}, {1: ["a cat"]}, ["meteor", "bleu", "spice"])
    assert found.scores["agg_metrics"] == found.scores["Bleu_4"] and not {"METEOR", "SPICE"} & found.scores.keys()
    assert [record.message.split(" was")[0] for record in caplog.records] == list(found.missing) == ["METEOR", "SPICE"]
    assert "agg_metrics" not in caption_report({1: "a cat"}, {1: ["a cat"]}, ["meteor"]).scores


def test_domains_are_sets_of_their_own_also_for_java(monkeypatch: pytest.MonkeyPatch) -> None:
    def meteor(captions: Any, parts: Any) -> Any:
        return [(0.5, np.zeros(3)), *((float(sum(part)), np.zeros(len(part))) for part in parts)]

    monkeypatch.setitem(report_module._JAVA, "METEOR", meteor)
    said, truth = {1: "a cat", 2: "a dog", 3: "two men"}, {1: ["a cat"], 2: ["a red dog"], 3: ["boats"]}
    found = caption_report(said, truth, ["cider", "meteor"], {1: "in", 2: "out", 3: "out"})
    alone = caption_report({2: said[2], 3: said[3]}, truth, ["cider"])
    assert found.scores["CIDEr_out"] == alone.scores["CIDEr"] != found.scores["CIDEr"] == found.scores["agg_metrics"]
    assert (found.scores["METEOR"], found.scores["METEOR_in"], found.scores["METEOR_out"]) == (0.5, 0.0, 3.0)
    assert found.per_image.keys() == {"CIDEr", "METEOR"} and found.ids == [1, 2, 3]
    assert caption_report(said, truth, ["meteor"]).scores["agg_metrics"] == 0.5
