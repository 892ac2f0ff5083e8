"""Where LAVIS looks for files: roots of its registry, a project's own folders, and the YAMLs that LAVIS itself has."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lavis_lite.config.layers import base_chain, merge
from lavis_lite.config.named import CONFIGS, dataset_files, dataset_rows
from lavis_lite.errors import ConfigError
from lavis_lite.io import files

ARCHS = ("blip2", "blip2_opt", "blip2_t5", "blip2_t5_instruct", "blip2_vicuna_instruct")
KINDS = {"defaults": "", "defaults_cap": "_caption", "defaults_ret": "_retrieval", "defaults_dial": "_dialogue"}
"""stem of a data set's YAML in LAVIS -> end of the data set's name, where it is not the stem's own"""
READ = ("data_type", "build_info", "vis_processor", "text_processor")
"""keys of a data set's row that LAVIS' builders read"""


class Roots(dict[str, str]):
    """Registered paths by name; the package's own of a name that no project registered."""

    def __missing__(self, name: str) -> str:
        package = Path(__file__).resolve().parents[2]
        usual = {"library_root": package, "repo_root": package.parent, "cache_root": files.cache_root()}
        return str(usual.get(name, ""))


ROOTS = Roots()


def get_abs_path(rel_path: str) -> str:
    """A path relative to `library_root`, as an absolute one."""
    return os.path.join(ROOTS["library_root"], rel_path)


def located(cls: type, name: str) -> Path:
    """The YAML that a class names, whether it is there or not.

    It is looked up under `library_root`, in the working folder, and in the folders on the way up from the class's
    module. If none has it, the package's own settings stand for a YAML of LAVIS.
    """
    first = Path(get_abs_path(name))
    home = Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or ".").resolve().parent
    candidates = [first, Path(name).absolute(), *(folder / name for folder in (home, *home.parents))]
    return next((path for path in candidates if path.is_file()), None) or _of_lavis(name) or first


def config_path(cls: type, name: str) -> str:
    """As `located`.

    Raises:
        ConfigError: it is not there.
    """
    path = located(cls, name)
    if not path.is_file():
        raise ConfigError(f"{cls.__name__}: there is no {name} (looked at {path}, in the working folder, and from the "
                          "class's module upwards). Register the folder that it is relative to: "
                          "registry.register_path('library_root', FOLDER).")
    return str(path)


@functools.lru_cache(maxsize=256)
def _of_lavis(name: str) -> Path | None:
    """The package's settings in the place of a YAML of LAVIS: a file that lasts as long as the process."""
    path = Path(name)
    content = {"models": _model, "datasets": _dataset}.get((*path.parts, "", "")[1], lambda _: None)(path)
    if content is None or path.is_absolute() or path.suffix != ".yaml":
        return None
    target = _folder() / path
    target.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(content), target)
    return target


@functools.lru_cache(maxsize=1)
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="lavis_configs_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _model(path: Path) -> Any:
    """configs/models/blip2/blip2_instruct_vicuna7b.yaml -> the type vicuna7b of blip2_vicuna_instruct."""
    kind = path.stem.removeprefix("blip2_").removeprefix("instruct_").replace("caption_", "caption_coco_")
    types = (CONFIGS / "models" / arch / f"{kind}.yaml" for arch in ARCHS)
    found = next((file for file in types if path.stem.startswith("blip2_") and file.is_file()), None)
    return None if found is None else merge(base_chain(found))[0]


def types_of(arch: str) -> dict[str, str]:
    """Type -> LAVIS' name of its YAML, of a model that LAVIS has too."""
    kinds = sorted(path.stem for path in (CONFIGS / "models" / arch).glob("*.yaml"))
    start = "instruct_" if arch.endswith("_instruct") else ""
    return {kind: f"configs/models/blip2/blip2_{start}{kind.replace('caption_coco_', 'caption_')}.yaml"
            for kind in kinds if not kind.startswith("mini")}


def _dataset(path: Path) -> Any:
    """configs/datasets/coco/eval_vqa.yaml -> the type `eval` of coco_vqa."""
    folder, stem = path.parent.name, path.stem.removesuffix("_instruct")
    end = "_instruct" if path.stem.endswith("_instruct") else ""
    kind = KINDS.get(stem, f"_{stem.removeprefix('defaults_')}")
    first = stem.partition("_")[0]
    names = {name.replace("_", ""): name for name in dataset_files()}
    for middle, wanted in ((kind, "default"), ("_vqa", first), ("", stem), ("", "default"), ("_vqa", "default"),
                           ("_caption", "default")):
        name = names.get(f"{folder}{middle}{end}".replace("_", ""))
        rows = dataset_rows(name) if name is not None else {}
        if wanted in rows:
            row = rows["lavis" if wanted == "default" and "lavis" in rows else wanted]
            return {"datasets": {name: {key: row[key] for key in READ if row.get(key) is not None}}}
    return None
