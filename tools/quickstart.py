"""The three stages of the papers in minutes: stage 1, stage 2 from it, instruction tuning from both, and one table.

    python -m tools.quickstart [KEY=VALUE ...]     # settings of all three trainings, such as run.num_workers=0

`run_scripts/quickstart.sh` runs it after the installation. Each training is its recipe with fewer steps: its score is
below that of docs/evidence/results.md. "Another picture" is the same evaluation with another scene's picture.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.cli.console import columns
from lavis_lite.cli.main import main

OUTPUT = "output/quickstart"


@dataclass(frozen=True)
class Stage:
    """One training: its recipe, settings that shorten it, and what of its evaluation is shown."""

    name: str
    recipe: str
    options: tuple[str, ...]
    score: str
    chance: str | None
    """the score without looking: a key of the same results"""
    blind: bool = True
    """whether it is also evaluated with other pictures"""

    @property
    def folder(self) -> str:
        """Where its run is."""
        return f"{OUTPUT}/{self.recipe.rpartition('/')[2]}"


STAGES = (
    Stage("stage 1: text R@1 of 500 scenes", "projects/blip2/stage1", ("run.max_iters=240", "run.k_test=0"),
          "itc_txt_r1", "chance_r1", blind=False),
    Stage("stage 2: attribute F1 of captions", "projects/blip2/stage2_opt",
          ("run.max_iters=240", "run.warmup_steps=30", f"model.pretrained={OUTPUT}/stage1"), "attribute_f1", None),
    Stage("instruction tuning: VQA accuracy", "projects/instructblip/mini_opt",
          ("run.max_iters=120", "run.warmup_steps=20", f"model.pretrained={OUTPUT}/stage2_opt",
           f"model.pretrained_stage1={OUTPUT}/stage1"), "accuracy", "majority_by_question"),
)


def run(options: Sequence[str]) -> int:
    """Train and evaluate every stage, then print the table; returns the first exit status that is not 0."""
    rows = []
    for stage in STAGES:
        settings = [*stage.options, f"run.output_dir={stage.folder}", *options]
        print(f"[quickstart] python train.py {stage.recipe}.yaml --options {' '.join(settings)}", flush=True)
        if status := main(["train", f"{stage.recipe}.yaml", "--options", *settings]):
            return status
        trained = results(stage.folder, "results")
        other = None
        if stage.blind:
            if status := main(["evaluate", "--run", stage.folder, "--options", "run.control=wrong_image"]):
                return status
            other = results(stage.folder, "evaluations/*/results")[stage.score]
        rows.append([stage.name, shown(trained[stage.score]), shown(trained[stage.chance] if stage.chance else None),
                     shown(other)])
    print("\n" + "\n".join(columns(("what", "score", "without looking", "another picture"), rows)))
    for stage in STAGES:
        print(f"report: {newest(stage.folder, 'results/report.html')}")
    return 0


def newest(folder: str, pattern: str) -> Path:
    """The newest file of a run's folder."""
    return max(Path(folder).glob(f"*/{pattern}"), key=lambda path: path.stat().st_mtime)


def results(folder: str, where: str) -> dict[str, Any]:
    """The scores of the newest evaluation on the split `test`."""
    found = [path for path in Path(folder).glob(f"*/{where}/test_step*.json")
             if path.stem.removeprefix("test_step").isdigit()]
    content = json.loads(max(found, key=lambda path: path.stat().st_mtime).read_text(encoding="utf-8"))
    return dict(content["metrics"])


def shown(score: float | None) -> str:
    """A score with three digits, or a dash."""
    return "-" if score is None else f"{score:.3f}"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
