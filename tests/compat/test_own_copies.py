"""Stage 1 and stage 2 as projects write them out themselves, with the calls that LAVIS' own classes make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lavis_lite.compat.lavis  # noqa: F401  (makes `lavis` importable)
from lavis_lite.compat.lavis.qformer import BertLMHeadModel
from lavis_lite.errors import DataError
from tests.compat.test_blip2_models import made
from tests.compat.test_projects import PROJECTS, checks, train, workplace  # noqa: F401  (a fixture)
from tests.end_to_end.conftest import read_log

from lavis.models.blip2_models.blip2_qformer import Blip2Qformer  # isort: skip


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_stage_2_in_half_precision_with_tokens_added(workplace: Path) -> None:  # noqa: F811
    run, scores = checks("own_copies", "test", 4)
    assert scores
    kept = load_file(run / "checkpoints" / "step_00000004" / "model.safetensors")
    assert kept["llm_proj.weight"].dtype == torch.float32
    frozen = {name for name in kept if name.startswith(("llm_model.", "visual_encoder."))}
    assert frozen == {"llm_model.model.decoder.embed_tokens.weight"}  # it has rows that mini/opt has not


@pytest.mark.slow
def test_stage_1_that_calls_torch_distributed_itself(
        workplace: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    run = train("own_copies", "model.arch=own_stage1", "model.embed_dim=64",
                "run.max_iters=3")
    (row, *_) = [row for row in read_log(Path("out")) if "loss_itc" in row]
    assert {"loss_itc", "loss_itm", "loss_lm"} <= row.keys()
    assert list(run.glob("results/test*step3*.json"))
    assert "OwnStage1.generate takes no length_penalty, so run.length_penalty has no effect." in caplog.messages


def test_the_q_former_generates_as_the_package_does() -> None:
    model = made(Blip2Qformer, "mini/stage1", embed_dim=64, max_txt_len=48)
    image = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.ln_vision(model.visual_encoder(image))
    begin = torch.full((3, 1), model.tokenizer.bos_token_id)

    def text(beams: int, repeated: int, **options: Any) -> list[str]:
        queries = model.query_tokens.expand(3 * repeated, -1, -1)
        ids = model.Qformer.generate(
            input_ids=begin, query_embeds=queries, encoder_hidden_states=features.repeat_interleave(repeated, 0),
            num_beams=beams, max_length=12, min_length=4, eos_token_id=model.tokenizer.sep_token_id,
            pad_token_id=model.tokenizer.pad_token_id, **options)
        assert ids.shape[1] <= 12 and torch.equal(ids[:, :1], begin)
        return model.tokenizer.batch_decode(ids, skip_special_tokens=True)

    for beams in (1, 3):  # LAVIS repeats the images for each beam
        assert text(beams, beams) == model.generate({"image": image}, num_beams=beams, max_length=12, min_length=4)
    assert len(text(1, 1, do_sample=True, top_p=0.9)) == 3
    with pytest.raises(DataError, match="one begin token"):
        model.Qformer.generate(begin.repeat(1, 2), model.query_tokens.expand(3, -1, -1), features)
    assert isinstance(model.Qformer, BertLMHeadModel)
