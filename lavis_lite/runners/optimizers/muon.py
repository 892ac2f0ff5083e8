"""Muon for weight matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry
from lavis_lite.runners.optimizers.joined import JoinedOptimizer


@registry.register_optimizer("muon")
class MuonWithAdamW(JoinedOptimizer):
    """torch's Muon (momentum, orthogonalised by Newton-Schulz steps) for 2-D weights of layers, AdamW for the rest.

    With `adjust_lr_fn="match_rms_adamw"` Muon's updates are as large as AdamW's, so one learning rate serves both.
    Both use the weight decay of the groups.

    Args:
        params: groups with `names`.
        lr: learning rate.
        momentum, nesterov, ns_steps, adjust_lr_fn: as in `torch.optim.Muon`.
        betas, eps: of AdamW.
        adamw_names: parameters with one of these in their names are left to AdamW: embeddings and output heads.

    Raises:
        ConfigError: this torch has no Muon.
    """

    def __init__(self, params: Sequence[dict[str, Any]], lr: float = 1e-3, momentum: float = 0.95,
                 nesterov: bool = True, ns_steps: int = 5, adjust_lr_fn: str = "match_rms_adamw",
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 adamw_names: Sequence[str] = ("embed", "head")) -> None:
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            raise ConfigError(f"run.optimizer: torch {torch.__version__} has no Muon, which came with torch 2.9; "
                              "update torch, or set run.optimizer=adamw.")
        matrices, rest = [], []
        for group in params:
            chosen = [parameter.ndim == 2 and not any(part in name for part in adamw_names)
                      for name, parameter in zip(group["names"], group["params"], strict=True)]
            matrices += _subset(group, chosen)
            rest += _subset(group, [not one for one in chosen])
        parts = [muon(matrices, lr=lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps,
                      adjust_lr_fn=adjust_lr_fn)] if matrices else []
        parts += [torch.optim.AdamW(rest, lr=lr, betas=betas, eps=eps)] if rest else []
        super().__init__(parts)


def _subset(group: dict[str, Any], chosen: Sequence[bool]) -> list[dict[str, Any]]:
    """The group with its chosen parameters only, as a list; without any, the list is empty."""
    if not any(chosen):
        return []
    kept = {key: [value for value, one in zip(group[key], chosen, strict=True) if one] for key in ("params", "names")}
    return [{**group, **kept}]
