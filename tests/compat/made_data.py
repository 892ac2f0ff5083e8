"""Tiny files for the projects in tests/compat/projects: a GPT-2, features, pictures and clips."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}
WORDS = "what is he doing she sits a man walks in the room yes no and looks at door".split()


def make_gpt2(folder: Path) -> None:
    """A GPT-2 of two layers, and a tokenizer of bytes."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

    folder.mkdir(parents=True)
    letters = [*map(chr, range(33, 127)), "Ġ"]
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(
        [*letters, "<|endoftext|>"])}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    config = GPT2Config(vocab_size=len(letters) + 1, bos_token_id=0, eos_token_id=0, n_positions=256, n_embd=32,
                        n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    GPT2LMHeadModel(config).save_pretrained(folder)


def make_avsd(folder: Path) -> None:
    """Dialogues about videos that are features."""
    rng, draw = np.random.default_rng(0), random.Random(0)

    def text() -> str:
        return " ".join(draw.sample(WORDS, 4))

    for name, width in (("i3d_rgb", 8), ("vggish", 4)):
        (folder / "features" / name).mkdir(parents=True)
        for video in range(6):
            np.save(folder / "features" / name / f"v{video}.npy", rng.normal(size=(3 + video % 3, width)))
    for split, videos in (("train", range(4)), ("val", range(4, 6))):
        dialogs = [{"image_id": f"v{video}", "caption": text(),
                    "dialog": [{"question": text(), "answer": text()} for _ in range(3)]} for video in videos]
        (folder / f"{split}.json").write_text(json.dumps({"dialogs": dialogs}))


def make_align(folder: Path) -> None:
    """Pictures of one colour with captions, and prompts."""
    (folder / "image").mkdir(parents=True)
    rows = []
    for number in range(16):
        name, colour = list(COLOURS.items())[number % 3]
        Image.new("RGB", (80, 64), colour).save(folder / "image" / f"{number}.png")
        rows.append({"image_id": number, "caption": f"a picture that is {name}"})
    (folder / "train_cap.json").write_text(json.dumps({"annotations": rows[:12]}))
    (folder / "val_cap.json").write_text(json.dumps({"annotations": rows[12:]}))
    (folder / "prompts.txt").write_text("<Img><ImageHere></Img> What is there?\n<Img><ImageHere></Img> Describe it.\n")


def make_bank(folder: Path) -> None:
    """Clips of one colour with a question each."""
    (folder / "videos").mkdir(parents=True)
    rows = []
    for number in range(12):
        name, colour = list(COLOURS.items())[number % 3]
        clip = np.empty((7, 3, 64, 64), np.uint8)
        clip[:] = np.array(colour, np.uint8)[None, :, None, None]
        clip[number % 7] = 20 * number
        np.save(folder / "videos" / f"{number}.npy", clip)
        rows.append({"video": f"{number}.npy", "question": "which colour?", "answer": name, "question_id": number})
    (folder / "train.json").write_text(json.dumps(rows[:8]))
    (folder / "test.json").write_text(json.dumps(rows[8:]))


def make_views(folder: Path) -> None:
    """Pictures of one colour with a caption each, in LAVIS' layout of retrieval."""
    rows = _pictures(folder / "images", 12)
    for split, own in (("train", rows[:8]), ("val", rows[8:])):
        (folder / f"{split}.json").write_text(json.dumps([
            {"image": name, "caption": f"A {colour} picture, number {number}.", "image_id": f"id_{number}"}
            for number, name, colour in own]))


def make_count(folder: Path) -> None:
    """The same pictures with questions that a number answers, one picture missing, and the list of answers."""
    rows = [{"image": name, "question": f"how many {colour} things?", "answer": str(number % 3), "count": number % 3,
             "question_id": number} for number, name, colour in _pictures(folder / "images", 13)]
    (folder / "images" / rows[3]["image"]).unlink()
    for split, own in (("train", rows[:9]), ("val", rows[9:])):
        (folder / f"{split}.json").write_text(json.dumps(own))
    (folder / "answer_list.json").write_text(json.dumps(["0", "1", "2"]))


def _pictures(folder: Path, count: int) -> list[tuple[int, str, str]]:
    """(number, file name, colour) of each."""
    folder.mkdir(parents=True)
    found = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % 3]
        Image.new("RGB", (80, 64), colour).save(folder / f"{number}.png")
        found.append((number, f"{number}.png", name))
    return found
