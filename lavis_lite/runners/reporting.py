"""After an evaluation: the samples' files and the page a person looks through. Rank 0 only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lavis_lite import disk
from lavis_lite.config.schema import Config
from lavis_lite.report.files import Evaluation, make_newest, write_samples
from lavis_lite.tracking import curves, jsonl


def write_reports(cfg: Config, run_dir: Path, split: str, step: int, reports: Mapping[str, Evaluation],
                  say: Callable[[str], None]) -> list[Path]:
    """Write the samples of each data set, and its page where `run.report` asks for pages; returns the pages.

    A page that cannot be written is told of and costs nothing else: predictions and scores are there already.
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
                                facts=facts(cfg, Path(run_dir), step), others=_beside(split, reports, name))
            pages.append(page)
            make_newest(page)
        except OSError as fault:
            say(disk.cannot_write(folder, fault, what=f"the report of {split}"))
    if pages and cfg.run.evaluate:
        say(f"every sample, to look through: {', '.join(map(str, pages))}")
    return pages


def _beside(split: str, reports: Mapping[str, Evaluation], name: str) -> dict[str, str]:
    """The pages of the split's other data sets."""
    return {other: f"{split}_{other}_report.html" for other in reports if other != name}


def training_curves(run_dir: Path) -> curves.Panels:
    """What log.jsonl holds so far."""
    log = Path(run_dir) / "log.jsonl"
    return curves.panels(jsonl.read(log)) if log.exists() else {}


def facts(cfg: Config, run_dir: Path, step: int) -> dict[str, str]:
    """What stands under a page's heading."""
    run, known = cfg.run, {"task": cfg.run.task, "model": f"{cfg.model.arch} {cfg.model.model_type}"}
    known |= {"step": f"{step:,}", "run": run_dir.name}
    weights = cfg.model.finetuned if cfg.model.load_finetuned else cfg.model.pretrained
    if weights:
        known["weights"] = Path(weights).name
    prompt = run.get("prompt") or (cfg.model.get("prompt") if run.task == "captioning" else None)
    if prompt:
        known["prompt"] = prompt
    if run.get("control", "none") != "none":
        known["control"] = {"blind": "blank images", "wrong_image": "other samples' images"}[run["control"]]
    return known
