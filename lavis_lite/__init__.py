"""lavis_lite: vision-language experiments (BLIP-2, InstructBLIP) assembled from YAML and trained by one loop.

Importing this package loads neither torch nor transformers nor timm; public names resolve on first use (PEP 562). The
registry is `lavis_lite.registry.registry`.
"""

from __future__ import annotations

import os
import sys


def interrupted(*_: object) -> None:
    """Ctrl-C while a command's modules are imported: nothing is to be cleaned up yet, so the process ends at once."""
    os._exit(130)


def _is_command() -> bool:
    """Whether the process was started as a command of the package, not as a program or worker that imports it."""
    started, home = (sys.argv or [""])[0], os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    files = [os.path.join(home, name) for name in ("train.py", "evaluate.py")]
    return started in sys.orig_argv and (  # the processes that a command starts have its argv[0] only
        (started == "-m" and "lavis_lite" in sys.orig_argv)
        or os.path.basename(started) == "lavis-lite" or os.path.abspath(started) in files)


if _is_command():  # before any other import; `process.exits.interrupts_raise` takes it back
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not for a command that ignores Ctrl-C
        signal.signal(signal.SIGINT, interrupted)

from typing import TYPE_CHECKING  # noqa: E402

from lavis_lite import moved  # noqa: E402

if TYPE_CHECKING:  # what __getattr__ resolves, for type checkers and editors
    from lavis_lite.datasets.base import BaseDataset
    from lavis_lite.datasets.builders.base import BaseDatasetBuilder
    from lavis_lite.datasets.load import dataset_zoo, load_dataset
    from lavis_lite.errors import LavisLiteError
    from lavis_lite.models.base import BaseModel
    from lavis_lite.models.outputs import ModelOutput, Samples
    from lavis_lite.runners.hooks import Hook
    from lavis_lite.tasks.base import BaseTask
    from lavis_lite.zoo import list_models, load_model, load_model_and_preprocess, load_preprocess, model_zoo

__version__ = "0.1.0"

moved.install()

_LAZY = {
    "BaseDataset": "lavis_lite.datasets.base",
    "BaseDatasetBuilder": "lavis_lite.datasets.builders.base",
    "BaseModel": "lavis_lite.models.base",
    "BaseTask": "lavis_lite.tasks.base",
    "Hook": "lavis_lite.runners.hooks",
    "LavisLiteError": "lavis_lite.errors",
    "ModelOutput": "lavis_lite.models.outputs",
    "Samples": "lavis_lite.models.outputs",
    "dataset_zoo": "lavis_lite.datasets.load",
    "list_models": "lavis_lite.zoo",
    "load_dataset": "lavis_lite.datasets.load",
    "load_model": "lavis_lite.zoo",
    "load_model_and_preprocess": "lavis_lite.zoo",
    "load_preprocess": "lavis_lite.zoo",
    "model_zoo": "lavis_lite.zoo",
}

__all__ = ["BaseDataset", "BaseDatasetBuilder", "BaseModel", "BaseTask", "Hook", "LavisLiteError", "ModelOutput",
           "Samples", "__version__", "dataset_zoo", "list_models", "load_dataset", "load_model",
           "load_model_and_preprocess", "load_preprocess", "model_zoo"]

__getattr__, _ = moved.lazy_names(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
