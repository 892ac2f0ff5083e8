"""LAVIS' recorded cases of models with a language model, and the models they belong to."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lavis_lite.checkpoints import load_state
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.language.families import FAMILIES
from lavis_lite.registry import registry
from tests.conftest import find_shared
from tests.parity.exact import exact
from tests.parity.recordings import Recording, folders_with

KINDS = {"blip2_opt": "opt", "blip2_t5": "t5", "blip2_t5_instruct": "t5", "blip2_vicuna": "llm",
         "blip2_vicuna_instruct": "llm"}
"""arch -> LAVIS' prefix of the language model"""
TOKENIZERS = {"opt": "opt", "t5": "t5", "llm": "llama"}
WORDS = ("embed_tokens.weight", "shared.weight")
END_OF_LLAMA = 2


def case_folders(parity: Path) -> list[Path]:
    """Folders of cases with a language model under `parity` (or `parity` itself)."""
    return folders_with(parity, lambda config: config.get("arch") in KINDS)


class Recorded(Recording):
    """Everything recorded of a model with a language model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.arch = self.config["arch"]
        self.prefix = KINDS[self.arch]

    def names(self, *calls: str, drawn: bool = False) -> list[str]:
        """Cases that call a method ("train": forward), without those that LAVIS could not run, or drew at random.

        Args:
            drawn: those drawn at random, too.
        """
        return [name for name, given in self.inputs.items() if given.get("call", "train") in calls
                and name in self.expected and "error" not in self.expected[name]
                and (drawn or not self._drawn(name))]

    def _drawn(self, case: str) -> bool:
        return any(call["kwargs"].get("do_sample") for call in self.expected[case].get("generate", []))

    def samples(self, case: str) -> dict[str, Any]:
        """What LAVIS was given."""
        images = self.cases.get(case, {}).get("images", "")
        count = images.partition("image4[:")[2].partition("]")[0]
        if "video" in images:
            image = self.given["video"]
        else:
            image = self.given["image4"][:int(count) if count else None]
        return {"image": image, **self.inputs[case]["samples"]}

    def tokenizer(self, kind: str) -> str:
        """Folder of a tokenizer; that of the shared material where the recorded place does not exist here."""
        named = self.config.get("tokenizer_dirs", {}).get(kind, f"../tokenizers/{kind}")
        shared = find_shared() / "parity" / "tokenizers" / kind
        return str(self.folder / named if (self.folder / named).is_dir() else shared)

    def written(self, case: str) -> list[list[int]]:
        """Recorded answers without start token, end and padding; see `canonical`."""
        call = self.expected[case]["generate"][0]
        end = call["kwargs"].get("eos_token_id") or {"t5": 1, "llm": END_OF_LLAMA}.get(self.prefix)
        return self.canonical([row[1:row.index(end, 1)] if end in row[1:] else row[1:] for row in call["output_ids"]])

    def canonical(self, rows: list[list[int]]) -> list[list[int]]:
        """Vicuna's <unk> counts as its end: LAVIS turns one into the other after writing, in place."""
        if self.prefix != "llm":
            return rows
        return [row[:next((at for at, item in enumerate(row) if item in (0, END_OF_LLAMA)), len(row))] for row in rows]


