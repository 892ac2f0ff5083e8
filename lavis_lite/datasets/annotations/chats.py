"""Raw rows of the published dialects of conversations -> one form, and that form -> a `Conversation`.

| dialect | turns of a row |
|---|---|
| LLaVA, ShareGPT | `conversations: [{from: human, value}, ...]` |
| messages (OpenAI, Hugging Face, ms-swift) | `messages: [{role: user, content}, ...]`; content is text or typed parts |
| query (ms-swift) | `query`, `response`, `history: [[query, response], ...]` |
| alpaca (LLaMA-Factory) | `instruction`, `input`, `output`, `history` |
| pairs (XTuner, ms-swift) | `conversation: [{human, assistant, system}, ...]` |
| questions (LLaVA-Bench) | `question_id`, `text`; the picture comes first |
| mPLUG-Owl | `text` with lines `Human: ` and `AI: `, `task_type` |

Pictures and videos are named in the row (`image`, `images`, `video`, `videos`). `<image>` and `<video>` in the texts
mark their places; or a typed part names its own file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from lavis_lite.conversation import Conversation, Picture, Role, Turn
from lavis_lite.datasets.annotations.kinds import describe, file_name, readable
from lavis_lite.datasets.annotations.readers import KNOWN
from lavis_lite.datasets.annotations.rows import Row, RowErrors, RowTable, cached_table, made_rows, numbered_rows
from lavis_lite.datasets.annotations.text_files import AUTO, FileFormat
from lavis_lite.errors import did_you_mean

Kind = Literal["image", "video"]
Learn = Literal["all", "last"]
ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
                          "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "system": "system",
                          "developer": "system"}
TOOLS = ("tool", "tool_call", "tool_calls", "tool_response", "function", "function_call", "observation", "ipython")
"""roles of programs that a model calls"""
FLAGS = ("loss", "train", "weight", "loss_scale")
"""keys of a turn that say whether it is learned"""
COLUMNS = {"image": ("image", "images"), "video": ("video", "videos")}
"""kind -> columns that name a row's files"""
FACTS = ("question_id", "category")
"""columns that evaluations repeat"""
READ = (*FACTS, "conversations", "messages", "conversation", "query", "response", "history", "instruction", "input",
        "output", "system", "text", "task_type", "image", "images", "video", "videos", *FLAGS)
"""columns of all dialects"""
MOST_CHARACTERS = 200_000
"""of a turn"""
_MARK = re.compile("<(image|video)>")
_SIDES = re.compile("^(Human|AI): ?", re.MULTILINE)


@dataclass(frozen=True)
class ChatLayout:
    """How a file writes its conversations.

    Args:
        columns: image, video or turns -> the column's name in the file, if it has an unusual one.
        learn: all: every answer that no flag excepts; last: the last one of each row only.
        file: checks the name of a file; a ValueError with a clause.
        answered: whether every row must have an answer to learn; false: a row may end with a question.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    learn: Learn = "all"
    file: Callable[[Any], str] = file_name
    answered: bool = True

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Columns that may name files of a kind."""
        return (self.columns[kind],) if kind in self.columns else COLUMNS[kind]


@dataclass
class _Files:
    """The files of a row, given to the marks in order."""

    listed: dict[Kind, list[str]]
    taken: list[tuple[Kind, str]] = field(default_factory=list)
    marks: Counter[str] = field(default_factory=Counter)

    def next_index(self, kind: Kind, own: str | None = None) -> int:
        """Index of the file of the next mark; -1 if the row lists no more."""
        if own is None:
            self.marks[kind] += 1
            if self.marks[kind] > len(self.listed[kind]):
                return -1
            own = self.listed[kind][self.marks[kind] - 1]
        self.taken.append((kind, own))
        return len(self.taken) - 1

    def check(self) -> None:
        """Check that the row has as many marks as files."""
        for kind, names in self.listed.items():
            marks, count = self.marks[kind], len(names)
            if marks != count:
                raise ValueError(f"has {marks or 'no'} mark{'s' * (marks != 1)} <{kind}> and {count or 'no'} {kind}"
                                 f"{'s' * (count != 1)}; write one mark for each {kind}")


