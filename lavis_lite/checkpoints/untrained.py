"""Nothing random is scored: a model whose trainable weights come from no checkpoint is refused before it predicts."""

from __future__ import annotations

from collections import Counter

from lavis_lite.errors import CheckpointError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.provenance import part_of


def refuse_untrained(model: BaseModel, remedies: str) -> None:
    """Refuse a model that has trainable parameters which nothing loaded.

    Args:
        model: built by `weights.build_model`; its `weight_record` is asked.
        remedies: what a user can do instead, as finished sentences.

    Raises:
        CheckpointError: names the parts, with the number of tensors of each.
    """
    trains = {name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
    names = [name for name in model.weight_record.untrained if name in trains]
    if names:
        parts = Counter(part_of(name) for name in names)
        listed = ", ".join(f"{part} ({count})" for part, count in parts.items())
        raise CheckpointError(f"no checkpoint has {len(names)} of the trainable tensors of {type(model).__name__}: "
                              f"{listed}. Their values are random, so results would mean nothing. {remedies}")
