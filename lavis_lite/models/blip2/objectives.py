"""The three objectives of stage 1 (BLIP-2, section 3.2) and the choice of hard negatives, as pure functions.

Axes: B this rank's samples, N all ranks' samples, Q queries, E embedding width, T tokens to predict, D width,
V vocabulary. Everything is computed in float32 or better, also under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.models.base import at_least_float32, autocast_type, without_autocast
from lavis_lite.products import linear, outer

LABEL_SMOOTHING = 0.1
IGNORE = -100


def common_space(features: Tensor, projection: nn.Linear, dtype: torch.dtype | None = None) -> Tensor:
    """Project and scale to unit length: float[...,D] -> float[...,E], at least float32.

    In float64 outside autocast: similarities are divided by a temperature of about 0.07, which multiplies every
    rounding by 14. It would show in the temperature's gradient and in close draws of negatives.

    Args:
        features: hidden states.
        projection: vision_proj or text_proj.
        dtype: of the result; None: as computed.
    """
    if features.device.type not in ("cpu", "cuda") or autocast_type(features.device) is not None:
        return F.normalize(projection(features).float(), dim=-1)
    weight, bias = projection.weight.double(), projection.bias.double()
    return F.normalize(F.linear(features.double(), weight, bias), dim=-1).to(dtype)


def similarity(queries: Tensor, texts: Tensor) -> Tensor:
    """Image-text similarity, max over q of z_q . t: the highest of an image's Q queries counts (section 3.2, ITC).

    Args:
        queries: float[I,Q,E], unit length.
        texts: float[J,E], unit length.

    Returns:
        float[I,J].
    """
    with without_autocast(queries.device):
        queries, texts = at_least_float32(queries), at_least_float32(texts)
        every = (queries.flatten(0, 1) @ texts.T).unflatten(0, queries.shape[:2])
        # for its gradient `max` keeps I x J indices, and `amax` all I x Q x J products
        return every.max(1).values if every.requires_grad else every.amax(1)


def itc_loss(sim_i2t: Tensor, sim_t2i: Tensor, positives: Tensor, label_smoothing: float = LABEL_SMOOTHING) -> Tensor:
    """Image-text contrastive loss: the mean of the cross-entropies H(y, softmax(s / temp)) of both directions.

    Args:
        sim_i2t: float[B,N], image to texts, divided by the temperature.
        sim_t2i: float[B,N], text to images.
        positives: bool[B,N], true where the sample's image is the other sample's image; the target mass is shared
            among them (one each: ordinary label-smoothed cross-entropy).
        label_smoothing: share of the mass spread over all N.

    Returns:
        float[].
    """
    share = positives.to(sim_i2t.dtype)
    target = (1 - label_smoothing) * share / share.sum(1, keepdim=True) + label_smoothing / positives.shape[1]
    losses = [-(F.log_softmax(sim, 1) * target).sum(1).mean() for sim in (sim_i2t, sim_t2i)]
    return (losses[0] + losses[1]) / 2


def negative_weights(sim: Tensor, positives: Tensor) -> Tensor:
    """Probability of every candidate to be drawn as hard negative: softmax of the similarity over non-positives.

    Args:
        sim: float[B,N], divided by the temperature.
        positives: bool[B,N], never drawn.

    Returns:
        float64[B,N]; a row without any negative is all zero.
    """
    weights = torch.softmax(sim.detach().double().masked_fill(positives, -torch.inf), 1)
    return weights.masked_fill(positives, 0.0)


def choose_negatives(sim: Tensor, positives: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one hard negative per row by inverting the cumulative distribution; no loop, no wait for the device.

    Args:
        sim: float[B,N], divided by the temperature.
        positives: bool[B,N]. A positive is never drawn, even where nothing else is left.
        uniform: float64[B] in [0, 1); the same numbers give the same choice on any number of processes.

    Returns:
        int64[B] index into N, and bool[B] whether there was any negative (where not, the index is arbitrary).
    """
    weights = negative_weights(sim, positives)
    cumulative = weights.cumsum(1)
    threshold = cumulative[:, -1:] * uniform.double().clamp(0.0, 1.0 - 1e-12)[:, None]
    index = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return index.clamp(max=sim.shape[1] - 1), ~positives.all(1)


