"""What `prepare_mini_world` writes: valid layouts, whole or not at all, left alone when right, safe for several."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from lavis_lite.errors import DataError
from lavis_lite.mini_world import world as mini_world
from lavis_lite.mini_world.world import main, prepare_mini_world, read_manifest

SMALL = {"train": 12, "val": 4, "test": 5, "ood": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small written world, shared by the tests that only read it."""
    return prepare_mini_world(tmp_path_factory.mktemp("data") / "mini", **SMALL, workers=1, progress=False)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def load(root: Path, name: str) -> dict:
    """One annotation file."""
    return json.loads((root / "annotations" / name).read_text())


def test_pycocotools_reads_the_captions(world: Path) -> None:
    for split, size in SMALL.items():
        coco = COCO(str(world / "annotations" / f"captions_{split}.json"))
        assert len(coco.getImgIds()) == size
        for image in coco.loadImgs(coco.getImgIds()):
            assert len(coco.getAnnIds(imgIds=image["id"])) == 5
            with Image.open(world / "images" / image["file_name"]) as picture:
                assert (picture.size, picture.mode) == ((image["width"], image["height"]), "RGB")


def test_a_share_of_the_training_pictures_has_captions_of_another_one(world: Path, tmp_path: Path) -> None:
    noisy = prepare_mini_world(tmp_path / "noisy", **SMALL, caption_noise=0.5, workers=1, progress=False)
    right, wrong = ([row["caption"] for row in load(root, "captions_train.json")["annotations"]]
                    for root in (world, noisy))
    swapped = sum(right[at:at + 5] != wrong[at:at + 5] for at in range(0, len(right), 5))
    assert swapped == SMALL["train"] // 2 and sorted(right) == sorted(wrong)
    assert {name: content for name, content in contents(world).items() if "captions_train" not in name
            and name != "manifest.json"}.items() <= contents(noisy).items()
    with pytest.raises(DataError, match="caption_noise=1.5: must be a share"):
        prepare_mini_world(tmp_path / "other", **SMALL, caption_noise=1.5)


def test_identifiers_are_unique_over_all_splits(world: Path) -> None:
    files = [load(world, f"captions_{split}.json") for split in SMALL]
    images = [image["id"] for file in files for image in file["images"]]
    captions = [row["id"] for file in files for row in file["annotations"]]
    assert len(set(images)) == sum(SMALL.values())
    assert len(set(captions)) == len(captions) == 5 * sum(SMALL.values())


def test_questions_and_answers_have_the_layout_of_vqa_v2(world: Path) -> None:
    for split, size in SMALL.items():
        questions = load(world, f"questions_{split}.json")["questions"]
        answers = load(world, f"vqa_annotations_{split}.json")["annotations"]
        assert [row["question_id"] for row in questions] == [row["question_id"] for row in answers]
        assert len({row["question_id"] for row in questions}) == len(questions) >= 3 * size
        for row in answers:
            assert set(row) == {
                "question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers",
            }  # fmt: skip
            assert row["answer_type"] in ("yes/no", "number", "other")
            assert [answer["answer_id"] for answer in row["answers"]] == list(range(1, 11))
            assert {answer["answer"] for answer in row["answers"]} == {row["multiple_choice_answer"]}


def test_ground_truth_names_each_picture(world: Path) -> None:
    scenes = load(world, "scenes_test.json")["scenes"]
    images = load(world, "captions_test.json")["images"]
    assert [scene["file_name"] for scene in scenes] == [image["file_name"] for image in images]
    assert all(1 <= len(scene["objects"]) <= 4 for scene in scenes)


def test_the_number_of_workers_changes_nothing(world: Path, tmp_path: Path) -> None:
    other = prepare_mini_world(tmp_path / "other", **SMALL, workers=2, progress=False)
    assert contents(other) == contents(world)


def test_a_right_folder_is_left_alone_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    root = prepare_mini_world(tmp_path / "mini", **SMALL, progress=False)
    manifest = root / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert prepare_mini_world(root, **SMALL, progress=False) == root
    assert manifest.stat().st_mtime_ns == before
    first = (root / "images/train/000000.jpg").read_bytes()
    prepare_mini_world(root, **SMALL, seed=8, progress=False)
    assert (root / "images/train/000000.jpg").read_bytes() != first
    assert read_manifest(root) == {"name": "mini_world", "version": mini_world.WORLD_VERSION, "seed": 8, "sizes": SMALL}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mini.lock", "mini"]


def test_a_failure_half_way_leaves_nothing_and_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = prepare_mini_world(tmp_path / "mini", **SMALL, progress=False)
    before = contents(root)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mini_world, "scene_file", fail)
    with pytest.raises(DataError, match="No space left on device"):
        prepare_mini_world(root, **SMALL, seed=9, workers=1, progress=False)
    with pytest.raises(DataError, match="cannot write"):
        prepare_mini_world(tmp_path / "new", **SMALL, workers=1, progress=False)
    assert contents(root) == before
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".mini.4242.partial" / "images"
    leftover.mkdir(parents=True)
    prepare_mini_world(tmp_path / "mini", **SMALL, progress=False)
    assert not leftover.parent.exists()


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="not a mini world"):
        prepare_mini_world(tmp_path / "photos", **SMALL, progress=False)
    assert (tmp_path / "photos" / "mine.txt").read_text() == "keep me"


def _prepare_and_report(root: Path, queue: multiprocessing.Queue) -> None:
    written: list[int] = []
    original = mini_world._write_splits

    def counting(*arguments: object) -> None:
        written.append(os.getpid())
        original(*arguments)  # type: ignore[arg-type]

    mini_world._write_splits = counting  # type: ignore[assignment]
    prepare_mini_world(root, **SMALL, workers=1, progress=False)
    queue.put(len(written))


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_prepare_and_report, args=(tmp_path / "mini", queue)) for _ in range(4)]
    for process in processes:
        process.start()
    written = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sorted(written) == [0, 0, 0, 1]
    assert (read_manifest(tmp_path / "mini") or {})["sizes"] == SMALL


def test_splits_of_no_pictures_are_left_out_and_negative_sizes_refused(tmp_path: Path) -> None:
    root = prepare_mini_world(tmp_path / "mini", train=0, val=2, test=0, ood=0, progress=False)
    assert sorted(path.name for path in (root / "annotations").iterdir()) == [
        "captions_val.json", "questions_val.json", "scenes_val.json", "vqa_annotations_val.json",
    ]  # fmt: skip
    with pytest.raises(DataError, match="train=-1"):
        prepare_mini_world(tmp_path / "other", train=-1)


def test_command_line_writes_and_tells_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [text for split, size in SMALL.items() for text in (f"--{split}", str(size))]
    assert main(["--root", str(tmp_path / "mini"), *sizes]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "mini")
    assert "24/24 pictures" in shown.err
    (tmp_path / "file").write_text("")
    assert main(["--root", str(tmp_path / "file"), *sizes]) == 2
    assert capsys.readouterr().err.startswith("error: mini world: ")
