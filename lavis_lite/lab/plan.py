"""From an ablation to its jobs: each an ordinary run in its own folder, named by everything that decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lavis_lite
from lavis_lite.checkpoints.weights import packaged, packaged_names, required_weights
from lavis_lite.config.compose import Composition, compose, to_yaml
from lavis_lite.config.recipes import find_recipe, unknown_recipe
from lavis_lite.errors import ErrorList
from lavis_lite.io import atomic
from lavis_lite.lab.ablation import Ablation, Step, as_option
from lavis_lite.preflight import check, missing

RECORD = "record.json"
ALWAYS = ("run.num_workers=0", "run.tensorboard=false", "run.report=false")
"""options of every job that change no number"""
Cell = tuple[str, int]
"""(variant, seed)"""


@dataclass(frozen=True)
class Job:
    """A training, or the evaluations of one.

    Attributes:
        step: name in the ablation. recipe, options: of the run. seed: of the run.
        folder: holds the run folder, `log.txt`, and at the end `record.json`.
        depth: jobs of lower depth must be finished before.
        of: folder of the training that is evaluated; None: this is a training.
        every: also evaluate checkpoints of every so many optimizer steps.
        features: folder of saved features that the training reads; None: pictures.
        command: words of the command that is run instead.
    """

    step: str
    recipe: Path
    options: tuple[str, ...]
    seed: int
    folder: Path
    depth: int = 0
    of: Path | None = None
    every: int | None = None
    features: Path | None = None
    command: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether its record is there."""
        return (self.folder / RECORD).is_file()

    def composition(self) -> Composition:
        """The composed run; of an evaluation, the recipe before the run's model is put in."""
        mode = "true" if self.of else "false"
        return compose(self.recipe, [*self.options, f"run.evaluate={mode}", f"run.output_dir={self.folder}"])


def plan(ablation: Ablation, out: Path, seeds: Sequence[int], iterations: int | None = None
         ) -> dict[Cell, dict[str, Job]]:
    """The jobs of every variant and seed, by step.

    Args:
        ablation: what to run.
        out: folder of all runs; absolute.
        seeds: values of run.seed.
        iterations: optimizer steps of every training, in place of the ablation's own.

    Raises:
        ErrorList: a recipe or an option is wrong; every error of all jobs at once.
        ConfigError: there is no such recipe.
    """
    placed: dict[Job, tuple[Job, list[str]]] = {}
    cells = {(variant, seed): _jobs(ablation.steps_of(variant), out, seed, iterations, placed)
             for seed in seeds for variant in ablation.variants}
    wrong = [error for _, errors in placed.values() for error in errors]
    if wrong:
        raise ErrorList(f"the ablation {ablation.name} cannot run:", list(dict.fromkeys(wrong)))
    return cells


def unique(cells: Mapping[Cell, Mapping[str, Job]]) -> list[Job]:
    """Each job once, those that others start from first."""
    found = {job.folder: job for jobs in cells.values() for job in jobs.values()}
    return sorted(found.values(), key=lambda job: job.depth)


def _jobs(steps: Mapping[str, Step], out: Path, seed: int, iterations: int | None,
          placed: dict[Job, tuple[Job, list[str]]]) -> dict[str, Job]:
    """The jobs of one variant; `placed` collects each different job once, with what is wrong with it."""
    jobs: dict[str, Job] = {}
    for name, step in steps.items():
        folders = {earlier: job.folder for earlier, job in jobs.items()}
        options = [as_option(key, value, folders) for key, value in step.options.items()]
        if step.of is None and iterations is not None and not step.command:
            options += [f"run.max_iters={iterations}", f"run.warmup_steps={iterations // 10}"]
        own_seed = 0 if step.command else seed
        options += [] if step.command else [*ALWAYS, f"run.seed={seed}"]
        of = jobs[step.of] if step.of is not None else None
        parents = [job for job in jobs.values() if of is job or any(str(job.folder) in text for text in options)]
        job = Job(name, _file(step.recipe), tuple(options), own_seed, out / "runs",
                  1 + max((parent.depth for parent in parents), default=-1), of.folder if of else None, step.every,
                  command=tuple(step.command.split()))
        if job not in placed:
            placed[job] = _placed(_with_features(job, out) if step.features else job, out)
            placed[job][1].extend(_curve_errors(step, of))
        jobs[name] = placed[job][0]
    return jobs


def _curve_errors(step: Step, of: Job | None) -> list[str]:
    """What is wrong if an evaluation wants checkpoints that the training does not save, or does not keep."""
    if of is None or step.every is None:
        return []
    run = of.composition().config.run
    wanted = (run.max_iters or 0) // step.every
    if run.save_every and step.every % run.save_every == 0 and run.keep_checkpoints >= wanted:
        return []
    return [f"every: {step.every} evaluates {wanted} checkpoints of {of.step}; set there run.save_every: {step.every} "
            f"and run.keep_checkpoints: {2 * wanted}, some of them for stops in between."]


def _file(recipe: str) -> Path:
    """A file, or a recipe of the package.

    Raises:
        ConfigError: it is neither; names the nearest recipe.
    """
    if Path(recipe).is_file():
        return Path(recipe)
    found = find_recipe(recipe)
    if found is None:
        raise unknown_recipe(recipe)
    return found.path


def _with_features(job: Job, out: Path) -> Job:
    """The job, reading features that any training with this encoder and these pictures may share."""
    config = job.composition().config
    encoder = {key: value for key, value in vars(config.model).items()
               if key.startswith(("vit", "image_size")) and key != "vit_lr_scale"}
    first, section = next(iter(config.datasets.items()))
    facts = [encoder, section.vis_processor.train, section.get("prepare"), section.get("prepare_args")]
    folder = out / "features" / _digest(json.dumps(facts, sort_keys=True, default=str)) / first
    return replace(job, features=folder, options=(
        *job.options, *(f"datasets.{name}.features={folder}" for name in config.datasets)))


def _placed(job: Job, out: Path) -> tuple[Job, list[str]]:
    """The job in the folder that everything which decides its result names, and what is wrong with the job.

    Weights and features that earlier jobs will write are not missing.
    """
    composition = job.composition()
    errors = check(composition) or [f"missing: {need}" for need in missing(composition.config) if str(out) not in need]
    # other weights make another run: a command may read any of the package's, a training those that it starts from
    used = map(packaged, packaged_names()) if job.command else (
        need.local() for need in required_weights(composition.config.model) if need.value.split("/")[0] == "mini")
    facts = [lavis_lite.__version__, to_yaml(composition), str(job.of), job.every, *job.command, *_checksums(used)]
    name = f"{job.step}_seed{job.seed}_{_digest(json.dumps(facts).replace(str(out), ''))}"
    return replace(job, folder=out / "runs" / name), errors


def _checksums(paths: Iterable[Path | None]) -> list[str]:
    return [atomic.file_sha256(file) for path in paths if path is not None
            for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
