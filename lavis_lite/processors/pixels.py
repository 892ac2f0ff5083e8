"""Pictures that stay bytes until their numbers are used, so that a quarter of the memory travels.

Between an image processor and the device of a model nothing looks at a picture's numbers. There a picture is a
`Pixels`: to everyone a float32 tensor, in memory its uint8 values with the scale and shift that normalise them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data._utils.collate import default_collate_fn_map

_KEEP: ContextVar[bool] = ContextVar("keep_pixels", default=False)


@contextlib.contextmanager
def keep_pixels() -> Iterator[None]:
    """Within it, image processors give `Pixels`; outside, plain float32 tensors."""
    token = _KEEP.set(True)
    try:
        yield
    finally:
        _KEEP.reset(token)


def are_kept() -> bool:
    """Whether image processors are to give `Pixels` now."""
    return _KEEP.get()


def normalise(values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """uint8[..., 3, H, W] -> float32 of the same shape: values * scale + shift, on the device of the values."""
    out = torch.empty_like(values, dtype=torch.float32, memory_format=torch.contiguous_format)
    scale, shift = (factor.to(values.device, non_blocking=True) for factor in (scale, shift))
    return torch.mul(values, scale, out=out).add_(shift)  # in place: three quarters of the time of one addcmul


class Pixels(Tensor):
    """A float32 tensor that is held as bytes until its first use.

    Stacking such tensors, pinning them and `staged` move bytes. Whatever else is done with one (`.to(device)`,
    arithmetic, numpy) sees the normalised floats. They are kept from then on, so that changes in place last.

    Args:
        values: uint8[..., 3, H, W]; of a video [..., 3, T, H, W].
        scale, shift: float32[3, 1, 1], or [3, 1, 1, 1] of a video.
    """

    raw: Tensor
    scale: Tensor
    shift: Tensor
    floats: Tensor | None
    lease: object
    """kept as long as the bytes are in use"""

    def __new__(cls, values: Tensor, scale: Tensor, shift: Tensor) -> Pixels:
        """A tensor that has no memory of its own for floats."""
        made = Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32, device=values.device)
        made.raw, made.scale, made.shift, made.floats, made.lease = values, scale, shift, None, None
        return made

    @property
    def is_bytes(self) -> bool:
        """Whether the floats were never used so far."""
        return self.floats is None

    def normalised(self) -> Tensor:
        """The floats, a plain tensor."""
        if self.floats is None:
            self.floats, self.lease = normalise(self.raw, self.scale, self.shift), None
        return self.floats

    def staged(self, device: torch.device) -> Tensor:
        """The same on a device, still as bytes, without waiting for the copy."""
        return self.over(self.raw.to(device, non_blocking=True)) if self.is_bytes else self.to(device)

    def over(self, values: Tensor) -> Pixels:
        """Other bytes under the same normalisation."""
        made = Pixels(values, self.scale, self.shift)
        made.lease = self.lease if values is self.raw else None
        return made

    def is_like(self, other: Any) -> bool:
        """Whether both are bytes under one normalisation."""
        if not (isinstance(other, Pixels) and self.is_bytes and other.is_bytes):
            return False
        return all(mine is its or torch.equal(mine, its)
                   for mine, its in ((self.scale, other.scale), (self.shift, other.shift)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.normalised().__reduce_ex__(protocol)  # in a file it is an ordinary tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT_SHAPE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _ON_BYTES and not kwargs:
            found = _ON_BYTES[func](*args)
            if found is not None:
                return found
        if func is Tensor.to and isinstance(args[0], Pixels):
            args = (args[0]._before_move(*args[1:2], **kwargs), *args[1:])
        return func(*_plain(args), **_plain(kwargs))

    def _before_move(self, device: Any = None, **rest: Any) -> Tensor:
        """The picture that `.to(device)` starts from: of another device, its bytes there, to be normalised there."""
        if not isinstance(device, torch.device | str) or torch.device(device).type == self.device.type:
            return self
        return self.staged(torch.device(device))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None  # type: ignore[override]
                           ) -> Any:
        return func(*_plain(args), **_plain(kwargs or {}))  # calls from C++, which ask no __torch_function__


def stack(pictures: Sequence[Tensor], join: Callable[[list[Tensor]], Tensor] = torch.stack) -> Tensor | None:
    """Pictures of one shape -> one batch, as bytes; None if they are not all bytes under one normalisation.

    Args:
        pictures: B of them.
        join: stacks the bytes.
    """
    first = pictures[0]
    if not (isinstance(first, Pixels) and all(first.is_like(one) for one in pictures)):
        return None
    values = [one.raw for one in pictures if isinstance(one, Pixels)]
    if values[0].stride(-3) == 1:  # channels last in memory: copied as they lie
        return first.over(join([each.movedim(-3, -1) for each in values]).movedim(-1, -3))
    return first.over(join(values))


def _pinned(picture: Pixels, device: Any = None) -> Tensor | None:
    return picture.over(picture.raw.pin_memory()) if picture.is_bytes else None


_ON_BYTES: dict[Any, Any] = {torch.stack: stack, Tensor.pin_memory: _pinned, torch.as_tensor: lambda picture: picture}
_ABOUT_SHAPE = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point} | {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")}


def _to_process(picture: Pixels) -> Any:
    """How another process gets a picture: its bytes by shared memory."""
    if not picture.is_bytes:
        return picture.__reduce_ex__(2)
    return Pixels, (picture.raw, picture.scale, picture.shift)


def _collated(pictures: Sequence[Tensor], *, collate_fn_map: Any = None) -> Tensor:
    """`default_collate` of pictures; its own way fills a storage that they lack."""
    return torch.stack(list(pictures))


ForkingPickler.register(Pixels, _to_process)
default_collate_fn_map[Pixels] = _collated


def _plain(value: Any) -> Any:
    return tree_map(lambda item: item.normalised() if isinstance(item, Pixels) else item, value)
