"""Texts that their processor leaves nothing of, or cuts: found before a run, counted, and never trained on silently."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lavis_lite import engine
from lavis_lite.cli.main import run_command
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import has_content, look_through, unchanged
from lavis_lite.datasets.builders.custom import CustomBuilder, CustomConfig
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.loading.policy import TrainingSamples
from lavis_lite.datasets.loading.sampler import SampleKey
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.errors import DataError
from lavis_lite.processors.text import AsWritten, BlipCaption, BlipQuestion

LONG = "word " * 60
CAPTIONS = ["a dog", "...", "(): ;", LONG, "?!", "\U0001f415"]


@pytest.fixture
def captions(section: Any, coco_folder: Path) -> Any:
    """The training set of CAPTIONS, cleaned by blip_caption."""
    rows = [{"image": f"{at}.png", "caption": text} for at, text in enumerate(CAPTIONS)]
    (coco_folder / "a.json").write_text(json.dumps(rows))
    cfg = section(coco_folder, {"train": "a.json"}, CustomConfig, image_column="image", caption_column="caption")
    cfg.text_processor.train = {"name": "blip_caption", "prompt": "a photo of "}
    return CustomBuilder("own", cfg).build("train", training=True)


@pytest.mark.parametrize(("text", "content"), [
    ("a", True), ("7", True), ("\u72ac", True), ("\U0001f415", True), ("\u20ac", True), ("", False), (" \n", False),
    ("...", False), ("\u2026\u201c\u201d", False), ("+~", False), ("\u3002", False), ("\u200b", False),
])
def test_what_says_something(text, content):
    assert has_content(text) == content


def test_processors_know_whether_they_cut():
    for processor in (BlipCaption(max_words=3), BlipQuestion(max_words=3)):
        assert not processor.cuts("one two three") and processor.cuts("one two three four")
        assert processor.cuts("a b c d") and not processor.cuts("...... ...... one")
    assert not AsWritten().cuts(LONG)


def test_whether_a_text_is_cut_is_what_the_processor_does():
    rng = random.Random(0)
    for _ in range(2000):
        parts = ["a", "bc ", " ", "\n", "\u2003", ".", "x.y", "*", "\u0130 ", ";", "?"]
        text = "".join(rng.choices(parts, k=rng.randrange(24)))
        for kind in (BlipCaption, BlipQuestion):
            assert kind(max_words=4).cuts(text) == (kind(max_words=4)(text) != kind(max_words=99)(text)), (kind, text)


def test_every_text_is_accounted_for(captions):
    report = look_through(captions)
    assert (report.rows, report.looked_at, report.texts, report.empty, report.cut) == (6, 6, 6, 3, 1)
    assert report.shown[0].endswith("a.json:2: caption '...'") and "a.json:5: caption '?!'" in report.shown[2]
    assert str(report) == "6 texts, 3 with no words left after BlipCaption, 1 cut by BlipCaption"
    some = look_through(captions, most=5, some=2)
    assert (some.looked_at, some.texts, some.cut) == (2, 2, 1) and "(of 2 of 6 rows)" in str(some)


def test_an_unknown_processor_is_asked_about_every_text(captions):
    captions.text_processor = lambda text, rng=None: ""
    assert look_through(captions).empty == 6
    captions.text_processor = unchanged
    assert look_through(captions).empty == 3 and "3 with no words" in str(look_through(captions))


def test_a_sample_without_words_is_a_bad_sample(captions):
    assert captions.sample(0)["text_input"] == "a photo of a dog"
    with pytest.raises(BadSample, match=r"caption '\.\.\.': has no words left after BlipCaption"):
        captions.sample(1)
    samples = TrainingSamples([captions], seed=0, on_bad_sample="skip")
    found = samples[SampleKey(0, 1, 0, 0)]
    assert found["bad_samples"][0]["file"] == "caption '...'" and found["bad_samples"][0]["row"].endswith("a.json:2")
    assert found["text_input"] != "a photo of "


def test_a_run_stops_before_its_model_is_loaded_or_says_what_it_leaves_out(captions, capsys):
    splits = {"own": {"train": captions}}
    with pytest.raises(DataError) as caught:
        engine.check_words(splits, RunConfig())
    assert str(caught.value).startswith("own, train: 3 texts have no words left after BlipCaption:\n  ")
    assert "a.json:3: caption '(): ;'" in str(caught.value) and "run.on_bad_sample=skip" in str(caught.value)
    engine.check_words(splits, RunConfig(on_bad_sample="skip"))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "own, train: 6 texts, 3 with no words left after BlipCaption, 1 cut by BlipCaption")


def test_captions_that_say_nan_are_counted(section, coco_folder, capsys):
    """pandas writes them where a column was made text; trained on, they are captions."""
    texts = ["nan", "None ", "a naan", "null object"]
    rows = [{"image": f"{at}.png", "caption": text} for at, text in enumerate(texts)]
    (coco_folder / "nan.json").write_text(json.dumps(rows))
    cfg = section(coco_folder, {"train": "nan.json"}, CustomConfig, image_column="image", caption_column="caption")
    engine.check_words({"own": {"train": CustomBuilder("own", cfg).build("train", training=True)}}, RunConfig())
    assert capsys.readouterr().out == "own, train: 4 texts, 2 like an empty cell (nan, None, null ...)\n"
    assert run_command("data", ["check", str(coco_folder / "nan.json"), "--image-root",
                                str(coco_folder / "images")]) == 0
    assert "captions or questions like an empty cell (nan, None, null ...): 2" in capsys.readouterr().out


def test_evaluation_of_captions_only_says_it(captions, capsys):
    captions.needs_words = False  # as CaptionEvalDataset: the references are used as they are written
    engine.check_words({"own": {"val": captions}}, RunConfig())
    assert "3 with no words" in capsys.readouterr().out


def test_pictures_that_are_evaluated_and_trained_on_are_counted(section, coco_folder, capsys):
    rows = {"train": ["0.png", "1.png", "sub/../2.png"], "val": ["./2.png", "2.png", "3.png"], "test": ["4.png"]}
    for split, names in rows.items():
        (coco_folder / f"{split}.json").write_text(json.dumps([{"image": name, "caption": "a dog"} for name in names]))
    builder = ImageCaptionBuilder("own", section(coco_folder, {split: f"{split}.json" for split in rows}))
    built = {split: builder.build(split, split == "train") for split in rows}
    engine.note_learned({"own": built}, RunConfig(train_splits=["train"]))
    assert capsys.readouterr().out == ("note: own, val: 1 of its pictures are trained on, too, so its scores are no "
                                       "test of new ones. It has 2 samples.\n")
    engine.note_learned({"own": built}, RunConfig(train_splits=[]))
    assert not capsys.readouterr().out


def test_questions_without_words(section, coco_folder):
    rows = [{"image": "0.png", "question": text, "answer": "x", "question_id": at}
            for at, text in enumerate(["What?", "?"])]
    (coco_folder / "q.json").write_text(json.dumps(rows))
    cfg = section(coco_folder, {"train": "q.json", "val": "q.json"}, ImageQAConfig)
    cfg.text_processor.train = cfg.text_processor.eval = {"name": "blip_question"}
    builder = ImageQABuilder("own", cfg)
    for split, training in (("train", True), ("val", False)):
        dataset = builder.build(split, training)
        assert dataset.sample(0, random.Random(0))["text_input"] == "what?" and look_through(dataset).empty == 1
        with pytest.raises(BadSample, match=r"question '\?': has no words left after BlipQuestion"):
            dataset.sample(1, random.Random(0))


def test_data_check_sees_the_texts_as_training_does(captions, coco_folder, capsys):
    run = coco_folder / "run.yaml"
    run.write_text("model: {arch: blip2, model_type: mini}\ndatasets:\n  own:\n    builder: custom\n    build_info:\n"
                   f"      annotations: {{trainval: {{storage: {coco_folder}/a.json}}}}\n"
                   f"      images: {{storage: {coco_folder}/images}}\nrun: {{train_splits: [trainval]}}\n")
    assert run_command("data", ["check", "own", "--cfg-path", str(run)]) == 3
    told = capsys.readouterr().out
    assert "PROBLEM: texts with no words left after BlipCaption: 3" in told and "a.json:2: caption '...'" in told
    assert "texts cut by the text processor: 1" in told and "(mini): 2 - 202," in told  # as written: 242
    assert "6 rows, 6 images" in told  # as training has them: one row per caption
    assert run_command("data", ["check", str(coco_folder / "a.json"), "--image-root", str(coco_folder / "images")]) == 3
    assert "PROBLEM: texts with no words: 3" in capsys.readouterr().out




def test_train_stops_before_its_model_is_loaded(captions, coco_folder, capsys):
    run = coco_folder / "run.yaml"
    root = Path(__file__).resolve().parents[2]
    run.write_text(f"base: {root}/projects/blip2/stage1.yaml\ndatasets:\n  mini_world_caption: null\n  own:\n"
                   "    builder: custom\n    build_info:\n"
                   f"      annotations: {{train: {{storage: {coco_folder}/a.json}}}}\n"
                   f"      images: {{storage: {coco_folder}/images}}\n"
                   f"run: {{output_dir: {coco_folder}/out, valid_splits: [], test_splits: [], max_iters: 1, "
                   "num_workers: 0, tensorboard: false}\n")
    assert run_command("train", ["--cfg-path", str(run)]) == 2
    told = capsys.readouterr()
    assert "own, train: 3 texts have no words left after BlipCaption:" in told.err and "a.json:2: caption" in told.err
    assert "tensors loaded" not in told.out
