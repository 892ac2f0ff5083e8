"""After an evaluation: the samples' files and the page a person looks through; after a run: where all of it is.

Rank 0 only.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_lite.config.schema import Config
from lavis_lite.io import disk
from lavis_lite.report.files import PAGE, Evaluation, make_newest, write_samples
from lavis_lite.tracking import curves, jsonl

if TYPE_CHECKING:
    from lavis_lite.runners.runner import Runner


def write_reports(cfg: Config, run_dir: Path, split: str, step: int, reports: Mapping[str, Evaluation], weights: str,
                  say: Callable[[str], None]) -> list[Path]:
    """Write the samples of each data set, and its page where `run.report` asks for pages; returns the pages.

    A page that cannot be written is told of and costs nothing else: predictions and scores are there already.

    Args:
        cfg: the whole configuration.
        run_dir: folder of the run.
        split: that was evaluated.
        step: of the weights.
        reports: samples and scores by data set.
        weights: where the weights come from, in one line; "": not known.
        say: takes the lines for people.
    """
    from lavis_lite.report.page import write_report

    folder, pages = Path(run_dir) / "results", []
    for name, evaluation in reports.items():
        middle = f"_{name}" if len(reports) > 1 else ""
        try:
            write_samples(folder / f"{split}_step{step}{middle}_samples.json", split, step, name, evaluation)
            if not cfg.run.report:
                continue
            page = write_report(folder / f"{split}{middle}_report.html", f"{name} · {split}", evaluation.scores,
                                evaluation.samples, curves=training_curves(run_dir), most=cfg.run.report_samples,
                                facts=facts(cfg, Path(run_dir), step, weights), others=_beside(split, reports, name))
            pages.append(page)
            make_newest(page)
        except OSError as fault:
            say(disk.cannot_write(folder, fault, what=f"the report of {split}"))
    return pages


def _beside(split: str, reports: Mapping[str, Evaluation], name: str) -> dict[str, str]:
    """The pages of the split's other data sets."""
    return {other: f"{split}_{other}_report.html" for other in reports if other != name}


def training_curves(run_dir: Path) -> curves.Panels:
    """What log.jsonl holds so far."""
    log = Path(run_dir) / "log.jsonl"
    return curves.panels(jsonl.read(log)) if log.exists() else {}


def facts(cfg: Config, run_dir: Path, step: int, weights: str) -> dict[str, str]:
    """What stands under a page's heading."""
    run, known = cfg.run, {"task": cfg.run.task, "model": f"{cfg.model.arch} {cfg.model.model_type}"}
    known |= {"step": f"{step:,}", "run": run_dir.name}
    if weights:
        known["weights"] = weights
    prompt = run.get("prompt") or (cfg.model.get("prompt") if run.task == "captioning" else None)
    if prompt:
        known["prompt"] = prompt
    if run.get("control", "none") != "none":
        known["control"] = {"blind": "blank images", "wrong_image": "other samples' images"}[run["control"]]
    return known


def closing_lines(runner: Runner) -> list[str]:
    """Where the results of a finished run are, and after a training, its best checkpoint and how to evaluate it."""
    run_dir = runner.run_dir
    paths = {"report": run_dir / "results" / PAGE, "curves": run_dir / "curves.png"}
    lines = [f"{name}: {path}" for name, path in paths.items() if path.exists()]
    if runner.run.evaluate:
        return [*lines, f"results: {run_dir / 'results'}", f"weights: {runner.weights(runner.step)}"]
    if not runner.saved_step:
        return [*lines, f"no checkpoint was kept (run.save_last=false); log: {run_dir / 'log.jsonl'}"]
    best = runner.best
    step, why = (best["step"], f"best, {best['split']} {best['metric']:.4g}") if best else (runner.saved_step, "last")
    return [*lines, f"checkpoint: {runner.store.path(step)} ({why})", f"weights: {runner.weights(step)}",
            f"evaluate it: python -m lavis_lite evaluate --run {shlex.quote(str(run_dir))}"]
