"""Examples in front of a prompt, as text: in-context learning with `samples["few_shot_samples"]`.

LAVIS reads this key in the training of InstructBLIP over FlanT5 alone, where every example brings a picture of its own;
no data set of LAVIS yields it. Here examples are text, for every language model, in training and in answering: that is
what a prompt can show of other pictures. The Q-Former reads the sample's own instruction only, as in LAVIS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lavis_lite.errors import ConfigError, shown
from lavis_lite.models.blip2.prompts import PLACE
from lavis_lite.models.plain_text import as_text
from lavis_lite.processors.control import without_marks

if TYPE_CHECKING:
    from lavis_lite.models.language.contract import LanguageModel

KEY = "few_shot_samples"


def check_settings(count: int, probability: float) -> None:
    """Refuse settings that cannot be.

    Args:
        count: model.num_few_shot_examples.
        probability: model.few_shot_prob.

    Raises:
        ConfigError: a probability that is none, or one above 0 without a number of examples.
    """
    if not 0 <= probability <= 1:
        raise ConfigError(f"model.few_shot_prob: must be between 0 and 1, not {probability}.")
    if count < 0 or (probability > 0 and count < 1):
        raise ConfigError(f"model.num_few_shot_examples: must be at least {int(probability > 0)} where "
                          f"model.few_shot_prob is {probability}, not {count}.")


def draw_count(samples: Mapping[str, Any], count: int, probability: float) -> int:
    """How many examples a training batch shows: none, or (with `probability`) 1 to `count`, each as likely (LAVIS)."""
    if probability <= 0 or KEY not in samples or float(torch.rand((), dtype=torch.float64)) >= probability:
        return 0
    return int(torch.randint(1, count + 1, ()))


def with_examples(prompts: Sequence[str], samples: Mapping[str, Any], language_model: LanguageModel, *,
                  template: str = "", most: int | None = None) -> list[str]:
    """Prompts with their examples in front, as the language model reads them.

    Args:
        prompts: B strings.
        samples: with few_shot_samples (optional): one {text_input: n strings, text_output: n strings (optional)} for
            every sample, or one for all.
        language_model: decides what stands between examples: a line break, or a blank before an encoder (T5's
            tokenizer has no line break).
        template: with one `{}`: the examples' text_input goes into it, as the question's does.
        most: examples shown of each sample; None: all.

    Raises:
        ConfigError: not one entry per sample, lists of different lengths, or examples with pictures.
    """
    if KEY not in samples or most == 0:
        return list(prompts)
    between = " " if language_model.tokenizer.encoder else "\n"
    given = samples[KEY]
    if not isinstance(given, (Mapping, Sequence)):
        raise ConfigError(f"{KEY}: give one entry for all images, or a list with one for each, not {shown(given)}.")
    rows = [given] * len(prompts) if isinstance(given, Mapping) else list(given)
    if len(rows) != len(prompts):
        raise ConfigError(f"{KEY}: {len(rows)} entries for {len(prompts)} images; give one for all, or one for each.")
    return [between.join([*_texts(row, template)[:most], prompt]) for row, prompt in zip(rows, prompts, strict=True)]


def _texts(row: Mapping[str, Any], template: str) -> list[str]:
    """The examples of one sample as they stand in the prompt."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{KEY}: an entry is {{text_input: [...], text_output: [...]}}, not {shown(row)}.")
    if "image" in row:
        raise ConfigError(f"{KEY}: examples are text here; leave out their pictures (key 'image'). Several pictures "
                          "of one sample go in as a video, float[B,3,T,H,W].")
    questions = _list(row.get("text_input", []))
    answers = _list(row.get("text_output", [""] * len(questions)))
    if len(answers) != len(questions):
        raise ConfigError(f"{KEY}: {len(questions)} text_input with {len(answers)} text_output; give as many.")
    if template.count(PLACE) == 1:
        questions = [template.replace(PLACE, question) for question in questions]
    return [f"{question} {answer}".strip() for question, answer in zip(questions, answers, strict=True)]


def _list(texts: Any) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ConfigError(f"{KEY}: text_input and text_output are lists of texts, not {shown(texts)}.")
    return [without_marks(as_text(text, KEY)) for text in texts]
