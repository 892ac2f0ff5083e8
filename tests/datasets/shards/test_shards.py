"""Shards: written once, whole or not at all; read by offset; every damage named with shard and image."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from lavis_lite.cli.main import run_command
from lavis_lite.config.schema import FileConfig, RunConfig
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.builders.chat import ChatBuilder, ChatConfig
from lavis_lite.datasets.builders.custom import CustomBuilder, CustomConfig
from lavis_lite.datasets.builders.images import ImageCaptionBuilder, ImageShardBuilder
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.files.locate import shard_names
from lavis_lite.datasets.files.mapped import Mapped
from lavis_lite.datasets.loading.loader import train_loader
from lavis_lite.datasets.loading.sampler import GlobalSampler, sample_rng
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.shards import writer as shard_writer
from lavis_lite.datasets.shards.index import ARRAYS, INDEX, ShardIndex
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.datasets.shards.writer import joined, make_plan, write_shards
from lavis_lite.errors import ConfigError, DataError


def quiet(text: str) -> None:
    """Says nothing."""


def pack(dataset: Any, out: Path, per_shard: int = 3, **more: Any) -> ShardIndex:
    out.mkdir(exist_ok=True)
    plan = make_plan(dataset.table, dataset.folder, out, per_shard, more.pop("skip_bad", False))
    return write_shards(plan, getattr(dataset, "space", "tiny"), log=quiet, **more)


@pytest.fixture
def loose(coco_section) -> Any:
    """Eight images with two captions each."""
    return ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


@pytest.fixture
def folder(loose, tmp_path) -> Path:
    """The same in three shards."""
    pack(loose, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def build(coco_section):
    """(storage) -> the training set that is there."""
    def make(storage: Any, builder: Any = ImageCaptionBuilder, training: bool = True, **entry: Any) -> Any:
        coco_section.build_info.annotations = {"train": FileConfig(storage=storage and str(storage), **entry)}
        return builder("tiny", coco_section).build("train", training=training)
    return make


def same(left: Any, right: Any) -> bool:
    """Whether two data sets give the same samples, augmentation included."""
    pairs = [[one.sample(index, sample_rng(1, 0, 0, index)) for one in (left, right)] for index in range(len(left))]
    return len(left) == len(right) and all(
        a.keys() == b.keys() and torch.equal(a["image"], b["image"])
        and all(a[key] == b[key] for key in a if key != "image") for a, b in pairs)


def test_samples_are_those_of_the_loose_files(loose, folder, build):
    assert same(loose, build(folder))
    assert same(loose, build(folder, ImageShardBuilder))
    assert same(loose, pickle.loads(pickle.dumps(build(folder))))


def test_evaluation_sees_images_with_all_their_captions(coco_section, folder, build):
    coco_section.vis_processor.train = coco_section.vis_processor.eval
    loose = ImageCaptionBuilder("tiny", coco_section).build("train", training=False)
    packed = build(folder, training=False)
    assert same(loose, packed) and packed.captions == loose.captions and packed.image_ids == loose.image_ids


def test_an_evaluation_split_can_be_packed_too(coco_section, tmp_path):
    loose = ImageCaptionBuilder("tiny", coco_section).build("val", training=False)
    pack(loose, tmp_path / "val")
    coco_section.build_info.annotations["val"] = FileConfig(storage=str(tmp_path / "val"))
    packed = ImageCaptionBuilder("tiny", coco_section).build("val", training=False)
    assert same(loose, packed) and packed.captions == loose.captions and packed.image_ids == loose.image_ids


@pytest.mark.parametrize("training", [True, False])
def test_questions_can_be_packed_too(coco_folder, section, tmp_path, training):
    rows = [{"image": f"{number % 5}.png", "question": f"What is {number}?", "question_id": number,
             "answer": ["one", "two", "one"][:1 + number % 3]} for number in range(10)]
    (coco_folder / "questions.json").write_text(json.dumps(sorted(rows, key=lambda row: row["image"])))
    cfg = section(coco_folder, {"train": "questions.json"}, ImageQAConfig)
    cfg.vis_processor.eval = cfg.vis_processor.train
    loose = ImageQABuilder("mine", cfg).build("train", training=training)
    index = pack(loose, tmp_path / "shards", 2)
    assert index.samples == 5 and len(index.shards) == 3
    cfg.build_info.annotations["train"] = FileConfig(storage=str(tmp_path / "shards"))
    packed = ImageQABuilder("mine", cfg).build("train", training=training)
    assert same(loose, packed)
    if not training:
        assert packed.answer_list == loose.answer_list == ["one"] and packed.question(3) == loose.question(3)


def test_shards_of_captions_hold_no_questions(folder, section):
    cfg = section(folder, {"train": ""}, ImageQAConfig)
    with pytest.raises(DataError, match="have no answers and no counts and no question"):
        ImageQABuilder("mine", cfg).build("train", training=True)


def test_webdataset_reads_them(folder, coco_folder):
    found = list(webdataset.WebDataset([str(path) for path in sorted(folder.glob("*.tar"))], shardshuffle=False))
    assert len(found) == 8
    for number, sample in enumerate(found):
        assert sample["png"] == (coco_folder / "images" / f"{number}.png").read_bytes()  # as stored
        assert json.loads(sample["json"])["caption"] == [f"Picture {number}, caption {k}." for k in range(2)]


def test_loader_workers_and_restarts_change_nothing(folder, build):
    data, run = build(folder), RunConfig(batch_size_train=4, num_workers=0, seed=3, device="cpu")
    order = GlobalSampler([len(data)], 3, 4)
    def texts(workers: int, start: int) -> list[Any]:
        run.num_workers = workers
        batches = train_loader([data], order, run, 0, 1, start, 6)
        return [(batch["text_input"], batch["image"].sum().item()) for batch in batches]
    assert texts(0, 0) == texts(2, 0) and texts(0, 0)[4:] == texts(0, 4)


@pytest.mark.parametrize(("pattern", "images"), [("{000000..000002}.tar", 8), ("{000001..000002}.tar", 5),
                                                 ("*.tar", 8), ("000002.tar", 2)])
def test_some_of_the_shards(folder, build, pattern, images):
    data = build(folder / pattern)
    assert len(data) == 2 * images
    assert [data[index]["text_input"] for index in (0, len(data) - 1)] == [
        f"picture {8 - images}, caption 0", "picture 7, caption 1"]


def test_a_folder_with_shards_of_several_splits_is_not_one_split(loose, section, tmp_path, build):
    made = tmp_path / "both"
    pack(loose, made)
    shutil.move(made / "000000.tar", made / "val-000000.tar")
    for number in (1, 2):
        shutil.move(made / f"00000{number}.tar", made / f"train-00000{number - 1}.tar")
    for path in {*made.glob("index*"), *made.glob("*.json"), *made.glob("*.safetensors")}:
        path.unlink()
    run_command("data", ["index", str(made)])
    with pytest.raises(DataError, match=r"both has shards of several splits \(train, val\). Name those of one"):
        build(made)
    for builder, config in ((ImageQABuilder, ImageQAConfig), (ChatBuilder, ChatConfig)):
        with pytest.raises(DataError, match=r"both has shards of several splits"):
            builder("mine", section(made, {"train": ""}, config)).build("train", training=True)
    assert len(build(made / "train-{000000..000001}.tar")) == 10


def test_patterns():
    assert shard_names("a/{08..11}.tar").names == ("08.tar", "09.tar", "10.tar", "11.tar")
    assert shard_names("https://x.org/y/").remote and shard_names("https://x.org/y.json") is None
    assert shard_names("nowhere/captions.json") is None
    with pytest.raises(ConfigError, match="shards are named by"):
        shard_names("a/{b}.tar")


def test_shards_that_the_index_lacks(folder, build):
    with pytest.raises(DataError, match=r"000007.tar is not among the shards"):
        build(folder / "{000007..000009}.tar")
    with pytest.raises(DataError, match="are not all there"):
        build(folder / "{000001..000009}.tar")


def test_rows_are_checked_again_where_other_fields_are_wanted(folder, section, tmp_path):
    cfg = section(folder, {"train": ""}, CustomConfig, caption_column="text")
    with pytest.raises(DataError, match=r"000000.tar:1: field 'text' is missing"):
        CustomBuilder("mine", cfg).build("train", training=True)
    cfg.caption_column = "caption"
    assert len(CustomBuilder("mine", cfg).build("train", training=True)) == 16


def test_a_caption_is_drawn_anew_each_time(coco_section, folder, build):
    coco_section.captions = "random"
    data = build(folder)
    texts = {data.sample(3, sample_rng(0, epoch, 0, 3))["text_input"] for epoch in range(20)}
    assert len(data) == 8 and texts == {"picture 3, caption 0", "picture 3, caption 1"}


# writing --------------------------------------------------------------------------------------------------------------


def test_a_killed_writer_goes_on_and_writes_the_same_bytes(loose, folder, tmp_path, monkeypatch):
    real, calls, out = os.replace, [], tmp_path / "again"

    def die(source: Any, target: Any) -> None:
        calls.append(str(target))
        if len(calls) == 6:  # the third tar: finished under its hidden name
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        pack(loose, out)
    monkeypatch.undo()
    assert sorted(path.name for path in out.glob("*.tar")) == ["000000.tar", "000001.tar"]
    with pytest.raises(DataError, match="no index"):
        ShardIndex(out)
    stamps = [(out / name).stat().st_mtime_ns for name in ("000000.tar", "000001.tar")]
    pack(loose, out, workers=2)
    assert stamps == [(out / name).stat().st_mtime_ns for name in ("000000.tar", "000001.tar")]
    for name in ("000000.tar", "000001.tar", "000002.tar", INDEX, "index.safetensors"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not list(out.glob(".tmp-*"))


def test_other_data_are_not_mixed_in(loose, folder):
    with pytest.raises(DataError, match="of other data or of another --samples-per-shard"):
        pack(loose, folder, per_shard=4)
    pack(loose, folder)  # the same: nothing to do
    picture = loose.folder.path("3.png")
    before = picture.read_bytes()
    picture.write_bytes(before + b" ")
    with pytest.raises(DataError, match="of other data or of another --samples-per-shard"):
        pack(loose, folder)
    picture.write_bytes(before)
    shutil.rmtree(folder / ".parts")
    with pytest.raises(DataError, match="not written by this command"):
        pack(loose, folder)


def test_an_unreadable_image_stops_the_writer_or_is_listed(loose, coco_folder, tmp_path, build):
    (coco_folder / "images" / "4.png").unlink()
    with pytest.raises(BadSample, match="4.png: there is no such file"):
        pack(loose, tmp_path / "a")
    index = pack(loose, tmp_path / "b", skip_bad=True)
    assert index.samples == 7 and len(build(tmp_path / "b")) == 14
    record = json.loads((tmp_path / "b" / "skipped.jsonl").read_text())
    assert record["image"] == "4.png" and "no such file" in record["reason"]


def test_rows_of_an_image_that_differ_in_more_than_the_caption_stay_rows():
    rows = [{"image": "a", "question": "q", "answer": "1"}, {"image": "a", "question": "r", "answer": "2"}]
    assert joined(rows) == rows
    assert joined([{"image": "a", "caption": "x"}, {"image": "a", "caption": "y"}]) == [
        {"image": "a", "caption": ["x", "y"]}]
    assert shard_writer.suffix_of("a/b.JPG", b"") == "jpg"
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "WEBP")
    assert shard_writer.suffix_of("no suffix", buffer.getvalue()) == "webp"


# damage ---------------------------------------------------------------------------------------------------------------


def reasons(data: Any) -> dict[int, str]:
    """Row -> what is wrong with it."""
    found = {}
    for index in range(len(data)):
        try:
            data[index]
        except BadSample as fault:
            found[index] = str(fault)
    return found


def test_a_shard_cut_short(folder, build):
    path = folder / "000001.tar"
    data = build(folder)
    place = data.folder.index.find("4.png")
    path.write_bytes(path.read_bytes()[:place.offset + 5])
    found = reasons(data)
    assert sorted(found) == [8, 9, 10, 11]  # images 4 and 5, two captions each; image 3 is whole
    assert "000001.tar:4.png: the shard is cut short: it ends at byte" in found[8]


def test_a_flipped_byte_is_found_in_content_and_header(folder, build):
    data = build(folder)
    for name, offset, words in (("1.png", 3, "not those that were packed"), ("6.png", -400, "there is no image at")):
        place = data.folder.index.find(name)
        path = folder / f"{place.shard:06d}.tar"
        content = bytearray(path.read_bytes())
        content[place.offset + offset] ^= 1
        path.write_bytes(content)
        os.utime(path, (1, 1))  # a bit that a disk flips changes no time
        assert words in reasons(data)[2 * int(name[0])]
    assert len(reasons(data)) == 4


def test_damage_follows_the_policy_of_bad_images(folder, build):
    (folder / "000002.tar").unlink()
    data, order = build(folder), GlobalSampler([16], 0, 16)
    run = RunConfig(batch_size_train=16, num_workers=0, device="cpu")
    with pytest.raises(DataError, match=r"000002.tar:1: .*000002.tar:6.png there is no such shard.*on_bad_sample=skip"):
        list(train_loader([data], order, RunConfig(**{**vars(run), "seed": 2}), 0, 1, 0, 1))
    run.on_bad_sample = "skip"
    (batch,) = train_loader([data], order, run, 0, 1, 0, 1)
    assert len(batch["text_input"]) == 16 and len(batch["bad_samples"]) >= 4
    assert all("000002.tar" in record["file"] for record in batch["bad_samples"])


def test_a_damaged_index_is_refused(folder, build):
    arrays = folder / "index.safetensors"
    whole = arrays.read_bytes()
    for content, words in ((whole[:-3], "an array lies outside"), (b"", "damaged"), (whole + b"x", "its size is not")):
        arrays.write_bytes(content)
        with pytest.raises(DataError, match=words):
            build(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(DataError, match="cannot be used as an index of shards"):
        build(folder)


# other people's shards ------------------------------------------------------------------------------------------------


def add(tar: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content), kind
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def foreign(tmp_path, coco_folder) -> Path:
    """Two shards as img2dataset writes them, with members that must stay without effect."""
    out = tmp_path / "laion"
    out.mkdir()
    picture = (coco_folder / "images" / "0.png").read_bytes()
    for shard in range(2):
        with tarfile.open(out / f"{shard:05d}.tar", "w") as tar:
            add(tar, "../../evil.txt", b"x")
            add(tar, "link.png", b"", tarfile.SYMTYPE)
            for number in range(3):
                key = f"{shard:05d}{number:04d}"
                add(tar, f"{key}.png", picture + bytes([shard, number]))
                add(tar, f"{key}.pkl", pickle.dumps(print))
                if number:
                    add(tar, f"{key}.json", json.dumps({"caption": f"caption {key}", "key": key, "url": "u"}).encode())
                else:
                    add(tar, f"{key}.txt", f"text {key}\n".encode())
                add(tar, f"{key}.{'x' * 120}", b"long name")
    return out


def test_foreign_shards(foreign, build, capsys):
    assert run_command("data", ["index", str(foreign), "--keep", "key"]) == 2
    assert "00000.tar:../../evil: has no image" in capsys.readouterr().err
    assert run_command("data", ["index", str(foreign), "--keep", "key", "--skip-bad"]) == 0
    assert "6 samples in 2 shards" in capsys.readouterr().out
    data = build(foreign / "{00000..00001}.tar", ImageShardBuilder)
    assert [data[index]["text_input"] for index in range(3)] == ["text 000000000", "caption 000000001",
                                                                 "caption 000000002"]
    assert data.table[4]["key"] == "000010001" and "url" not in data.table[4]
    assert data.folder.read("00001/000010001.png").endswith(bytes([1, 1]))
    assert not (foreign.parent / "evil.txt").exists()


def test_an_index_of_other_tars_is_not_trained_on(foreign, build, capsys):
    """New captions of the same length leave every picture at its offset; a copied folder has other times."""
    assert run_command("data", ["index", str(foreign), "--skip-bad"]) == 0
    path = sorted(foreign.glob("*.tar"))[0]
    os.utime(path)
    assert build(foreign)[0]["image"].shape == (3, 16, 16)
    path.write_bytes(path.read_bytes().replace(b"text ", b"TEXT "))
    with pytest.raises(BadSample, match=rf"{path.name}: has changed since the index was made: .*data index .* --again"):
        build(foreign)[0]
    assert run_command("data", ["index", str(foreign)]) == 2
    path.write_bytes(path.read_bytes() + bytes(10240))
    with pytest.raises(DataError, match=rf"{path.name}: has changed since the index was made"):
        build(foreign)
    assert run_command("data", ["index", str(foreign), "--again", "--skip-bad"]) == 0
    build(foreign)
    shutil.copy(path, foreign / "later.tar")
    with pytest.raises(DataError, match=r"1 of its tars are not in its index, such as later.tar. Run: .*--again"):
        build(foreign)
    assert run_command("data", ["index", str(foreign)]) == 2 and "later.tar" in capsys.readouterr().err


def test_the_index_of_own_shards_can_be_found_out_again(folder, tmp_path):
    before, arrays = ShardIndex(folder), Mapped(folder / ARRAYS)
    (folder / INDEX).unlink()
    after = index_folder(folder, log=quiet)
    assert after.shards == before.shards
    for name in ("hash", "shard", "offset", "size", "crc", "starts"):
        assert np.array_equal(arrays[name], Mapped(folder / ARRAYS)[name])
    tables = [index.table([]) for index in (before, after)]
    assert [tables[0][row] for row in range(8)] == [tables[1][row] for row in range(8)]


def test_shards_are_told_apart_by_their_index(loose, folder, build, tmp_path):
    whole, again = (build(folder) for _ in range(2))
    assert whole.content_hash() == again.content_hash()
    assert build(f"{folder}/{{000000..000001}}.tar").content_hash() != whole.content_hash()
    rows = [(0, row, {**loose.table[row], "caption": "another"}) for row in range(len(loose))]
    loose.table = RowTable(rows, ["x"], loose.table.kinds)
    pack(loose, tmp_path / "other")
    assert build(tmp_path / "other").content_hash() != whole.content_hash()


def test_a_foreign_shard_cut_short_is_no_silent_loss(foreign, capsys):
    path = foreign / "00001.tar"
    whole = path.read_bytes()
    for end in (len(whole) // 2 - 100, -(-len(whole.rstrip(b"\0")) // 512) * 512):  # in a member; behind the last one
        path.write_bytes(whole[:end])
        assert run_command("data", ["index", str(foreign), "--again"]) == 2
        assert "cut short or damaged" in capsys.readouterr().err
    path.write_bytes(whole[:1024] + b"junk" * 128 + whole[1536:])
    assert run_command("data", ["index", str(foreign), "--again"]) == 2
    assert "cut short or damaged" in capsys.readouterr().err


def test_wrong_rows_are_listed(tmp_path, capsys):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, content in enumerate((b"{", b'{"caption": 3}', b"[]", b'{"caption": null}')):
            add(tar, f"{number}.jpg", b"x")
            add(tar, f"{number}.json", content)
    assert run_command("data", ["index", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "4 errors" in told and all(f"0.tar:{number}: " in told for number in range(4))


# shards behind a URL --------------------------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def site(folder, tmp_path, monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_remote_shards_are_brought_within_the_limit(site, loose, build, folder, tmp_path, monkeypatch):
    size = (folder / "000000.tar").stat().st_size
    monkeypatch.setenv("LAVIS_LITE_SHARD_CACHE_GB", str(2.5 * size / 1e9))
    data = build(None, url=site + "/")
    cached = tmp_path / "cache" / "shards"
    assert not list(cached.glob("*/*.tar"))  # opening brings the index only
    data.folder.read("0.png")
    assert [path.name for path in cached.glob("*/*.tar")] == ["000000.tar"]
    assert same(loose, data)
    assert same(loose, build(None, url=site + "/{000000..000002}.tar"))
    held = sorted(path.name for path in cached.glob("*/*.tar"))
    assert held == ["000001.tar", "000002.tar"]  # the last used
    assert not list(cached.glob("*/*.part*"))


def test_a_damaged_remote_shard_and_the_offline_rule(site, build, folder, monkeypatch):
    data = build(None, url=site + "/")
    (folder / "000001.tar").write_bytes(b"x" * 5000)
    found = reasons(data)
    assert sorted(found) == [6, 7, 8, 9, 10, 11] and "this shard cannot be fetched" in found[6] and "sha256" in found[6]
    (folder / "000001.tar").unlink()
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    again = build(None, url=site + "/")
    assert "forbids to fetch" in reasons(again)[6] and len(reasons(again)) == 6


def test_the_limit_must_be_a_number(site, build, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_SHARD_CACHE_GB", "many")
    with pytest.raises(ConfigError, match="LAVIS_LITE_SHARD_CACHE_GB='many'"):
        build(None, url=site + "/")[0]


# what a run says before it starts -------------------------------------------------------------------------------------


def test_missing_shards_are_named(coco_section, folder, tmp_path, monkeypatch):
    entry = coco_section.build_info.annotations
    entry.clear()
    entry["train"] = FileConfig(storage=str(folder))
    builder = ImageCaptionBuilder("tiny", coco_section)
    coco_section.build_info.images.storage = "nowhere"  # not needed: the shards have the images
    assert builder.missing_files() == []
    (folder / INDEX).unlink()
    assert "data index" in builder.missing_files()[0]
    entry["train"].storage = str(tmp_path / "none" / "{00..02}.tar")
    assert "there are no shards in" in builder.missing_files()[0]
    entry["train"].storage = str(tmp_path / "none")
    (message,) = ImageShardBuilder("tiny", coco_section).missing_files()
    assert message.startswith("datasets.tiny.build_info.annotations.train.storage: ")


def test_lavis_place_of_the_shards(coco_section, folder):
    coco_section.build_info.annotations = {}
    coco_section.build_info.storage = str(folder / "{000000..000002}.tar")
    assert len(ImageShardBuilder("tiny", coco_section).build("train", training=True)) == 16


def test_the_command_packs_a_split(coco_section, coco_folder, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run.yaml"
    entry = f"{{train: {{storage: {coco_folder}/captions_train.json}}}}"
    run.write_text(f"datasets: {{tiny: {{builder: image_caption, build_info: {{annotations: {entry}, images: "
                   f"{{storage: {coco_folder}/images}}}}}}}}\n")
    words = ["shard", "--cfg-path", str(run), "--out", str(tmp_path / "out"), "--samples-per-shard", "5"]
    assert run_command("data", words) == 0
    assert "8 samples in 2 shards" in capsys.readouterr().out
    assert run_command("data", [*words, "--split", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert run_command("data", ["shrad"]) == 2
    assert "did you mean 'shard'" in capsys.readouterr().err


def test_webdataset_writes_the_bytes_of_plain_tar_members(tmp_path: Path) -> None:
    """No owner, no time, the picture before its JSON: every machine and earlier versions write these bytes."""
    Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "a.png")
    row, out = {"image": "a.png", "caption": "a"}, tmp_path / "out"
    table = RowTable([(0, 1, row)], [Path("rows.json")], {"image": "file_name", "caption": "text"})
    out.mkdir()
    write_shards(make_plan(table, ImageFolder(tmp_path), out, 1), "tiny", log=quiet)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.PAX_FORMAT) as tar:
        stored = {"image": "a.png", "caption": ["a"]}
        for name, content in (("000000000.png", (tmp_path / "a.png").read_bytes()),
                              ("000000000.json", json.dumps(stored).encode())):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    assert (out / "000000.tar").read_bytes() == expected.getvalue()
