"""`run.decode_at_once` reaches the language model that an evaluation asks."""

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


@pytest.mark.parametrize("at_once", [None, 3])
def test_an_evaluation_says_how_many_are_answered_at_once(at_once: int | None, tmp_path: Path) -> None:
    model: Any = nn.Module()
    model.language_model = tiny("opt")
    cfg: Any = SimpleNamespace(run=RunConfig(decode_at_once=at_once))
    nothing: Any = None
    Evaluator(nothing, model, cfg, torch.device("cpu"), nothing, nothing, nothing, tmp_path, nothing)
    assert model.language_model.at_once == at_once
