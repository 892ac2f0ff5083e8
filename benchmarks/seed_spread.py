"""How much the headline scores of the mini recipes differ from seed to seed.

    python -m benchmarks.seed_spread run [--recipes stage1 stage2_opt stage2_t5] [--seeds 1 2 3 4 5] [--workers 1]
    python -m benchmarks.seed_spread table          # the Markdown table of docs/evidence/results.md, from what was run

`run` trains each recipe once per seed, from start to scores, in a process of its own, and appends a line to
benchmarks/results/seed_spread.jsonl; pairs that have a line are not run again. The seed is `run.seed`: the start of
what trains, the order and augmentation of samples. The generated world and the frozen parts stay the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDS = Path(__file__).with_name("results") / "seed_spread.jsonl"
HEADLINES = {
    "stage1": {"itc_txt_r1": "text R@1 by ITC", "itc_img_r1": "image R@1 by ITC",
               "itm_txt_r1": "text R@1 by ITC + ITM", "itm_img_r1": "image R@1 by ITC + ITM"},
    "stage2_opt": {"attribute_f1": "caption attribute F1", "exact": "caption exact"},
    "stage2_t5": {"attribute_f1": "caption attribute F1", "exact": "caption exact"},
}
"""recipe -> metric in the results file -> its words in the table"""


def train(recipe: str, seed: int, output: Path) -> dict[str, Any]:
    """One run of a recipe; its record: scores of the split `test`, seconds, date and commit.

    Raises:
        subprocess.CalledProcessError: the run failed; its log is beside its output.
    """
    folder = output / f"{recipe}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", "--cfg-path", f"projects/blip2/{recipe}.yaml", "--options",
               f"run.seed={seed}", f"run.output_dir={folder}"]
    began = time.monotonic()
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=log, stderr=subprocess.STDOUT)
    results = max(folder.glob("*/results/test_step*.json"), key=lambda path: path.stat().st_mtime)
    metrics = json.loads(results.read_text(encoding="utf-8"))["metrics"]
    return {"recipe": recipe, "seed": seed, "metrics": metrics, "seconds": round(time.monotonic() - began),
            "date": time.strftime("%Y-%m-%d"), "commit": _commit(), "threads": os.environ.get("OMP_NUM_THREADS")}


def _commit() -> str:
    """The commit that is checked out, short."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, check=True, capture_output=True,
                          text=True).stdout.strip()


def read_records() -> list[dict[str, Any]]:
    """All lines of the records file; none where there is no file."""
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]


def run(recipes: list[str], seeds: list[int], output: Path, workers: int) -> None:
    """Run what has no record yet, `workers` runs at a time."""
    done = {(record["recipe"], record["seed"]) for record in read_records()}
    pairs = [(recipe, seed) for seed in seeds for recipe in recipes if (recipe, seed) not in done]

    def one(pair: tuple[str, int]) -> None:
        record = train(*pair, output)
        with open(RECORDS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(pair, record["metrics"], f"{record['seconds']} s", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, pairs))


def table() -> str:
    """Markdown: one row per headline score, with mean, standard deviation (n - 1), least and most over the seeds."""
    lines = ["| recipe | score | seeds | mean | standard deviation | least | most |", "|---|---|---|---|---|---|---|"]
    records = read_records()
    for recipe, headlines in HEADLINES.items():
        own = [record["metrics"] for record in records if record["recipe"] == recipe]
        for key, words in headlines.items():
            values = [metrics[key] for metrics in own if key in metrics]
            if len(values) > 1:
                numbers = [statistics.mean(values), statistics.stdev(values), min(values), max(values)]
                cells = " | ".join(f"{number:.3f}" for number in numbers)
                lines.append(f"| `{recipe}` | {words} | {len(values)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--recipes", nargs="+", choices=list(HEADLINES), default=list(HEADLINES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "output" / "seed_spread")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.recipes, arguments.seeds, arguments.output, arguments.workers)
    else:
        print(table())


if __name__ == "__main__":
    main()
