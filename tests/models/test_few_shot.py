"""Examples in front of prompts."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.llm import T5_INSTRUCT, Blip2LLM
from lavis_lite.models.blip2.prompts import check_few_shot, draw_few_shot, with_examples
from tests.models.test_blip2_llm import CAPTIONS, images, model_of

ROW = {"text_input": ["who?", "why?"], "text_output": ["me", "so"]}
WRITER, READER = (SimpleNamespace(tokenizer=SimpleNamespace(encoder=encoder)) for encoder in (False, True))


def test_examples_stand_before_the_prompt() -> None:
    assert with_examples(["a", "b"], {}, WRITER) == ["a", "b"]
    assert with_examples(["a", "b"], {"few_shot_samples": ROW}, WRITER)[1] == "who? me\nwhy? so\nb"
    each = {"few_shot_samples": [ROW, {"text_input": ["x"]}]}
    assert with_examples(["a", "b"], each, READER) == ["who? me why? so a", "x b"]
    assert with_examples(["a"], {"few_shot_samples": [ROW]}, READER, most=1) == ["who? me a"]
    filled = with_examples(["Q: now? A:"], {"few_shot_samples": [ROW]}, WRITER, template="Q: {} A:")
    assert filled == ["Q: who? A: me\nQ: why? A: so\nQ: now? A:"]


@pytest.mark.parametrize(("given", "words"), [
    ([ROW], "1 entries for 2 images"), ({**ROW, "text_output": ["x"]}, "2 text_input with 1 text_output"),
    ({**ROW, "image": []}, "examples are text here"),
])
def test_examples_that_do_not_go(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"few_shot_samples: .*{words}"):
        with_examples(["a", "b"], {"few_shot_samples": given}, WRITER)


def test_settings_that_cannot_be() -> None:
    check_few_shot(0, 0.0)
    for count, probability in ((0, 0.5), (2, 1.5), (-1, 0.0)):
        with pytest.raises(ConfigError, match="model.(few_shot_prob|num_few_shot_examples)"):
            check_few_shot(count, probability)


def test_a_batch_draws_none_or_as_many_as_any_other_number() -> None:
    torch.manual_seed(0)
    counts = Counter(draw_few_shot({"few_shot_samples": ROW}, 2, 0.5) for _ in range(400))
    assert counts[0] == pytest.approx(200, abs=40) and counts[1] == pytest.approx(counts[2], abs=40)
    assert draw_few_shot({}, 2, 1.0) == draw_few_shot({"few_shot_samples": ROW}, 2, 0.0) == 0


def read_by(model: Blip2LLM, name: str) -> list[list[str]]:
    """Texts that a method of the language model is given from now on."""
    seen: list[list[str]] = []
    real = getattr(model.language_model, name)

    def spy(soft: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        seen.append(list(prompts))
        return real(soft, prompts, *rest, **more)

    setattr(model.language_model, name, spy)
    return seen


def test_the_language_model_reads_them_and_the_qformer_does_not() -> None:
    model = model_of("t5", T5_INSTRUCT, True)
    given = {"image": images(), "few_shot_samples": ROW, "text_input": CAPTIONS, "text_output": CAPTIONS}
    plain = model.query_output(images(), CAPTIONS)
    asked: list[Any] = []
    model.language_projection.register_forward_hook(lambda module, inputs, output: asked.append(inputs[0]))
    shown, scored, learned = (read_by(model, name) for name in ("generate", "score", "loss"))
    model.predict_answers(given, prompt="{} A:", max_len=2)
    model.generate({**given, "prompt": CAPTIONS}, max_new_tokens=2, num_beams=1)
    model.predict_class({"image": images(), "prompt": CAPTIONS, "few_shot_samples": ROW}, ["yes", "no"])
    model(given)
    model.num_few_shot_examples, model.few_shot_prob = 1, 1.0
    model(given)
    assert shown == [[f"who? A: me why? A: so {text} A:" for text in CAPTIONS],
                     [f"who? me why? so {text}" for text in CAPTIONS]]
    assert scored == [shown[1]] and learned == [CAPTIONS, [f"who? me {text}" for text in CAPTIONS]]
    assert torch.equal(asked[1], plain)
