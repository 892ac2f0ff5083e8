"""Part of a vision encoder trains: its last blocks, or adapters beside frozen weights."""

from __future__ import annotations

from typing import Any

from lavis_lite.errors import ConfigError
from lavis_lite.models.language.families import Lora


def freeze_all_but_last(vit: Any, blocks: int) -> None:
    """Keep everything in front of the last `blocks` blocks constant and in eval mode.

    Raises:
        ConfigError: there are not so many.
    """
    from lavis_lite.models.base import freeze

    count = len(vit.blocks)
    if blocks > count:
        raise ConfigError(f"model.vit_train: last_{blocks} are more than the {count} blocks that run; take full, or at "
                          f"most last_{count}.")
    vit.requires_grad_(False)
    for part in (vit.patch_embed, vit.norm_pre, *vit.blocks[:count - blocks]):
        freeze(part)
    for part in (*vit.blocks[count - blocks:], vit.norm):
        part.requires_grad_(True)


def add_adapters(vit: Any) -> None:
    """Put LoRA adapters beside the linear layers of the blocks, with the language model's defaults; all else is frozen.

    EVA reads the weight of its qkv layer directly, so that an adapter there would change nothing: it gets none.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    from lavis_lite.models.base import MethodOf, freeze
    from lavis_lite.models.language.adapters import ADAPTER, train_adapters

    fused = getattr(vit.blocks[0].attn, "q_bias", None) is not None
    layers = [name for name, module in vit.named_modules() if isinstance(module, nn.Linear)
              and name.startswith("blocks.") and not (fused and name.endswith(".qkv"))]
    given = Lora()
    freeze(vit)
    inject_adapter_in_model(LoraConfig(r=given.r, lora_alpha=given.alpha, lora_dropout=given.dropout, bias="none",
                                       target_modules=layers), vit, adapter_name=ADAPTER)
    vit.eval()
    vit.train = MethodOf(vit, train_adapters)
