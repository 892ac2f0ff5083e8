"""What differs between families of language models, as rows of one table.

A family is chosen by the `model_type` of the model's configuration, or by name (`llm_family` in a YAML). A model whose
type has no row takes the general row: its tokenizer's own special tokens, ended by its eos. So a new language model
is a YAML line, and a row only where something about it is peculiar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lavis_lite.errors import ConfigError, did_you_mean

Precision = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class LMFamily:
    """Facts about a family of language models.

    Attributes:
        end: what ends an answer: the tokenizer's eos, or a line break.
        training_side, answering_side: where a batch is padded, for a decoder-only model. Training pads behind the text,
            where causal attention never looks; answering in front of everything, so that the new token follows the
            text directly.
        precision: of the frozen weights on a GPU ("auto" in a YAML).
        learns_bos: where there is no prompt, the begin token is itself a target (LAVIS' OPT).
        candidate_end: whether the end counts in the likelihood of a candidate answer.
        extra_tokens: by how many the vocabulary grows for them.
        special_tokens: given to the tokenizer in place of its own; released weights were trained so.
        prompt_start: token that every prompt starts with in place of what the tokenizer adds; None: the tokenizer's.
        silent: ids left out of answers.
        exact_gelu: the feed-forward's activation is the exact GELU (LAVIS' T5), not its tanh approximation.
        lora_targets: linear layers that adapters go beside where a YAML names none.
    """

    name: str
    end: Literal["eos", "newline"] = "eos"
    training_side: Literal["left", "right"] = "right"
    answering_side: Literal["left", "right"] = "left"
    precision: Literal["fp32", "fp16", "bf16"] = "bf16"
    learns_bos: bool = False
    candidate_end: bool = True
    special_tokens: tuple[tuple[str, str], ...] = ()
    extra_tokens: int = 0
    prompt_start: str | None = None
    silent: tuple[int, ...] = ()
    exact_gelu: bool = False
    lora_targets: tuple[str, ...] | str = "all-linear"


GENERAL = LMFamily("general")
_VICUNA_TOKENS = (("pad_token", "[PAD]"), ("bos_token", "</s>"), ("eos_token", "</s>"), ("unk_token", "</s>"))
_QUERY_VALUE = ("q_proj", "v_proj")
FAMILIES = {
    "opt": LMFamily("opt", end="newline", precision="fp16", learns_bos=True, lora_targets=_QUERY_VALUE),
    "t5": LMFamily("t5", answering_side="right", exact_gelu=True, lora_targets=("q", "v")),
    "mt5": LMFamily("mt5", answering_side="right", lora_targets=("q", "v")),
    "bart": LMFamily("bart", answering_side="right", precision="fp16", lora_targets=_QUERY_VALUE),
    "llama": LMFamily("llama", precision="fp16", lora_targets=_QUERY_VALUE),
    # the released InstructBLIP-Vicuna weights: prompts start with </s>, <unk> is silent, candidates carry no end
    "vicuna": LMFamily("vicuna", precision="fp16", candidate_end=False, special_tokens=_VICUNA_TOKENS,
                     extra_tokens=1, prompt_start="</s>", silent=(0,), lora_targets=_QUERY_VALUE),
    "gpt2": LMFamily("gpt2", precision="fp16"),
}


def family_of(model_type: str, name: str | None = None) -> LMFamily:
    """The row of a model.

    Args:
        model_type: of its configuration.
        name: a row asked for by name.

    Raises:
        ConfigError: no row has that name.
    """
    if name is None:
        return FAMILIES.get(model_type, GENERAL)
    if name not in FAMILIES and name != GENERAL.name:
        raise ConfigError(f"model.llm_family: unknown {name!r}: {did_you_mean(name, [*FAMILIES, GENERAL.name])}")
    return FAMILIES.get(name, GENERAL)
