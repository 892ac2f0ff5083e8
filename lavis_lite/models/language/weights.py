"""The weights of a language model: where they lie, which type they have, whether they train."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lavis_lite.models.base import freeze, without_autocast
from lavis_lite.models.language import head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeldWeights(nn.Module):
    """A model of transformers with its output layer; frozen, unless `unfreeze` is called.

    Attributes:
        trains: whether all weights train.
        is_dispatched: the weights lie where they belong and have their type: `.to()` leaves them alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.is_dispatched, self.trains = False, False
        freeze(self)

    def unfreeze(self) -> None:
        """Let every weight train: float32, under the autocast around it. It stays in eval mode, without dropout."""
        self.trains, self.stays_frozen = True, False
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()

    @property
    def hidden_size(self) -> int:
        """D, the width of a soft prompt's vectors: that of the word embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def home(self) -> torch.device:
        """Device of the word embeddings: where rows enter and results come back to."""
        words = self.model.get_input_embeddings()
        # where accelerate keeps weights elsewhere, its hook knows where they are used
        device = getattr(getattr(words, "_hf_hook", None), "execution_device", None)
        return words.weight.device if device is None else torch.device(device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the word embeddings; the model runs in its own type, whatever autocast is around it."""
        return self.model.get_input_embeddings().weight.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> HeldWeights:
        """Move weights without a change of their type, in `.to()` and its like; dispatched ones stay where they are."""

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return self if self.is_dispatched else super()._apply(move, recurse)

    def likelihoods(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of targets int64[T] at hidden states float[T,D]: float[T]."""
        return head.likelihoods(self.model, hidden, targets)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings: int64[B,L] -> float[B,L,D]."""
        words: Tensor = self.model.get_input_embeddings()(ids)
        return words

    def own_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast switched off around frozen weights, which have their type; weights that train follow it."""
        return contextlib.nullcontext() if self.trains else without_autocast(self.home)
