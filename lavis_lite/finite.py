"""One check for the values that a score is made of: NaN or infinite ones stop an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lavis_lite.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ADVICE = ("The model's weights are damaged or overflow in half precision: try fp32 (model.vit_precision, "
          "model.llm_precision, run.amp=false), or look for NaN in the picture.")


def check_finite(values: Tensor, describe: Callable[[int], str]) -> Tensor:
    """The values, if all of them are finite numbers.

    Args:
        values: float[N,...], what is known of N rows.
        describe: place of a row -> the sentence that says what is NaN or infinite there.

    Raises:
        CheckpointError: a row has a value that is NaN or infinite; names the first.
    """
    rows = values.detach().reshape(len(values), -1) if len(values) else values.reshape(0, 1)
    broken = ~rows.isfinite().all(1)
    if bool(broken.any()):
        raise CheckpointError(f"{describe(int(broken.int().argmax()))} {ADVICE}")
    return values
