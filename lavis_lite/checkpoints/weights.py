"""The weights and tokenizers a model section names: where they come from, whether they are here, how to get them.

Models know nothing of files; this module turns the names in their sections into local paths, and
`lavis_lite.checkpoints.assembly` puts what is there into the model. A name may be `mini` (packaged), a path, a URL, or
a Hugging Face repository; hub and URL downloads are cached, and the offline switches (LAVIS_LITE_OFFLINE,
HF_HUB_OFFLINE) are obeyed.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from lavis_lite.checkpoints.manifest import CHECKPOINTS, checkpoint_of_run, shards_of
from lavis_lite.config.schema import HoldsLanguageModel, ModelConfig, NamesLanguageModel
from lavis_lite.errors import ConfigError, DataError, ErrorList, did_you_mean
from lavis_lite.io import files
from lavis_lite.models.provenance import WeightSource
from lavis_lite.models.vision.config import timm_repository
from lavis_lite.redaction import reveal
from lavis_lite.registry import registry

if TYPE_CHECKING:
    from lavis_lite.io import hub
    from lavis_lite.models.base import BaseModel

P = ParamSpec("P")
R = TypeVar("R")
_BUILDING = threading.RLock()
LAVIS_BUCKET = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models"
VISION_WEIGHTS = {
    "eva_clip_g": f"{LAVIS_BUCKET}/BLIP2/eva_vit_g.pth",
    "clip_L": f"{LAVIS_BUCKET}/BLIP2/clip_vit_L.pth",
    "mini": "mini",
}
"""default weights of a vision preset; other timm names bring theirs by `vit_weights` or start at random"""


ENCODERS = ("vision_encoder.", "visual_encoder.", "vision_model.")
"""what names of a vision encoder's tensors begin with: here, in LAVIS, in transformers"""
PACKAGED = {"vit_weights": "vit.safetensors", "tokenizer": "tokenizer"}
"""key -> what its value `mini` stands for, in the package's assets/mini"""
PACKAGED_PREFIX = "mini/"
"""`mini/opt` is a packaged language model, `mini/stage1` a packaged checkpoint"""
FILE_ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".json", ".txt")
NO_FILE = ("random", "timm")
"""values of a weights key that name no file: leave the random start; timm downloads its own"""
HUB_FILES = {
    "vit_weights": ["config.json", "model.safetensors"],
    "tokenizer": ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"],
    "qformer_weights": ["config.json", "model.safetensors"],
    "pretrained": ["*.json", "*.txt", "*.model", "*.safetensors"],
    "llm_tokenizer": ["*.json", "*.txt", "*.model"],
    "llm_model": ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin"],
}
"""key -> the files of a hub repository that are needed"""


@dataclass(frozen=True)
class WeightFile:
    """A name in a model section that refers to a file or folder."""

    key: str
    """field of the model section"""
    value: str

    def local(self) -> Path | None:
        """Where it is on this machine, or None. Nothing is downloaded.

        Raises:
            DataError: a pipe or a device has this name.
        """
        if self.value == "mini" and self.key in PACKAGED:
            return assets() / PACKAGED[self.key]
        if self.value.startswith(PACKAGED_PREFIX):
            return packaged(self.value)
        if "://" in self.value and self._repository() is None:
            return files.cached(self.value)
        path = files.resolve(self.value)
        if self.key in CHECKPOINTS:
            path = checkpoint_of_run(path)
        files.check_regular(path)
        here = path if path.exists() else None
        if here is None and (repository := self._repository()) is not None:
            from lavis_lite.io import hub  # few names are there

            here = hub.cached(repository, HUB_FILES.get(self.key))
        return here if here is None or self.key != "llm_model" or _has_weights(here) else None

    def _repository(self) -> hub.HubName | None:
        """The hub repository that is named: `name`, `owner/name` or `hf://...`; None: something else."""
        from lavis_lite.io import hub

        if self.value.startswith(f"{files.HUB}://"):
            return hub.HubName.parse(self.value)
        is_name = hub.is_repository(self.value) and not self.value.endswith(FILE_ENDINGS)
        return hub.HubName(self.value) if is_name else None

    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return self.local() is not None

    def describe_missing(self) -> str:
        """What is missing and how to get it."""
        if self.value.startswith(PACKAGED_PREFIX):
            hint = did_you_mean(self.value, packaged_names())
            return f"model.{self.key}: unknown packaged name {self.value!r}; {hint}"
        repository = self._repository()
        if repository is not None and "://" in self.value:
            return (f"model.{self.key}: {self.value} is not in the hub cache; get it with "
                    f"`{repository.command()}`.")
        if "://" in self.value:
            target = files.target_of(self.value)
            return (f"model.{self.key}: {self.value} is not in the cache ({target}); get it with "
                    f"`{files.fetch_command(self.value, target)}`")
        looked = f"looked at {files.resolve(self.value)}"
        if not Path(self.value).expanduser().is_absolute():
            looked = f"looked for it in the working folder {Path.cwd()} and at {files.resolve(self.value)}"
        if repository is not None:
            from huggingface_hub.constants import HF_HUB_CACHE

            looked += (f" and, as a Hugging Face repository, in the hub cache {HF_HUB_CACHE}; get it with "
                       f"`hf download {self.value}`")
        return f"model.{self.key}: {self.value!r} is not here ({looked})."

    def is_remote(self) -> bool:
        """Whether its name is one that could be downloaded."""
        return not self.value.startswith(PACKAGED_PREFIX) and ("://" in self.value or self._repository() is not None)

    def fetch(self) -> Path:
        """Bring it here.

        Raises:
            DataError: it cannot be downloaded, or is a path that does not exist.
        """
        here = self.local()
        if here is not None:
            return here
        repository = None if self.value.startswith(PACKAGED_PREFIX) else self._repository()
        if repository is not None:
            from lavis_lite.io import hub

            try:
                return hub.fetch(repository, files.offline(), HUB_FILES.get(self.key))
            except DataError as error:
                raise DataError(f"{self.describe_missing()} {error}") from error
        if "://" in self.value:
            return files.fetch(self.value)
        raise DataError(self.describe_missing())


