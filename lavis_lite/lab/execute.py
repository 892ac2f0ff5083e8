"""Runs the jobs of an ablation that have no record yet, and collects the records as rows.

A job that was killed continues from its newest checkpoint when the same command is given again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lavis_lite import engine
from lavis_lite.checkpoints.manifest import steps_of
from lavis_lite.config.schema import Config
from lavis_lite.datasets.features.cache import MANIFEST
from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.io import atomic
from lavis_lite.lab.ablation import Ablation
from lavis_lite.lab.plan import RECORD, Cell, Job, unique
from lavis_lite.process.children import worker_pool
from lavis_lite.runs import compose_evaluation, find_checkpoint, runs_below

Log = Callable[[str], None]
Row = dict[str, Any]
WriteFeatures = Callable[[Config, Path, str, int], None]
"""(configuration, output folder, dtype, images per file), as `data cache-features` does"""
Command = Callable[[Sequence[str]], int]
"""runs a command of the package, such as ["data", "capfilt", ...]"""


def run(cells: Mapping[Cell, Mapping[str, Job]], write_features: WriteFeatures, command: Command, at_once: int = 1,
        log: Log = print) -> None:
    """Run all jobs of a plan that have no record, those first that others start from, `at_once` at a time."""
    jobs = unique(cells)
    left = [job for job in jobs if not job.finished]
    log(f"{len(jobs)} runs, {len(jobs) - len(left)} of them finished")
    for depth in sorted({job.depth for job in left}):
        wave = [job for job in left if job.depth == depth]
        for job in wave:  # not before: a model is built for them, and its weights may be those of an earlier wave
            _make_features(job, write_features, log)
        commands = (execute(job, command) for job in wave if job.command)
        done = itertools.chain(commands, _executed([job for job in wave if not job.command], at_once))
        for number, job in enumerate(done, 1 + sum(job.depth < depth for job in left)):
            log(f"[{number} of {len(left)}] {job.folder.name}: {_record(job)['seconds'] or '?'} s of processor time")


def _executed(wave: list[Job], at_once: int) -> Iterable[Job]:
    """The jobs, each once it has run."""
    if at_once == 1:
        yield from map(execute, wave)
        return
    with worker_pool(at_once, "running an ablation", "spawn", torch.set_num_threads, (1,)) as pool:
        yield from pool.map(execute, wave)


def _make_features(job: Job, write_features: WriteFeatures, log: Log) -> None:
    if job.features is None or (job.features / MANIFEST).is_file():
        return
    log(f"features of the frozen vision encoder: {job.features}")
    config = job.composition().config
    first = {job.features.name: config.datasets[job.features.name].replaced(features=None)}
    with _output(job.features.parent / "log.txt"):
        write_features(dataclasses.replace(config, datasets=first), job.features.parent, "fp32", 1000)


def execute(job: Job, command: Command | None = None) -> Job:
    """Run one job, a command if that is given, and write its record."""
    continued = job.of is None and any(runs_below(job.folder))
    began = time.process_time()
    with _output(job.folder / "log.txt"):
        points = _run_command(job, command) if command else _train(job) if job.of is None else _evaluate(job)
    seconds = None if continued else round(time.process_time() - began, 1)
    atomic.write_text(job.folder / RECORD, json.dumps({
        "step": job.step, "seed": job.seed, "options": job.options, "points": points, "seconds": seconds,
        "threads": torch.get_num_threads(), "date": time.strftime("%Y-%m-%d")}, indent=1))
    return job


@contextlib.contextmanager
def _output(path: Path) -> Any:
    """Inside, what is printed goes to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def _run_command(job: Job, command: Command) -> list[Row]:
    command([*job.command, "--cfg-path", str(job.recipe), "--options", *job.options, "--out", str(job.folder)])
    return []


def _train(job: Job) -> list[Row]:
    composition = job.composition()
    scores = engine.main(composition, resume="auto")
    return [{"at": composition.config.run.max_iters, "scores": scores}]


def _evaluate(job: Job) -> list[Row]:
    """The scores of the chosen checkpoints of a training."""
    assert job.of is not None
    last = find_checkpoint(job.of, "last")
    points = []
    for folder in sorted(steps_of(last.run_dir), key=_number):
        if folder == last.folder or (job.every and _number(folder) % job.every == 0):
            chosen = find_checkpoint(last.run_dir, folder.name)
            composition = compose_evaluation(chosen, job.options, str(job.recipe))
            points.append({"at": _number(folder), "scores": engine.main(composition)})
    return points


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


# rows -----------------------------------------------------------------------------------------------------------------
def _record(job: Job) -> Row:
    content: Row = json.loads((job.folder / RECORD).read_text(encoding="utf-8"))
    return content


def rows_of(ablation: Ablation, cells: Mapping[Cell, Mapping[str, Job]]) -> list[Row]:
    """One row per variant and seed that has run: its scores at each point, and the processor time of its steps.

    Raises:
        ConfigError: the ablation names a score that its runs do not have.
    """
    return [_row(ablation, cell, {step: _record(job) for step, job in jobs.items()}) for cell, jobs in cells.items()
            if all(job.finished for job in jobs.values())]


def _row(ablation: Ablation, cell: Cell, records: Mapping[str, Row]) -> Row:
    scores = {name: points for name, key in ablation.scores.items()
              if (points := _points(ablation, name, key, records))}
    return {"ablation": ablation.name, "variant": cell[0], "seed": cell[1], "scores": scores,
            "seconds": {step: record["seconds"] for step, record in records.items()},
            "threads": next(iter(records.values()))["threads"], "date": max(one["date"] for one in records.values())}


def _points(ablation: Ablation, name: str, key: str, records: Mapping[str, Row]) -> list[tuple[int, float]]:
    """(optimizer step, score) of a score; empty if the variant lacks the step."""
    step, split, metric = key.split(".")
    found = []
    for point in records[step]["points"] if step in records else []:
        known = point["scores"].get(split, {})
        for one in metric.split("+"):
            if one not in known:
                hint = did_you_mean(one, known) if known else did_you_mean(split, point["scores"])
                raise ConfigError(f"{ablation.name}: scores.{name}: {key} is not measured; {hint}")
        found.append((int(point["at"]), statistics.mean(known[one] for one in metric.split("+"))))
    return found


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
