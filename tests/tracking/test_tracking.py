"""Where records go: console, log.jsonl, TensorBoard, W&B, the picture."""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import sys
import types

import pytest
import torch

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import MissingExtraError
from lavis_lite.tracking import tracker as jsonl
from lavis_lite.tracking.sinks import Console, Sink, TensorBoard, WeightsAndBiases, flat_scalars, logged_in, record_line
from lavis_lite.tracking.tracker import Tracker, parameter_table

pytestmark = pytest.mark.usefixtures("curves")


def row(step, loss=5.0):
    return {"step": step, "epoch": 0, "loss": loss, "loss_itc": 2.5, "loss_itm": 0.7, "loss_lm": 1.8, "lr": 1e-4,
            "images_per_second": 123.4}


VAL = {"step": 2, "epoch": 0, "split": "val", "r_mean": 50.0, "agg_metrics": 0.5}


def test_jsonl_has_one_object_per_record_and_drops_what_a_resume_voids(tmp_path):
    log = jsonl.JsonlLog(tmp_path / "run/log.jsonl")
    log.open(0, 10)
    for record in (row(1), row(2), VAL, row(3, float("nan")), row(4, float("inf"))):
        log.record(record)
    log.close()
    lines = log.path.read_text().splitlines()
    assert json.loads(lines[0]) == row(1) and json.loads(lines[2]) == VAL
    assert json.loads(lines[3])["loss"] == "nan" and "NaN" not in lines[3] + lines[4]
    log.open(2, 10)
    log.record(row(3, 4.0))
    log.close()
    assert jsonl.read(log.path) == [row(1), row(2), VAL, row(3, 4.0)]
    log.open(0, 10)
    log.close()
    assert jsonl.read(log.path) == []
    assert [path.name for path in log.path.parent.iterdir()] == ["log.jsonl"]


def test_a_record_outside_of_training_is_appended(tmp_path):
    log = jsonl.JsonlLog(tmp_path / "log.jsonl")
    log.record(VAL)
    log.close()
    log.record({**VAL, "split": "test"})
    log.close()
    assert [found["split"] for found in jsonl.read(log.path)] == ["val", "test"]


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(row(1)) + '\n{"step": 2, "lo')
    assert jsonl.read(tmp_path / "log.jsonl") == [row(1)]


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    console = Console(stream)
    console.open(0, 10)
    console.advance(1)
    console.record(row(1))
    console.record(VAL)
    console.record({"step": 2, "event": "skipped: loss or gradient was not finite", "skipped": 1})
    console.log("step 2  val: R@1 50.0")
    console.close()
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("step 1/10  loss 5.0000 (itc 2.5000  itm 0.7000  lm 1.8000)  lr 1.00e-04  123.4 images/s")
    assert second == "step 2  skipped: loss or gradient was not finite  1"
    assert third == "step 2  val: R@1 50.0"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal():
    stream = Terminal()
    console = Console(stream)
    console.open(4, 10)
    console.advance(5)
    console.record(row(5))
    console.log("a line")
    console.close()
    text = stream.getvalue()
    assert "5/10" in text and "loss 5.0000 (itc 2.5000" in text and "\na line\n" in text.replace("\r", "\n")


def test_a_loss_without_parts():
    assert record_line({"step": 1, "loss": 1.0, "lr": 0.1, "images_per_second": 5.0}) == (
        "loss 1.0000  lr 1.00e-01  5.0 images/s")


def test_waiting_and_memory_are_shown():
    line = record_line({**row(1), "data_wait": 0.031, "peak_memory_gib": 12.34, "skipped_steps": 0})
    assert line.endswith("images/s  data wait 3%  peak 12.3 GiB")


def test_a_skipped_step_is_shown_short_and_kept_whole(tmp_path):
    samples = [f"set a.json:{number}" for number in range(5)]
    record = {"step": 2, "event": "skipped", "skipped": 1, "losses": [[float("nan"), 1.0]], "samples": samples}
    assert record_line(record) == "skipped  1  set a.json:0, set a.json:1, set a.json:2 and 2 more, see log.jsonl"
    assert record_line({**record, "samples": samples[:2]}) == "skipped  1  set a.json:0, set a.json:1"
    log = jsonl.JsonlLog(tmp_path / "log.jsonl")
    log.record(record)
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail) == {
        **record, "losses": [["nan", 1.0]]}


def test_tensorboard_has_the_numbers(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoard(tmp_path, print)
    sink.open(0, 10)
    for record in (row(1), row(2, 4.0), VAL):
        sink.record(record)
    sink.close()
    found = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 5.0), (2, 4.0)]
    assert found.Scalars("val/r_mean")[0].value == 50.0
    assert "val/split" not in found.Tags()["scalars"]


def test_without_tensorboard_it_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = []
    sink = TensorBoard(tmp_path / "tensorboard", said.append)
    sink.open(0, 10)
    sink.record(row(1))
    sink.record(row(2))
    sink.close()
    assert len(said) == 1 and "pip install tensorboard" in said[0]
    assert not (tmp_path / "tensorboard").exists()


class FakeWandb(types.ModuleType):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.finished, self.id = [], [], 0, "abc123"

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1

    def Html(self, text):  # noqa: N802
        return "html", text

    def Image(self, image):  # noqa: N802
        return "image", tuple(image.shape)