def _has_weights(folder: Path) -> bool:
    """Whether a language model's folder has its weights, every shard of them: a cached configuration alone has not."""
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("pytorch_model.bin.index.json")):
        if all((folder / shard).exists() for shard in shards_of(index).values()):
            return True
    return any(path.exists() for path in (folder / "model.safetensors", folder / "pytorch_model.bin"))


def required_weights(model: ModelConfig) -> list[WeightFile]:
    """The files that a model section names, in the order of its fields."""
    checkpoints = [WeightFile(key, value) for key, value in checkpoints_of(model)]
    if model.brings_backbones:
        return checkpoints
    needs = []
    for key in ("vit_weights", "tokenizer", "qformer_weights"):
        value = model.get(key)
        if key == "vit_weights" and value is None:
            value = VISION_WEIGHTS.get(str(model.get("vit_model")))
        if checkpoints_of(model) and (key == "qformer_weights" or (
                key == "vit_weights" and not model.get("freeze_vit", False) and _brings_encoder(model))):
            continue  # the checkpoint brings what trained
        if value is not None and value not in NO_FILE:
            needs.append(WeightFile(key, str(value)))
    return [*needs, *_language_needs(model), *checkpoints]


def read_by_others(model: ModelConfig) -> list[WeightFile]:
    """What other libraries read by themselves, when it is needed.

    timm reads a repository for `vit_weights: timm`, if the encoder's name says which weights it has. Of a language
    model that a section gives by its sizes, transformers reads the tokenizer.
    """
    if model.brings_backbones:
        return []
    name, found = str(model.get("vit_model")), []
    if model.get("vit_weights") == "timm" and "." in name:
        found.append(WeightFile("vit_weights", timm_repository(name)))
    if isinstance(model, NamesLanguageModel) and model.llm_args is not None and model.llm_tokenizer is None:
        found.append(WeightFile("llm_tokenizer", str(model.language_model_name())))
    return found


def _brings_encoder(model: ModelConfig) -> bool:
    """Whether the section's last checkpoint holds a vision encoder, as one does that was fine-tuned with it.

    A `pretrained` one mostly does not, such as those of LAVIS: the encoder was frozen then. Where it is here, it is
    looked into.
    """
    key, value = checkpoints_of(model)[-1]
    path = WeightFile(key, value).local()
    if key == "finetuned" or path is None:
        return key == "finetuned"
    from lavis_lite.checkpoints.reading import tensor_names

    return any(f".{encoder}" in f".{name}" for name in tensor_names(path) for encoder in ENCODERS)


def _language_needs(model: ModelConfig) -> list[WeightFile]:
    """A language model's folder, unless the section has its sizes, and its tokenizer's."""
    if not isinstance(model, NamesLanguageModel):
        return []
    name, tokenizer = str(model.language_model_name()), model.llm_tokenizer
    if model.llm_args is not None and tokenizer is None and name.startswith(PACKAGED_PREFIX):
        tokenizer = name  # transformers does not know packaged names
    needs = [] if model.llm_args is not None else [WeightFile("llm_model", name)]
    return needs + ([] if tokenizer is None else [WeightFile("llm_tokenizer", str(tokenizer))])


def checkpoints_of(model: ModelConfig) -> list[tuple[str, str]]:
    """(key, value) of the checkpoints a section starts from, in the order of loading; later ones win.

    `finetuned` where it is loaded, else `pretrained`; `pretrained_stage1` goes before either: a stage-2 checkpoint has
    no text half, and InstructBLIP's Q-Former takes it from stage 1.
    """
    keys = ["pretrained_stage1"]
    if model.load_finetuned and model.finetuned:
        keys.append("finetuned")
    elif model.load_pretrained:
        keys.append("pretrained")
    return [(key, str(model.get(key))) for key in keys if model.get(key)]


