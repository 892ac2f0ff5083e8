"""The recipes that come with the package: `projects/` of a checkout, or its copy in an installed wheel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavis_lite.config.layers import RECIPES
from lavis_lite.errors import ConfigError, did_you_mean

FIRST = "blip2"
"""the project that a name alone means, if it has a recipe of that name"""


@dataclass(frozen=True)
class Recipe:
    """One recipe; `name` is its path below `projects/`, without .yaml."""

    name: str

    @property
    def path(self) -> Path:
        """Its file."""
        return RECIPES / "projects" / f"{self.name}.yaml"

    def header(self) -> list[str]:
        """The comment lines at the top of the file, without their marks."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return [line[1:].removeprefix(" ") for line in lines[:end]]

    def what(self) -> str:
        """What it does: the first sentence of its header."""
        return re.split(r"(?<=\.)\s+(?=[A-Z0-9])", self._prose())[0]

    def cost(self) -> str:
        """What it costs: the header's sentence that begins with "Cost", and the processes of its launch line."""
        found = re.search(r"\bCost(?: stated by)?:? (.*?)\.(?:\s|$)", self._prose())
        launch = re.search(r"torchrun (?:--nnodes=(\d+) )?--nproc_per_node=(\d+)", "\n".join(self.header()))
        if found or not launch:
            return found[1] if found else ""
        return f"{int(launch[1] or 1) * int(launch[2])} GPUs; time not stated"

    def _prose(self) -> str:
        return " ".join(" ".join(line for line in self.header() if not line.startswith(" ")).split())


def recipes() -> list[Recipe]:
    """All recipes of the package but those that only others build on, by name."""
    home = RECIPES / "projects"
    names = (path.relative_to(home).with_suffix("") for path in home.rglob("*.yaml"))
    return [Recipe(name.as_posix()) for name in sorted(names) if "base" not in name.parts]


def find_recipe(text: str) -> Recipe | None:
    """The recipe that a text names: "projects/blip2/stage1.yaml", "blip2/stage1" or "stage1"; None if no recipe.

    Raises:
        ConfigError: several projects have a recipe of that name, and BLIP-2 has none.
    """
    name = text.removeprefix("projects/")
    name = name if name == text else name.removesuffix(".yaml")
    known = [recipe.name for recipe in recipes()]
    if name in known or "/" in name:
        return Recipe(name) if name in known else None
    found = [other for other in known if other.rpartition("/")[2] == name]
    preferred = [other for other in found if other.startswith(f"{FIRST}/")] or found
    if len(preferred) > 1:
        raise ConfigError(f"{text!r} names {len(preferred)} recipes: {', '.join(preferred)}. Write one of them.")
    return Recipe(preferred[0]) if preferred else None


def unknown_recipe(text: str) -> ConfigError:
    """The error for a text that names neither a file nor a recipe."""
    names: Sequence[str] = [recipe.name for recipe in recipes()]
    short = {name.rpartition("/")[2]: name for name in names}
    return ConfigError(f"{text}: there is neither such a file nor such a recipe; "
                       f"{did_you_mean(text, names if '/' in text else short)} "
                       "`python -m lavis_lite recipes` lists all.")


# LAVIS' recipe paths in `--cfg-path`: each stands for the recipe of the same experiment in `projects/` ----------------
LAVIS_FOLDER = "lavis/projects/"
LAVIS_FAMILIES = ("blip2", "instructblip")
"""folders of recipes for models that are here"""
OF_LAVIS = {
    r"blip2/train/pretrain_stage1": "blip2/stage1_vitg",
    r"blip2/train/pretrain_stage2": "blip2/stage2_opt2.7b",
    r"blip2/train/caption_coco_ft": "blip2/caption_coco_opt2.7b",
    r"blip2/train/retrieval_coco_ft": "blip2/retrieval_coco_vitg",
    r"blip2/eval/caption_coco_(flant5xl|opt2\.7b|opt6\.7b)_eval": r"blip2/eval/coco_caption_\1",
    r"blip2/eval/caption_nocaps_out_domain_(flant5xx?l)_eval": r"blip2/nocaps_pretrained_\1",
    r"blip2/eval/(gqa|okvqa|vqav2)_zeroshot_flant5xl_eval": r"blip2/eval/\1_zeroshot_flant5xl",
    r"blip2/eval/vqav2_zeroshot_opt_eval": "blip2/eval/vqav2_zeroshot_opt2.7b",
    r"blip2/eval/ret_(coco)_eval": r"blip2/eval/\1_retrieval_vitg",
    r"blip2/eval/ret_(flickr)_eval": r"blip2/eval/\g<1>30k_retrieval_vitg",
    r"instructblip/caption_nocaps_out_domain_(\w+)_eval": r"instructblip/eval/nocaps_\1",
    r"instructblip/qa_(msvd|msrvtt)_(\w+?)_eval(?:_test)?": r"instructblip/eval/\1_qa_\2",
}
"""pattern of a file of LAVIS, below its folder and without .yaml -> the recipe here, below projects/"""


def counterpart(path: str) -> Path | None:
    """The recipe of this package for a path of LAVIS; None if there is no such recipe."""
    name = Path(path).as_posix().partition(LAVIS_FOLDER)[2].removesuffix(".yaml")
    for pattern, recipe in OF_LAVIS.items():
        if match := re.fullmatch(pattern, name):
            found = Path("projects", f"{match.expand(recipe)}.yaml")
            return next((file for file in (found, RECIPES / found) if file.is_file()), None)
    return None


def without_counterpart(path: str) -> str:
    """Why a path of LAVIS has no recipe here, as a sentence; "" for other paths."""
    _, folder, name = Path(path).as_posix().partition(LAVIS_FOLDER)
    if not folder:
        return ""
    if name.partition("/")[0] in LAVIS_FAMILIES:
        return (f"{path} is a recipe of LAVIS, and projects/ has no recipe of this experiment. LAVIS' own file runs "
                "unchanged: get it, and give its path.")
    return f"{path} is a recipe of LAVIS for models that are not here; `python -m lavis_lite zoo` lists those that are."
