"""The checkpoint of a run that a user names, and configurations made from a run.

A run is named by its folder, by one of its checkpoint folders, or by a folder above runs. The latter names the run that
saved last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.checkpoints.manifest import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    best_or_last,
    newest_run,
    runs_below,
    saved_at,
    steps_of,
)
from lavis_lite.config.compose import Composition, compose_layers, overlaid
from lavis_lite.config.layers import OPTIONS, Layer, base_chain, parse_options, read_yaml
from lavis_lite.config.schema import Config, ModelConfig, PreprocessConfig
from lavis_lite.errors import CheckpointError, ConfigError, ErrorList, did_you_mean
from lavis_lite.evaluation import resume as unfinished
from lavis_lite.runners import checkpointing

EVALUATIONS = "evaluations"
"""folder within a run folder, with one folder per evaluation, each with its own results/"""
SHOWN = 5
"""most runs in a message"""


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of a run, verified to the last byte.

    Attributes:
        run_dir: folder of the run; the checkpoint's own folder if it is in no run.
        folder: folder of the checkpoint.
        reason: why it is this one, as a clause.
        weights: hook that keeps the weights to take, such as "ema"; "": those that were trained.
    """

    run_dir: Path
    folder: Path
    reason: str
    weights: str = ""

    def describe(self) -> str:
        """The folder and the reason for its choice."""
        return f"{self.folder} ({self.reason})"

    def config_layer(self) -> Layer:
        """The configuration that the run was trained with.

        Raises:
            ConfigError: neither the run nor the checkpoint has a config.yaml.
        """
        paths = [folder / CONFIG for folder in (self.run_dir, self.folder)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ConfigError(f"{self.run_dir} has no {CONFIG}, so the model of its checkpoints is unknown. Use the "
                              "recipe that trained it: evaluate.py --cfg-path RECIPE.yaml "
                              f"--resume {self.folder}")
        return Layer(str(path), read_yaml(path))

    def start_keys(self, section: ModelConfig) -> dict[str, Any]:
        """Keys and values of a model section that make the model start from this checkpoint and from no other.

        Raises:
            CheckpointError: the checkpoint has no weights of the hook.
        """
        path = self.folder.absolute()
        if self.weights and not (path := path / f"{self.weights}.safetensors").is_file():
            kept = [file.stem for file in self.folder.glob("*.safetensors") if file.name != WEIGHTS]
            hint = did_you_mean(self.weights, kept) if kept else "a run keeps some if run.hooks has ema."
            raise CheckpointError(f"{self.folder} has no weights {self.weights!r} besides the trained ones; {hint}")
        return section.starting_from(path)

    def evaluations(self) -> Path | None:
        """Folder of the run's evaluations; None for a checkpoint outside of a run."""
        return None if self.run_dir == self.folder else self.run_dir / EVALUATIONS


def find_checkpoint(run: str | Path, checkpoint: str | None = None) -> RunCheckpoint:
    """The checkpoint that a user names.

    Args:
        run: a run folder, a checkpoint folder, or a folder above runs: then the run that saved last.
        checkpoint: "best" (chosen by validation; the last one if no validation chose), "last" or "step_N"; by
            default "best".

    Raises:
        CheckpointError: there is no such run or checkpoint, or it is damaged.
        ConfigError: `run` is a checkpoint folder, and `checkpoint` names another.
    """
    path = _with_a_name(Path(run).expanduser())
    if path.is_file():
        raise CheckpointError(f"{run} is a file, and a run is a folder. To take the weights of a file, use --options "
                              "model.load_pretrained=true model.pretrained=FILE.")
    if not path.is_dir():
        raise CheckpointError(f"there is no run folder {run}.{_neighbours(path)}")
    if (path / MANIFEST).is_file():
        if checkpoint is not None:
            raise ConfigError(f"{run} is a checkpoint itself: leave --checkpoint {checkpoint} out, or name its run.")
        return _verified(RunCheckpoint(run_of(path), path, "the one that was named"), path)
    run_dir, why = _locate(path)
    folder, reason = _choose(run_dir, checkpoint)
    return _verified(RunCheckpoint(run_dir, folder, f"{reason}{why}"), path)


def _with_a_name(path: Path) -> Path:
    """The same folder; "." and ".." as an absolute path, because parents' names identify the run."""
    return path if path.name not in ("", "..") or steps_of(path) else Path(os.path.abspath(path))


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint folder; the folder itself if it is in no run."""
    return checkpoint.parent.parent if checkpoint.absolute().parent.name == "checkpoints" else checkpoint


def _locate(path: Path) -> tuple[Path, str]:
    """(run folder, why this one of several was chosen, as a clause)."""
    if steps_of(path):
        return path, ""
    if path.absolute().name == "checkpoints" and steps_of(path.parent):
        return path.parent, ""
    runs = list(runs_below(path))
    if not runs:
        raise CheckpointError(_why_no_run(path))
    newest = newest_run(runs)
    return newest, f"; of the {len(runs)} runs in {path} this one saved last" if len(runs) > 1 else ""


def _why_no_run(path: Path) -> str:
    config = path / CONFIG
    if not config.is_file():
        return (f"{path} is neither a run folder nor a folder above runs: there is no checkpoints/step_N in it or "
                "below. A run is <run.output_dir>/<time>.")
    if path.absolute().parent.name == EVALUATIONS:
        return (f"{path} is the folder of an evaluation; name its run, {path.absolute().parent.parent}, or evaluate it "
                f"again with --cfg-path {config}")
    return (f"{path} has no checkpoint: nothing was saved there, or it is the folder of an evaluation. A training "
            "saves by run.save_every, run.save_freq and run.save_last.")


def _choose(run_dir: Path, checkpoint: str | None) -> tuple[Path, str]:
    """(checkpoint folder, why it was chosen) of a run that has checkpoints."""
    folders = steps_of(run_dir)
    if checkpoint in (None, "best"):
        return best_or_last(run_dir)
    if checkpoint == "last":
        return max(folders, key=saved_at), "the last"
    number = str(checkpoint).removeprefix("step_")
    for folder in folders:
        if number.isdigit() and int(number) == int(folder.name.removeprefix("step_")):
            return folder, "the one that was named"
    raise CheckpointError(f"{run_dir} has no checkpoint {checkpoint!r}; it has {_names(folders)}, and `best` and "
                          "`last` each name one of them.")


def _verified(chosen: RunCheckpoint, named: Path) -> RunCheckpoint:
    """The checkpoint, if it is undamaged. The error names the other checkpoints and the other runs below `named`."""
    if errors := checkpointing.verify(chosen.folder):
        others = [folder for folder in steps_of(chosen.run_dir) if folder != chosen.folder]
        advice = f" The run's other checkpoints: {_names(others)}; choose one by --checkpoint." if others else ""
        runs = [str(run) for run in runs_below(named) if run != chosen.run_dir]
        advice += f" Other runs, to be named with --run: {', '.join(runs[-SHOWN:])}." if runs else ""
        raise CheckpointError(f"{chosen.folder} ({chosen.reason}) is damaged: {' '.join(errors)}{advice}")
    return chosen


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(f"step_{int(folder.name.removeprefix('step_'))}" for folder in reversed(folders))


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    names = [other.name for other in path.parent.iterdir() if other.is_dir()]
    return f" In {path.parent}: {did_you_mean(path.name, names)}" if names else ""


def hint_at_run(cfg_path: str) -> str:
    """A hint if the configuration is that of a run, which names the weights that the run started from; else ""."""
    run_dir = Path(cfg_path).parent
    if Path(cfg_path).name != CONFIG or not steps_of(run_dir):
        return ""
    return f"note: this evaluates the weights that the run started from; for those it trained use --run {run_dir}"


# --- configurations made from a run -----------------------------------------------------------------------------------
START_KEYS = ("load_pretrained", "pretrained", "load_finetuned", "finetuned", "pretrained_stage1")
"""keys of a model section that name the checkpoints it starts from"""
Log = Callable[[str], None]


def compose_evaluation(chosen: RunCheckpoint, options: Sequence[str] = (), recipe: str | None = None) -> Composition:
    """The evaluation of a run's checkpoint: the run's configuration, its model started from the checkpoint.

    Args:
        chosen: which checkpoint of which run.
        options: of the command line. If they choose another task, keys of the run's own task are left out.
        recipe: a YAML; its `datasets` and `run` replace the run's. The model and its processors stay.

    Raises:
        ConfigError: an option names other weights than the run's; a file cannot be read.
    """
    given = parse_options(options)
    if clash := [key for key in START_KEYS if key in (given.content.get("model") or {})]:
        raise ConfigError(f"--options model.{clash[0]}: --run takes its weights from {chosen.folder}; leave one out.")
    own = chosen.config_layer()
    if recipe is None:
        layers = [own]
    else:
        layers = _with_recipe(own, base_chain(Path(recipe)))
    composition = compose_layers([*layers, given], Path(own.name))
    asked = "output_dir" in (given.content.get("run") or {})
    return start_from(chosen, composition, None if asked else chosen.evaluations())


def resume_evaluation(composition: Composition, resume: str | None, log: Log = print) -> Composition:
    """A composed run; if it evaluates and resumes, it starts from the weights of that checkpoint.

    Args:
        composition: of any run.
        resume: "auto" (newest good checkpoint under run.output_dir) or a checkpoint folder; None: the value of
            `run.resume_ckpt_path`.
        log: receives the line that names the checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    run = composition.config.run
    resume = resume or run.resume_ckpt_path
    if not run.evaluate or resume is None or composition.errors:
        return composition
    if resume == "auto":
        folder = checkpointing.newest_good(Path(run.output_dir), log)
        if folder is None:
            raise CheckpointError(f"there is no good checkpoint under {run.output_dir} to evaluate. Train first, name "
                                  "a run with --run, or leave --resume out to evaluate what the recipe names.")
        chosen = RunCheckpoint(run_of(folder), folder, f"the newest under {run.output_dir}")
    else:
        chosen = find_checkpoint(resume)
    log(f"evaluating {chosen.describe()}")
    asked = resume != "auto" and composition.where("run.output_dir") == OPTIONS  # auto searches it
    return start_from(chosen, composition, None if asked else chosen.evaluations())


def start_from(chosen: RunCheckpoint, composition: Composition, output_dir: Path | None = None) -> Composition:
    """An evaluation with the weights of a checkpoint.

    Args:
        chosen: the checkpoint.
        composition: what to evaluate it on.
        output_dir: parent of the evaluation's folder; by default that of the composition.
    """
    chosen = dataclasses.replace(chosen, weights=composition.config.run.weights or "")
    run: dict[str, Any] = {"evaluate": True, "resume_ckpt_path": None, "fsdp": "none"}
    if output_dir is not None:
        run["output_dir"] = str(output_dir)
    return overlaid(composition, Layer("--run", {"model": chosen.start_keys(composition.config.model), "run": run}))


def model_sections(chosen: RunCheckpoint) -> tuple[ModelConfig, PreprocessConfig]:
    """The sections that build a run's model with the weights of a checkpoint, and its processors.

    The processors are those of the run's data sets if these agree, else those of its `preprocess` section.

    Raises:
        ErrorList: the run's configuration does not fit this version.
    """
    own = chosen.config_layer()
    composition = compose_layers([own], Path(own.name))
    if composition.errors:
        raise ErrorList(f"{own.name} cannot be loaded:", composition.errors)
    config = composition.config
    model = dataclasses.replace(config.model, **chosen.start_keys(config.model))
    preprocess = dataclasses.replace(config.preprocess)
    for kind in ("vis_processor", "text_processor"):
        pairs = [getattr(section, kind) for section in config.datasets.values()]
        if pairs and all(pair == pairs[0] for pair in pairs):
            setattr(preprocess, kind, pairs[0])
    return model, preprocess


def _with_recipe(own: Layer, recipe: Sequence[Layer]) -> list[Layer]:
    """The model of a run, the data sets and the `run` section of a recipe, and the plugins of both."""
    plugins = [name for layer in (own, *recipe) for name in layer.content.get("imports") or []]
    return [_only(own, "model", "preprocess"), *(_only(layer, "datasets", "run") for layer in recipe),
            Layer("imports of both", {"imports": list(dict.fromkeys(plugins))})]


def _only(layer: Layer, *sections: str) -> Layer:
    return Layer(layer.name, {key: value for key, value in layer.content.items() if key in sections})


# --- evaluations that were stopped -----------------------------------------------------------------------------------
def find_unfinished(output_dir: Path, cfg: Config) -> tuple[Path | None, str]:
    """(the newest run folder in which an evaluation with this configuration was stopped, a message or "").

    Only evaluations that are runs of their own are searched. Weights and data are compared later, once they are loaded.
    """
    message = ""
    for run_dir, saved in _unfinished(Path(output_dir)):
        if saved.get("split", "") not in {*cfg.run.valid_splits, *cfg.run.test_splits}:
            continue
        configured = {key: value for key, value in saved.items()
                      if key.startswith(("model.", "preprocess.", "datasets.", "run."))}
        changed = unfinished.differences(configured, unfinished.config_fingerprint(cfg, str(saved.get("data set"))))
        if not changed:
            return run_dir, f"resuming the evaluation that was stopped in {run_dir}"
        message = message or (f"the evaluation that was stopped in {run_dir} has other settings "
                              f"({'; '.join(changed[:3])}); starting a new one")
    return None, message


def _unfinished(output_dir: Path) -> Iterator[tuple[Path, unfinished.Fingerprint]]:
    """(run folder, fingerprint) of stopped standalone evaluations, newest first, without those that are running."""
    found: list[tuple[float, Path, unfinished.Fingerprint]] = []
    busy = set()
    for path in output_dir.glob(f"*/{unfinished.FOLDER}/*.rank*.jsonl"):
        run_dir = path.parents[len(unfinished.FOLDER.parts)]
        with contextlib.suppress(OSError):  # files that this user may not read, or that vanish meanwhile
            if unfinished.is_busy(path):
                busy.add(run_dir)
            header, _ = unfinished.read(path)
            if header is not None and header["alone"]:
                found.append((path.stat().st_mtime, run_dir, header["evaluation"]))
    found.sort(key=lambda one: one[0], reverse=True)
    return ((run_dir, saved) for _, run_dir, saved in found if run_dir not in busy)
