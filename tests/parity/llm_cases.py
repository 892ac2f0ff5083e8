"""LAVIS' recorded cases of models with a language model, and the models they belong to."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lavis_lite.models.blip2_llm import Blip2LLM
from lavis_lite.models.checkpoints import from_lavis, load_state
from lavis_lite.models.language_model.families import FAMILIES
from lavis_lite.registry import registry

KINDS = {"blip2_opt": "opt", "blip2_t5": "t5", "blip2_t5_instruct": "t5", "blip2_vicuna_instruct": "llm"}
"""arch -> LAVIS' prefix of the language model"""
TOKENIZERS = {"opt": "opt", "t5": "t5", "llm": "llama"}


def case_folders(parity: Path) -> list[Path]:
    """Folders of cases with a language model under `parity` (or `parity` itself)."""
    folders = [parity, *(sorted(parity.iterdir()) if parity.is_dir() else [])]
    return [folder for folder in folders if (folder / "config.json").exists()
            and json.loads((folder / "config.json").read_text()).get("arch") in KINDS]


class Recorded:
    """Everything recorded in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config, self.expected, self.inputs, self.cases = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("config", "expected", "inputs", "cases"))
        self.tensors = load_file(folder / "expected.safetensors")
        self.given = load_file(folder / "inputs.safetensors")
        self.error = self.expected["_fp32_vs_fp64_max_abs"]
        self.arch = self.config["arch"]
        self.prefix = KINDS[self.arch]

    def names(self, call: str) -> list[str]:
        """Cases that call a method ("train": forward), those that LAVIS itself could not run left out."""
        return [name for name, given in self.inputs.items()
                if given.get("call", "train") == call and "error" not in self.expected[name]]

    def samples(self, case: str) -> dict[str, Any]:
        """What LAVIS was given."""
        images = self.cases[case]["images"]
        count = images.partition("image4[:")[2].rstrip("]")
        image = self.given["image4"][:int(count)] if count else self.given["video"]
        return {"image": image, **self.inputs[case]["samples"]}

    def ids(self, case: str) -> list[list[int]]:
        """Recorded answers without start token, end and padding."""
        call = self.expected[case]["generate"][0]
        end = call["kwargs"].get("eos_token_id", {"t5": 1, "llm": 2}.get(self.prefix))
        rows = [row[1:] for row in call["output_ids"]]
        return [row[:row.index(end)] if end in row else row for row in rows]

    def check(self, key: str, found: Tensor, expected: Tensor | None = None) -> None:
        """Compare with a recorded tensor (or a part of it), within 4 times its distance to float64."""
        expected = self.tensors[key] if expected is None else expected
        assert found.shape == expected.shape, f"{key}: {tuple(found.shape)} for {tuple(expected.shape)}"
        worst, most = float((found.detach() - expected).abs().max()), max(4 * self.error[key], 1e-6)
        assert worst <= most, f"{key}: {worst} above {most}"


def section(recorded: Recorded, weights: dict[str, Tensor], changes: dict[str, Any]) -> Any:
    """The section of a YAML file that builds the recorded model."""
    kind = registry.get_model_class(recorded.arch)
    sizes, vit = recorded.config["qformer"], recorded.config["vit"]
    given = {**recorded.config["model_args"], **changes}
    llm = {"opt": "opt", "t5": "t5", "llm": "llama"}[recorded.prefix]
    words = next(value for name, value in weights.items() if name.endswith(("embed_tokens.weight", "shared.weight")))
    extra = FAMILIES["vicuna"].extra_tokens if recorded.prefix == "llm" else 0
    dirs = recorded.config["tokenizer_dirs"]
    options = {
        "arch": recorded.arch, "vit_model": vit["kind"], "image_size": vit["img_size"], "vit_precision": "fp32",
        "vit_args": {"depth": vit["depth"], "width": vit["embed_dim"], "heads": vit["num_heads"],
                     "mlp_ratio": vit["mlp_ratio"], "patch_size": vit["patch_size"]},
        "num_query_token": given["num_query_token"], "max_txt_len": given["max_txt_len"],
        "freeze_vit": given["freeze_vit"], "prompt": given.get("prompt", ""),
        "max_output_txt_len": given.get("max_output_txt_len", 256),
        "qformer_text_input": given.get("qformer_text_input", recorded.arch.endswith("_instruct")),
        "tokenizer": str(recorded.folder / dirs["bert"]), "qformer_weights": None,
        "qformer_hidden_size": sizes["hidden_size"], "qformer_layers": sizes["num_hidden_layers"],
        "qformer_heads": sizes["num_attention_heads"], "qformer_intermediate_size": sizes["intermediate_size"],
        "qformer_max_positions": sizes["max_position_embeddings"], "qformer_dropout": sizes["hidden_dropout_prob"],
        "llm_precision": "fp32", "llm_tokenizer": str(recorded.folder / dirs[TOKENIZERS[recorded.prefix]]),
        "llm_args": {**recorded.config["llm"], "model_type": llm, "vocab_size": len(words) - extra}}
    return kind.config_class(**options)


def build(recorded: Recorded, case: str) -> Blip2LLM:
    """The model of a case with LAVIS' weights, read through the key map."""
    weights = load_file(recorded.folder / "weights.safetensors")
    changes = recorded.cases[case].get("model_args", {})
    model: Blip2LLM = registry.get_model_class(recorded.arch).from_config(section(recorded, weights, changes))
    load_state(model, weights, str(recorded.folder))
    return model.eval()


def call(model: Blip2LLM, recorded: Recorded, case: str, **changes: Any) -> Any:
    """Call what was called, with LAVIS' arguments, and with LAVIS' lengths where something is written."""
    given = recorded.inputs[case]
    arguments = {**given["call_kwargs"], **changes}
    if "candidates" in given:
        arguments["candidates"] = given["candidates"]
    elif "lavis_lengths" not in changes:
        arguments["lavis_lengths"] = True
    method = getattr(model, given["call"])
    assert set(arguments) <= set(inspect.signature(method).parameters) | {"lavis_lengths"}
    return method(recorded.samples(case), **arguments)


def our_name(name: str) -> str:
    """Our name of a LAVIS parameter."""
    (ours,) = from_lavis({name: torch.zeros(1)}).tensors
    return ours
