"""Journals of evaluations: lines that know whether they are whole, and what an evaluation depends on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from lavis_lite.config.schema import BuildInfo, DatasetConfig, FileConfig, RunConfig
from lavis_lite.evaluation import fingerprint as identity
from lavis_lite.evaluation import journal
from lavis_lite.evaluation.journal import Journal, is_plain, read, sealed, unsealed
from lavis_lite.registry import registry
from tests.helpers.toy import Toy, ToyModel

ODD = [0.1, -0.0, 1e-320, 2**60, math.inf, True, None, "a\u2028b\n\r\x0b", "\ud800", {"k": [1.5, {"x": "é"}]}]
PARTS = {"data set": "toy", "step": 0, "weights": "w"}


def test_a_line_gives_back_what_went_in():
    entry = {"batch": 3, "rows": [{"id": 1, "scores": ODD}]}
    line = sealed(entry)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    found = unsealed(line[:-1])
    assert found["rows"] == entry["rows"] and repr(found["rows"]) == repr(entry["rows"])
    assert math.isnan(unsealed(sealed({"rows": [math.nan]})[:-1])["rows"][0])


def test_a_line_that_was_cut_or_altered_is_none():
    line = sealed({"batch": 3, "rows": [{"id": 1, "answer": "yes"}]})[:-1]
    assert unsealed(line) is not None
    assert all(unsealed(line[:end]) is None for end in range(len(line)))
    for place in range(len(line)):
        flipped = bytearray(line)
        flipped[place] ^= 4
        assert unsealed(bytes(flipped)) is None, place


@pytest.mark.parametrize("value", [torch.ones(1), (1, 2), {1: "a"}, {"a": torch.tensor(1.0)}, {1, 2}, [b"x"]])
def test_what_json_would_change_is_not_plain(value):
    assert not is_plain([{"id": 1, "value": value}])
    assert is_plain([{"id": 1, "value": ODD}])


def test_a_torn_end_is_cut_off_before_the_next_line(tmp_path):
    for text in ("one", "two"):
        book = Journal(tmp_path, "val_toy_step0", PARTS, True, 0)
        book.append({"key": text, "value": 1})
        book.close()
        with open(book.path, "ab") as file:
            file.write(b'{"key": "torn", "val')
    head, entries = read(book.path)
    assert head["evaluation"] == PARTS and [entry["key"] for entry in entries] == ["one", "two"]


def test_all_ranks_files_are_read_and_those_of_another_evaluation_set_aside(tmp_path):
    for rank, parts in enumerate((PARTS, PARTS, {**PARTS, "weights": "other", "run.num_beams": 3})):
        book = Journal(tmp_path, "val_toy_step0", parts, True, rank)
        book.append({"batch": rank, "rows": [], "samples": 2, "bad": []})
        book.append({"key": f"k{rank}", "value": rank})
        book.close()
    (tmp_path / journal.FOLDER / "val_toy_step0.rank7.jsonl").write_bytes(b"nonsense\n")
    book = Journal(tmp_path, "val_toy_step0", PARTS, True, 0)
    found, told = book.take_up()
    assert sorted(found.batches) == [0, 1] and found.parts == {"k0": 0, "k1": 1} and found.ours
    assert len(told) == 2 and "run.num_beams was 3 and is null; weights differ" in told[0] and "damaged" in told[1]
    book.remove()
    assert sorted(path.suffix for path in book.folder.iterdir()) == [".other", ".other"]


def test_a_journal_that_is_being_written_is_left_alone(tmp_path):
    writer, second = (Journal(tmp_path, "val_toy_step0", PARTS, True, 0) for _ in range(2))
    writer.append({"batch": 0, "rows": [], "samples": 1, "bad": []})
    found, told = second.take_up()
    assert not found.ours and not found.batches and "another process" in told[0]
    second.append({"batch": 1, "rows": [], "samples": 1, "bad": []})
    assert "another process" in second.trouble
    writer.close()
    assert sorted(Journal(tmp_path, "val_toy_step0", PARTS, True, 0).take_up()[0].batches) == [0]


def parts_of(tmp_path, model=None, **run):
    toy = Toy(tmp_path, run)
    return identity.of_things(toy.config(), model or ToyModel(), "toy", 11, step=0)


def test_the_identity_knows_weights_settings_and_data_and_no_more(tmp_path):
    base = parts_of(tmp_path)
    for key, value in (("num_workers", 3), ("output_dir", "x"), ("tensorboard", True), ("init_lr", 1.0)):
        assert parts_of(tmp_path, **{key: value}) == base, key
    for key, value in (("batch_size_eval", 5), ("seed", 1), ("task", "vqa")):
        assert [one.split()[0] for one in identity.differences(base, parts_of(tmp_path, **{key: value}))] == [
            f"run.{key}"]
    model = ToyModel()
    assert parts_of(tmp_path, model)["weights"] == base["weights"]
    assert parts_of(tmp_path, model.double())["weights"] == base["weights"]
    with torch.no_grad():
        model.seen += 1
    assert identity.differences(base, parts_of(tmp_path, model)) == ["weights differ"]


def test_an_annotation_files_content_counts_and_its_name_alone_does_not(tmp_path):
    def of(path, text):
        path.write_text(text)
        return identity.of_files(DatasetConfig(build_info=BuildInfo({"val": FileConfig(storage=str(path))})))

    text = "x" * 100_000
    first = of(tmp_path / "a.json", text)
    assert list(first) == ["content of val annotation file 1"]
    assert of(tmp_path / "b.json", text) == first
    assert of(tmp_path / "a.json", text[:-1] + "y") != first != of(tmp_path / "a.json", text + "x")


def test_keys_without_effect_are_keys():
    tasks = [registry.get_task_class(name) for name in registry.list_tasks()]
    known = {field.name for task in tasks for field in dataclasses.fields(task.config_class)}
    assert known >= identity.WITHOUT_EFFECT
    wanted = {"prompt", "num_beams", "max_len", "control", "batch_size_eval", "seed", "candidates", "task", "k_test"}
    assert not wanted & identity.WITHOUT_EFFECT
    training = {field.name for field in dataclasses.fields(RunConfig)} - identity.WITHOUT_EFFECT
    assert training == {"task", "batch_size_eval", "seed"}


def test_the_folder_of_an_evaluation_that_was_stopped_is_found(tmp_path, monkeypatch):
    config = Toy(tmp_path).config()
    config = replace(config, run=replace(config.run, valid_splits=["val"], test_splits=["test"]))

    def leave(name, alone=True, step=0, split="val", **run):
        own = replace(config, run=replace(config.run, **run))
        parts = {**identity.of_config(own, "toy"), "data set": "toy", "step": step, "split": split}
        book = Journal(tmp_path / name, f"{split}_toy_step{step}", parts, alone, 0)
        book.append({"key": "k", "value": 1})
        return book

    assert journal.unfinished(tmp_path / "nowhere", config) == (None, "")
    leave("a", alone=False).close()  # of a training
    assert journal.unfinished(tmp_path, config) == (None, "")
    leave("c", seed=7).close()
    found, told = journal.unfinished(tmp_path, config)
    assert found is None and "run.seed was 7 and is 42" in told and "starting afresh" in told
    running = leave("d", num_workers=5)
    assert journal.unfinished(tmp_path, config)[0] is None
    running.close()
    found, told = journal.unfinished(tmp_path, config)
    assert found == tmp_path / "d" and str(found) in told
    second = leave("d", split="test")  # the same run is at its next split
    assert journal.unfinished(tmp_path, config)[0] is None
    second.close()
    leave("e", split="of_another_command").close()
    assert journal.unfinished(tmp_path, config)[0] == tmp_path / "d"

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(journal, "_is_busy", forbidden)
    assert journal.unfinished(tmp_path, config) == (None, "")
    finished, told = Journal(tmp_path / "d", "val_toy_step0", {}, True, 0).take_up()
    assert not finished.ours and "Permission denied" in told[0] and "from the start" in told[0]
