"""LAVIS' processors: the base class for a project's, an adapter for each, and the package's own behind LAVIS' calls."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import OmegaConf

from lavis_lite.compat.lavis.sections import as_node, keys_read
from lavis_lite.config.lavis_keys import INSTRUCTION, templates_of
from lavis_lite.datasets.media.video import open_video
from lavis_lite.processors.base import BaseProcessor as CoreProcessor
from lavis_lite.processors.instruction import Instruction
from lavis_lite.registry import registry as core


class BaseProcessor:
    """A processor written for LAVIS: built by `from_config`, called with one item."""

    def __init__(self) -> None:
        self.transform: Any = lambda x: x

    def __call__(self, item: Any) -> Any:
        """The processed item."""
        return self.transform(item)

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        """Build from a section; by default without any setting."""
        return cls()

    def build(self, **kwargs: Any) -> Any:
        """A processor of this class with the given settings."""
        return self.from_config(OmegaConf.create(kwargs))


class ProcessorAdapter(CoreProcessor):
    """A processor of LAVIS as one of this package. What it draws at random is a function of the sample."""

    written: ClassVar[type]

    def __init__(self, **settings: Any) -> None:
        written: Any = self.written
        self.processor = written.from_config(as_node(settings))

    def __call__(self, item: Any, rng: random.Random | None = None) -> Any:
        """The processed item."""
        with seeded(rng):
            return self.processor(item)


def adapted(written: type) -> type:
    """The adapter of a class; its parameters are the keys that the class reads."""
    keys = sorted(key for key in keys_read(written) if key.isidentifier())
    signature = inspect.Signature([inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
                                   for key in keys])
    return type(written.__name__, (ProcessorAdapter,), {"written": written, "__signature__": signature,
                                                        "__module__": written.__module__})


@contextlib.contextmanager
def seeded(rng: random.Random | None) -> Iterator[None]:
    """Python's, numpy's and torch's global generators, set from `rng` and put back afterwards; None: left alone."""
    if rng is None:
        yield
        return
    seed = rng.getrandbits(32)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


# the package's own --------------------------------------------------------------------------------------------------
class PackagedProcessor(BaseProcessor):
    """A processor of this package behind LAVIS' calls; `core_name` is its registered name."""

    core_name: ClassVar[str] = ""

    def __init__(self, **settings: Any) -> None:
        self.processor: Any = core.processor.builtin(self.core_name)(**settings)

    def __call__(self, item: Any) -> Any:
        """The processed item; a video may be given by its path."""
        if self.processor.takes == "video" and isinstance(item, (str, Path)):
            item = open_video(item)
        return self.processor(item)

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        """Build from a section; keys that LAVIS' class does not read either are left alone."""
        return cls(**_taken(core.processor.builtin(cls.core_name), cfg))


def _taken(function: Any, cfg: Any) -> dict[str, Any]:
    """The keys of a section that a function has parameters for."""
    known = inspect.signature(function).parameters
    return {key: value for key, value in (cfg or {}).items() if key in known}


def of_core(name: str) -> Any:
    """The class with LAVIS' calls of a processor of the package."""
    if name == INSTRUCTION:
        return BlipInstructionProcessor
    found = next((cls for cls in PackagedProcessor.__subclasses__() if cls.core_name == name), None)
    return found or type(name, (PackagedProcessor,), {"core_name": name, "__module__": __name__})


class BlipImageBaseProcessor(BaseProcessor):
    """Base of image processors: `normalize`, by CLIP's mean and deviation unless others are given."""

    def __init__(self, mean: Any = None, std: Any = None) -> None:
        from torchvision import transforms

        super().__init__()
        self.normalize = transforms.Normalize(mean or (0.48145466, 0.4578275, 0.40821073),
                                              std or (0.26862954, 0.26130258, 0.27577711))


class ToUint8:
    """float[...] -> uint8[...]."""

    def __call__(self, tensor: Any) -> Any:
        """The tensor as whole numbers."""
        return tensor.to(torch.uint8)


class ToTHWC:
    """float[C,T,H,W] -> float[T,H,W,C]."""

    def __call__(self, tensor: Any) -> Any:
        """The clip with its channels last."""
        return tensor.permute(1, 2, 3, 0)


BlipImageTrainProcessor = of_core("blip_image_train")
Blip2ImageTrainProcessor = of_core("blip2_image_train")
BlipImageEvalProcessor = of_core("blip_image_eval")
ClipImageTrainProcessor = of_core("clip_image_train")
ClipImageEvalProcessor = of_core("clip_image_eval")
BlipCaptionProcessor = of_core("blip_caption")
BlipQuestionProcessor = of_core("blip_question")
AlproVideoTrainProcessor = of_core("alpro_video_train")
AlproVideoEvalProcessor = of_core("alpro_video_eval")


class BlipInstructionProcessor(BaseProcessor):
    """A text -> one of the instructions of its modality and task with it; LAVIS' `blip_instruction`.

    Args:
        prompt: the only instruction; "": those of this package for the modality and task.
        max_words: of the text.
        modality: image | video.
        task: caption | qa | classification.
    """

    def __init__(self, prompt: str = "", max_words: int = 50, modality: str = "image", task: str = "caption") -> None:
        cleaner: Any = core.processor.builtin("blip_caption" if task == "caption" else "blip_question")
        words, instruction = cleaner(max_words=max_words), Instruction(
            [prompt] if prompt else templates_of(modality, task))
        self.transform = lambda text: instruction(words(text))

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        """Build from a section."""
        return cls(**_taken(cls, cfg))


def load_processor(name: str, cfg: Any = None) -> Any:
    """A processor by its name; `load_processor("blip_image_eval").build(image_size=64)`."""
    from lavis_lite.compat.lavis.registry import registry

    return registry.get_processor_class(name).from_config(cfg)
