"""What a stopped evaluation resumes from: lines with checksums, and what an evaluation depends on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from lavis_lite.config.schema import BuildInfo, DatasetConfig, FileConfig, RunConfig
from lavis_lite.datasets.files.locate import annotation_hashes
from lavis_lite.evaluation import resume
from lavis_lite.evaluation.resume import (
    EvalCheckpoint,
    EvalProgress,
    EvaluationStopped,
    decode_line,
    encode_line,
    is_plain,
    read,
)
from lavis_lite.registry import registry
from lavis_lite.runs import find_unfinished
from lavis_lite.tracking.tracker import Tracker
from tests.helpers.toy import Toy, ToyModel

ODD = [0.1, -0.0, 1e-320, 2**60, math.inf, True, None, "a\u2028b\n\r\x0b", "\ud800", {"k": [1.5, {"x": "é"}]}]
PARTS = {"data set": "toy", "step": 0, "weights": "w"}


def test_a_line_gives_back_what_went_in():
    entry = {"batch": 3, "rows": [{"id": 1, "scores": ODD}]}
    line = encode_line(entry)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    found = decode_line(line[:-1])
    assert found["rows"] == entry["rows"] and repr(found["rows"]) == repr(entry["rows"])
    assert math.isnan(decode_line(encode_line({"rows": [math.nan]})[:-1])["rows"][0])


def test_a_line_that_was_cut_or_altered_is_none():
    line = encode_line({"batch": 3, "rows": [{"id": 1, "answer": "yes"}]})[:-1]
    assert decode_line(line) is not None
    assert all(decode_line(line[:end]) is None for end in range(len(line)))
    for place in range(len(line)):
        flipped = bytearray(line)
        flipped[place] ^= 4
        assert decode_line(bytes(flipped)) is None, place


@pytest.mark.parametrize("value", [torch.ones(1), (1, 2), {1: "a"}, {"a": torch.tensor(1.0)}, {1, 2}, [b"x"]])
def test_what_json_would_change_is_not_plain(value):
    assert not is_plain([{"id": 1, "value": value}])
    assert is_plain([{"id": 1, "value": ODD}])


def test_a_torn_end_is_cut_off_before_the_next_line(tmp_path):
    for text in ("one", "two"):
        checkpoint = EvalCheckpoint(tmp_path, "val_toy_step0", PARTS, True, 0)
        checkpoint.append({"key": text, "value": 1})
        checkpoint.close()
        with open(checkpoint.path, "ab") as file:
            file.write(b'{"key": "torn", "val')
    head, entries = read(checkpoint.path)
    assert head["evaluation"] == PARTS and [entry["key"] for entry in entries] == ["one", "two"]


def test_a_batch_whose_answers_the_mask_of_secrets_would_change_is_computed_again(tmp_path):
    checkpoint = EvalCheckpoint(tmp_path, "val_toy_step0", PARTS, True, 0)
    progress = EvalProgress(checkpoint, True, Tracker(), "val toy", lambda: 0)
    for number, answer in enumerate(("red", "http://shop.example/?key=house")):
        progress.save_batch(number, [{"id": number, "answer": answer}], [], 1)
    progress.close()
    assert list(checkpoint.load()[0]) == [0]


def test_all_ranks_files_are_read_and_those_of_another_evaluation_set_aside(tmp_path):
    for rank, parts in enumerate((PARTS, PARTS, {**PARTS, "weights": "other", "run.num_beams": 3})):
        checkpoint = EvalCheckpoint(tmp_path, "val_toy_step0", parts, True, rank)
        checkpoint.append({"batch": rank, "rows": [], "samples": 2, "bad": []})
        checkpoint.append({"key": f"k{rank}", "value": rank})
        checkpoint.close()
    (tmp_path / resume.FOLDER / "val_toy_step0.rank7.jsonl").write_bytes(b"nonsense\n")
    checkpoint = EvalCheckpoint(tmp_path, "val_toy_step0", PARTS, True, 0)
    batches, parts, messages = checkpoint.load()
    assert sorted(batches) == [0, 1] and parts == {"k0": 0, "k1": 1}
    assert len(messages) == 2 and "damaged" in messages[1]
    assert "run.num_beams was 3 and is null; weights differ" in messages[0]
    checkpoint.remove()
    assert sorted(path.suffix for path in checkpoint.folder.iterdir()) == [".other", ".other"]


def refused(checkpoint):
    """Messages of an evaluation that may not resume from a checkpoint, and writes nothing."""
    tracker, messages = Tracker(), []
    tracker.log = messages.append
    progress = EvalProgress(checkpoint, True, tracker, "val toy", lambda: 0)
    assert not progress.writable and not progress.done and not progress.completed
    progress.save("k", 2)
    assert checkpoint.problem == "" and checkpoint._file is None
    return messages


def test_a_file_that_another_process_writes_is_left_alone(tmp_path):
    writer, second = (EvalCheckpoint(tmp_path, "val_toy_step0", PARTS, True, 0) for _ in range(2))
    writer.append({"batch": 0, "rows": [], "samples": 1, "bad": []})
    messages = refused(second)
    assert "another process" in messages[0] and "from the start" in messages[0]
    second.append({"batch": 1, "rows": [], "samples": 1, "bad": []})
    assert "another process" in second.problem
    writer.close()
    assert sorted(EvalCheckpoint(tmp_path, "val_toy_step0", PARTS, True, 0).load()[0]) == [0]


def test_a_stop_before_the_first_batch_of_a_data_set_tells_what_is_kept_of_those_before(tmp_path):
    second = EvalCheckpoint(tmp_path, "val_other_step0", PARTS, True, 0)
    for kept in (False, True):
        with pytest.raises(EvaluationStopped) as stopped:
            EvalProgress(second, True, Tracker(), "val other", lambda: 143).stop_if_requested()
        assert (stopped.value.kept == f"what is finished is kept in {second.folder}") is kept
        first = EvalCheckpoint(tmp_path, "val_toy_step0", PARTS, True, 0)
        first.append({"batch": 0, "rows": [], "samples": 1, "bad": []})
        first.close()


def parts_of(tmp_path, model=None, **run):
    toy = Toy(tmp_path, run)
    return resume.eval_fingerprint(toy.config(), model or ToyModel(), "toy", 11, step=0)


def test_the_identity_knows_weights_settings_and_data_and_no_more(tmp_path):
    base = parts_of(tmp_path)
    for key, value in (("num_workers", 3), ("output_dir", "x"), ("tensorboard", True), ("init_lr", 1.0)):
        assert parts_of(tmp_path, **{key: value}) == base, key
    for key, value in (("batch_size_eval", 5), ("seed", 1), ("task", "vqa")):
        assert [one.split()[0] for one in resume.differences(base, parts_of(tmp_path, **{key: value}))] == [
            f"run.{key}"]
    model = ToyModel()
    assert parts_of(tmp_path, model)["weights"] == base["weights"]
    assert parts_of(tmp_path, model.double())["weights"] == base["weights"]
    with torch.no_grad():
        model.seen += 1
    assert resume.differences(base, parts_of(tmp_path, model)) == ["weights differ"]


def test_an_annotation_files_content_counts_and_its_name_alone_does_not(tmp_path):
    def of(path, text):
        path.write_text(text)
        return annotation_hashes(
            DatasetConfig(build_info=BuildInfo({"val": FileConfig(storage=str(path))})))

    text = "x" * 100_000
    first = of(tmp_path / "a.json", text)
    assert list(first) == ["content of val annotation file 1"]
    assert of(tmp_path / "b.json", text) == first
    assert of(tmp_path / "a.json", text[:-1] + "y") != first != of(tmp_path / "a.json", text + "x")


SAME_ROWS = {"report_metric", "caption_metrics", "vqa_rule", "submission", "baselines", "positive", "annotation_file",
             "caption_key", "load_gt_from_file", "report_attention", "model_id"}
"""keys of tasks by which finished rows are scored and written"""


def test_run_keys_that_affect_rows():
    assert {field.name for field in dataclasses.fields(RunConfig) if RunConfig.affects_rows(field.name)} == {
        "task", "batch_size_eval", "decode_at_once", "fixed_cache", "seed"}
    tasks = {registry.get_task_class(name).config_class for name in registry.list_tasks()}
    own = {(field.name, cls.affects_rows(field.name)) for cls in tasks for field in dataclasses.fields(cls)
           if field.name not in RunConfig.__dataclass_fields__}
    assert {key for key, affects in own if not affects} == SAME_ROWS
    affecting = {key for key, affects in own if affects}
    assert affecting >= {"prompt", "num_beams", "max_len", "control", "candidates", "k_test"}
    assert not affecting & SAME_ROWS  # not even if a subclass has another default
    assert all(cls.affects_rows(key) for cls in tasks for key in ("task", "batch_size_eval", "seed"))


def test_the_folder_of_an_evaluation_that_was_stopped_is_found(tmp_path, monkeypatch):
    config = Toy(tmp_path).config()
    config = replace(config, run=replace(config.run, valid_splits=["val"], test_splits=["test"]))

    def leave(name, alone=True, step=0, split="val", **run):
        own = replace(config, run=replace(config.run, **run))
        parts = {**resume.config_fingerprint(own, "toy"), "data set": "toy", "step": step, "split": split}
        checkpoint = EvalCheckpoint(tmp_path / name, f"{split}_toy_step{step}", parts, alone, 0)
        checkpoint.append({"key": "k", "value": 1})
        return checkpoint

    assert find_unfinished(tmp_path / "nowhere", config) == (None, "")
    leave("a", alone=False).close()  # of a training
    assert find_unfinished(tmp_path, config) == (None, "")
    leave("c", seed=7).close()
    found, messages = find_unfinished(tmp_path, config)
    assert found is None and "run.seed was 7 and is 42" in messages and "starting a new one" in messages
    running = leave("d", num_workers=5)
    assert find_unfinished(tmp_path, config)[0] is None
    running.close()
    found, messages = find_unfinished(tmp_path, config)
    assert found == tmp_path / "d" and str(found) in messages
    second = leave("d", split="test")  # the same run is at its next split
    assert find_unfinished(tmp_path, config)[0] is None
    second.close()
    leave("e", split="of_another_command").close()
    assert find_unfinished(tmp_path, config)[0] == tmp_path / "d"

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(resume, "is_busy", forbidden)
    assert find_unfinished(tmp_path, config) == (None, "")
    messages = refused(EvalCheckpoint(tmp_path / "d", "val_toy_step0", {}, True, 0))
    assert "Permission denied" in messages[0] and "from the start" in messages[0]
