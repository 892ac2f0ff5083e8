"""Re-ranking that is stopped: at once, by all ranks together, and what is finished is not scored again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lavis_lite import distributed
from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, PreprocessConfig
from lavis_lite.datasets.loading.loader import eval_loader
from lavis_lite.device import Precision
from lavis_lite.evaluation.evaluator import Evaluator
from lavis_lite.evaluation.resume import FOLDER, EvaluationStopped
from lavis_lite.runners.standard_hooks import BadSamples
from lavis_lite.tasks.retrieval import RetrievalRunConfig, RetrievalTask
from lavis_lite.tracking.sinks import Sink
from lavis_lite.tracking.tracker import Tracker
from tests.helpers.processes import run_processes
from tests.tasks.fakes import TinyModel, dataset

CPU = torch.device("cpu")


class Split:
    """The fakes' split as a data set."""

    def __init__(self, images):
        split = dataset(images)
        self.text, self.img2txt, self.txt2img, self.pixels = split.text, split.img2txt, split.txt2img, split.pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {"image": self.pixels[index], "index": index}


class Bars(Sink):
    """Notes titles, totals, and how far they came."""

    def __init__(self):
        self.seen = []

    def begin(self, title, total, done=0, unit="samples"):
        self.seen.append([title, total, unit, done])

    def proceed(self, done):
        self.seen[-1][-1] = done


def evaluate(folder, stop_after=None, k_test=3, images=10):
    """(scores, ITM's pairs, bars); asked to stop after so many images were re-ranked on this rank."""
    run = RetrievalRunConfig(batch_size_eval=2, num_workers=0, k_test=k_test, pair_batch_size=100, evaluate=True)
    cfg = Config(ModelConfig(), PreprocessConfig(), {"toy": DatasetConfig()}, run)
    model, bars = TinyModel().eval(), Bars()
    evaluator = Evaluator(
        RetrievalTask(run), model, cfg, CPU, Precision.from_run(run, CPU), eval_loader,
        BadSamples(run, Path(folder)), Path(folder), Tracker([bars]),
        lambda: 143 if stop_after is not None and len(model.itm_shapes) >= stop_after else 0)
    try:
        return evaluator.split({"toy": Split(images)}, "test", 0), sum(pairs for pairs, _ in model.itm_shapes), bars
    except EvaluationStopped as stop:
        assert stop.exit_code == 143 and stop.kept
        return None, sum(pairs for pairs, _ in model.itm_shapes), bars


def test_it_stops_after_the_image_at_hand_and_goes_on(tmp_path):
    whole, every, bars = evaluate(tmp_path / "whole")
    assert bars.seen == [["test toy", 10, "samples", 10], ["test toy re-ranking", 10, "images", 10]]
    scores, first, _ = evaluate(tmp_path / "stopped", stop_after=4)
    assert scores is None and 0 < first < every
    scores, rest, bars = evaluate(tmp_path / "stopped")
    assert scores == whole and first + rest == every and bars.seen[1][-1] == 10
    again, none, _ = evaluate(tmp_path / "stopped")
    assert again == whole and none == 0


def test_other_candidates_are_scored_again(tmp_path):
    whole, every, _ = evaluate(tmp_path / "whole")
    evaluate(tmp_path / "stopped")
    [journal] = (tmp_path / "stopped" / FOLDER).iterdir()
    head, *lines = (json.loads(line) for line in journal.read_text().splitlines())
    assert {line["key"] for line in lines} == {f"match {place}" for place in range(10)}
    journal.write_bytes(b"".join(altered(entry, number) for number, entry in enumerate([head, *lines])))
    scores, some, _ = evaluate(tmp_path / "stopped")
    assert scores == whole and 0 < some < every


def altered(entry, number):
    """The line again; every second one is of other texts."""
    from lavis_lite.evaluation.resume import encode_line

    entry.pop("crc")
    if "value" in entry and number % 2:
        entry["value"]["texts"] = "others"
    return encode_line(entry)


def two_ranks(folder):
    """Rank 1 alone is asked to stop; then both go on."""
    stopped, first, _ = evaluate(folder, stop_after=1 if distributed.rank() == 1 else None)
    scores, rest, _ = evaluate(folder)
    return stopped, first, scores, rest


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on(tmp_path):
    whole, every, _ = evaluate(tmp_path / "whole")
    one, two = run_processes(two_ranks, 2, str(tmp_path / "two"))
    assert one[0] is two[0] is None and one[2] == two[2] == whole
    assert one[1] + two[1] + one[3] + two[3] == every and one[3] == 0 < two[3]
