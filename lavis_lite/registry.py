"""Names in YAML -> classes in Python: one generic registry per kind, all kinds on this page.

Built-in names resolve lazily from an index (name -> "module:Class"), so that listing models does not import torch.
Outside code registers itself on import: `imports:` in a YAML, the entry-point group `lavis_lite.plugins`, or a plain
import that runs a decorator such as `@registry.register_model("my_model")`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lavis_lite.errors import RegistryError
from lavis_lite.registry_base import PLUGIN_GROUP, ModelRegistry, OptimizerRegistry, Registry, load_plugins

if TYPE_CHECKING:
    from lavis_lite.datasets.builders.base import BaseDatasetBuilder
    from lavis_lite.models.base import BaseModel
    from lavis_lite.models.connectors.base import Connector
    from lavis_lite.models.vision.encoder import Encoder
    from lavis_lite.processors.base import BaseProcessor
    from lavis_lite.runners.runner import Runner
    from lavis_lite.runners.schedules import LRSchedule
    from lavis_lite.tasks.base import BaseTask
from typing import Protocol

from lavis_lite.errors import ContractError

C = TypeVar("C", bound=type)

__all__ = ["PLUGIN_GROUP", "Registries", "Registry", "load_plugins", "registry"]

BUILT_IN = "lavis_lite.datasets.builders."
BUILDERS = {
    "image_caption": "images:ImageCaptionBuilder",
    "image_retrieval": "images:ImageRetrievalBuilder",
    "custom": "custom:CustomBuilder", "image_classes": "questions:ImageClassesBuilder",
    "image_shards": "images:ImageShardBuilder",
    "image_qa": "questions:ImageQABuilder", "images_qa": "questions:ImagesQABuilder",
    "image_dialogue": "questions:ImageDialogueBuilder", "chat": "chat:ChatBuilder",
    "video_caption": "video:VideoCaptionBuilder",
    "video_qa": "video:VideoQABuilder", "video_dialogue": "video:VideoDialogueBuilder",
    "video_retrieval": "video:VideoRetrievalBuilder",
}
"""builders of the package, by their module in the package datasets.builders"""

MODELS = {
    "blip2": ("blip2.stage1:Blip2Qformer", "blip2.config:Blip2Qformer"),
    "blip2_feature_extractor": ("blip2.stage1:Blip2Qformer", "blip2.config:Blip2Qformer"),
    "blip2_image_text_matching": ("blip2.stage1:Blip2ImageTextMatching", "blip2.config:Blip2Qformer"),
    "blip2_llm": ("blip2.llm:Blip2AnyLLM", "blip2.config:Blip2AnyLLM"),
    "blip2_opt": ("blip2.llm:Blip2OPT", "blip2.config:Blip2OPT"),
    "blip2_t5": ("blip2.llm:Blip2T5", "blip2.config:Blip2T5"),
    "blip2_t5_instruct": ("blip2.llm:Blip2T5Instruct", "blip2.config:Blip2T5Instruct"),
    "blip2_vicuna": ("blip2.llm:Blip2Vicuna", "blip2.config:Blip2Vicuna"),
    "blip2_vicuna_instruct": ("blip2.llm:Blip2VicunaInstruct", "blip2.config:Blip2VicunaInstruct"),
    "vision_language": ("vision_language.model:VisionLanguage", "vision_language.config:VisionLanguage"),
}
"""model -> (class, its section without Config), both in the package models"""
TASKS = {
    "image_text_pretrain": ("pretrain:ImageTextPretrainTask", "Pretrain"),
    "retrieval": ("retrieval:RetrievalTask", "Retrieval"),
    "captioning": ("captioning:CaptioningTask", "Captioning"),
    "vqa": ("vqa:VQATask", "VQA"),
    "chat": ("chat:ChatTask", "Chat"),
    "gqa": ("answering:GQATask", "GQA"),
    "aok_vqa": ("answering:AOKVQATask", "AOKVQA"),
    "vqa_reading_comprehension": ("answering:ReadingTask", "Reading"),
    "video_qa": ("answering:VideoQATask", "VideoQA"),
    "ranking": ("ranking:RankingTask", "Ranking"),
    "multimodal_classification": ("ranking:RankingTask", "Ranking"),
    "dialogue": ("ranking:DialogueTask", "Dialogue"),
    "instruction_tuning": ("by_dataset:InstructionTuningTask", "InstructionTuning"),
}
"""task -> (class in the package tasks, its section in tasks.config, without RunConfig)"""


class Registries:
    """All kinds on one page. `registry` below is the one instance."""

    def __init__(self) -> None:
        # model: from_config(cfg) -> module; forward(samples) -> output with `loss`; knows nothing of tasks or files.
        home = "lavis_lite.models."
        self.model: Registry[BaseModel] = ModelRegistry(
            "model", "lavis_lite.models.base:BaseModel", {name: home + cls for name, (cls, _) in MODELS.items()},
            {name: f"{home}{section}Config" for name, (_, section) in MODELS.items()})
        # processor: __call__(item, rng=None) -> tensor or text; all randomness comes from rng.
        image, text, video = (f"lavis_lite.processors.{name}:" for name in ("image", "text", "video"))
        self.processor: Registry[BaseProcessor] = Registry("processor", "lavis_lite.processors.base:BaseProcessor", {
            "blip_image_train": image + "BlipImageTrain", "blip_image_eval": image + "BlipImageEval",
            "blip2_image_train": image + "Blip2ImageTrain", "clip_image_train": image + "ClipImageTrain",
            "clip_image_eval": image + "ClipImageEval", "instruction": "lavis_lite.processors.instruction:Instruction",
            "alpro_video_train": video + "AlproVideoTrain", "alpro_video_eval": video + "AlproVideoEval",
            "blip_caption": text + "BlipCaption", "blip_question": text + "BlipQuestion",
            "as_written": text + "AsWritten"})
        # builder: from_config(name, cfg) -> build(split) -> map-style dataset; documents the sample keys it yields.
        self.builder: Registry[BaseDatasetBuilder] = Registry(
            "builder", BUILT_IN + "base:BaseDatasetBuilder", {name: BUILT_IN + at for name, at in BUILDERS.items()})
        # task: train_step, predict, score; no loops, no files.
        home = "lavis_lite.tasks."
        self.task: Registry[BaseTask[Any, Any]] = Registry(
            "task", "lavis_lite.tasks.base:BaseTask", {name: home + cls for name, (cls, _) in TASKS.items()},
            {name: f"{home}config:{section}RunConfig" for name, (_, section) in TASKS.items()})
        # encoder: raw input -> float[B,P,Dv], and its `width`; a `model.vit_model` beside the ViTs of timm.
        self.encoder: Registry[Encoder] = Registry("encoder", "lavis_lite.models.vision.encoder:Encoder", {
            "features": "lavis_lite.models.vision.given:GivenFeatures"})
        # connector: those features -> float[B,n,D] for a language model; a `type` of model.connector.
        home = "lavis_lite.models.connectors."
        self.connector: Registry[Connector] = Registry("connector", home + "base:Connector", {
            "linear": home + "projection:Linear", "mlp": home + "projection:MLP",
            "resampler": home + "queries:Resampler", "abstractor": home + "queries:Abstractor",
            "qformer": home + "qformer:QFormerConnector",
        })
        self._add_kinds_of_training()

    def _add_kinds_of_training(self) -> None:
        # runner: the one step loop, bounded by epochs or by iterations.
        runner = "lavis_lite.runners.runner:"
        self.runner: Registry[Runner] = Registry("runner", "lavis_lite.runners.runner:Runner", {
            "runner_base": runner + "EpochRunner", "runner_iter": runner + "IterationRunner"})
        # lr_scheduler: a pure function of the optimizer step: lr_at(step) -> float.
        schedule = "lavis_lite.runners.schedules:"
        self.lr_scheduler: Registry[LRSchedule] = Registry("lr_scheduler", "lavis_lite.runners.schedules:LRSchedule", {
            "linear_warmup_cosine_lr": schedule + "LinearWarmupCosine", "constant_lr": schedule + "Constant",
            "linear_warmup_step_lr": schedule + "LinearWarmupStep",
        })
        # optimizer: (params, lr, **optimizer_args), a torch optimizer over the model's `optimizer_groups`.
        optimizer = "lavis_lite.runners.optimizers."
        self.optimizer: Registry[Any] = OptimizerRegistry("optimizer", "torch.optim:Optimizer", {
            "adamw8bit": optimizer + "adamw8bit:AdamW8bit", "muon": optimizer + "muon:MuonWithAdamW",
        })
        # hook: called at a few named points of a training; its state is part of the checkpoints.
        hook = "lavis_lite.runners.hooks."
        self.hook: Registry[Any] = Registry("hook", "lavis_lite.runners.hooks.base:Hook", {
            "early_stop": hook + "early_stop:EarlyStop", "ema": hook + "ema:EMA",
            "profiler": hook + "profiler:Profiler", "throughput": hook + "throughput:Throughput",
            "sample_predictions": hook + "sample_predictions:SamplePredictions",
        })

        self._add_calls_of_lavis()
        self.config_folders: list[Path] = []
        """further folders of models/<arch>/<type>.yaml and datasets/<name>.yaml"""

    def register_path(self, name: str, path: str | Path) -> None:
        """Add a folder of configurations: models/<arch>/<type>.yaml and datasets/<name>.yaml.

        Args:
            name: "configs"; LAVIS' spelling of a path with a name.
            path: the folder.

        Raises:
            RegistryError: another name, or no such folder.
        """
        folder = Path(path).expanduser().absolute()
        if name != "configs":
            raise RegistryError(f"register_path: unknown path {name!r}; the only one is 'configs'.")
        if not folder.is_dir():
            raise RegistryError(f"register_path: there is no folder {folder}.")
        if folder not in self.config_folders:
            self.config_folders.append(folder)

    def _add_calls_of_lavis(self) -> None:
        """LAVIS' spelling: `register_model("a")`, `get_model_class("a")`, `list_models()` and so on for each kind."""
        self.register_model = self.model.register
        self.register_processor = self.processor.register
        self.register_builder = self.builder.register
        self.register_task = self.task.register
        self.register_runner = self.runner.register
        self.register_lr_scheduler = self.lr_scheduler.register
        self.register_encoder = self.encoder.register
        self.register_connector = self.connector.register
        self.register_optimizer = self.optimizer.register
        self.register_hook = self.hook.register
        self.get_model_class = self.model.get
        self.get_processor_class = self.processor.get
        self.get_builder_class = self.builder.get
        self.get_task_class = self.task.get
        self.get_runner_class = self.runner.get
        self.get_lr_scheduler_class = self.lr_scheduler.get
        self.get_encoder_class = self.encoder.get
        self.get_connector_class = self.connector.get
        self.get_optimizer_class = self.optimizer.get
        self.get_hook_class = self.hook.get
        self.list_models = self.model.names
        self.list_processors = self.processor.names
        self.list_builders = self.builder.names
        self.list_tasks = self.task.names
        self.list_runners = self.runner.names
        self.list_lr_schedulers = self.lr_scheduler.names
        self.list_encoders = self.encoder.names
        self.list_connectors = self.connector.names
        self.list_optimizers = self.optimizer.names
        self.list_hooks = self.hook.names


