"""The weights of a language model: where they are, their type, whether they train; and its output layer.

The output layer turns hidden states into the likelihood of tokens, where these are needed only. Axes: T tokens to
predict, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.errors import CheckpointError
from lavis_lite.models.base import at_least_float32, freeze, without_autocast
from lavis_lite.products import replace_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Project = Callable[[Tensor], Tensor]
SHOWN = 3
"""names of tensors in a message"""
LOGITS_AT_ONCE = 2**23
"""32 MB in float32, and two or three times that while their gradient is made"""
LEAST_TOKENS = 128
"""in a chunk: fewer would not fill a matrix product"""


class HeldWeights(nn.Module):
    """A model of transformers with its output layer; frozen, unless `unfreeze` is called.

    Attributes:
        trains: whether all weights train.
        is_dispatched: the weights lie where they belong and have their type: `.to()` leaves them alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = replace_linears(model)
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
        return likelihoods(self.model, hidden, targets)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings: int64[B,L] -> float[B,L,D]."""
        words: Tensor = self.model.get_input_embeddings()(ids)
        return words

    def own_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast switched off around frozen weights, which have their type; weights that train follow it."""
        return contextlib.nullcontext() if self.trains else without_autocast(self.home)


# what was read --------------------------------------------------------------------------------------------------------
def refuse_partial(model: nn.Module, folder: str, info: Mapping[str, Any]) -> None:
    """Refuse weights of which transformers left out some, or drew tensors at random because the files lack them.

    Left out are layers beyond the configuration's, and what a layer has in the files alone. Such are biases
    that the configuration denies, scales of quantised weights, adapters.

    Args:
        model: with the weights.
        folder: of the files.
        info: transformers' loading info.

    Raises:
        CheckpointError: names the tensors.
    """
    kinds = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
    layers = {name for name, module in model.named_modules() if not any(module.children())}
    over = {name for name in info["unexpected_keys"] if re.sub(r"\d+", "#", name) in kinds}
    beside = {name for name in info["unexpected_keys"] if not layers.isdisjoint(_modules_above(name))} - over
    shapes = {name for name, *_ in info.get("mismatched_keys", ())} | set(_misshapen(model))
    for names, what in ((info["missing_keys"], "the files lack them, so they would be random"),
                        (shapes, "they have other shapes in the files"),
                        (over, "the files have more layers than config.json says"),
                        (beside, "the files have them, and the layers of config.json have no use for them")):
        if names:
            raise CheckpointError(f"model.llm_model: {folder} does not fit its own config.json in {len(names)} of its "
                                  f"tensors, such as {', '.join(sorted(names)[:SHOWN])}: {what}. Download it again.")


def _modules_above(name: str) -> list[str]:
    """The modules that a tensor's name lies in: "a" and "a.b" of "a.b.bias"."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _misshapen(model: nn.Module) -> Iterator[str]:
    """Quantised weights of another shape than their layer's, which transformers does not compare."""
    for path, module in model.named_modules():
        if is_quantised(module) and isinstance(module, nn.Linear):
            held = getattr(module.weight, "quant_state", None) or module.weight
            if tuple(held.shape) != (module.out_features, module.in_features):
                yield f"{path}.weight"


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is one of bitsandbytes'."""
    return type(module).__module__.startswith("bitsandbytes")


# the output layer -----------------------------------------------------------------------------------------------------
def output_layer(model: Any) -> Project:
    """float[...,D] -> float[...,V], with what some families do around their output matrix.

    T5 before 1.1 scales its hidden states; Cohere multiplies and Granite divides the logits; Gemma caps them; BART
    adds a bias that is no parameter.
    """
    layer, config = model.get_output_embeddings(), model.config
    before = config.d_model ** -0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def project(hidden: Tensor) -> Tensor:
        logits: Tensor = layer(hidden if before == 1.0 else hidden * before).to(hidden.device)
        if scale != 1.0:
            logits = logits * scale
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        bias = getattr(model, "final_logits_bias", None)
        return logits if bias is None else logits + bias[0].to(logits.dtype)

    return project


def likelihoods(network: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """`token_losses` by a model's output layer, which may train: float[T]."""
    project, layer = output_layer(network), network.get_output_embeddings()
    if any(value.requires_grad for value in layer.parameters()):
        return token_losses_plain(hidden, project, targets)
    return token_losses(hidden, project, targets, tokens_at_once(len(layer.weight)))


def token_losses_plain(hidden: Tensor, project: Project, targets: Tensor) -> Tensor:
    """As `token_losses` with all logits in memory; its reference."""
    return F.cross_entropy(at_least_float32(project(hidden)), targets, reduction="none")


def token_losses(hidden: Tensor, project: Project, targets: Tensor, chunk: int) -> Tensor:
    """Negative log-likelihood of each target; the logits exist for `chunk` tokens at a time only.

    The output layer is constant (a frozen language model), so a token's gradient is a multiple of one vector, which
    is computed with its loss. Nothing of the size of the vocabulary is kept for the backward pass.

    Args:
        hidden: float[T,D], at the positions that predict.
        project: to logits.
        targets: int64[T].
        chunk: tokens per chunk.

    Returns:
        float[T], float32 at least.
    """
    losses: Tensor = _TokenLosses.apply(hidden, project, targets, chunk)
    return losses


def tokens_at_once(vocabulary: int) -> int:
    """How many tokens' logits over a vocabulary exist at the same time."""
    return max(LOGITS_AT_ONCE // vocabulary, LEAST_TOKENS)


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy per token of a constant output layer."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, project: Project, targets: Tensor, chunk: int) -> Tensor:
        """Losses and, where needed, the gradient of each with respect to its hidden state."""
        needed = ctx.needs_input_grad[0]
        losses, grads = [hidden.new_zeros(0, dtype=at_least_float32(hidden[:0]).dtype)], [hidden[:0]]
        for start in range(0, len(targets), chunk):
            rows = hidden[start:start + chunk].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                logits = at_least_float32(project(rows))
            likely, chosen = logits.detach().log_softmax(1), targets[start:start + chunk, None]
            losses.append(-likely.gather(1, chosen)[:, 0])
            if needed:  # probabilities minus one-hot targets, in the memory of the log-probabilities
                slope = likely.exp_().scatter_add_(1, chosen, -torch.ones_like(losses[-1])[:, None])
                grads.append(torch.autograd.grad(logits, rows, slope)[0])
        ctx.save_for_backward(torch.cat(grads))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Each token's vector times the gradient of its loss."""
        (grads,) = ctx.saved_tensors
        return (grads * outputs[0][:, None]).to(grads.dtype), None, None, None