def read_conversation(raw: Row, layout: ChatLayout) -> Row:
    """One form of all dialects: {"turns": [[role, learned, [text or index, ...]], ...], "media": [[kind, file], ...]}.

    An index is that of a file among `media`. As in LLaVA, a conversation that begins with an answer begins with its
    second turn.

    Raises:
        ValueError: a clause that says what is wrong, and in which turn.
    """
    raw = _without_nulls(raw)
    files = _Files({kind: _listed(raw, layout, kind) for kind in ("image", "video")})
    turns = [_turn(where, turn, layout, files) for where, turn in _raw_turns(raw, layout)]
    files.check()
    turns = _in_order(turns)
    learned = [number for number, turn in enumerate(turns) if turn[1]]
    if not any(turn[0] == "user" for turn in turns):
        raise ValueError("has no question: no turn is from the user")
    if not learned and layout.answered:
        raise ValueError("has no answer to learn: " + (
            "no turn is from the assistant" if all(turn[0] != "assistant" for turn in turns) else
            f"every answer is excepted by {' or '.join(FLAGS)}"))
    if layout.learn == "last":
        turns = [[role, number in learned[-1:], parts] for number, (role, _, parts) in enumerate(turns)]
    facts = {key: raw[key] for key in FACTS if isinstance(raw.get(key), str | int)}
    return {"turns": turns, "media": [list(pair) for pair in files.taken], **({"facts": facts} if facts else {})}


def to_conversation(row: Row, pictures: Sequence[int] | None = None) -> Conversation:
    """The conversation of a row that `read_conversation` made.

    Args:
        row: with turns and media.
        pictures: how many pictures each file is (a video is several); None: one each.
    """
    counts = [1] * len(row["media"]) if pictures is None else list(pictures)
    ends = list(accumulate(counts))

    def parts(item: str | int) -> list[str | Picture]:
        return [item] if isinstance(item, str) else [*map(Picture, range(ends[item] - counts[item], ends[item]))]

    turns = tuple(Turn(role, tuple(part for item in items for part in parts(item)), learned)
                  for role, learned, items in row["turns"])
    return Conversation(turns, sum(counts))


def is_benchmark(columns: Sequence[str]) -> bool:
    """Whether a file with these columns has questions to be answered, in the layout of LLaVA-Bench."""
    return {"question_id", "text"} <= set(columns) and not {"caption", "output", *KNOWN["answer"]} & set(columns)


def is_conversation(columns: Sequence[str]) -> bool:
    """Whether a file with these columns has conversations; its rows may be of several dialects."""
    return is_benchmark(columns) or bool({"conversations", "messages", "conversation"} & set(columns)) or any(
        set(pair) <= set(columns) for pair in (("query", "response"), ("instruction", "output"), ("text", "task_type")))


# --- turns -----------------------------------------------------------------------------------------------------------
def _raw_turns(raw: Row, layout: ChatLayout) -> Iterator[tuple[str, Any]]:
    """(place in the row, turn) of all turns, a system text of the row first."""
    usual = (key for key in ("messages", "conversations", "conversation") if key in raw)
    name = layout.columns.get("turns") or next(usual, None)
    if name is not None:
        value = raw.get(name)
        if not isinstance(value, list) or not value:
            raise ValueError(f"field {name!r} {'is missing' if value is None else 'must be a list of turns'}")
        turns = [pair for number, turn in enumerate(value, 1) for pair in _of_pair(f"{name}[{number}]", turn)]
    else:
        turns = list(_of_transcript(raw["text"]) if {"text", "task_type"} <= set(raw) else _of_query(raw))
    if raw.get("system") and not any(
            isinstance(turn, dict) and "system" in (turn.get("role"), turn.get("from")) for _, turn in turns):
        yield "system", {"role": "system", "content": raw["system"]}
    yield from turns


def _of_pair(where: str, turn: Any) -> Iterator[tuple[str, Any]]:
    """The turns of {human, assistant, system} or {input, output, system}; any other turn as it is."""
    keys = next((keys for keys in (("human", "assistant"), ("input", "output"))
                 if isinstance(turn, dict) and set(keys) <= set(turn)), None)
    if keys is None:
        yield where, turn
        return
    flags = {key: turn[key] for key in FLAGS if key in turn}
    if turn.get("system"):
        yield where, {"role": "system", "content": turn["system"]}
    yield where, {"role": "user", "content": turn[keys[0]]}
    yield where, {"role": "assistant", "content": turn[keys[1]], **flags}


