"""Video files: the right frames by either reader, upright, or a reason; bad samples are treated as with images."""

from __future__ import annotations

import fractions
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lavis_lite.config.schema import BuildInfo, FileConfig, RunConfig, StorageConfig
from lavis_lite.datasets.builders.video import VideoCaptionBuilder, VideoDatasetConfig, VideoQABuilder, VideoQAConfig
from lavis_lite.datasets.controls import AblatedImages
from lavis_lite.datasets.loading.loader import eval_loader, train_loader
from lavis_lite.datasets.loading.policy import EvaluationSamples
from lavis_lite.datasets.loading.sampler import GlobalSampler
from lavis_lite.datasets.media import video
from lavis_lite.datasets.media.containers import stated_size
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.datasets.media.video import READERS, AvReader, DecordReader, VideoFolder, open_video
from lavis_lite.errors import ConfigError
from lavis_lite.processors.video import AlproVideoEval, AlproVideoTrain
from lavis_lite.tasks.captioning import CaptioningRunConfig, CaptioningTask
from tests.datasets.conftest import pair

av = pytest.importorskip("av", reason="test videos are written by PyAV (the video extra)")
BOTH = [pytest.param(name, marks=pytest.mark.skipif(not video.find_spec(name), reason=f"{name} is not installed"))
        for name in READERS]
LENGTH = 24


def tone(number: int) -> int:
    """What frame `number` is filled with: far enough apart to be told after compression."""
    return 30 + 8 * (number % LENGTH)