def itm_terms(positive: Tensor, negatives: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Image-text matching (ITM): summed two-class cross-entropy and the number of its terms.

    Args:
        positive: float[B,2], logits of matching pairs (class 1).
        negatives: float[M,2], logits of non-matching pairs (class 0).
        valid: bool[M], false where there is no such negative pair.

    Returns:
        float[] sum and float[] count; the loss is their ratio.
    """
    with without_autocast(positive.device):
        positive, negatives = at_least_float32(positive), at_least_float32(negatives)
        match = F.log_softmax(positive, 1)[:, 1]
        no_match = torch.where(valid, F.log_softmax(negatives, 1)[:, 0], 0.0)
        return -match.sum() - no_match.sum(), valid.sum().to(match.dtype) + len(match)


def itm_logits(queries: Tensor, head: nn.Linear) -> Tensor:
    """Two-class logits averaged over queries (section 3.2, ITM): float[N,Q,D] -> float[N,2].

    The head is linear, so that averaging first gives the same and is cheaper.
    """
    with without_autocast(queries.device):
        mean = at_least_float32(queries).mean(1)
        return F.linear(mean.to(head.weight.dtype), head.weight, head.bias)


def lm_sum_plain(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor,
                 label_smoothing: float = LABEL_SMOOTHING) -> Tensor:
    """Summed language-model loss with all logits in memory; the reference of `lm_sum`. Same arguments and result."""
    logits = at_least_float32(F.linear(hidden, weight, bias))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, label_smoothing=label_smoothing, reduction="sum")


def lm_sum(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = LABEL_SMOOTHING,
           chunk: int = 1024) -> Tensor:
    """ITG: the sum of -log p(next token | image, earlier tokens), label-smoothed, `chunk` tokens at a time.

    The logits exist for one chunk only. The gradient of a chunk is computed with its loss, in one visit. Under autocast
    the matrix products run in the autocast type, the softmax in float32.

    Args:
        hidden: float[T,D], output of the language-model head's transform at the positions that predict.
        weight: float[V,D], word embeddings.
        bias: float[V].
        targets: int64[T], the next tokens; -100: no term.
        label_smoothing: share of the target mass spread over the vocabulary.
        chunk: tokens per chunk.

    Returns:
        float[], sum over tokens.
    """
    if (dtype := autocast_type(hidden.device)) is not None:
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with without_autocast(hidden.device):
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets, label_smoothing, chunk)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of label-smoothed cross-entropy of hidden @ weight' + bias, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float,
                chunk: int) -> Tensor:
        """Loss and, where needed, its gradients at once."""
        needed = any(ctx.needs_input_grad[:3])
        total = hidden.new_zeros((), dtype=at_least_float32(hidden[:0]).dtype)
        grads: list[Tensor] = []
        for start in range(0, max(len(targets), 1), chunk):
            rows = slice(start, start + chunk)
            loss, d_logits = _chunk_loss(hidden[rows], weight, bias, targets[rows], smoothing, needed)
            total = total + loss
            if d_logits is not None:
                grads = _add_gradients(grads, d_logits, hidden[rows], weight)
        ctx.save_for_backward(*grads)
        ctx.dtypes = (hidden.dtype, weight.dtype, bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients by that of the sum."""
        scale = outputs[0]
        found = [(grad * scale).to(dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*found, None, None, None)


def _add_gradients(grads: list[Tensor], d_logits: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    """Gradients of hidden (rows so far), weight and bias with those of one more chunk."""
    d_bias, d_logits = d_logits.sum(0), d_logits.to(weight.dtype)
    d_hidden, d_weight = linear(d_logits, weight.T), outer(d_logits, hidden).to(d_bias.dtype)
    if not grads:
        return [d_hidden, d_weight, d_bias]
    return [torch.cat([grads[0], d_hidden]), grads[1].add_(d_weight), grads[2].add_(d_bias)]


def _chunk_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float,
                with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Loss of some tokens and the gradient of their logits, float[t,V]."""
    logits = at_least_float32(linear(hidden, weight, bias.to(weight.dtype)))
    kept = (targets != IGNORE).to(logits.dtype)
    safe = targets.clamp(min=0)[:, None]
    normaliser = logits.logsumexp(1)
    picked = logits.gather(1, safe)[:, 0]
    spread = smoothing / logits.shape[1]
    loss = normaliser - (1 - smoothing) * picked - spread * logits.sum(1)
    if not with_grad:
        return (loss * kept).sum(), None
    grad = logits.sub_(normaliser[:, None]).exp_().sub_(spread)
    grad.scatter_add_(1, safe, grad.new_full((), smoothing - 1).expand(safe.shape))
    return (loss * kept).sum(), grad.mul_(kept[:, None])