def test_texts_and_pictures_reach_the_services_and_the_log(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "offline")
    stream = io.StringIO()
    board = TensorBoard(tmp_path / "tensorboard", print)
    tracker = Tracker([Console(stream), jsonl.JsonlLog(tmp_path / "log.jsonl"), board, WeightsAndBiases(tmp_path, "p"),
                       jsonl.Curves(tmp_path / "log.jsonl", tmp_path / "curves.png", lambda text: None)])
    tracker.open(0, 10)
    tracker.text(3, "captions", "a <red> dog\na cat")
    tracker.image(3, "captions/0", torch.rand(3, 8, 8))
    tracker.record({"step": 4, "hook": "speed", "lr": 2.0, "loss": 1.0})
    tracker.close()
    assert fake.logged == [(3, {"captions": ("html", "<pre>a &lt;red&gt; dog\na cat</pre>")}),
                           (3, {"captions/0": ("image", (3, 8, 8))}), (4, {"speed/lr": 2.0, "speed/loss": 1.0})]
    rows = jsonl.read(tmp_path / "log.jsonl")
    assert rows[0] == {"step": 3, "text": "captions", "content": "a <red> dog\na cat"} and len(rows) == 2
    assert stream.getvalue() == "step 4  speed: lr 2  loss 1\n"
    assert not (tmp_path / "curves.png").exists(), "a hook's numbers are not the run's losses"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["captions/0"] and events.Tags()["scalars"] == ["speed/lr", "speed/loss"]


def test_wandb_stays_offline_and_goes_on_with_its_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for start in (0, 1):
        sink = WeightsAndBiases(tmp_path, "a project")
        sink.open(start, 10)
        sink.record(row(start + 1))
        sink.close()
    assert [(made["mode"], made["id"], made["project"]) for made in fake.inits] == [
        ("offline", None, "a project"), ("offline", "abc123", "a project")]
    assert fake.logged[0] == (1, flat_scalars(row(1))) and fake.finished == 2
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert logged_in()
    WeightsAndBiases(tmp_path, "p").open(0, 1)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    WeightsAndBiases(tmp_path, "p").open(0, 1)
    assert [made["mode"] for made in fake.inits[2:]] == ["online", "disabled"]


def test_wandb_asked_for_but_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"lavis_lite\[track\]"):
        Tracker.from_run(RunConfig(wandb=True), tmp_path, main=True)
    assert Tracker.from_run(RunConfig(wandb=True), tmp_path, main=False).sinks == []


def test_the_curves_are_a_picture(tmp_path):
    picture = tmp_path / "curves.png"
    rows = [row(step, 6.0 / step) for step in range(1, 20)]
    assert jsonl.series(rows + [VAL])["loss"] == (list(range(1, 20)), [6.0 / step for step in range(1, 20)])
    assert jsonl.draw(rows + [VAL], picture)
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG") and struct.unpack(">II", head[16:]) == (960, 1080)
    for too_few in ([VAL], [row(1), VAL]):  # a curve needs two points
        assert jsonl.draw(too_few, tmp_path / "none.png") is False
    assert not (tmp_path / "none.png").exists()


def test_without_matplotlib_it_says_so(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text(json.dumps(row(1)) + "\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = []
    jsonl.Curves(tmp_path / "log.jsonl", tmp_path / "curves.png", said.append).close()
    assert "pip install matplotlib" in said[0] and not (tmp_path / "curves.png").exists()


def test_values_that_are_no_numbers_are_left_out_of_the_curves():
    assert jsonl.series([row(1), {**row(2), "loss": "nan"}])["loss"] == ([1], [5.0])


def test_parameter_table():
    assert parameter_table({"qformer": (1234567, 0), "vision_encoder": (0, 89)}).splitlines() == [
        "parameters            trainable           frozen",
        "qformer               1,234,567                0",
        "vision_encoder                0               89",
        "total                 1,234,567               89"]


def test_a_run_gets_all_its_sinks(tmp_path, capsys):
    tracker = Tracker.from_run(RunConfig(), tmp_path, main=True)
    tracker.open(0, 2)
    for step in (1, 2):
        tracker.advance(step)
        tracker.record(row(step))
    tracker.record(VAL)
    tracker.log("done")
    tracker.close()
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "tensorboard", "curves.png"}
    assert capsys.readouterr().out.splitlines()[-1] == "done"


def test_an_evaluation_is_a_line_now_and_then_without_a_terminal(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr("lavis_lite.tracking.sinks.time.monotonic", lambda: now[0])
    console = Console(stream)
    console.begin("test vqa", 4000, 1000)
    for done in range(1100, 4001, 100):
        now[0] += 10
        console.proceed(done)
    console.end()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "test vqa: 1,300/4,000 samples, 10.0 samples/s, 04:30 left" and len(lines) == 10


def test_an_evaluation_has_a_bar_of_its_own_that_goes_away():
    stream = Terminal()
    console = Console(stream)
    console.open(4, 10)
    console.begin("val toy", 20, 5)
    console.proceed(20)
    console.log("a line")
    console.end()
    console.advance(5)
    console.close()
    text = stream.getvalue()
    assert "val toy: 5/20 samples" in text and "a line\n" in text
    assert text.rstrip("\n").split("\r")[-1].lstrip().startswith("50%")
    alone = Console(Terminal())
    alone.begin("val toy", 20)
    alone.proceed(3)
    alone.close()


def test_a_sink_that_comes_later_is_opened():
    class Mine(Sink):
        opened = None

        def open(self, start_step, total_steps):
            self.opened = start_step, total_steps

    tracker, early, late = Tracker(), Mine(), Mine()
    tracker.add(early)
    assert early.opened is None
    tracker.open(3, 10)
    tracker.add(late)
    assert early.opened == late.opened == (3, 10)
