"""`run.decode_at_once` and `run.fixed_cache` reach the language model that an evaluation asks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lavis_lite.config.schema import RunConfig
from lavis_lite.evaluation.evaluator import Evaluator
from tests.models.language.tiny import tiny


@pytest.mark.parametrize(("at_once", "fixed"), [(None, None), (3, True), (3, False)])
def test_an_evaluation_says_how_answers_are_written(at_once: int | None, fixed: bool | None, tmp_path: Path) -> None:
    model: Any = nn.Module()
    model.language_model = tiny("opt")
    cfg: Any = SimpleNamespace(run=RunConfig(decode_at_once=at_once, fixed_cache=fixed))
    nothing: Any = None
    Evaluator(nothing, model, cfg, torch.device("cpu"), nothing, nothing, nothing, tmp_path, nothing)
    assert model.language_model.at_once == at_once
    assert model.language_model.fixes_cache == bool(fixed), "None: on a GPU only"
