"""Linear probe of frozen patch features: how much of a scene a single matrix can read from one patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tools.patches import ATTRIBUTES, IGNORE, scene_batch

RIDGE = 1e-3


@torch.no_grad()
def features(model: nn.Module, pixels: Tensor, batch_size: int = 64) -> Tensor:
    """Patch features without the class token: float[B, 3, S, S] -> float[B, P, D]."""
    chunks = [model.forward_features(chunk)[:, 1:] for chunk in pixels.split(batch_size)]  # type: ignore[operator]
    return torch.cat(chunks).float()


def fit_probe(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Ridge regression onto one-hot labels, one matrix float[D + 1, values] for each attribute; exact, no seed."""
    probes = {}
    for place, (name, values) in enumerate(ATTRIBUTES.items()):
        chosen, target = _on_objects(inputs, labels[:, place], len(values))
        gram = chosen.T @ chosen + RIDGE * len(chosen) * torch.eye(chosen.shape[1], dtype=chosen.dtype)
        wanted = nn.functional.one_hot(target, len(values)).to(chosen)
        probes[name] = torch.linalg.solve(gram, chosen.T @ wanted)
    return probes


def score_probe(probes: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of object patches whose attribute the probe reads rightly, for each attribute."""
    scores = {}
    for place, (name, values) in enumerate(ATTRIBUTES.items()):
        chosen, target = _on_objects(inputs, labels[:, place], len(values))
        scores[name] = ((chosen @ probes[name]).argmax(1) == target).double().mean().item()
    return scores


def probe_model(
    model: nn.Module, seed: int, fit: int, test: int, splits: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Fit on `fit` scenes of split ``vit`` with this seed, score on `test` scenes of each named split.

    Returns:
        For each split, accuracy by attribute. Use a seed that the model was not trained with.
    """
    model.eval()
    pixels, labels = scene_batch(seed, "vit", range(fit))
    probes = fit_probe(features(model, pixels), labels)
    result = {}
    for split in splits:
        pixels, labels = scene_batch(seed, split, range(test))
        result[split] = score_probe(probes, features(model, pixels), labels)
    return result


def _on_objects(inputs: Tensor, labels: Tensor, values: int) -> tuple[Tensor, Tensor]:
    """Rows that show an object, with a constant column: double[N, D + 1] and int64[N]."""
    keep = (labels != IGNORE) & (labels < values)
    chosen = inputs[keep].double()
    return torch.cat([chosen, torch.ones(len(chosen), 1, dtype=torch.double)], dim=1), labels[keep]
