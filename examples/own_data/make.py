"""How the files of this folder were made: 24 scenes of the generated world, as a user's own files might look.

    python examples/own_data/make.py [folder]        # by default this folder
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from lavis_lite.mini_world.world import prepare_mini_world

SCENES, SEED = 24, 2026


def make(folder: Path) -> None:
    """Write images/, captions.jsonl, questions.csv and conversations.json."""
    with tempfile.TemporaryDirectory() as scratch:
        world = prepare_mini_world(scratch, train=SCENES, val=1, test=1, ood=1, seed=SEED, progress=False)
        read = {name: json.loads((world / "annotations" / f"{name}_train.json").read_text())
                for name in ("captions", "questions", "vqa_annotations")}
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for number in range(SCENES):
            shutil.copyfile(world / "images" / "train" / f"{number:06d}.jpg", folder / "images" / f"{number:02d}.jpg")
    captions: dict[int, list[str]] = defaultdict(list)
    for row in read["captions"]["annotations"]:
        captions[row["image_id"]].append(row["caption"])
    answers = {row["question_id"]: row["multiple_choice_answer"] for row in read["vqa_annotations"]["annotations"]}
    asked = [(row["image_id"], row["question"], answers[row["question_id"]]) for row in read["questions"]["questions"]]
    (folder / "captions.jsonl").write_text("".join(
        json.dumps({"image": f"{number:02d}.jpg", "caption": texts[:2]}) + "\n" for number, texts in captions.items()))
    with (folder / "questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        writer.writerows((f"{number:02d}.jpg", question, answer) for number, question, answer in asked)
    (folder / "conversations.json").write_text(json.dumps([conversation(number, asked) for number in captions],
                                                          indent=1) + "\n")


def conversation(number: int, asked: list[tuple[int, str, str]]) -> dict[str, Any]:
    """The questions about one scene as one conversation in LLaVA's layout."""
    turns = [text for image, *pair in asked if image == number for text in pair]
    turns[0] = f"<image>\n{turns[0]}"
    return {"id": f"scene-{number}", "image": f"{number:02d}.jpg",
            "conversations": [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(turns)]}


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
