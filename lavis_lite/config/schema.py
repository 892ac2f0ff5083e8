"""The typed sections of a run, with units. Each registered class extends its own section.

`ModelConfig`, `DatasetConfig` and `RunConfig` hold the keys that all of their kind share. A class names its extension,
a dataclass derived from one of these, as its attribute `config_class`. LAVIS' names are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lavis_lite.config.sections import (
    AFFECTS_ROWS,
    RUN_KEYS_WITHOUT_EFFECT,
    SCORING_ONLY,
    TASK_KEYS_OF_LAVIS,
    OpenSection,
    RunConfig,
    Section,
)

if TYPE_CHECKING:
    from lavis_lite.models.language.families import LMLoadOptions

__all__ = [
    "AFFECTS_ROWS", "RUN_KEYS_WITHOUT_EFFECT", "SCORING_ONLY", "TASK_KEYS_OF_LAVIS", "BuildInfo", "Config",
    "DatasetConfig", "FileConfig", "HoldsLanguageModel", "ModelConfig", "NamesLanguageModel", "OpenSection",
    "PreprocessConfig", "ProcessorPair", "RunConfig", "Section", "StorageConfig",
]


@dataclass
class ModelConfig(Section):
    """Keys of every model's section."""

    arch: str = "blip2"
    """registered name"""
    model_type: str = "mini"
    """selects configs/models/<arch>/<model_type>.yaml"""
    load_pretrained: bool = True
    """whether to load `pretrained`"""
    pretrained: str | None = None
    """checkpoint to start from: path, URL, or a run folder of this project"""
    load_finetuned: bool = False
    """whether to load `finetuned`"""
    finetuned: str | None = None
    """used instead of `pretrained` when load_finetuned is true"""
    pretrained_stage1: str | None = None
    """a checkpoint loaded before `pretrained` (or `finetuned`), for weights that the latter lacks: a frozen Q-Former,
    or the Q-Former's text half (absent in stage-2 checkpoints)"""
    allow_non_finite: bool = False
    """also load weights with NaN or infinity, to inspect them"""

    brings_backbones = False  # no key: whether `from_config` loads encoder, tokenizer and language model by itself

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """Errors beyond keys and types, each as (key of this section, sentence); called before anything is built."""
        return []

    def starting_from(self, checkpoint: str | Path) -> dict[str, Any]:
        """Keys and values with which the model starts from one checkpoint, and from no other."""
        return {"load_pretrained": True, "pretrained": str(checkpoint), "load_finetuned": False,
                "pretrained_stage1": None}


@dataclass
class FileConfig(Section):
    """One annotation file (or several: lists of equal length)."""

    url: str | list[str] | None = None
    """where it is downloaded from"""
    storage: str | list[str] | None = None
    """path; relative ones are looked up in the working folder, then in the cache root"""
    md5: str | list[str] | None = None
    """of the file at `url`"""
    sha256: str | list[str] | None = None
    """of the file at `url`"""


@dataclass
class StorageConfig(Section):
    """A folder of media files; relative paths are looked up in the working folder, then in the cache root."""

    storage: str | None = None
    """path of the folder"""
    url: str | list[str] | None = None
    """archives (zip, tar) that `data prepare` unpacks into the folder"""
    md5: str | list[str] | None = None
    """of the archives"""
    sha256: str | list[str] | None = None
    """of the archives"""
    follow_links: bool | None = None
    """whether symbolic links may lead out of the folder (never to system files); absent: unless `data prepare` unpacked
    an archive there"""


@dataclass
class BuildInfo(Section):
    """Where a data set's files are."""

    annotations: dict[str, FileConfig] = field(default_factory=dict)
    """by split"""
    images: StorageConfig = field(default_factory=StorageConfig)
    """folder of the pictures"""
    videos: StorageConfig = field(default_factory=StorageConfig)
    """folder of the videos"""
    features: StorageConfig = field(default_factory=StorageConfig)
    """folder of cached features of the vision encoder"""
    storage: str | None = None
    """shards (a glob)"""


@dataclass
class ProcessorPair(Section):
    """Processor of the training splits and of all others: {name: registered name, **its parameters}."""

    train: dict[str, Any] | None = None
    """for samples that a training learns from"""
    eval: dict[str, Any] | None = None
    """for validation and test samples"""


@dataclass
class DatasetConfig(Section):
    """Keys of every data set's section. Builders extend it through their `config_class`."""

    builder: str | None = None
    """registered builder; by default the section's own name"""
    type: str = "default"
    """a key of configs/datasets/<name>.yaml"""
    data_type: str = "images"
    """images | videos | features; LAVIS also writes lists such as [images]"""
    build_info: BuildInfo = field(default_factory=BuildInfo)
    """where its files are"""
    vis_processor: ProcessorPair = field(default_factory=ProcessorPair)
    """for its pictures or videos"""
    text_processor: ProcessorPair = field(default_factory=ProcessorPair)
    """for its texts"""
    kw_processor: dict[str, Any] = field(default_factory=dict)
    """of builders written for LAVIS; the package's own have none"""
    prepare: str | None = None
    """name of a generator that writes the data set's files on first use (mini_world)"""
    sampling_factor: float | dict[str, float] = 1.0
    """factor on this set's probability if each step draws from one set (run.sampling). By step it changes during the
    run: {0: 1.0, 1000: 0.2} falls in a straight line to 0.2, and stays there from step 1,000 on"""
    train_size: int | None = None
    """published number of training samples, from which `--dry-run` computes probabilities if files are missing"""


@dataclass
class PreprocessConfig(Section):
    """Processors that belong to a model, used by load_model_and_preprocess."""

    vis_processor: ProcessorPair = field(default_factory=ProcessorPair)
    """for pictures or videos"""
    text_processor: ProcessorPair = field(default_factory=ProcessorPair)
    """for texts"""


@dataclass
class Config(Section):
    """A whole checked run: every section is an instance of its class's `config_class`."""

    model: ModelConfig
    preprocess: PreprocessConfig
    datasets: dict[str, DatasetConfig]
    run: RunConfig
    imports: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """keys without effect, one sentence each; shown at the start"""
    provenance: dict[str, str] = field(default_factory=dict)
    """dotted key -> the layer that set it"""
    as_written: dict[tuple[str, ...], Any] = field(default_factory=dict)
    """keys from the outermost section on -> a value with an interpolation in it, as it was written"""
    model_is_known: bool = True
    """false: the model's arch or type is wrong, so that its defaults are absent and no more is said of it"""


@runtime_checkable
class NamesLanguageModel(Protocol):
    """Names a frozen language model, which is fetched and loaded with the section's other files."""

    llm_args: dict[str, Any] | None
    """its configuration instead of that of its folder; its weights are then random"""
    llm_tokenizer: str | None
    """folder or hub name of its tokenizer; None: that of the language model"""
    llm_precision: Any
    """auto | fp32 | fp16 | bf16, of its weights"""

    def language_model_name(self) -> str:
        """Folder or hub name."""


@runtime_checkable
class HoldsLanguageModel(NamesLanguageModel, Protocol):
    """Also says how the language model is held: quantised, over several devices, with adapters."""

    def setup(self) -> LMLoadOptions:
        """How it is held."""
