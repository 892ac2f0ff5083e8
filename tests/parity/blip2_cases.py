"""LAVIS' recorded stage-1 cases and the model they belong to."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lavis_lite.checkpoints import load_checkpoint
from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.models.blip2.stage1 import Blip2Qformer, Negatives
from lavis_lite.registry import registry
from tests.parity.exact import exact
from tests.parity.recordings import Check, Recording, folders_with

KIND = "blip2_qformer"


def case_folders(parity: Path) -> list[Path]:
    """Folders of stage-1 cases under `parity` (or `parity` itself)."""
    return folders_with(parity, lambda config: config.get("arch") == KIND)


class Recorded(Recording):
    """Everything recorded of a stage-1 model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images = self.given["image4"]

    @property
    def training(self) -> list[str]:
        """Cases of training."""
        return [case for case, found in self.expected.items() if isinstance(found, dict)
                and {"loss", "neg_image_idx_per_text"} <= found.keys() and case in self.inputs]

    def samples(self, case: str, rows: slice = slice(None)) -> dict[str, Any]:
        """What LAVIS was given in a training case."""
        given = self.inputs[case]
        texts = given["text_input"]
        samples = {"image": self.images[:len(texts)][rows], "text_input": texts[rows]}
        if given["image_id"] is not None:
            samples["image_id"] = torch.tensor(given["image_id"][rows])
        return samples

    def texts(self, case: str) -> list[str]:
        """What LAVIS' tokenizer was given in another case."""
        texts = self.inputs[case]["tokenizer_calls"][0]["text"]
        return [texts] if isinstance(texts, str) else list(texts)


def section(recorded: Recorded, **changes: Any) -> Blip2QformerConfig:
    """The section of a YAML file that builds the recorded model."""
    sizes, vit, given = recorded.config["qformer"], recorded.config["vit"], recorded.config["model_args"]
    options = {
        "vit_model": vit["kind"], "image_size": vit["img_size"], "vit_precision": given["vit_precision"],
        "vit_args": {"depth": vit["depth"], "width": vit["embed_dim"], "heads": vit["num_heads"],
                     "mlp_ratio": vit["mlp_ratio"], "patch_size": vit["patch_size"]},
        "num_query_token": given["num_query_token"], "cross_attention_freq": given["cross_attention_freq"],
        "embed_dim": given["embed_dim"], "max_txt_len": given["max_txt_len"], "freeze_vit": given["freeze_vit"],
        "tokenizer": str(recorded.folder / recorded.config["tokenizer_dirs"]["bert"]), "qformer_weights": None,
        "qformer_hidden_size": sizes["hidden_size"], "qformer_layers": sizes["num_hidden_layers"],
        "qformer_heads": sizes["num_attention_heads"], "qformer_intermediate_size": sizes["intermediate_size"],
        "qformer_max_positions": sizes["max_position_embeddings"], "qformer_dropout": sizes["hidden_dropout_prob"]}
    return Blip2QformerConfig(**{**options, **changes})


def build(recorded: Recorded, arch: str = "blip2", **changes: Any) -> Blip2Qformer:
    """The model with LAVIS' weights, read through the key map."""
    model: Blip2Qformer = registry.get_model_class(arch).from_config(section(recorded, **changes))
    load_checkpoint(model, recorded.folder / "weights.safetensors")
    return model.eval()


def rounding_apart(check: Callable[[Recorded, Blip2Qformer, str], None]) -> Check:
    """A comparison of (recorded, model, case) in float32 and, if that exceeds a tolerance, in float64.

    Sums in another order round otherwise than LAVIS'; what is right in float64 differed by rounding only.
    """
    @functools.wraps(check)
    def run(recorded: Recorded, case: str) -> None:
        try:
            check(recorded, build(recorded), case)
        except AssertionError:
            with doubled(recorded):
                check(recorded, exact(build(recorded)), case)

    return run


@contextlib.contextmanager
def doubled(recorded: Recorded) -> Iterator[None]:
    """Images in float64, for the time being."""
    images = recorded.images
    recorded.images = images.double()
    try:
        yield
    finally:
        recorded.images = images


def inject(model: Blip2Qformer, case: dict[str, Any]) -> None:
    """Make the model use the recorded hard negatives, whether or not it would draw them itself."""
    image, text = (torch.tensor(case[key]) for key in ("neg_image_idx_per_text", "neg_text_idx_per_image"))
    there = torch.ones(len(image), dtype=torch.bool)
    drawn = Negatives(image, text, there, there)
    model.draw_negatives = types.MethodType(lambda self, contrast, uniform: drawn, model)  # type: ignore[method-assign]