def _of_transcript(text: Any) -> Iterator[tuple[str, Any]]:
    """The turns of one text; what one side says in several lines "Human: " or "AI: " in a row is one turn."""
    system, *pieces = _SIDES.split(text) if isinstance(text, str) else [""]
    if not pieces:
        raise ValueError("field 'text' must be a text with lines that begin with 'Human: ' and 'AI: '")
    if system.strip():
        yield "text", {"role": "system", "content": system.strip()}
    for side, lines in groupby(zip(pieces[::2], pieces[1::2], strict=True), lambda pair: pair[0]):
        yield f"text: {side}", {"role": "user" if side == "Human" else "assistant",
                                "content": "\n".join(line.strip() for _, line in lines)}


def _of_query(raw: Row) -> Iterator[tuple[str, Any]]:
    """The turns of a row of queries and responses."""
    if {"question_id", "text"} <= set(raw) and not {"query", "response", "instruction", "output"} & set(raw):
        question, pictured = raw["text"], any(raw.get(name) for name in COLUMNS["image"])
        unmarked = pictured and isinstance(question, str) and "<image>" not in question
        raw = {**raw, "query": f"<image>\n{question}" if unmarked else question}
    ask, answer = ("query", "response") if {"query", "response"} & set(raw) else ("instruction", "output")
    if ask not in raw and answer not in raw:
        raise ValueError("has no turns: none of the fields messages, conversations, conversation, query and response "
                         f"(it has: {', '.join(sorted(map(str, raw))[:8]) or 'nothing'})")
    history = raw.get("history", [])
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("field 'history' must be a list of pairs [query, response]")
    for number, pair in enumerate(history, 1):
        yield from ((f"history[{number}]", {"role": role, "content": said})
                    for role, said in zip(("user", "assistant"), pair, strict=True))
    more = raw.get("input") if ask == "instruction" else None
    question = raw.get(ask)
    yield ask, {"role": "user", "content": f"{question}\n{more}" if more and isinstance(question, str) else question}
    if answer in raw:
        yield answer, {"role": "assistant", "content": raw[answer], **{key: raw[key] for key in FLAGS if key in raw}}


def _turn(where: str, turn: Any, layout: ChatLayout, files: _Files) -> list[Any]:
    """[role, whether it is learned, parts]."""
    if not isinstance(turn, dict):
        raise ValueError(f"{where} must be an object with a role and a content, not {describe(turn)}")
    speaker = turn.get("role", turn.get("from"))
    if speaker in TOOLS or turn.get("tool_calls"):
        raise ValueError(f"{where} is a turn of a tool ({speaker!r}); models here call no tools: remove such rows")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise ValueError(f"{where} is from {speaker!r}; {did_you_mean(str(speaker), ROLES)}")
    content = turn.get("content", turn.get("value"))
    marks = sum(files.marks.values())  # also those of files that the row lacks
    parts = list(_parts(where, content, layout, files))
    if sum(files.marks.values()) == marks and not any(isinstance(part, int) or part.strip() for part in parts):
        raise ValueError(f"{where} is empty")
    return [ROLES[speaker], ROLES[speaker] == "assistant" and _is_learned(where, turn), parts]


def _is_learned(where: str, turn: Row) -> bool:
    flags = {key: turn[key] for key in FLAGS if turn.get(key) is not None}
    for key, value in flags.items():
        if value not in (0, 1):
            raise ValueError(f"{where}: {key} is {value!r}; an answer is learned (1, true) or not (0, false)")
    return all(flags.values())


def _in_order(turns: list[list[Any]]) -> list[list[Any]]:
    """The turns, without an answer before the first question, if roles alternate."""
    system = 1 if turns and turns[0][0] == "system" else 0
    talk = turns[system:]
    if talk and talk[0][0] == "assistant":
        if any(isinstance(part, int) for part in talk[0][2]):
            raise ValueError("begins with an answer that has a picture; begin with the user's turn")
        talk = talk[1:]
    for number, (role, _, _) in enumerate(talk):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            at = number + len(turns) - len(talk)
            before = turns[at - 1][0] if at else "nothing"
            why = "a system turn comes first" if role == "system" else f"after {before} comes {expected}"
            raise ValueError(f"roles are out of order: turn {at + 1} is from {role}, but {why}")
    return turns[:system] + talk


# --- texts, pictures and videos --------------------------------------------------------------------------------------
def _listed(raw: Row, layout: ChatLayout, kind: Kind) -> list[str]:
    """Names of the files that a row lists."""
    filled = {name: raw[name] for name in layout.names(kind) if raw.get(name) not in (None, "", [])}
    lists = {name: value if isinstance(value, list) else [value] for name, value in filled.items()}
    if len(lists) > 1 and lists[kind] != lists[f"{kind}s"]:
        raise ValueError(f"names {kind}s in two fields, '{kind}' and '{kind}s'; list all of them in one")
    name, items = next(iter(lists.items()), ("", []))
    return [_file(f"field {name!r}{f'[{number}]' if len(items) > 1 else ''}", item, layout)
            for number, item in enumerate(items, 1)]


