"""NaN and infinity: in the values that a score is made of, and in weights at every reading and before every save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lavis_lite.errors import CheckpointError

ADVICE = ("The model's weights are damaged or overflow in half precision: try fp32 (model.vit_precision, "
          "model.llm_precision, run.amp=false), or look for NaN in the picture.")
SHOWN = 5
SWITCH = "model.allow_non_finite=true (allow_non_finite=True in Python)"
"""loads such tensors all the same"""
_SUMMED = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float32,
           torch.float64: torch.float64}
"""dtypes that can be summed -> in which one"""


def check_finite(values: Tensor, describe: Callable[[int], str]) -> Tensor:
    """The values, if all of them are finite numbers.

    Args:
        values: float[N,...], what is known of N rows.
        describe: index of a row -> the sentence that says what is NaN or infinite there.

    Raises:
        CheckpointError: a row has a value that is NaN or infinite; names the first.
    """
    rows = values.detach().reshape(len(values), -1) if len(values) else values.reshape(0, 1)
    broken = ~rows.isfinite().all(1)
    if bool(broken.any()):
        raise CheckpointError(f"{describe(int(broken.int().argmax()))} {ADVICE}")
    return values


# weights --------------------------------------------------------------------------------------------------------------
def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. One pass that makes no copy, mostly: a sum keeps what is not finite."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.dtype not in _SUMMED:  # float8 and its like
        return bool(tensor.to(torch.float32).isfinite().all())
    if bool(tensor.sum(dtype=_SUMMED[tensor.dtype]).isfinite()):
        return True
    return bool(tensor.isfinite().all())  # the sum of finite values may be too large itself


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a value which is not finite."""
    return [name for name, tensor in tensors.items() if not is_finite(tensor)]


def non_finite_fused(tensors: Mapping[str, Tensor]) -> list[str]:
    """As `non_finite`, for tensors on one device that is asked once: for weights on a GPU.

    A largest absolute value is NaN or infinite exactly where one of the values is.
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
    shown = [f"{name} ({int((~tensors[name].isfinite()).sum())} of {tensors[name].numel()} values)"
             for name in names[:SHOWN]]
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} of {len(tensors)} tensors hold NaN or infinity: {'; '.join(shown)}{more}"


def check_weights(tensors: Mapping[str, Tensor], source: str, allow: bool = False) -> list[str]:
    """Notes on tensors that hold NaN or infinity: empty, or one clause if they are allowed.

    Raises:
        CheckpointError: there are such tensors and they are not allowed; names them and the switch.
    """
    names = non_finite(tensors)
    if not names:
        return []
    description = describe_non_finite(names, tensors)
    if not allow:
        raise CheckpointError(f"{source}: {description}. Nothing was loaded: the run that wrote it diverged, or the "
                              f"file is damaged. Take an earlier checkpoint; {SWITCH} loads it all the same.")
    return [description]