def section(recorded: Recorded, weights: dict[str, Tensor], changes: dict[str, Any]) -> Any:
    """The section of a YAML file that builds the recorded model."""
    kind = registry.get_model_class(recorded.arch)
    vit = recorded.config["vit"]
    given = {**recorded.config["model_args"], **changes}
    kept = {name: given[name] for name in ("prompt", "max_txt_len", "max_output_txt_len", "freeze_vit")
            if name in given}
    llm = {"opt": "opt", "t5": "t5", "llm": "llama"}[recorded.prefix]
    words = next(value for name, value in weights.items()
                 if name.startswith(f"{recorded.prefix}_model.") and name.endswith(WORDS))
    extra = FAMILIES["vicuna"].extra_tokens if recorded.prefix == "llm" else 0
    reads = given.get("qformer_text_input", recorded.arch.endswith("_instruct"))
    options = {
        "arch": recorded.arch, "vit_model": vit["kind"], "image_size": vit["img_size"], "vit_precision": "fp32",
        "vit_args": {"depth": vit["depth"], "width": vit["embed_dim"], "heads": vit["num_heads"],
                     "mlp_ratio": vit["mlp_ratio"], "patch_size": vit["patch_size"]},
        "num_query_token": given["num_query_token"], "qformer_text_input": reads, **kept, **qformer_sizes(recorded),
        "tokenizer": recorded.tokenizer("bert"), "llm_precision": "fp32",
        "llm_tokenizer": recorded.tokenizer(TOKENIZERS[recorded.prefix]),
        "llm_args": {**recorded.config["llm"], "model_type": llm, "vocab_size": len(words) - extra}}
    return kind.config_class(**options)


def qformer_sizes(recorded: Recorded) -> dict[str, Any]:
    """Sizes of the Q-Former in a YAML's words."""
    sizes = recorded.config["qformer"]
    return {"qformer_weights": None, "cross_attention_freq": sizes.get("cross_attention_freq", 2),
            "qformer_hidden_size": sizes["hidden_size"], "qformer_layers": sizes["num_hidden_layers"],
            "qformer_heads": sizes["num_attention_heads"], "qformer_intermediate_size": sizes["intermediate_size"],
            "qformer_max_positions": sizes["max_position_embeddings"],
            "qformer_dropout": sizes.get("hidden_dropout_prob", 0.0)}


def build(recorded: Recorded, case: str, dtype: torch.dtype = torch.float32) -> Blip2LLM:
    """The model of a case with LAVIS' weights, read through the key map."""
    weights = load_file(recorded.folder / "weights.safetensors")
    changes = recorded.cases.get(case, {}).get("model_args", {})
    model: Blip2LLM = registry.get_model_class(recorded.arch).from_config(section(recorded, weights, changes))
    load_state(model, weights, str(recorded.folder))
    if dtype is torch.float64:
        model = exact(model)
    return model.eval()


def call(model: Blip2LLM, recorded: Recorded, case: str, **changes: Any) -> Any:
    """Call what was called, with LAVIS' arguments, and with LAVIS' lengths where something is written."""
    given = recorded.inputs[case]
    arguments = {**given.get("call_kwargs", {}), **changes}
    if "candidates" in given:
        arguments["candidates"] = given["candidates"]
    elif "lavis_lengths" not in changes:
        arguments["lavis_lengths"] = True
    method = getattr(model, given["call"])
    assert set(arguments) <= set(inspect.signature(method).parameters) | {"lavis_lengths"}
    return method(recorded.samples(case), **arguments)


def learn_as_lavis(model: Blip2LLM, recorded: Recorded, case: str) -> None:
    """Learn what LAVIS learned where it cut a long target and lost its end; this package cuts before the end."""
    if recorded.prefix == "t5":  # whose tokenizer keeps the end
        return
    tokenizer, labels = model.language_model.tokenizer, recorded.tensors[f"{case}/llm_labels"]
    begin = [tokenizer.loaded.bos_token_id] if model.language_model.family.learns_bos and not model.prompt else []
    lavis = [row[row != -100].tolist()[len(begin):] for row in labels]
    plain = tokenizer.targets

    def targets(*given: Any, **options: Any) -> list[list[int]]:
        return [_cut_as(theirs, ours, tokenizer.end)
                for ours, theirs in zip(plain(*given, **options), lavis, strict=True)]

    tokenizer.targets = targets  # type: ignore[method-assign]


def _cut_as(theirs: list[int], ours: list[int], end: int) -> list[int]:
    """The target as LAVIS cut it, if that is the only difference."""
    text = ours[:-1]
    lost = theirs[-1:] != [end] and len(theirs) - len(text) in (0, 1) and theirs[:len(text)] == text
    return theirs if lost else ours
