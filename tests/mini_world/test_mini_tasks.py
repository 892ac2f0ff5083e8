"""The mini world's other tasks: files that the published layouts' readers take, right answers among the candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis_lite.datasets.media.video import READERS
from lavis_lite.errors import DataError
from lavis_lite.mini_world.tasks import prepare_mini_tasks
from lavis_lite.registry import registry
from tests.datasets.test_configs import composed

SMALL = "{prepare_args: {pictures: 3, clips: 1}%s}"


@pytest.fixture()
def built(tmp_path: Path) -> Any:
    def build(name: str, more: str = "") -> Any:
        section = composed(tmp_path, f"{{{name}: {SMALL % more}}}").config.datasets[name]
        return registry.get_builder_class(section.builder)(name, section).build("test", training=False)

    return build


def test_options_are_four_with_the_right_one_among_them(built: Any) -> None:
    choice, direct = built("mini_world_options"), built("mini_world_options", ", type: direct")
    assert choice.multiple_choice and not direct.multiple_choice and len(choice) == len(direct) == 9
    for index in range(len(choice)):
        one, other = choice.question(index), direct.question(index)
        assert len(set(one["choices"])) == 4 and one["choices"][one["label"]] == other["answers"][0]
        assert other["answers"] == other["answers"][:1] * 10 and one["question"] == other["question"]
    assert choice[0]["image"].shape == (3, 64, 64)


def test_rounds_have_ten_candidates_history_and_dense_annotations(built: Any) -> None:
    rounds = built("mini_world_dialogue")
    first, second = rounds.question(0), rounds.question(1)
    assert first["candidates"][first["label"]] == first["answers"][0] and len(set(first["candidates"])) == 10
    assert second["history"] == f"Q: {first['question']} A: {first['answers'][0]}" and first["caption"]
    assert first["relevance"][first["label"]] == 1 and "relevance" not in second


def test_yes_or_no_and_signs(built: Any) -> None:
    yes_no, signs = built("mini_world_yes_no"), built("mini_world_signs")
    assert yes_no.question(0)["choices"] == ["no", "yes"] and yes_no.question(0)["question"].startswith("is there a")
    row = signs[0]
    assert row["ocr_tokens"][0].startswith("large striped black heart") and row["image"].shape == (3, 64, 64)


@pytest.mark.parametrize("reader", list(READERS))
def test_clips_are_videos(built: Any, reader: str) -> None:
    pytest.importorskip(reader, reason="a package that reads videos")
    clips = built("mini_world_clips", f", reader: {reader}")
    video = clips[0]["video"]
    assert video.shape == (3, 4, 64, 64) and (video[:, 0] != video[:, 3]).any() and len(clips.answer_list) == 25


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pictures=0"):
        prepare_mini_tasks(tmp_path / "a", pictures=0)
