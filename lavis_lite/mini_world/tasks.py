"""Writes data of the mini world for tasks besides captions and questions, in the layouts of published data sets.

    python -m lavis_lite data prepare mini_world_dialogue

::

```
    FOLDER/manifest.json                    the arguments; written last
           images/scenes/000000.jpg         64 x 64 pixels: the scenes of the mini world's split test, of the same seed
           images/signs/000000.jpg          nothing but words: the lines of a sign
           videos/000000.avi                8 frames of 64 x 64 pixels; objects come in one after the other
           annotations/options_test.json    A-OKVQA's layout: four options, the right one's index, ten answers
                       yes_no_test.jsonl    Hateful Memes' layout: a text and the label 0 or 1
                       dialogues_test.json, relevance_test.json   VisDial v1.0's layout: ten candidates a round
                       signs_test.json      questions about a sign's words, with the words as an OCR system has them
                       clips_test.json      questions about the clips
                       answers.json         all answers
```
Everything is synthetic, a pure function of the seed, for evaluation only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lavis_lite.errors import DataError
from lavis_lite.mini_world.avi import motion_jpeg
from lavis_lite.mini_world.captions import canonical_caption
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.questions import TYPES, Question, make_questions
from lavis_lite.mini_world.records import ANSWERS_PER_QUESTION
from lavis_lite.mini_world.render import encode_jpeg, render
from lavis_lite.mini_world.scenes import COLORS, IMAGE_SIZE, MAX_OBJECTS, SHAPES, Scene, make_scene
from lavis_lite.mini_world.world import DEFAULT_SEED, ensure, write_json

VERSION = 1
"""part of the manifest; raise it with any change of the files"""
FRAMES = 8
OPTIONS, CANDIDATES = 4, 10
KINDS = {"color": COLORS, "shape": SHAPES, "count": tuple(str(number) for number in range(MAX_OBJECTS + 1))}
"""type of a question with several possible answers -> these answers"""
ANSWERS = (*(answer for kind in KINDS.values() for answer in kind), "yes", "no", "left", "right", "above", "below")
SIGN = (200, 64)
"""pixels of a sign"""
Row = dict[str, Any]


def prepare_mini_tasks(root: Path | str, pictures: int = 150, clips: int = 60, seed: int = DEFAULT_SEED) -> Path:
    """Make sure that `root` holds these tasks, and return it.

    Args:
        root: the folder to write; new, empty, or written by this function.
        pictures: scenes, and as many signs.
        clips: videos.
        seed: of the mini world.

    Raises:
        DataError: the folder holds something else, cannot be written, or a number is below 1.
    """
    root = Path(root).expanduser().absolute()
    if not (0 < pictures < 100_000 and 0 < clips < 100_000):
        raise DataError(f"mini tasks: pictures={pictures}, clips={clips}: must be 1 to 99999")
    wanted = {"name": "mini_tasks", "version": VERSION, "seed": seed, "sizes": {"pictures": pictures, "clips": clips}}
    ensure(root, wanted, lambda folder: _write(folder, pictures, clips, seed))
    return root


def _write(folder: Path, pictures: int, clips: int, seed: int) -> None:
    scenes = [make_scene(seed, "test", index) for index in range(max(pictures, clips))]
    for name in ("images/scenes", "images/signs", "videos"):
        (folder / name).mkdir(parents=True)
    for scene in scenes[:pictures]:
        (folder / "images" / _picture(scene)).write_bytes(encode_jpeg(render(scene)))
        _sign(scene).save(folder / "images" / _sign_name(scene), quality=90)
    for scene in scenes[:clips]:
        (folder / "videos" / _clip_name(scene)).write_bytes(_clip(scene))
    notes, shown = folder / "annotations", scenes[:pictures]
    write_json(notes / "options_test.json", [row for scene in shown for row in options(scene)])
    lines = [json.dumps(row) + "\n" for scene in shown for row in yes_no(scene)]
    (notes / "yes_no_test.jsonl").write_text("".join(lines), encoding="utf-8")
    write_json(notes / "dialogues_test.json", dialogues(shown))
    write_json(notes / "relevance_test.json", [relevance(scene) for scene in shown])
    write_json(notes / "signs_test.json", [row for scene in shown for row in signs(scene)])
    write_json(notes / "answers.json", ANSWERS)
    write_json(notes / "clips_test.json", [row for scene in scenes[:clips] for row in clip_questions(scene)])


def _picture(scene: Scene) -> str:
    return f"scenes/{scene.index:06d}.jpg"


def _sign_name(scene: Scene) -> str:
    return f"signs/{scene.index:06d}.jpg"


def _clip_name(scene: Scene) -> str:
    return f"{scene.index:06d}.avi"


def _asked(scene: Scene, *types: str) -> Iterator[tuple[int, Question]]:
    """(number, question) of these types."""
    return ((10 * scene.image_id + index, one) for index, one in enumerate(make_questions(scene)) if one.type in types)


def _with_others(scene: Scene, number: int, answer: str, others: tuple[str, ...], count: int) -> list[str]:
    """An answer among `count` different ones, in any order."""
    rng = Dice(scene.seed, scene.image_id, number)
    drawn = [other for other in rng.shuffled(others) if other != answer][:count - 1]
    return rng.shuffled([answer, *drawn])


def options(scene: Scene) -> list[Row]:
    """Questions about colour, shape and number with four options each, and ten agreeing answers."""
    rows = []
    for name, one in _asked(scene, *KINDS):
        choices = _with_others(scene, name % 10, one.answer, KINDS[one.type], OPTIONS)
        rows.append({"question_id": name, "image": _picture(scene), "question": one.text, "choices": choices,
                     "correct_choice_idx": choices.index(one.answer), "question_type": one.type,
                     "direct_answers": [one.answer] * ANSWERS_PER_QUESTION})
    return rows


def yes_no(scene: Scene) -> list[Row]:
    """Statements about an object, with the label 1 if the scene has it."""
    return [{"id": name, "img": _picture(scene), "text": one.text, "label": int(one.answer == "yes")}
            for name, one in _asked(scene, "existence")]


def dialogues(scenes: list[Scene]) -> Row:
    """One dialogue per scene, a round per question; questions and answers are numbered texts, as VisDial has them."""
    asked: dict[str, int] = {}
    found = [_dialogue(scene, asked) for scene in scenes]
    return {"version": "1.0", "split": "test", "data": {
        "questions": list(asked), "answers": list(ANSWERS), "dialogs": found}}


def _dialogue(scene: Scene, asked: dict[str, int]) -> Row:
    rounds = []
    for name, one in _asked(scene, *TYPES):
        candidates = _with_others(scene, name % 10, one.answer, ANSWERS, CANDIDATES)
        question = asked.setdefault(one.text.removesuffix("?"), len(asked))
        rounds.append({"question": question, "answer": ANSWERS.index(one.answer), "gt_index":
                       candidates.index(one.answer), "answer_options": [ANSWERS.index(text) for text in candidates]})
    return {"image_id": scene.index, "caption": canonical_caption(scene), "dialog": rounds}


def relevance(scene: Scene) -> Row:
    """Dense annotation of a dialogue's first round: 1 for the answer, a half for others of its kind."""
    _, one = next(_asked(scene, *TYPES))
    kind = KINDS.get(one.type, (one.answer,))
    candidates = _with_others(scene, 0, one.answer, ANSWERS, CANDIDATES)
    return {"image_id": scene.index, "round_id": 1,
            "gt_relevance": [1.0 if text == one.answer else 0.5 * (text in kind) for text in candidates]}


