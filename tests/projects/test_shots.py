"""projects/flamingo/shots.py: examples in front of questions, and the scores of answers behind them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.conversation import Picture, Turn
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.controls import AblatedImages
from projects.flamingo.shots import ShotsDataset
from tests.end_to_end.conftest import Train, cache, train_here  # noqa: F401


class Questions(BaseDataset):
    """Question n about a picture full of n; the answers are known if it is trained on."""

    def __init__(self, learned: bool) -> None:
        self.learned, self.has_answers = learned, True
        self.sample_keys = ("image", "text_input", "question_id", "instance_id", *(() if learned else ("index",)))

    def __len__(self) -> int:
        return 9

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> dict[str, Any]:
        shown = self.picture(index) if picture is None else picture
        sample = {"image": shown, "text_input": f"q{index}", "question_id": index, "instance_id": str(index)}
        return sample | ({"text_output": f"a{index}"} if self.learned else {"index": index})

    def picture(self, index: int, rng: random.Random | None = None) -> torch.Tensor:
        return torch.full((3, 2, 2), float(index))

    def image_name(self, index: int) -> str:
        return str(index)


def shots(count: int, blind: int = 0, training: bool = False) -> ShotsDataset:
    return ShotsDataset(Questions(training), Questions(True), count, blind, training)


def test_examples_come_with_their_pictures_and_answers() -> None:
    sample = shots(3).sample(4)
    turns = sample["conversation"].turns
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3 + ["user"]
    assert not any(turn.learned for turn in turns) and turns[-1].parts == (Picture(3), "q4")
    for number in range(3):
        asked, answer = turns[2 * number].parts[1], turns[2 * number + 1].parts[0]
        assert asked[1:] == answer[1:] == str(int(sample["image"][number][0, 0, 0]))
    assert shots(3).sample(4)["conversation"] == sample["conversation"]  # the same in every run


def test_examples_of_text_alone_have_no_pictures() -> None:
    sample = shots(2, blind=2).sample(4)
    assert sample["conversation"].pictures == 1 == len(sample["image"])
    assert sample["conversation"].turns[-1].parts == (Picture(0), "q4")


def test_training_draws_examples_and_learns_every_answer() -> None:
    samples = [shots(2, training=True).sample(0, random.Random(seed)) for seed in range(20)]
    assert len({int(sample["image"][0][0, 0, 0]) for sample in samples}) > 4  # others every time
    assert {len(sample["image"]) for sample in samples} == {3}  # so that 0, 1 and 2 examples are learned equally often
    assert all(turn.learned == (turn.role == "assistant") for sample in samples
               for turn in sample["conversation"].turns)


def test_captions_in_turns() -> None:
    class Captions(Questions):
        def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> dict[str, Any]:
            return {"image": self.picture(index), "text_input": f"caption {index}", "instance_id": str(index)}

    captions = Captions(True)
    captions.sample_keys = ("image", "text_input", "instance_id")
    sample = ShotsDataset(captions, captions, 1, 0, True, prompt="a photo of").sample(4)
    last = sample["conversation"].turns[2:]
    assert last == (Turn("user", (Picture(1), "a photo of")), Turn("assistant", ("caption 4",), True))
    assert sample["image"][1][0, 0, 0] == 4.0


def test_batches_and_the_control_with_other_pictures() -> None:
    data, control = shots(2), AblatedImages(shots(2), "wrong_image")
    right, wrong = ([one.sample(index) for index in range(3)] for one in (data, control))
    batch = control.collater(wrong)
    assert batch["picture_counts"] == [3, 3, 3] and batch["image"].shape == (9, 3, 2, 2)
    assert batch["question_id"] == [0, 1, 2] == batch["index"]
    for own, other in zip(right, wrong, strict=True):
        assert own["conversation"] == other["conversation"]
        assert torch.equal(torch.stack(own["image"][:2]), torch.stack(other["image"][:2]))
        assert not torch.equal(own["image"][2], other["image"][2])


@pytest.mark.slow
def test_the_recipe_trains_and_is_scored(tmp_path: Path, train_here: Train) -> None:  # noqa: F811
    small = "{train: 24, val: 8, test: 8, ood: 4, seed: 3}"
    options = [f"datasets.mini_world_vqa.prepare_args={small}", "datasets.mini_world_vqa.shots=1", "run.max_iters=2",
               "run.batch_size_train=4", "run.num_workers=0", "run.log_freq=1", "run.valid_splits=[]",
               f"run.output_dir={tmp_path}"]
    done = train_here(*options, cfg="projects/flamingo/mini.yaml", common=())
    assert done.returncode == 0, done.stderr
    assert "step 2  test: VQA accuracy" in done.stdout
    options.append("datasets.mini_world_vqa.blind_shots=2")
    refused = train_here(*options, cfg="projects/flamingo/mini.yaml", common=())
    assert refused.returncode and "blind_shots: 2 is not from 0 to shots: 1" in refused.stderr
