"""Checks for NaN and infinity: in the values of a score, and in weights after loading and before saving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lavis_lite.errors import CheckpointError, listed

ADVICE = ("The model's weights are damaged or overflow in half precision. Try fp32 (model.vit_precision, "
          "model.llm_precision, run.amp=false), or check the picture for NaN.")
SHOWN = 5
SWITCH = "model.allow_non_finite=true (allow_non_finite=True in Python)"
"""loads such tensors anyway"""
_SUMMED = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float32,
           torch.float64: torch.float64}
"""dtypes that can be summed -> the dtype of the sum"""


def check_finite(values: Tensor, describe: Callable[[int], str]) -> Tensor:
    """The values, if all of them are finite numbers.

    Args:
        values: float[N,...], of N rows.
        describe: index of a row -> the sentence that says what is NaN or infinite there.

    Raises:
        CheckpointError: a row has a value that is NaN or infinite; the message names the first.
    """
    rows = values.detach().reshape(len(values), -1) if len(values) else values.reshape(0, 1)
    broken = ~rows.isfinite().all(1)
    if bool(broken.any()):
        raise CheckpointError(f"{describe(int(broken.int().argmax()))} {ADVICE}")
    return values


# weights --------------------------------------------------------------------------------------------------------------
def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. Mostly one pass without a copy, because NaN and infinity stay in a sum."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.dtype not in _SUMMED:  # float8 and its like
        return bool(tensor.to(torch.float32).isfinite().all())
    if bool(tensor.sum(dtype=_SUMMED[tensor.dtype]).isfinite()):
        return True
    return bool(tensor.isfinite().all())  # the sum of finite values may be too large itself


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values."""
    return [name for name, tensor in tensors.items() if not is_finite(tensor)]


def non_finite_fused(tensors: Mapping[str, Tensor]) -> list[str]:
    """As `non_finite`, with one transfer from the device: for weights on a GPU.

    The largest absolute value is NaN or infinite exactly if one of the values is.
    """
    checked = {name: tensor.detach() for name, tensor in tensors.items()
               if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta}
    if not checked:
        return []
    largest = torch.stack([norm.double() for norm in torch._foreach_norm(list(checked.values()), torch.inf)])
    flags = largest.isfinite().tolist()
    return [name for name, good in zip(checked, flags, strict=True) if not good]


def describe_non_finite(names: Iterable[str], tensors: Mapping[str, Tensor]) -> str:
    """A clause: "3 of 127 tensors hold NaN or infinity: query_tokens (4096 of 4096 values); ..."."""
    names = list(names)
    first = [f"{name} ({int((~tensors[name].isfinite()).sum())} of {tensors[name].numel()} values)"
             for name in names[:SHOWN]]
    return f"{len(names)} of {len(tensors)} tensors hold NaN or infinity: {listed(first, SHOWN, '; ', len(names))}"


def check_weights(tensors: Mapping[str, Tensor], source: str, allow: bool = False) -> list[str]:
    """Notes on tensors that hold NaN or infinity: empty, or one clause if they are allowed.

    Raises:
        CheckpointError: there are such tensors and they are not allowed; the message names them and the switch.
    """
    names = non_finite(tensors)
    if not names:
        return []
    description = describe_non_finite(names, tensors)
    if not allow:
        raise CheckpointError(f"{source}: {description}. Nothing was loaded: the run that wrote it diverged, or the "
                              f"file is damaged. Take an earlier checkpoint; {SWITCH} loads it anyway.")
    return [description]
