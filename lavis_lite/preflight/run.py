"""Every error of a composed run at once, before anything is built, loaded or downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from lavis_lite.config.arguments import check_hooks, check_optimizer
from lavis_lite.config.compose import Composition
from lavis_lite.config.run_rules import run_errors
from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.errors import DistributedError, shown
from lavis_lite.preflight.data import check_datasets
from lavis_lite.process.launch import launch_from_environment
from lavis_lite.redaction import mask

Report = Callable[[str, str], None]
"""takes (dotted key, sentence)"""


def check(composition: Composition) -> list[str]:
    """The errors of a composed run, one sentence each; empty if it may start.

    What the run will lack, such as a metric that needs Java, is added to its notes.
    """
    config = composition.config
    errors = list(composition.errors)

    def report(key: str, message: str) -> None:
        errors.append(f"{composition.where(key)}: {key}: {message}")

    for key, message in run_errors(config.run):
        report(f"run.{key}", message)
    check_optimizer(config.run, report)
    check_hooks(config, report)
    for key, message in config.model.errors(config.run):
        report(f"model.{key}", message)
    _check_packages(config.run, report)
    check_datasets(config, report)
    if not any(text.startswith("run.output_dir") for text in errors):
        _check_output(config.run, report)
    config.notes += [note for note in _notes(config) if note not in config.notes]
    return [mask(text) for text in [*errors, *_launcher_errors()]]


def _check_packages(run: RunConfig, report: Report) -> None:
    """Optional packages that the run section needs."""
    for key, package, extra in (("wandb", "wandb", "track"), ("tensorboard", "tensorboard", "")):
        if getattr(run, key) and find_spec(package) is None:
            name = f"'lavis_lite[{extra}]'" if extra else package
            report(f"run.{key}", f"needs the package {package}: pip install {name}, or set run.{key}=false.")


def _notes(config: Config) -> list[str]:
    """Notes on what the run will lack."""
    notes = []
    if java := {"meteor", "spice"}.intersection(getattr(config.run, "caption_metrics", None) or ()):
        from lavis_lite.metrics.java_scores import why_no_java

        if reason := why_no_java(" and ".join(sorted(java)).upper()):
            notes.append(f"run.caption_metrics: {reason} The other metrics are computed.")
    if config.model.get("apply_lemmatizer"):
        from lavis_lite.processors.lemmatizer import SPACY_MODEL, has_spacy

        if not has_spacy():
            notes.append(f"model.apply_lemmatizer: spaCy's {SPACY_MODEL} is not installed, so the package's own rules "
                         "bring answers to their base form.")
    return notes


def _check_output(run: RunConfig, report: Report) -> None:
    """Check that the output folder can be written, with a temporary file in its nearest existing parent."""
    try:
        folder = Path(run.output_dir).absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        report("run.output_dir", f"{shown(run.output_dir, 1000)} cannot be written ({reason}); choose another with "
               "--options run.output_dir=PATH")


def _launcher_errors() -> list[str]:
    """Errors of the launcher's environment variables."""
    try:
        launch_from_environment()
    except DistributedError as error:
        return [f"environment: {error}"]
    return []