registry = Registries()


# --- contracts --------------------------------------------------------------------------------------------------------
T = TypeVar("T")


def asked_by(protocol: type, attributes: bool = True) -> list[str]:
    """Names that a protocol asks for; without `attributes` only its methods and properties. Dunder names are left out.

    Attributes without a value exist on instances only, so a class does not show them.
    """
    found: dict[str, None] = {}
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False) and base is not Protocol:
            named = [*vars(base), *(vars(base).get("__annotations__", {}) if attributes else ())]
            found |= dict.fromkeys(name for name in named if not name.startswith("_"))
    return sorted(found)


def lacking(subject: object, protocol: type, attributes: bool = True) -> list[str]:
    """Names of a protocol that a class or an instance does not have.

    Args:
        subject: a class (only its methods and properties are compared), or an instance.
        protocol: what it should have.
        attributes: ask an instance for attributes without a value in the protocol, too.
    """
    is_class = isinstance(subject, type)
    kind = subject if is_class else type(subject)
    # the class first: asking an instance would compute its properties
    return [name for name in asked_by(protocol, attributes and not is_class)
            if not hasattr(kind, name) and (is_class or not hasattr(subject, name))]


def need(subject: object, protocol: type[T], caller: str) -> T:
    """The same object, known to have the protocol.

    Args:
        subject: an instance.
        protocol: what it must have.
        caller: who asks, the beginning of the message.

    Raises:
        ContractError: it lacks some of it; the message says what.
    """
    if lost := lacking(subject, protocol):
        raise ContractError(f"{caller} needs {protocol.__name__} ({protocol.__module__}); {type(subject).__name__} has "
                            f"no {', '.join(lost)}.")
    return subject  # type: ignore[return-value]


def names_with(kind: Registry[T], protocol: type, of: Callable[[type[T]], type | None] = lambda cls: cls) -> list[str]:
    """Registered names of classes that have a protocol. Imports all classes of the kind, so it is for messages.

    Args:
        kind: the registry to look through.
        protocol: what the class must have.
        of: registered class -> the class in question; None: not known.
    """
    asked = ((name, of(kind.get(name))) for name in kind.names())
    return [name for name, cls in asked if cls is not None and not lacking(cls, protocol)]