def signs(scene: Scene) -> list[Row]:
    """Questions about what a sign says; its lines are the tokens."""
    return [{"question_id": name, "image": _sign_name(scene), "question": one.text, "question_type": one.type,
             "answers": [one.answer] * ANSWERS_PER_QUESTION, "ocr_tokens": canonical_caption(scene).split(", ")}
            for name, one in _asked(scene, *KINDS)]


def clip_questions(scene: Scene) -> list[Row]:
    """Questions about a clip, each with one answer."""
    return [{"question_id": name, "video": _clip_name(scene), "question": one.text, "answer": one.answer,
             "question_type": one.type} for name, one in _asked(scene, *KINDS)]


def _sign(scene: Scene) -> Image.Image:
    """The picture of a sign: the scene's caption, one line per object."""
    board = Image.new("RGB", SIGN, (236, 231, 214))
    pen, font = ImageDraw.Draw(board), ImageFont.load_default()
    for index, line in enumerate(canonical_caption(scene).split(", ")):
        pen.text((5, 3 + 15 * index), line, fill=(40, 36, 30), font=font)
    return board


def _clip(scene: Scene) -> bytes:
    """Objects come in one after the other; the last one is there from the sixth frame at the latest."""
    count = len(scene.objects)
    seen = [min(count, 1 + frame * count // (FRAMES - 2)) for frame in range(FRAMES)]
    steps = {number: encode_jpeg(render(replace(scene, objects=scene.objects[:number]))) for number in set(seen)}
    return motion_jpeg([steps[number] for number in seen], IMAGE_SIZE, IMAGE_SIZE)