def _file(where: str, value: Any, layout: ChatLayout) -> str:
    """The name of a picture: a path, a file:// address, or a data: address with the picture itself."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("path", "url", "image", "video") if value.get(key)), value)
    if not isinstance(value, str):
        raise ValueError(f"{where} must name a file, not {describe(value)}")
    scheme = value[:40].partition(":")[0].strip().lower() if ":" in value[:40] else ""
    if scheme in ("http", "https", "ftp", "s3", "gs", "hf"):
        raise ValueError(f"{where} is behind a network address ({value[:60]}); download the pictures, for example with "
                         "img2dataset, and name the files")
    if scheme == "data":
        if not value.startswith("data:image/") or ";base64," not in value[:100]:
            raise ValueError(f"{where} must be data:image/...;base64,...")
        return value
    try:
        return layout.file(unquote(urlsplit(value).path) if scheme == "file" else value)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error


def _parts(where: str, content: Any, layout: ChatLayout, files: _Files) -> Iterator[str | int]:
    """Texts and indices of files."""
    if isinstance(content, str):
        yield from _marked(where, content, files)
        return
    if not isinstance(content, list):
        raise ValueError(f"{where}: its content must be text or a list of parts, not {describe(content)}")
    for number, part in enumerate(content, 1):
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(part, dict):
            raise ValueError(f"{where}: part {number} must be an object with a type, not {describe(part)}")
        yield from _typed(f"{where}: part {number}", part, layout, files)


def _typed(where: str, part: Row, layout: ChatLayout, files: _Files) -> Iterator[str | int]:
    """A part {"type": "text" | "image" | "image_url" | "video" | "video_url", ...}."""
    kind = str(part.get("type", "text" if "text" in part else ""))
    if kind in ("text", "input_text", "output_text"):
        yield from _marked(where, part.get("text"), files)
    elif kind.removeprefix("input_").removesuffix("_url") in ("image", "video"):
        medium: Kind = "video" if "video" in kind else "image"
        own = next((part[key] for key in (f"{medium}_url", medium, "url", "path") if part.get(key)), None)
        number = files.next_index(medium, None if own is None else _file(where, own, layout))
        if number >= 0:
            yield number
    else:
        raise ValueError(f"{where} is of type {kind!r}; parts are text, image, image_url, video or video_url")


def _marked(where: str, value: Any, files: _Files) -> Iterator[str | int]:
    if not isinstance(value, str):
        raise ValueError(f"{where}: its text must be text, not {describe(value)}")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"{where} has {len(value)} characters; at most {MOST_CHARACTERS} are taken")
    try:
        readable(value)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error
    for number, piece in enumerate(_MARK.split(value)):
        if number % 2:
            index = files.next_index("video" if piece == "video" else "image")
            if index >= 0:
                yield index
        elif piece:
            yield piece


def _without_nulls(value: Any) -> Any:
    """A value without keys that are null, which Arrow gives to every object of a list."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


# --- files -----------------------------------------------------------------------------------------------------------
def read_conversations(files: Sequence[Path], layout: ChatLayout, keep: Callable[[Row], bool] | None = None,
                       kept: str | None = None, form: FileFormat = AUTO,
                       rows: Iterable[tuple[int, int, Any]] | None = None) -> RowTable:
    """The conversations of a split's files, checked; rows as `read_conversation` makes them.

    Args:
        files: JSON, JSONL, CSV, TSV, Parquet or Arrow files.
        layout: what their columns are called, and what is learned.
        keep: whether a raw row counts; None: all do.
        kept: identifies `keep` and `layout`; None: the table is not cached.
        form: how the files are written.
        rows: (file number, row number, raw row), if they were read before, as those of shards were.

    Raises:
        DataError: a file is unreadable or without rows; or up to 20 bad rows, all in one message.
    """
    def checked(errors: RowErrors) -> Iterator[tuple[int, int, Row]]:
        return made_rows(numbered_rows(files, form) if rows is None else rows, files, errors, lambda _, __, raw: (
            read_conversation(raw, layout) if keep is None or keep(raw) else None))

    return cached_table(files, None if kept is None else f"conversations {kept} {form}", checked, keep=keep)
