"""Conversations: every published dialect, what batches hold, and one clear error for each kind of bad row."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import BuildInfo, FileConfig, RunConfig, StorageConfig
from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.datasets.annotations.chats import ChatLayout, read_conversation, to_conversation
from lavis_lite.datasets.builders.chat import ChatBuilder, ChatConfig
from lavis_lite.datasets.chat import ChatDataset
from lavis_lite.datasets.controls import AblatedConversations
from lavis_lite.datasets.loading.loader import train_loader
from lavis_lite.datasets.loading.sampler import GlobalSampler
from lavis_lite.errors import ConfigError, DataError
from tests.datasets.conftest import pair, picture

COUNTED = Conversation((Turn("user", (Picture(0), "\nHow many?")), Turn("assistant", ("Two.",), True)), 1)
BRIEF = Conversation((Turn("system", ("Be brief.",)), Turn("user", ("Hi",)), Turn("assistant", ("Hello.",), True)))
CUP = Conversation((Turn("user", (Picture(0), "What?")), Turn("assistant", ("A cup.",), True)), 1)
FULL = Conversation((Turn("system", ("Be brief.",)), Turn("user", ("Hi",)), Turn("assistant", ("Hello.",), True),
                     *CUP.turns), 1)


def url() -> str:
    stream = io.BytesIO()
    picture(0).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def said(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


DIALECTS: dict[str, tuple[dict[str, Any], Conversation, list[list[str]]]] = {
    "LLaVA": ({"id": "a1", "image": "0.png", "conversations": [
        {"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "Two."}]}, COUNTED,
        [["image", "0.png"]]),
    "ShareGPT": ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
                                    {"from": "gpt", "value": "Hello."}]}, BRIEF, []),
    "ShareGPT, gpt first": ({"system": "Be brief.", "tools": "[]", "conversations": [
        {"from": "gpt", "value": "Welcome!"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        BRIEF, []),
    "pairs": ({"system": "Be brief.", "conversation": [{"human": "Hi", "assistant": "Hello."}]}, BRIEF, []),
    "OpenAI": (said(("user", [{"type": "image_url", "image_url": {"url": url()}}, {"type": "text", "text": "What?"}]),
                    ("assistant", "A cup.")), CUP, [["image", url()]]),
    "Hugging Face": (said(("user", [{"type": "image", "path": "0.png", "text": None},
                                    {"type": "text", "text": "What?", "path": None}]),
                          ("assistant", [{"type": "text", "text": "A cup."}]), ), CUP, [["image", "0.png"]]),
    "parts and images": (said(("user", [{"type": "image"}, {"type": "text", "text": "What?"}]),
                              ("assistant", "A cup."), images=[{"bytes": None, "path": "0.png"}]), CUP,
                         [["image", "0.png"]]),
    "messages": (said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), images=[]), BRIEF, []),
    "ms-swift": ({"system": "Be brief.", "query": "<image>What?", "response": "A cup.", "history": [["Hi", "Hello."]],
                  "images": ["0.png"]}, FULL, [["image", "0.png"]]),
    "alpaca": ({"instruction": "<image>What?", "input": "", "output": "A cup.", "system": "Be brief.",
                "history": [["Hi", "Hello."]], "images": ["0.png"]}, FULL, [["image", "0.png"]]),
    "mPLUG-Owl": ({"text": "Be brief.\nHuman: Hi\nAI: Hello.\nHuman: <image>\nHuman: How many?\nAI: Two.",
                   "image": ["0.png"], "task_type": "llava_sft"},
                  Conversation((*BRIEF.turns, *COUNTED.turns), 1), [["image", "0.png"]]),
    "image and images alike": ({"image": "0.png", "images": ["0.png"], "conversations": [
        {"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "Two."}]}, COUNTED,
        [["image", "0.png"]]),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_published_dialects(name):
    raw, conversation, media = DIALECTS[name]
    row = read_conversation(raw, ChatLayout())
    assert (to_conversation(row), row["media"]) == (conversation, media)


def test_questions_of_benchmarks_have_their_picture_first_and_need_no_answer():
    layout = ChatLayout(answered=False)
    row = {"question_id": "q1", "category": "conv", "image": "0.png", "text": "How many?"}
    found = read_conversation(row, layout)
    assert found == {"turns": [["user", False, [0, "\nHow many?"]]], "media": [["image", "0.png"]],
                     "facts": {"question_id": "q1", "category": "conv"}}
    assert read_conversation({**row, "text": "<image>\nHow many?"}, layout) == found
    asked = read_conversation({"question_id": 7, "text": "not this", "query": "Hi", "response": "Hello."}, ChatLayout())
    assert [turn[2] for turn in asked["turns"]] == [["Hi"], ["Hello."]]
    with pytest.raises(ValueError, match="has no answer to learn"):
        read_conversation(row, ChatLayout())
    with pytest.raises(ValueError, match="query: its content must be text or a list of parts, not a number"):
        read_conversation({**row, "text": 5}, layout)
    with pytest.raises(ValueError, match="has no question: no turn is from the user"):
        read_conversation(said(("system", "Be brief.")), layout)


@pytest.mark.parametrize("flag", [{"loss": False}, {"train": False}, {"weight": 0}, {"loss_scale": 0.0}])
def test_answers_with_a_flag_are_read_and_not_learned(flag):
    raw = said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    raw["messages"][1] |= flag
    turns = to_conversation(read_conversation(raw, ChatLayout())).turns
    assert [turn.learned for turn in turns] == [False, False, False, True]
    raw["messages"][1] |= {key: 1 for key in flag}
    row = read_conversation(raw, ChatLayout(learn="last"))
    assert [turn.learned for turn in to_conversation(row).turns] == [False, False, False, True]


def test_a_video_is_as_many_pictures_as_it_has_frames():
    raw = said(("user", "<image> or <video>?"), ("assistant", "The film."), images=["0.png"], video="a.mp4")
    row = read_conversation(raw, ChatLayout())
    conversation = to_conversation(row, [1, 3])
    assert row["media"] == [["image", "0.png"], ["video", "a.mp4"]] and conversation.pictures == 4
    assert conversation.turns[0].parts == (Picture(0), " or ", Picture(1), Picture(2), Picture(3), "?")


ASK = ("user", "<image>Which?")
BAD: dict[str, tuple[Any, str]] = {
    "no file for a mark": (said(ASK, ("assistant", "x")), "has 1 mark <image> and no images"),
    "no mark for a file": (said(("user", "Which?"), ("assistant", "x"), image="0.png"),
                           "has no marks <image> and 1 image; write one mark for each image"),
    "more marks": (said(("user", "<image><image>"), ("assistant", "x"), images=["0.png"]), "has 2 marks <image> and 1"),
    "no answer": (said(("user", "Hi")), "has no answer to learn: no turn is from the assistant"),
    "no learned answer": ({"messages": [{"role": "user", "content": "a"},
                                        {"role": "assistant", "content": "b", "loss": False}]},
                          "has no answer to learn: every answer is excepted by loss"),
    "two questions": (said(("user", "a"), ("user", "b"), ("assistant", "c")),
                      "roles are out of order: turn 2 is from user, but after user comes assistant"),
    "two answers": (said(("user", "a"), ("assistant", "b"), ("assistant", "c")), "after assistant comes user"),
    "late system": (said(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2 is from system, but a system"),
    "a tool": (said(("user", "a"), ("tool", "b"), ("assistant", "c")), "messages[2] is a turn of a tool ('tool')"),
    "a role": (said(("user", "a"), ("asistant", "b")), "is from 'asistant'; did you mean 'assistant'"),
    "an empty turn": (said(("user", " "), ("assistant", "b")), "messages[1] is empty"),
    "a number": (said(("user", 3), ("assistant", "b")), "its content must be text or a list of parts, not a number"),
    "a part": (said(("user", [{"type": "audio", "audio": "x"}]), ("assistant", "b")), "part 1 is of type 'audio'"),
    "the network": (said(("user", [{"type": "image_url", "image_url": {"url": "https://a.org/x.jpg"}}]),
                         ("assistant", "b")), "is behind a network address (https://a.org/x.jpg); download"),
    "a weight": ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]},
                 "weight is 0.5; an answer is learned (1, true) or not (0, false)"),
    "no turns": ({"caption": "x"}, "has no turns: none of the fields messages"),
    "no list": ({"messages": "x"}, "field 'messages' must be a list of turns"),
    "outside": (said(ASK, ("assistant", "x"), image="../0.png"), "field 'image' leads out of its folder"),
    "no row": ([1], "must be an object of named fields"),
    "two fields": (said(ASK, ("assistant", "x"), image="0.png", images=["1.png"]),
                   "names images in two fields, 'image' and 'images'; list all of them in one"),
    "no sides": ({"text": "A red cube.", "task_type": "caption"}, "lines that begin with 'Human: ' and 'AI: '"),
    "missing": (said(ASK, ("assistant", "x"), image="99.png"), "image 99.png is not in"),
}


def section(folder: Path, rows: list[Any], **more: Any) -> ChatConfig:
    path = folder / "chat.json"
    path.write_text(json.dumps(rows))
    info = BuildInfo(annotations={"train": FileConfig(storage=str(path))},
                     images=StorageConfig(storage=str(folder / "images")))
    cfg = ChatConfig(builder="chat", build_info=info, **more)
    cfg.vis_processor = pair({"name": "blip_image_train", "image_size": 16}, {"name": "blip_image_eval",
                                                                              "image_size": 16})
    return cfg


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(folder, name):
    row, told = BAD[name]
    good = DIALECTS["LLaVA"][0]
    with pytest.raises(DataError) as caught:
        ChatBuilder("talks", section(folder, [good, row, good])).build("train", True)
    message = str(caught.value)
    assert message.startswith("1 faulty annotation row:\n") and "chat.json:2: " in message and told in message


def test_pictures_may_be_left_to_the_run(folder):
    rows = [BAD["missing"][0], DIALECTS["LLaVA"][0]]
    dataset = ChatBuilder("talks", section(folder, rows, check_files=False)).build("train", True)
    assert isinstance(dataset, ChatDataset) and len(dataset) == 2


def many(count: int) -> list[dict[str, Any]]:
    kinds = [DIALECTS["LLaVA"][0], DIALECTS["ShareGPT"][0], DIALECTS["OpenAI"][0],
             said(("user", "<image> or <image>?"), ("assistant", "Both."), images=["1.png", "2.png"])]
    return [kinds[number % 4] for number in range(count)]


def test_batches_have_all_pictures_in_the_order_of_rows(folder):
    dataset = ChatBuilder("talks", section(folder, many(8))).build("train", False)
    assert dataset is not None and dataset.location(3).endswith("chat.json:4")
    batch = dataset.collater([dataset[index] for index in (3, 1, 0)])
    assert batch["picture_counts"] == [2, 0, 1] and batch["image"].shape == (3, 3, 16, 16)
    assert torch.equal(batch["image"][2], dataset[0]["image"][0])
    assert [conversation.pictures for conversation in batch["conversation"]] == [2, 0, 1]
    assert "image" not in dataset.collater([dataset[1]])
    assert torch.equal(dataset[2]["image"][0], dataset[0]["image"][0])  # a data: address of the same picture


def test_controls_replace_every_picture_of_a_row_by_another_one(folder):
    rows = [said(("user", "<image>?"), ("assistant", "One."), images=["0.png"]), DIALECTS["ShareGPT"][0],
            said(("user", "<image> or <image>?"), ("assistant", "Both."), images=["0.png", "1.png"]),
            said(("user", "<image> and <image>?"), ("assistant", "Both."), images=["2.png", "1.png"])]
    dataset = ChatBuilder("talks", section(folder, rows)).build("train", False)
    assert dataset is not None
    wrong, blind = AblatedConversations(dataset, "wrong_image"), AblatedConversations(dataset, "blind")
    for index in range(4):
        own, other, none = (data[index] for data in (dataset, wrong, blind))
        assert own["conversation"] == other["conversation"] == none["conversation"]
        assert len(own["image"]) == len(other["image"]) == len(none["image"])
        assert not any(map(torch.equal, own["image"], other["image"])) and not any(one.any() for one in none["image"])
    assert sorted(wrong.others.values()) == sorted(wrong.others)  # each picture stands for one other
    assert wrong.collater([wrong[2], wrong[1]])["picture_counts"] == [2, 0]
    texts = ChatBuilder("talks", section(folder, [DIALECTS["ShareGPT"][0]])).build("train", False)
    assert AblatedConversations(texts, "blind")[0]["image"] == []
    with pytest.raises(DataError, match="needs at least two different images"):
        AblatedConversations(texts, "wrong_image")
    with pytest.raises(DataError, match="list has no frames, media, preview, sample, views"):
        AblatedConversations([], "blind")


def test_a_video_and_an_image_can_stand_for_each_other():
    class Files:
        frames = 3

        def media(self, index: int) -> list[tuple[str, str]]:
            return [[("image", "a")], [("video", "b")]][index]

        def views(self, kind: str, name: str, rng: Any = None) -> list[Any]:
            return [torch.full((1,), ord(name) + frame) for frame in range(1 if kind == "image" else 3)]

        def preview(self, kind: str, name: str) -> Any:
            return None

        def sample(self, index: int, rng: Any = None, picture: Any = None) -> Any:
            return [[int(view) for view in views] for views in picture]

        def __len__(self) -> int:
            return 2

        __getitem__ = sample

    assert [AblatedConversations(Files(), "wrong_image")[row] for row in (0, 1)] == [[[98]], [[97, 97, 97]]]


def test_samples_are_a_function_of_seed_and_index(folder):
    dataset = ChatBuilder("talks", section(folder, many(8))).build("train", True)
    assert dataset is not None
    one, same, other = (dataset.sample(3, random.Random(seed))["image"] for seed in (1, 1, 2))
    assert all(map(torch.equal, one, same)) and not all(map(torch.equal, one, other))


def test_a_resumed_run_sees_the_rest_of_the_batches(folder):
    dataset = ChatBuilder("talks", section(folder, many(12))).build("train", True)
    run = RunConfig(seed=3, batch_size_train=2, num_workers=0)

    def batches(start: int) -> list[Any]:
        order = GlobalSampler([12], 3, 2)
        return list(train_loader([dataset], order, run, 0, 1, start, 5))

    whole, rest = batches(0), batches(2)
    assert len(whole) == 5 and len(rest) == 3
    for first, again in zip(whole[2:], rest, strict=True):
        assert first["conversation"] == again["conversation"]
        assert torch.equal(first["image"], again["image"]) if "image" in first else "image" not in again


@pytest.mark.parametrize(("more", "told"), [
    ({"columns": {"picture": "x"}}, "datasets.talks.columns.picture"),
    ({"video_frames": 0}, "video_frames must be at least 1"),
    ({"image_pattern": "{id}.png"}, "datasets.talks.image_pattern has no effect with builder chat"),
])
def test_sections_that_cannot_be(folder, more, told):
    with pytest.raises(ConfigError, match=told):
        ChatBuilder("talks", section(folder, many(1), **more))


def test_columns_of_other_names(folder):
    rows = [{"pics": ["0.png"], "talk": DIALECTS["LLaVA"][0]["conversations"]}]
    cfg = section(folder, rows, columns={"image": "pics", "turns": "talk"})
    dataset = ChatBuilder("talks", cfg).build("train", False)
    assert dataset is not None and dataset[0]["conversation"] == COUNTED
