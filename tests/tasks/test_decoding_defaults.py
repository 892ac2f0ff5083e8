"""How each task decodes where the YAML is silent, against LAVIS' effective settings, arch by arch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis_lite.models.blip2.llm import OPT, T5, T5_INSTRUCT, VICUNA, VICUNA_INSTRUCT
from lavis_lite.registry import registry
from tests.models.test_blip2_llm import images, model_of

STYLES = {"blip2_opt": ("opt", OPT), "blip2_t5": ("t5", T5), "blip2_vicuna": ("llama", VICUNA),
          "blip2_t5_instruct": ("t5", T5_INSTRUCT), "blip2_vicuna_instruct": ("llama", VICUNA_INSTRUCT)}
FIELDS = ("num_beams", "length_penalty", "repetition_penalty", "sample", "max_new_tokens", "min_new_tokens")
CAPTIONS = {"blip2_opt": (5, 0.0, 1.15, False, 29, 0), "blip2_t5": (5, 0.0, 1.15, False, 30, 0),
            "blip2_vicuna": (5, 0.0, 1.15, False, 29, 0), "blip2_t5_instruct": (5, 0.0, 1.15, False, 30, 0),
            "blip2_vicuna_instruct": (5, 0.0, 1.15, False, 29, 0)}
"""LAVIS' captioning task passes penalties 1.15 and 0 to every arch"""
ANSWERS = {"blip2_opt": (3, 0.0, 1.0, False, 10, 0), "blip2_t5": (3, -1.0, 1.0, False, 10, 0),
           "blip2_vicuna": (3, 0.0, 1.0, False, 9, 0), "blip2_t5_instruct": (3, -1.0, 1.5, False, 10, 0),
           "blip2_vicuna_instruct": (3, 0.0, 1.5, False, 9, 0)}
"""LAVIS' VQA tasks pass no penalty: length by the arch's predict_answers, repetition by the arch's generate"""


def effective(task: str, arch: str, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...] = FIELDS,
              **run: Any) -> tuple[Any, ...]:
    """What reaches the language model of a silent run section (or one with `run`)."""
    model, seen = model_of(*STYLES[arch]), list[Any]()
    write = lambda soft, prompts, options, owners=None: seen.append(options) or ["x"] * len(prompts)  # noqa: E731
    monkeypatch.setattr(model.language_model, "generate", write)
    cls = registry.get_task_class(task)
    one = cls(cls.config_class(**run))
    part = getattr(one, "_parts", [one])
    batch = {"image": images(2), "index": torch.arange(2), "image_id": torch.arange(2), "question_id": torch.arange(2),
             "text_input": ["q", "r"]}
    for task_ in part:
        if hasattr(task_, "rule") or type(task_).__name__ == "CaptioningTask":
            task_.predict(model, dict(batch))
    return tuple(tuple(getattr(options, name) for name in fields) for options in seen)


@pytest.mark.parametrize("arch", STYLES)
def test_captions(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert effective("captioning", arch, monkeypatch) == (CAPTIONS[arch],)


@pytest.mark.parametrize("task", ["vqa", "gqa", "vqa_reading_comprehension", "video_qa", "aok_vqa"])
@pytest.mark.parametrize("arch", STYLES)
def test_answers(task: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert effective(task, arch, monkeypatch) == (ANSWERS[arch],)


@pytest.mark.parametrize("arch", STYLES)
def test_instruction_tuning_writes_captions_as_captioning_and_answers_as_vqa(
        arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = effective("instruction_tuning", arch, monkeypatch)
    assert found == (CAPTIONS[arch], (5, *ANSWERS[arch][1:]))
    said = effective("instruction_tuning", arch, monkeypatch, repetition_penalty=1.3, length_penalty=0.5)
    assert [row[1:3] for row in said] == [(0.5, 1.3)] * 2


def test_what_the_run_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"num_beams": 2, "length_penalty": 1.0, "repetition_penalty": 1.0, "max_len": 8, "min_len": 3}
    assert effective("captioning", "blip2_opt", monkeypatch, **given) == ((2, 1.0, 1.0, False, 7, 2),)
    assert effective("vqa", "blip2_t5", monkeypatch, **given) == ((2, 1.0, 1.0, False, 8, 2),)
    null = {"length_penalty": None, "repetition_penalty": None}
    assert effective("captioning", "blip2_t5_instruct", monkeypatch, **null)[0][1:3] == (1.0, 1.5)


def test_the_prompts_tokens_are_penalised_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ("penalise_prompt",)
    for task in ("captioning", "vqa"):
        assert effective(task, "blip2_opt", monkeypatch, fields) == ((False,),)
        assert effective(task, "blip2_opt", monkeypatch, fields, penalise_prompt=True) == ((True,),)
