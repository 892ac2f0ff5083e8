"""Mistakes of users that mypy finds: it reports an ignored error that is none, so each of these must be one."""

from __future__ import annotations

from lavis_lite import Samples, load_model
from lavis_lite.config.schema import RunConfig
from lavis_lite.registry import registry


def mistakes() -> Samples:
    """Never called."""
    load_model("blip2_opt", "mini").generat({})  # type: ignore[operator]  # nn.Module may have any part
    load_model("blip2_opt", "mini").generate({}, num_beam=3)  # type: ignore[call-arg]
    load_model("blip2_opt", "mini").predict_answers({}, max_len="3")  # type: ignore[arg-type]
    load_model("blip2", "mini").extract_feature({})  # type: ignore[operator]
    load_model("blip2_opt", "mini", devise="cpu")  # type: ignore[call-overload]
    registry.get_task_class("vqa")(RunConfig()).sumary({})  # type: ignore[attr-defined]
    load_modell("blip2")  # type: ignore[name-defined]  # noqa: F821
    return {"imagee": None}  # type: ignore[typeddict-unknown-key]
