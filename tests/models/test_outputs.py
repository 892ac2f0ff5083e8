"""Outputs answer as attributes and as LAVIS' mappings do."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ContractError
from lavis_lite.models.outputs import Blip2Features, Blip2Output, ModelOutput, split_losses
from lavis_lite.tasks.base import BaseTask

ONE, TWO = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)


def test_an_output_is_a_mapping_of_what_it_has() -> None:
    output = Blip2Output(loss=ONE, loss_itm=TWO)
    assert isinstance(output, Mapping) and output["loss"] is output.loss is ONE
    assert list(output) == list(output.keys()) == ["loss", "loss_itm"] and len(output) == 2
    assert dict(output.items()) == {"loss": ONE, "loss_itm": TWO} and list(output.values()) == [ONE, TWO]
    assert "loss_itm" in output and "loss_itc" not in output and "losses" not in output
    assert output.get("loss_itc") is None and output.get("nothing", 3) == 3
    for key in ("loss_itc", "losses", "nothing"):
        with pytest.raises(KeyError):
            output[key]
    assert not output.losses()["loss"].requires_grad


def test_features_are_a_mapping_too() -> None:
    features = Blip2Features(image_embeds=TWO)
    assert features["image_embeds"] is features.image_embeds and list(features) == ["image_embeds"]
    assert "text_embeds" not in features and features.get("text_embeds") is None


@pytest.mark.parametrize("output", [
    {"loss": ONE, "loss_lm": TWO, "logits": torch.zeros(3)}, SimpleNamespace(loss=ONE, loss_lm=TWO, logits=1),
    Blip2Output(ONE, loss_lm=TWO)])
def test_a_task_takes_whatever_has_a_loss(output: Any) -> None:
    loss, parts = BaseTask(RunConfig()).train_step(lambda samples: output, {})
    assert loss is ONE and parts == {"loss": ONE, "loss_lm": TWO}
    assert not any(value.requires_grad for value in parts.values())


@pytest.mark.parametrize("output", [torch.zeros(3), {"logits": ONE}, None, {"loss": 1.0}])
def test_an_output_without_a_loss_is_told_of(output: Any) -> None:
    with pytest.raises(ContractError, match="without a loss; a training forward returns .*'loss'"):
        split_losses(output)


def test_outputs_travel_through_ddps_search_for_tensors() -> None:
    from torch.nn.parallel.distributed import _find_tensors

    assert [id(tensor) for tensor in _find_tensors(ModelOutput(ONE))] == [id(ONE)]
