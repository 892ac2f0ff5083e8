"""LAVIS' recipe paths in `--cfg-path`: each stands for the recipe of the same experiment in `projects/`."""

from __future__ import annotations

import re
from pathlib import Path

from lavis_lite.config.layers import RECIPES as ROOT

FOLDER = "lavis/projects/"
FAMILIES = ("blip2", "instructblip")
"""folders of recipes for models that are here"""
RECIPES = {
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
    name = Path(path).as_posix().partition(FOLDER)[2].removesuffix(".yaml")
    for pattern, recipe in RECIPES.items():
        if match := re.fullmatch(pattern, name):
            found = Path("projects", f"{match.expand(recipe)}.yaml")
            return next((file for file in (found, ROOT / found) if file.is_file()), None)
    return None


def without_counterpart(path: str) -> str:
    """Why a path of LAVIS has no recipe here, as a sentence; "" for other paths."""
    _, folder, name = Path(path).as_posix().partition(FOLDER)
    if not folder:
        return ""
    if name.partition("/")[0] in FAMILIES:
        return (f"{path} is a recipe of LAVIS, and projects/ has no recipe of this experiment. LAVIS' own file runs "
                "unchanged: get it, and give its path.")
    return f"{path} is a recipe of LAVIS for models that are not here; `python -m lavis_lite zoo` lists those that are."
