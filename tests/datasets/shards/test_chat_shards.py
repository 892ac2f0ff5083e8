"""Conversations in webdataset tars: any number of pictures under a key, and the same errors as in a file."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.cli.main import run_command
from lavis_lite.config.compose import compose
from lavis_lite.config.schema import BuildInfo, FileConfig
from lavis_lite.conversation import Picture
from lavis_lite.datasets.builders.chat import ChatBuilder, ChatConfig
from lavis_lite.datasets.chat import ChatDataset
from lavis_lite.datasets.shards.index import ShardIndex
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.errors import DataError
from tests.datasets.conftest import pair
from tests.datasets.test_column_files import png

EVAL = pair({"name": "blip_image_eval", "image_size": 16}, {"name": "blip_image_eval", "image_size": 16})


def tar(folder: Path, *members: tuple[str, Any], name: str = "0.tar") -> Path:
    """A folder with one tar; bytes as they are, other values as JSON."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as opened:
        for member, content in members:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(member)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return folder


def talk(text: str = "<image>\nWhat?", answer: str = "A cup.") -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]


def opened(folder: Path, storage: str = "", **keys: Any) -> ChatDataset:
    index_folder(folder, log=lambda line: None)
    info = BuildInfo({"train": FileConfig(storage=f"{folder}{storage}")})
    dataset = ChatBuilder("talks", ChatConfig(builder="chat", build_info=info, vis_processor=EVAL,
                                              **keys)).build("train", True)
    assert dataset is not None
    return dataset


def test_one_picture_several_and_none(tmp_path: Path) -> None:
    folder = tar(tmp_path / "s", ("a.jpg", png(0)), ("a.json", talk()),                          # the turns alone
                 ("b.0.png", png(1)), ("b.1.png", png(2)), ("b.json", {"conversations": talk("<image> or <image>?")}),
                 ("c.json", {"query": "Hi", "response": "Yes?"}),
                 ("d.png", png(3)), ("d.json", {"image": "coco/train/7.jpg", "conversations": talk()}))
    dataset = opened(folder)
    samples = [dataset.sample(index) for index in range(len(dataset))]
    assert [len(sample["image"]) for sample in samples] == [1, 2, 0, 1]
    assert [row["media"] for row in dataset.table] == [
        [["image", "0/a.jpg"]], [["image", "0/b.0.png"], ["image", "0/b.1.png"]], [], [["image", "0/d.png"]]]
    assert samples[1]["conversation"].turns[0].parts == (Picture(0), " or ", Picture(1), "?")
    batch = dataset.collater(samples)
    assert batch["picture_counts"] == [1, 2, 0, 1] and len(batch["image"]) == 4
    again = pickle.loads(pickle.dumps(dataset)).sample(1)
    assert [view.tolist() for view in again["image"]] == [view.tolist() for view in samples[1]["image"]]
    assert [shard.samples for shard in ShardIndex(folder).shards] == [4]


def test_pictures_come_in_the_order_that_the_row_lists(tmp_path: Path) -> None:
    folder = tar(tmp_path / "s", ("a.0.png", png(0)), ("a.1.png", png(1)),
                 ("a.json", {"images": ["x/a.1.png", "x/a.0.png"], "conversations": talk("<image><image>?")}))
    assert opened(folder).table[0]["media"] == [["image", "0/a.1.png"], ["image", "0/a.0.png"]]


def test_a_range_of_tars_and_a_held_out_share(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / "s", *(member for key in range(8) for member in (
            (f"{number}{key}.png", png(key)), (f"{number}{key}.json", talk()))), name=f"{number}.tar")
    assert len(opened(tmp_path / "s", "/{1..2}.tar")) == 16
    train = opened(tmp_path / "s", val_fraction=0.3)
    assert 0 < len(train) < 24


@pytest.mark.parametrize(("members", "message"), [
    ([("a.json", talk("<image> and <image>"))], "0.tar:1: has 2 marks <image> and 1 image; write one mark for each"),
    ([("a.json", {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]},
                               {"role": "assistant", "content": "b"}]})],
     "0.tar:1: messages[1]: part 1 names 'x.png', which is in none of the shards"),
    ([("a.json", {"video": "v.mp4", "conversations": talk("<image><video>")})],
     "field 'video' names 'v.mp4', which is in none of the shards"),
])
def test_bad_rows_are_named_by_tar_and_sample(tmp_path: Path, members: list[Any], message: str) -> None:
    folder = tar(tmp_path / "s", ("a.png", png(0)), *members)
    with pytest.raises(DataError) as caught:
        opened(folder)
    assert message in str(caught.value)


def test_data_check_writes_the_recipe_of_a_folder_of_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "talks", *(member for key in range(12) for member in (
        (f"{key}.png", png(key)), (f"{key}.json", talk()))))
    assert run_command("data", ["check", "talks/0.tar"]) == 2
    assert "data index DIR" in "".join(capsys.readouterr())
    assert run_command("data", ["index", "talks"]) == 0
    assert run_command("data", ["check", "talks", "--write-yaml", "talks.yaml"]) == 0, capsys.readouterr().out
    assert "shards of conversations" in capsys.readouterr().out
    composition = compose("talks.yaml")
    assert composition.errors == [] and composition.config.datasets["talks"].builder == "chat"
