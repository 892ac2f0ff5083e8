"""Nothing random is scored: a model whose trainable weights come from no checkpoint is refused before it predicts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lavis_lite.errors import CheckpointError


def refuse_untrained(model: Any, ways_on: str) -> None:
    """Refuse a model that has trainable tensors which nothing loaded.

    Args:
        model: built by `weights.build_model`; its `weight_record` is asked.
        ways_on: what a user can do instead, as finished sentences.

    Raises:
        CheckpointError: names the parts, with the number of tensors of each.
    """
    record = getattr(model, "weight_record", None)
    names = [] if record is None else record.untrained
    if names:
        parts = Counter(name.split(".")[0] for name in names)
        listed = ", ".join(f"{part} ({count})" for part, count in parts.items())
        raise CheckpointError(f"{len(names)} trainable tensors of {type(model).__name__} are in no checkpoint, so their "
                              f"values are random and so would be the results: {listed}. {ways_on}")
