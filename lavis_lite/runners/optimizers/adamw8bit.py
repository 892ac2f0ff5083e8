"""AdamW with moments of one byte each, by bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavis_lite.errors import MissingExtraError
from lavis_lite.registry import registry
from lavis_lite.runners.optimizers.joined import JoinedOptimizer


@registry.register_optimizer("adamw8bit")
class AdamW8bit(JoinedOptimizer):
    """AdamW with moments quantised to 8 bits in blocks; small tensors keep 32 bits.

    Args:
        params: groups.
        lr: learning rate.
        betas, eps: as in AdamW.
        min_8bit_size: elements below which a tensor's moments keep 32 bits.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """

    def __init__(self, params: Sequence[dict[str, Any]], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, min_8bit_size: int = 4096) -> None:
        try:
            from bitsandbytes.optim.adamw import AdamW8bit as Quantised
        except ImportError as error:
            raise MissingExtraError("run.optimizer=adamw8bit needs bitsandbytes, which is not installed: `pip install "
                                    "'lavis_lite[quant]'`, or set run.optimizer=adamw.") from error
        super().__init__([Quantised(params, lr=lr, betas=betas, eps=eps, min_8bit_size=min_8bit_size)])
