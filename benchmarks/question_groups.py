"""Evaluation of questions with each picture read and encoded once per batch, against the same rows as they stand.

    OMP_NUM_THREADS=1 python -m benchmarks.question_groups [--recipe YAML ...] [--images 60] [--rounds 5] [--batch 64]

Packaged mini models answer five questions about every picture of a generated world. One side is the evaluation as it
is: questions of one picture side by side, the longest first, pictures shared. The other takes the rows in the file's
order and brings a picture for every question. Both load in this process; rounds alternate. Prints medians of wall and
processor time, the median of the paired ratios, how many answers are equal, pictures read, and padding: characters
of the batches' rectangles beyond the questions' own. Cost: about two minutes per recipe.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lavis_lite import engine
from lavis_lite.config.compose import compose
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.loading.loader import eval_loader
from lavis_lite.process.launch import launch_from_environment

RECIPES = ("projects/blip2/eval/mini_vqa_opt.yaml", "projects/blip2/eval/mini_vqa_t5.yaml",
           "projects/instructblip/eval/mini_vqa_t5.yaml")
PER_IMAGE = 5


class AsTheyStand:
    """A data set's rows in their own order, each with its own picture."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.sample, self.location = dataset, dataset.sample, dataset.location

    def __len__(self) -> int:
        return len(self.dataset)


def five_each(table: RowTable, images: int) -> RowTable:
    """The first five questions of the first images that have as many."""
    counts = Counter(row["image"] for _, _, row in table.items())
    kept = [name for name in counts if counts[name] >= PER_IMAGE][:images]
    rows = [item for item in table.items() if item[2]["image"] in set(kept)]
    return RowTable(rows, table.files).first_of_each("image", PER_IMAGE)


def evaluate(runner: Any, dataset: Any, share: bool) -> dict[str, Any]:
    """One pass: answers by question, seconds, pictures and characters."""
    start, processor = time.perf_counter(), time.process_time()
    answers, pictures, texts = {}, 0, []
    for batch in eval_loader(dataset, runner.run, share_pictures=share):
        answers.update({row["id"]: row["answer"] for row in runner.task.predict(runner.model, batch)})
        pictures += len(batch["image"])
        texts.append([len(text) for text in batch["text_input"]])
    seconds = time.perf_counter() - start, time.process_time() - processor
    wide, full = sum(len(row) * max(row) for row in texts), sum(map(sum, texts))
    return {"answers": answers, "wall": seconds[0], "processor": seconds[1], "pictures": pictures,
            "padding": wide / full - 1}


def measure(recipe: str, folder: Path, chosen: argparse.Namespace) -> None:
    """Compare both on one recipe and print a line."""
    world = f"{{train: 8, val: 8, test: {2 * chosen.images}, ood: 4, seed: 5, progress: false}}"
    options = ["run.num_workers=0", f"run.batch_size_eval={chosen.batch}", "run.device=cpu", "run.tensorboard=false",
               f"run.num_beams={chosen.beams}", f"run.output_dir={folder}/out",
               f"datasets.mini_world_vqa.prepare_args={world}"]
    config = compose(recipe, options).config
    engine.seed_everything(config.run.seed)
    runner = engine.assemble(config, torch.device("cpu"), folder / "run", launch_from_environment())
    dataset: Any = runner.datasets["mini_world_vqa"]["test"]
    dataset.table = five_each(dataset.table, chosen.images)
    runner.model.eval()
    runner.task.before_evaluation(dataset, "test")
    sides = [(dataset, True), (AsTheyStand(dataset), False)]
    evaluate(runner, *sides[0])  # warm caches, of files too
    rounds = [[evaluate(runner, *side) for side in sides] for _ in range(chosen.rounds)]
    shared, plain = rounds[0]
    equal = sum(plain["answers"][name] == answer for name, answer in shared["answers"].items())
    found = {kind: (statistics.median(two[kind] / one[kind] for one, two in rounds),
                    *(statistics.median(both[side][kind] for both in rounds) for side in (0, 1)))
             for kind in ("wall", "processor")}
    times = "; ".join(f"{kind} {ratio:.2f} times the speed ({one:.2f} against {two:.2f} s)"
                      for kind, (ratio, one, two) in found.items())
    print(f"{datetime.date.today()}  {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}  {recipe}, {len(dataset)} "
          f"questions about {len(dataset) // PER_IMAGE} pictures, batch {chosen.batch}, beams {chosen.beams}: {times}; "
          f"{equal} of {len(shared['answers'])} answers equal; pictures read {shared['pictures']} against "
          f"{plain['pictures']}; padding {shared['padding']:.0%} against {plain['padding']:.0%}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=RECIPES)
    for name, default in (("images", 60), ("rounds", 5), ("batch", 64), ("beams", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["LAVIS_LITE_CACHE"] = f"{name}/cache"
        for recipe in chosen.recipe:
            with torch.no_grad():
                measure(recipe, Path(name), chosen)


if __name__ == "__main__":
    main()
