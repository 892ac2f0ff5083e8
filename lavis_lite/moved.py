"""Names that are resolved on first use: public names of a package, and modules that have moved.

An import of a module's old name gives the new module and a DeprecationWarning. The table goes with version 0.3.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "lavis_lite."

MOVED = {
    "assembly": "checkpoints.assembly",
    "atomic": "io.atomic",
    "checkpoint_origin": "checkpoints.metadata",
    "checkpoints.containers": "checkpoints.reading",
    "checkpoints.following": "checkpoints.assembly",
    "checkpoints.run_files": "checkpoints.manifest",
    "cli.attention": "cli.generate",
    "cli.lavis_recipes": "config.recipes",
    "compat.lavis.backbones": "compat.lavis.base_model",
    "compat.lavis.bert": "compat.lavis.qformer",
    "compat.lavis.builder_classes": "compat.lavis.builders",
    "compat.lavis.config": "compat.lavis.sections",
    "compat.lavis.media": "compat.lavis.utils",
    "compat.lavis.qformer_text": "compat.lavis.qformer",
    "compat.lavis.rates": "compat.lavis.runners",
    "config.arguments": "config.typed",
    "config.plain": "config.layers",
    "config.preflight": "preflight",
    "config.protocols": "config.schema",
    "config.run_rules": "config.typed",
    "config.switch": "config.named",
    "contracts": "registry",
    "convert": "checkpoints.convert",
    "datasets.annotations.blocks": "datasets.annotations.kinds",
    "datasets.annotations.columns": "datasets.annotations.readers",
    "datasets.annotations.conversations": "datasets.annotations.dialogues",
    "datasets.annotations.json_files": "datasets.annotations.readers",
    "datasets.annotations.named": "datasets.annotations.readers",
    "datasets.annotations.references": "datasets.annotations.rows",
    "datasets.builders.classes": "datasets.builders.questions",
    "datasets.builders.dialogue": "datasets.builders.questions",
    "datasets.builders.keys": "datasets.builders.base",
    "datasets.builders.shards": "datasets.builders.images",
    "datasets.doctor": "datasets.validate",
    "datasets.doctor.examine": "datasets.validate.checks",
    "datasets.doctor.guess": "datasets.validate.recipe",
    "datasets.files.blocks": "datasets.files.mapped",
    "datasets.files.names": "datasets.files.image_paths",
    "datasets.files.paths": "datasets.files.image_paths",
    "datasets.files.patterns": "datasets.files.image_paths",
    "datasets.files.table_folders": "datasets.files.locate",
    "datasets.loading.collate": "datasets.loading.loader",
    "datasets.loading.pending": "datasets.loading.loader",
    "datasets.loading.randomness": "datasets.loading.sampler",
    "datasets.media.jpeg": "datasets.media.images",
    "datasets.media.video_readers": "datasets.media.video",
    "datasets.prepare": "mini_world",
    "datasets.prepare.mini_tasks": "mini_world.tasks",
    "datasets.prepare.mini_world": "mini_world.world",
    "datasets.retrieval": "datasets.caption",
    "datasets.texts": "datasets.base",
    "disk": "io.disk",
    "distributed.collectives": "distributed",
    "distributed.shards": "distributed",
    "download": "io.download",
    "evaluation.fingerprint": "evaluation.resume",
    "evaluation.progress": "evaluation.resume",
    "exits": "process.exits",
    "files": "io.files",
    "following": "checkpoints.assembly",
    "hub": "io.hub",
    "io.sealed": "io.atomic",
    "late_dynamo": "torchvision_shim",
    "launch": "process.launch",
    "lazy": "moved",
    "limits": "process.children",
    "loading": "zoo.loading",
    "manifest": "checkpoints.manifest",
    "metrics.answer_cleaning": "metrics.vqa",
    "metrics.answer_rules": "metrics.vqa",
    "mini_world.folder": "mini_world.world",
    "models.answer_text": "models.language.answer_text",
    "models.blip2.arch_defaults": "models.blip2.config",
    "models.blip2.learning": "models.blip2.llm",
    "models.blip2.llm_config": "models.blip2.config",
    "models.blip2.parts": "models.blip2.base",
    "models.blip2_base": "models.blip2.base",
    "models.blip2_config": "models.blip2.config",
    "models.blip2_llm": "models.blip2.llm",
    "models.blip2_llm_config": "models.blip2.config",
    "models.blip2_qformer": "models.blip2.stage1",
    "models.blip2_writing": "models.blip2.writing",
    "models.checkpoints": "checkpoints",
    "models.checkpoints.bert_weights": "checkpoints.formats.bert",
    "models.checkpoints.finite_weights": "finite",
    "models.checkpoints.hf_config": "checkpoints.formats.hf_config",
    "models.checkpoints.hf_fields": "checkpoints.formats.hf_fields",
    "models.checkpoints.hf_key_map": "checkpoints.formats.key_maps",
    "models.checkpoints.hf_processor": "checkpoints.formats.hf_processor",
    "models.checkpoints.key_map": "checkpoints.formats.key_maps",
    "models.checkpoints.language_fit": "checkpoints.formats.language_fit",
    "models.checkpoints.lavis_key_map": "checkpoints.formats.key_maps",
    "models.checkpoints.model_card": "checkpoints.formats.model_card",
    "models.checkpoints.stored": "checkpoints.manifest",
    "models.checkpoints.vision_weights": "checkpoints.formats.vision",
    "models.few_shot": "models.blip2.prompts",
    "models.language.head": "models.language.weights",
    "models.language.load_options": "models.language.families",
    "models.language.placement": "models.language.build",
    "models.language.pretrained": "models.language.build",
    "models.language.scoring": "models.language.answering",
    "models.language.segments": "models.language.rows",
    "models.language.text_limits": "models.language.tokens",
    "models.language_model": "models.language",
    "models.language_model.quantization": "models.language.build",
    "models.language_model.room": "models.language.tokens",
    "models.language_model.roomy_layer": "models.language.cache",
    "models.language_model.setup": "models.language.families",
    "models.language_model.transplant": "models.language.build",
    "models.llm_styles": "models.blip2.config",
    "models.masks": "models.qformer.model",
    "models.mini_vit": "models.vision.encoder",
    "models.objectives": "models.blip2.objectives",
    "models.optimizer_groups": "models.base",
    "models.options": "models.base",
    "models.pictures": "models.blip2.base",
    "models.prompts": "models.blip2.prompts",
    "models.qformer.masks": "models.qformer.model",
    "models.qformer_layers": "models.qformer.layers",
    "models.samples": "models.outputs",
    "models.stage1": "models.blip2.passes",
    "models.vision.check": "models.vision.config",
    "models.vision.presets": "models.vision.encoder",
    "models.vision.shapes": "models.vision.config",
    "models.vision.vits": "models.vision.encoder",
    "models.vision_encoder": "models.vision.encoder",
    "models.vision_presets": "models.vision.encoder",
    "preflight.data": "preflight.run",
    "preflight.files": "preflight.run",
    "process.limits": "process.children",
    "process.locks": "checkpoints.weights",
    "processes": "process.children",
    "processors.build": "processors.base",
    "processors.control": "processors.text",
    "processors.frames": "processors.video",
    "processors.rgb": "processors.image",
    "processors.templates": "processors.instruction",
    "rendezvous": "distributed.rendezvous",
    "report.curves": "report.page",
    "report.thumbnails": "report.page",
    "run_files": "checkpoints.manifest",
    "runners.bad_samples": "runners.standard_hooks",
    "runners.bounds": "runners.schedules",
    "runners.compiling": "runners.placement",
    "runners.cut_texts": "runners.standard_hooks",
    "runners.desk": "evaluation.resume",
    "runners.device": "device",
    "runners.evaluation": "evaluation.evaluator",
    "runners.evaluations": "evaluation.evaluator",
    "runners.hooks.hooks": "runners.hooks.base",
    "runners.identity": "evaluation.resume",
    "runners.journal": "evaluation.resume",
    "runners.loss_meter": "runners.outcome",
    "runners.mixing": "config.mixing",
    "runners.nonfinite": "runners.outcome",
    "runners.parts": "runners.train_state",
    "runners.precision": "device",
    "runners.reporting": "evaluation.results",
    "runners.run_folder": "runs.folder",
    "runners.run_lock": "runs.folder",
    "runners.sharding": "runners.placement",
    "runners.signals": "process.exits",
    "runners.staging": "runners.train_state",
    "runners.step_records": "runners.standard_hooks",
    "runners.train_schedule": "runners.schedules",
    "runners.training_log": "runners.standard_hooks",
    "runs.compose": "runs.find",
    "sealed": "io.atomic",
    "tasks.gallery": "tasks.retrieval_parts",
    "tasks.likelihood": "tasks.vqa",
    "tasks.long_texts": "tasks.writing",
    "tasks.looking": "tasks.writing",
    "tasks.needs": "tasks.base",
    "tasks.submission": "tasks.config",
    "threads": "checkpoints.weights",
    "tracking.console": "tracking.sinks",
    "tracking.curves": "tracking.tracker",
    "tracking.jsonl": "tracking.tracker",
    "tracking.services": "tracking.sinks",
    "tracking.sink": "tracking.sinks",
    "untrained": "models.provenance",
    "weights": "checkpoints.weights",
}
"""old name -> new name, both within the package; a package stands for all modules in it that keep their names"""
OF_LAVIS = ("common", "datasets.builders.base_dataset_builder", "datasets.datasets", "models.base_model",
            "models.blip2_models", "models.blip_models", "processors.base_processor", "processors.blip_processors",
            "runners.runner_base", "runners.runner_iter", "tasks.base_task")
"""modules and packages of LAVIS that this package does not have under its own name"""


def new_name(name: str) -> str | None:
    """The present name of the module `lavis_lite.X`; None if it has not moved."""
    old = name.removeprefix(PACKAGE)
    if not name.startswith(PACKAGE):
        return None
    if old in MOVED:
        return PACKAGE + MOVED[old]
    parent, _, rest = old.rpartition(".")
    return f"{PACKAGE}{MOVED[parent]}.{rest}" if parent in MOVED else None


def _refuse_lavis_names(name: str, fullname: str) -> None:
    if name != fullname and name in OF_LAVIS:
        raise ModuleNotFoundError(
            f"No module named {fullname!r}. LAVIS' own name, `lavis.{name}`, can be imported after `import "
            f"{PACKAGE}compat.lavis`; docs/guide/coming_from_lavis.md has this package's names.", name=fullname)


class _Alias(Loader):
    def __init__(self, target: str) -> None:
        self.target = target

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self.target)  # what importlib returns after this call


class MovedModules(MetaPathFinder):
    """Finds modules under their old names. It is asked last, so it costs nothing while new names are used."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        """The module that replaced `fullname`, if it is one of ours that moved.

        Raises:
            ModuleNotFoundError: it is one of LAVIS'; says how it is imported.
        """
        now = new_name(fullname)
        if now is None:
            _refuse_lavis_names(fullname.removeprefix(PACKAGE), fullname)
            return None
        warnings.warn(f"{fullname} is now {now}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(now), is_package=True)


def install() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        homes: public name -> the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
