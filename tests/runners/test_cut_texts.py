"""Texts that a limit has cut are logged: once at the start of a training, and at its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_lite import distributed
from lavis_lite.models.blip2.llm import OPT
from lavis_lite.models.language import Limits
from lavis_lite.models.plain_text import CutTexts
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.runners.standard_hooks import TrainingLog, all_cut_texts
from tests.helpers.toy import Toy, ToyModel
from tests.models.test_blip2_llm import images, model_of

TEXTS = ["a dog", "a very very very long text of many words", "b"]


def trained(texts: list[str] = TEXTS):
    """A model after a step on these texts; limits of 12 letters, and of 6 tokens for the Q-Former."""
    model = model_of("opt", OPT, True)
    model.tokenizer = TextTokenizer("mini", 6)
    model.qformer.embeddings.word_embeddings = torch.nn.Embedding(1100, 32)
    model.language_model.limits = Limits(12, 8)
    with torch.no_grad():
        model({"image": images(len(texts)), "text_input": texts, "text_output": ["x"] * len(texts)})
    return model


def logged(model: Any, lines: list[str]) -> Any:
    """What the hook needs of a run on its last line."""
    return SimpleNamespace(model=model, log=lines.append)


def test_what_was_cut_is_logged_once_and_again_when_there_is_more() -> None:
    model, lines = trained(), list[str]()
    hook, run = TrainingLog(), logged(model, lines)
    hook._log_cut_texts(run)
    assert [line.split(";")[0] for line in lines] == [
        "1 of 3 texts for the Q-Former were cut to 6 tokens (model.max_txt_len)",
        "1 of 3 prompts were cut (model.max_txt_len, or the language model's positions)"]
    assert lines[1].endswith("; the longest has 41 tokens")
    hook.on_end(run)
    assert len(lines) == 2
    with torch.no_grad():
        model({"image": images(2), "text_input": TEXTS[:2], "text_output": ["a long long answer"] * 2})
    hook.on_end(run)
    assert [line.split(" were")[0] for line in lines[2:]] == ["2 of 5 texts for the Q-Former", "2 of 5 prompts",
                                                              "2 of 5 targets"]


def test_nothing_is_logged_if_nothing_was_cut() -> None:
    lines = list[str]()
    TrainingLog().on_end(logged(trained(["a", "b"]), lines))
    assert lines == []


def test_the_rehearsal_of_several_ranks_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = CutTexts()

    class Reads(ToyModel):
        """A text that is cut in every pass."""

        def forward(self, samples: Any) -> Any:
            counts.count([[1, 2]], [[1]], 0)
            return super().forward(samples)

        def cut_texts(self) -> dict[str, CutTexts]:
            return {"texts": counts}

    runner = Toy(tmp_path, {}, model_class=Reads).build()
    step, batch = runner.train_state.train_step, next(runner.train_state.batches(0, 1))
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    step.warm_up_ddp(batch)
    assert counts == CutTexts()


def test_ranks_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    other = trained(TEXTS[:2]).cut_texts()
    monkeypatch.setattr(distributed, "all_gather_object", lambda own: [own, other])
    assert [(count.cut, count.read) for count in all_cut_texts(trained()).values()] == [(2, 5), (2, 5), (0, 5)]
    assert CutTexts(3, 1, 9).plus(CutTexts(4, 0, 12)) == CutTexts(7, 1, 12)