def write(path: Path, times: list[int] | None = None, length: int = LENGTH, codec: str = "mpeg4",
          size: tuple[int, int] = (64, 48), **options: str) -> Path:
    """A video of plain frames, each of another grey, with time stamps in 1/1000 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "6", "sc_threshold": "1000000000", **options})
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for number, time in enumerate(times or range(0, 40 * length, 40)):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), tone(number), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers_of(frames) -> list[int]:
    return [round((float(frame.mean()) - 30) / 8) for frame in frames]


VARIABLE = [0, 40, 41, 45, 300, 340, 900, 901, 905, 1000, 1040, 2000, *range(2040, 2520, 40)]
KINDS = {
    "constant.mp4": {}, "b_frames.mp4": {"codec": "libx264", "bf": "3"},
    "late.mkv": {"times": list(range(5000, 5000 + 40 * LENGTH, 40))}, "variable.mkv": {"times": VARIABLE},
    "one_key.mp4": {"g": "500"}, "old.avi": {"bf": "2"}, "new.avi": {"codec": "libx264", "bf": "3"},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, more in KINDS.items():
        write(folder / name, **more)
    return folder


@pytest.mark.parametrize("reader", BOTH)
@pytest.mark.parametrize("name", KINDS)
def test_frames_by_number(clips, name, reader):
    if name.endswith(".avi") and reader == "decord":
        reader = "auto"  # alone it gives other frames: see `video._in_order`
    with open_video(clips / name, reader=reader) as clip:
        assert len(clip) == LENGTH
        everything = list(clip.frames(range(LENGTH)))
        assert numbers_of(everything) == list(range(LENGTH))
        assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in everything)
        for chosen in ([0, 5, 11, 17], [3, 3, 4, 20, 20], [LENGTH - 1], [7, 8, 23], [13]):
            assert numbers_of(clip.frames(chosen)) == chosen


def test_a_far_frame_is_reached_from_its_key_frame(clips, monkeypatch):
    decoded = []
    with AvReader(clips / "constant.mp4", 10**6) as clip:
        number = clip._number
        monkeypatch.setattr(clip, "_number", lambda frame, shown: decoded.append(1) or number(frame, shown))
        assert numbers_of(clip.frames([1, 20])) == [1, 20]
    assert len(decoded) == 2 + 3  # key frames are 0, 6, 12, 18


def test_frames_without_time_stamps_are_counted(clips, monkeypatch):
    with AvReader(clips / "constant.mp4", 10**6) as clip:
        clip._times, clip._keys = [], []
        assert numbers_of(clip.frames([2, 20])) == [2, 20]


def test_a_container_that_counts_a_frame_too_many(clips):
    with AvReader(clips / "constant.mp4", 10**6) as clip:
        clip._times, clip._keys, clip._frames = [], [], LENGTH + 1
        assert numbers_of(clip.frames([3, LENGTH])) == [3, LENGTH - 1]
        clip._frames = LENGTH + 9
        with pytest.raises(BadSample, match="ends after 24 of its 33 frames"):
            list(clip.frames([LENGTH + 8]))


class Turned:
    """A frame of PyAV with a display matrix."""

    def __init__(self, rotation: int) -> None:
        self.rotation = rotation

    def to_ndarray(self, format: str) -> np.ndarray:
        return np.arange(6, dtype=np.uint8).reshape(1, 2, 3)


@pytest.mark.parametrize(("rotation", "shape", "first"), [(0, (1, 2), 0), (-90, (2, 1), 0), (90, (2, 1), 3),
                                                         (180, (1, 2), 3)])
def test_pyav_frames_are_turned_upright(rotation, shape, first):
    frame = video._upright(Turned(rotation))
    assert frame.shape == (*shape, 3) and frame[0, 0, 0] == first and frame.flags["C_CONTIGUOUS"]


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux([*stream.encode(frame), *stream.encode()])


def without_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()


@pytest.mark.parametrize("reader", ["auto", *BOTH])
@pytest.mark.parametrize(("make", "words"), [
    (lambda path: path.write_bytes(b""), "cannot be opened"),
    (lambda path: path.write_bytes(b"<html>404</html>" * 40), "cannot be opened"),
    (lambda path: path.write_bytes(write(path).read_bytes()[:700]), "is cut off: it has 700 of its"),
    (audio_only, "has no video stream|cannot be opened"),
    (without_frames, "has no frames|has no video stream|cannot be opened"),
    (lambda path: path.mkdir(), "is not a regular file"),
    (lambda path: None, "there is no such file"),
])
def test_files_that_are_no_videos(tmp_path, make, words, reader):
    make(tmp_path / "a.mp4")
    with pytest.raises(BadSample, match=words) as caught:
        open_video(tmp_path / "a.mp4", reader=reader)
    assert caught.value.path == str(tmp_path / "a.mp4") and "\n" not in caught.value.reason


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm"])
def test_a_file_that_was_cut_off_is_no_shorter_video(tmp_path, name):
    codec = "libvpx" if name.endswith("webm") else "mpeg4"
    options = {} if codec == "libvpx" else {"movflags": "faststart"}
    whole = write(tmp_path / name, codec=codec, **options).read_bytes()
    with open_video(tmp_path / name) as clip:
        assert len(clip) == LENGTH
    (tmp_path / name).write_bytes(whole + bytes(100))  # padding is no damage
    open_video(tmp_path / name).close()
    (tmp_path / name).write_bytes(whole[:-1])
    with pytest.raises(BadSample, match=f"is cut off: it has {len(whole) - 1:,} of its {len(whole):,} bytes"):
        open_video(tmp_path / name)


@pytest.mark.parametrize(("head", "size"), [
    (b"\0\0\0\x08free" + (1).to_bytes(4, "big") + b"mdat" + (40).to_bytes(8, "big"), 48), (b"\0\0\0\0mdat", 0),
    (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + bytes([255] * 7), 5), (b"\x1a\x45\xdf\xa3", 0), (b"", 0)])
def test_the_size_that_a_file_states(tmp_path, head, size):
    """Sizes of 64 bits; files that state the size of their first parts alone."""
    (tmp_path / "a").write_bytes(head)
    assert stated_size(tmp_path / "a") == size


@pytest.mark.parametrize("reader", BOTH)
def test_damage_within_a_file_is_told_with_the_frame(tmp_path, reader):
    whole = write(tmp_path / "a.mp4", codec="libx264", size=(64, 64), movflags="faststart").read_bytes()
    start = whole.index(b"mdat") + 4
    (tmp_path / "a.mp4").write_bytes(whole[:start] + bytes(len(whole) - start))
    with pytest.raises(BadSample, match="cannot be|ends after") as caught:
        with open_video(tmp_path / "a.mp4", reader=reader) as clip:
            list(clip.frames([0, 20]))
    assert len(caught.value.reason) < 300


@pytest.mark.parametrize("reader", BOTH)
def test_videos_above_the_limit_are_refused(clips, reader):
    folder = VideoFolder(clips, max_pixels=64 * 48 - 1, reader=reader)
    with pytest.raises(BadSample, match="64 x 48 pixels are more than the limit of 3,071"):
        folder.view("constant.mp4", AlproVideoEval(8))


def test_pyav_checks_the_size_before_it_decodes(clips, monkeypatch):
    monkeypatch.setattr(AvReader, "_decoded", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(BadSample, match="limit of 100"):
        AvReader(clips / "constant.mp4", 100)


def test_a_video_that_changes_its_size(monkeypatch, clips):
    sizes = [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)]
    monkeypatch.setattr(AvReader, "_decoded", lambda self, numbers: iter(sizes))
    with pytest.raises(BadSample, match="changes its frame size from 4 x 4 to 8 x 4"):
        list(AvReader(clips / "constant.mp4", 10**6).frames([0, 1]))


# a clip from a folder ------------------------------------------------------------------------------------------------
def test_where_decord_fails_pyav_starts_again_with_the_same_numbers(clips, monkeypatch):
    pytest.importorskip("decord")
    processor, tries = AlproVideoTrain(16, n_frms=3), []

    def fails(self: DecordReader, numbers):
        tries.append(list(numbers))
        yield np.zeros((48, 64, 3), np.uint8)
        raise BadSample(self.path, "cannot be decoded")

    alone = VideoFolder(clips, reader="av").view("b_frames.mp4", processor, random.Random(4))
    monkeypatch.setattr(DecordReader, "_decoded", fails)
    got = VideoFolder(clips).view("b_frames.mp4", processor, random.Random(4))
    assert tries and torch.equal(got, alone)
    with pytest.raises(BadSample, match="cannot be decoded"):
        VideoFolder(clips, reader="decord").view("b_frames.mp4", processor, random.Random(4))


def test_what_is_too_narrow_for_decord_is_read_by_pyav(tmp_path):
    pytest.importorskip("decord")
    write(tmp_path / "a.mp4", size=(48, 32))
    with pytest.raises(BadSample, match="too narrow"):
        VideoFolder(tmp_path, reader="decord").view("a.mp4", AlproVideoEval(8))
    assert VideoFolder(tmp_path).view("a.mp4", AlproVideoEval(8)).shape == (3, 4, 8, 8)


def test_readers_that_are_not_installed(clips, monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: name == "av")
    assert video.installed_readers() == ["av"]
    with open_video(clips / "constant.mp4") as clip:
        assert isinstance(clip, AvReader)
    with pytest.raises(ConfigError, match="read by decord, not installed here"):
        open_video(clips / "constant.mp4", reader="decord")
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lavis_lite\[video\]"):
        open_video(clips / "constant.mp4")


def test_nothing_outside_the_folder_is_read(clips):
    (clips / "sub").mkdir(exist_ok=True)
    with pytest.raises(BadSample, match="leads out"):
        VideoFolder(clips / "sub").view("../constant.mp4", AlproVideoEval(8))


# data sets -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def section(tmp_path):
    """Six short videos of LAVIS' layout, one of them broken."""
    (tmp_path / "videos").mkdir()
    for number in range(6):
        write(tmp_path / "videos" / f"{number}.mp4", length=number + 1, size=(64, 48))
    (tmp_path / "videos" / "3.mp4").write_bytes(b"no video")
    train = [{"video": f"{n}.mp4", "caption": f"Clip {n} again.", "image_id": n} for n in range(6) for _ in range(2)]
    val = [{"video": f"{n}.mp4", "caption": [f"Clip {n}.", "Grey."], "image_id": n} for n in range(6)]
    for name, rows in (("train", train), ("val", val)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    files = {name: FileConfig(storage=str(tmp_path / f"{name}.json")) for name in ("train", "val")}
    info = BuildInfo(annotations=files, videos=StorageConfig(storage=str(tmp_path / "videos")))
    cfg = VideoDatasetConfig(build_info=info)
    cfg.vis_processor = pair({"name": "alpro_video_train", "image_size": 16},
                             {"name": "alpro_video_eval", "image_size": 16})
    cfg.text_processor = pair({"name": "blip_caption"}, {"name": "blip_caption"})
    return cfg


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_videos_and_the_policy_for_a_broken_one(section, workers):
    train = VideoCaptionBuilder("clips", section).build("train", training=True)
    assert train.sample_keys == VideoCaptionBuilder.sample_keys == ("video", "text_input", "image_id", "instance_id")
    run = RunConfig(batch_size_train=12, num_workers=workers, device="cpu", on_bad_sample="skip")
    [batch] = train_loader([train], GlobalSampler([12], 0, 12), run, 0, 1, 0, 1)
    assert batch["video"].shape == (12, 3, 4, 16, 16) and "image" not in batch
    assert all(record["file"].endswith("videos/3.mp4") and "cannot be opened" in record["reason"]
               and "train.json:" in record["row"] for record in batch["bad_samples"])
    assert len(batch["bad_samples"]) >= 2
    assert len(pickle.loads(pickle.dumps(train))) == 12


def test_evaluation_of_videos(section):
    val = VideoCaptionBuilder("clips", section).build("val", training=False)
    run = RunConfig(batch_size_eval=6, num_workers=0, device="cpu", on_bad_sample="skip")
    [batch] = eval_loader(val, run)
    assert batch["video"].shape == (5, 3, 4, 16, 16) and batch["image_id"].tolist() == [0, 1, 2, 4, 5]
    assert batch["text_input"][0] == "clip 0" and val.text[:2] == ["clip 0", "grey"]
    failure = EvaluationSamples(val, 0)[3]
    assert "videos/3.mp4" in failure.message and "on_bad_sample=skip" in failure.message


def test_images_processors_do_not_fit_videos(section):
    section.vis_processor = pair({"name": "blip_image_train", "image_size": 16}, {"name": "blip_image_eval"})
    with pytest.raises(ConfigError, match="vis_processor.train: BlipImageTrain does not take videos.*alpro_video"):
        VideoCaptionBuilder("clips", section).build("train", training=True)


def test_the_captioning_task_hands_videos_to_the_model(section):
    val = VideoCaptionBuilder("clips", section).build("val", training=False)
    run = RunConfig(batch_size_eval=6, num_workers=0, device="cpu", on_bad_sample="skip")
    [batch] = eval_loader(val, run)
    asked = []

    class Model:
        def generate(self, samples, **options):
            asked.append(samples)
            return ["grey "] * len(samples["video"])

    task = CaptioningTask(CaptioningRunConfig())
    rows = task.predict(Model(), batch)
    assert torch.equal(asked[0]["video"], batch["video"]) and "image" not in asked[0]
    assert rows[0] == {"id": 0, "index": 0, "caption": "grey"} and len(rows) == 5
    assert task.predict(Model(), {}) == []


def questions(folder: Path, section: VideoDatasetConfig, **more) -> VideoQAConfig:
    """LAVIS' list of questions about the six clips, and its numbered answers."""
    rows = [{"video": f"{n}.mp4", "question": f"Clip {n}?", "answer": "grey" if n else "dark", "question_id": n}
            for n in range(3)]
    (folder / "qa.json").write_text(json.dumps(rows))
    (folder / "labels.json").write_text(json.dumps({"dark": 1, "grey": 0}))
    info = BuildInfo(annotations={"train": FileConfig(storage=str(folder / "qa.json"))},
                     videos=section.build_info.videos)
    cfg = VideoQAConfig(build_info=info, **{"answer_list": FileConfig(storage=str(folder / "labels.json")), **more})
    cfg.vis_processor, cfg.text_processor = section.vis_processor, pair({"name": "blip_question"}, {})
    return cfg


def test_questions_about_videos(section, tmp_path):
    builder = VideoQABuilder("q", questions(tmp_path, section))
    train, val = builder.build("train", training=True), builder.build("train", training=False)
    assert train.sample_keys == VideoQABuilder.sample_keys and "video" in val.sample_keys
    sample = train[1]
    assert set(sample) == set(train.sample_keys) and sample["video"].shape == (3, 4, 16, 16)
    assert (sample["text_input"], sample["text_output"], sample["question_id"]) == ("clip 1?", "grey", 1)
    assert val.answer_list == ["grey", "dark"] and val[2]["video"].shape == (3, 4, 16, 16)
    blind, wrong = AblatedImages(val, "blind")[1], AblatedImages(val, "wrong_image")[1]
    assert not blind["video"].any() and not torch.equal(wrong["video"], val[1]["video"])


@pytest.mark.parametrize(("sampling", "clips"), [("uniform", 2), ("headtail", 4)])
def test_questions_about_one_clip_share_it_where_its_frames_are_always_the_same(section, tmp_path, sampling, clips):
    cfg = questions(tmp_path, section)
    rows = [{"video": f"{n % 2}.mp4", "question": f"Clip {n}?", "answer": "grey", "question_id": n} for n in range(4)]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    cfg.vis_processor = pair(cfg.vis_processor.train, {**cfg.vis_processor.eval, "sampling": sampling})
    val = VideoQABuilder("q", cfg).build("train", training=False)
    [batch] = eval_loader(val, RunConfig(batch_size_eval=4, num_workers=0, device="cpu"), share_pictures=True)
    assert batch["question_id"].tolist() == [0, 2, 1, 3] and batch["video"].shape == (clips, 3, 4, 16, 16)
    assert batch["image_rows"].tolist() == [0, 0, 1, 1] if clips == 2 else "image_rows" not in batch


def test_answers_in_several_columns_and_clips_named_by_their_times(section, tmp_path):
    names = [f"answer{n}" for n in range(1, 6)]
    cfg = questions(tmp_path, section, columns={"answers": names}, image_pattern="{video_id}_{start}_{end}.mp4",
                    answer_list=FileConfig())
    lines = ["video_id,start,end,question," + ",".join(names), "ab,3,9,What?,cup,mug,cup,,bowl"]
    (tmp_path / "qa.csv").write_text("\n".join(lines))
    write(tmp_path / "videos" / "ab_3_9.mp4", length=3)
    cfg.build_info.annotations["train"].storage = str(tmp_path / "qa.csv")
    train = VideoQABuilder("q", cfg).build("train", training=True)
    assert train[0]["answers"] == ["cup", "mug", "bowl"] and train[0]["weights"] == [0.5, 0.25, 0.25]
    cfg.columns = {"question": ["a", "b"]}
    with pytest.raises(ConfigError, match="columns.question must be one name"):
        VideoQABuilder("q", cfg)


# real files ----------------------------------------------------------------------------------------------------------
def manifest(folder: Path) -> list[tuple[str, dict]]:
    lines = (folder / "MANIFEST.txt").read_text().splitlines()
    return [(line.split(" ", 2)[0], json.loads(line.split(" ", 2)[2])) for line in lines if line]


@pytest.mark.shared
@pytest.mark.parametrize("reader", BOTH)
def test_real_videos(shared_dir, reader):
    folder = shared_dir / "data" / "videos"
    for name, record in manifest(folder):
        if "error" in record:
            continue
        with open_video(folder / name, reader=reader) as clip:
            assert len(clip) == record["n"], name
            frames = list(clip.frames(record["idx8"]))
        assert list(frames[0].shape) == record["shape"], name
        for frame, mean in zip(frames, record["means"], strict=True):
            # chroma of 10-bit files is interpolated differently by the two
            assert abs(frame.mean() - mean) < (0.01 if reader == "decord" else 0.5), name


@pytest.mark.shared
def test_real_videos_that_decord_cannot_read(shared_dir):
    folder = VideoFolder(shared_dir / "data" / "videos")
    # a codec that decord does not know: PyAV reads it
    assert folder.view("torchcodec_av1_video.mkv", AlproVideoEval(32)).shape == (3, 4, 32, 32)
    with pytest.raises(BadSample, match="cannot be") as caught:
        folder.view("decord_corrupted.mp4", AlproVideoEval(32, n_frms=8))
    assert "decord_corrupted.mp4" in caught.value.path and "github" not in caught.value.reason


@pytest.mark.shared
def test_the_two_readers_agree_on_upright(shared_dir):
    path = shared_dir / "data" / "videos" / "decord_video_90.mov"
    first = [next(open_video(path, reader=name).frames([0])) for name in READERS]
    assert np.abs(first[0].astype(int) - first[1]).max() <= 1