def fetch_all(needs: Sequence[WeightFile], what: str) -> dict[str, Path]:
    """Key -> local path of every need. Nothing is downloaded while something cannot be fetched at all.

    Args:
        needs: of a model section.
        what: what needs them, for the message.

    Raises:
        DataError: everything that is missing, with where it was looked for and how to get it.
    """
    lost = [need for need in needs if not need.is_local() and (files.offline() or not need.is_remote())]
    if lost:
        missing = ErrorList(f"{what} needs files that are not here:", [need.describe_missing() for need in lost])
        why = "Downloads are switched off (LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE)."
        raise DataError(f"{missing}\n{why}" if any(need.is_remote() for need in lost) else str(missing))
    paths, faults = {}, []
    for need in needs:
        try:
            paths[need.key] = need.fetch()
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError(str(ErrorList(f"{what} needs files that cannot be fetched:", faults)))
    return paths


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: only one thread at a time runs any of the functions that have it.

    For functions that load models. While transformers loads one, it changes torch's classes and defaults for the whole
    process. Threads that load at the same time get models without weights, and the changes stay.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _BUILDING:
            return function(*args, **kwargs)

    return alone


@one_at_a_time
def build_model(section: ModelConfig, log: Callable[[str], None] | None = None) -> BaseModel:
    """A model with all that its section names: frozen weights, initial weights, checkpoints over them.

    A run's checkpoint leaves out what its run kept frozen, and records where that came from: it is loaded from there.
    The model's `weight_record` has the source of every tensor. One thread builds at a time, others wait.

    Args:
        section: of the model's `config_class`.
        log: takes a line on each checkpoint that was loaded, and notes.

    Raises:
        RegistryError, DataError: an unknown arch; something is not here.
        CheckpointError: a file does not fit, holds NaN or infinity, or nothing supplies a frozen tensor.
    """
    from lavis_lite.checkpoints.assembly import Assembly  # imports torch; names are looked up without it

    if isinstance(section, HoldsLanguageModel):
        section.setup().check(section.llm_args is None)  # before anything is downloaded
    needs = required_weights(section)
    paths = fetch_all(needs, f"{section.arch}/{section.model_type}")
    local = section.replaced(**{key: str(path) for key, path in paths.items()})
    model = registry.get_model_class(section.arch).from_config(local)
    names = {need.key: need.value for need in needs}
    assembly = Assembly(model, local, names, checkpoints_of(local), locate_source, log or (lambda line: None))
    assembly.load_backbones()
    assembly.load_checkpoints()
    return assembly.finish()


def locate_source(source: WeightSource) -> Path | None:
    """Where the file or folder of a source is now, fetched if it is remote; None: it is gone.

    Its name goes before the path of then, which may be another machine's.
    """
    need, path = WeightFile("pretrained", reveal(source.name)), reveal(source.path or "")
    try:
        here = need.fetch() if need.is_remote() or source.is_packaged else need.local()
    except DataError:
        here = None
    return here or (Path(path) if path and Path(path).exists() else None)


def encoder_identity(model: BaseModel) -> dict[str, Any]:
    """What the outputs of a model's vision encoder depend on: name, pixels, precision, design, a hash of its weights.

    Call it before the model runs: on a CPU half-precision weights change their type then.

    Raises:
        ConfigError: the encoder trains.
    """
    import torch

    encoder = getattr(model, "vision_encoder", None)
    if encoder is None or not getattr(encoder, "frozen", False):
        raise ConfigError("kept features need a frozen vision encoder: set model.freeze_vit=true.")
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {"name": encoder.name, "image_size": encoder.image_size, "precision": encoder.precision,
            **getattr(encoder, "design", {}), "sha256": digest.hexdigest()}


def assets() -> Path:
    """The folder of what ships with the package."""
    return Path(str(resources.files("lavis_lite") / "assets" / "mini"))


def packaged(name: str) -> Path | None:
    """The file or folder of a packaged name such as `mini/opt` or `mini/stage1`; None if there is no such part."""
    rest = name.removeprefix(PACKAGED_PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", rest):
        return None
    paths = [assets() / "checkpoints" / f"{rest}.safetensors", assets() / rest]
    return next((path for path in paths if rest and path.exists()), None)


def packaged_names() -> list[str]:
    """All names that `packaged` knows: language models and checkpoints."""
    models = [path.parent for path in assets().glob("*/config.json")]
    return sorted(PACKAGED_PREFIX + path.stem for path in [*models, *assets().glob("checkpoints/*.safetensors")])
