"""LAVIS' recorded stage-1 cases and the model they belong to."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lavis_lite.models.blip2_config import Blip2QformerConfig
from lavis_lite.models.blip2_qformer import Blip2Qformer, Negatives
from lavis_lite.models.checkpoints import from_lavis, load_checkpoint
from lavis_lite.registry import registry
from tests.parity.exact import exact

KIND = "blip2_qformer"


def case_folders(parity: Path) -> list[Path]:
    """Folders of stage-1 cases under `parity` (or `parity` itself)."""
    folders = [parity, *(sorted(parity.iterdir()) if parity.is_dir() else [])]
    return [folder for folder in folders if (folder / "config.json").exists()
            and json.loads((folder / "config.json").read_text()).get("arch") == KIND]


class Recorded:
    """Everything recorded in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config, self.expected, self.inputs = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("config", "expected", "inputs"))
        self.tensors = load_file(folder / "expected.safetensors")
        self.images = load_file(folder / "inputs.safetensors")["image4"]
        self.error = self.expected["_fp32_vs_fp64_max_abs"]

    def samples(self, case: str, rows: slice = slice(None)) -> dict[str, Any]:
        """What LAVIS was given in a training case."""
        given = self.inputs[case]
        texts = given["text_input"]
        samples = {"image": self.images[:len(texts)][rows], "text_input": texts[rows]}
        if given["image_id"] is not None:
            samples["image_id"] = torch.tensor(given["image_id"][rows])
        return samples

    def tolerance(self, key: str) -> float:
        """Largest absolute error that parity/README.md allows for a recorded tensor.

        The difference to float64 was not recorded for two processes: there that of the same tensor in one process
        counts, and for gradients, whose mean over processes has no twin, 1e-6 of the largest element.
        """
        if key in self.error:
            return max(4 * self.error[key], 1e-6)
        name = key.rsplit("/", 1)[-1]
        alike = [error for other, error in self.error.items() if other.rsplit("/", 1)[-1] == name]
        return max([4 * error for error in alike] + [1e-6 * max(1.0, float(self.tensors[key].abs().max()))])

    def check(self, key: str, found: Tensor) -> None:
        """Compare with a recorded tensor."""
        expected = self.tensors[key]
        assert found.shape == expected.shape, f"{key}: {tuple(found.shape)} for {tuple(expected.shape)}"
        worst = float((found.detach() - expected).abs().max())
        assert worst <= self.tolerance(key), f"{key}: {worst} above {self.tolerance(key)}"


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


def rounding_apart(test: Callable[..., None]) -> Callable[..., None]:
    """A test of (recorded, model, ...) in float32 and, where that exceeds a tolerance, in float64.

    Sums in another order round otherwise than LAVIS'; what is right in float64 differed by rounding only.
    """
    @functools.wraps(test)
    def run(recorded: Recorded, model: Blip2Qformer, **given: Any) -> None:
        if given.get("case", "pretrain_b2") not in recorded.expected:
            pytest.skip(f"{recorded.folder.name} has no such case")
        try:
            test(recorded, model, **given)
        except AssertionError:
            recorded.images = recorded.images.double()
            test(recorded, exact(build(recorded)), **given)

    return run


def inject(model: Blip2Qformer, case: dict[str, Any]) -> None:
    """Make the model use the recorded hard negatives, whether or not it would draw them itself."""
    image, text = (torch.tensor(case[key]) for key in ("neg_image_idx_per_text", "neg_text_idx_per_image"))
    there = torch.ones(len(image), dtype=torch.bool)
    drawn = Negatives(image, text, there, there)
    model.draw_negatives = types.MethodType(lambda self, contrast, uniform: drawn, model)  # type: ignore[method-assign]


def our_name(name: str) -> str:
    """Our name of a LAVIS parameter."""
    (ours,) = from_lavis({name: torch.zeros(1)}).tensors
    return ours
