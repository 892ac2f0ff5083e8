"""From a sample's fields to the text a language model reads (LAVIS' sample contracts), as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lavis_lite.errors import ConfigError, shown
from lavis_lite.models.blip2.config import few_shot_errors
from lavis_lite.models.plain_text import as_text
from lavis_lite.processors.text import MOST_OCR_TOKENS, lettered, without_marks

SLOT = "{}"
FEW_SHOT = "few_shot_samples"


def as_list(text: Any, batch: int, what: str) -> list[str]:
    """One string per sample, from one string for all or a list.

    Raises:
        ConfigError: a list of another length.
    """
    if isinstance(text, str):
        return [text] * batch
    if not isinstance(text, Sequence):
        raise ConfigError(f"{what}: must be one string for all images, or a list with one for each, not {shown(text)}.")
    if len(text) != batch:
        raise ConfigError(f"{what}: {len(text)} texts for {batch} images; give one string for all, or one for each.")
    return [as_text(item, what) for item in text]


def generation_prompts(samples: Mapping[str, Any], default: str, batch: int) -> list[str]:
    """Prompts of `generate`: samples["prompt"] or the model's own; `{}` takes the OCR tokens where there are any."""
    prompts = as_list(samples.get("prompt", default), batch, "prompt")
    if "ocr_tokens" not in samples:
        return prompts
    tokens = _per_sample(samples["ocr_tokens"], batch, "ocr_tokens")
    return [_fill(prompt, _ocr(row)) if SLOT in prompt else prompt
            for prompt, row in zip(prompts, tokens, strict=True)]


def question_prompts(samples: Mapping[str, Any], prompt: str, batch: int) -> list[str]:
    """Prompts of `predict_answers`: the question in the template's `{}`.

    A template with two `{}` takes OCR tokens and question (samples["ocr_tokens"]), or question and lettered choices
    (samples["choices"]).

    Raises:
        ConfigError: the template has another number of `{}` than there are texts.
    """
    if "text_input" not in samples:
        raise ConfigError(f"predict_answers: the samples have no text_input (the questions), only {sorted(samples)}.")
    questions = as_list(samples["text_input"], batch, "text_input")
    if not prompt:
        return questions
    count = prompt.count(SLOT)
    if count == 1:
        return [_fill(prompt, question) for question in questions]
    if count == 2 and "ocr_tokens" in samples:
        tokens = _per_sample(samples["ocr_tokens"], batch, "ocr_tokens")
        return [_fill(prompt, _ocr(row), question) for row, question in zip(tokens, questions, strict=True)]
    if count == 2 and "choices" in samples:
        choices = _per_sample(samples["choices"], batch, "choices")
        return [_fill(prompt, question, lettered(_texts(row, "choices")))
                for question, row in zip(questions, choices, strict=True)]
    raise ConfigError(f"prompt {shown(prompt)} has {count} places {{}}: one takes the question; two take samples with "
                      "ocr_tokens or choices besides.")


def candidate_prompts(samples: Mapping[str, Any], default: str, batch: int) -> list[str]:
    """Prompts of `predict_class`: question in the template, with context, dialogue history and caption in front."""
    prompts = as_list(samples.get("prompt", default), batch, "prompt")
    if "text_input" in samples:
        texts = _per_sample(samples["text_input"], batch, "text_input")
        prompts = [_fill(prompt, *([text] if isinstance(text, str) else _texts(text, "text_input")))
                   for prompt, text in zip(prompts, texts, strict=True)]
    for key, template in (("context", "context: {}. "), ("history", "dialog history: {}\n"),
                          ("caption", 'This image has the caption "{}". ')):
        given = samples.get(key)
        if given is not None and not (isinstance(given, Sequence) and not any(given)):
            extras = as_list(given, batch, key)
            prompts = [_fill(template, extra) + prompt if extra else prompt
                       for extra, prompt in zip(extras, prompts, strict=True)]
    return prompts


def clean_answers(texts: Sequence[str], lemmatise: Callable[[Sequence[str]], list[str]] | None = None) -> list[str]:
    """Answers as they are scored: the first line of each, without blanks around; then in base form if asked for."""
    lines = [text.strip().split("\n", 1)[0].strip() for text in texts]
    return lines if lemmatise is None else lemmatise(lines)


def split_caption(text: str, uniform: float) -> tuple[str, str]:
    """A caption's words in two for prefix language modelling: (what the encoder reads, what the decoder writes).

    Every place before a word is as likely as the others, so the prefix may be empty and the suffix never is.

    Args:
        text: the caption.
        uniform: a number in [0, 1) that chooses the place.
    """
    words = text.split()
    index = min(int(uniform * len(words)), max(len(words) - 1, 0))
    return " ".join(words[:index]), " ".join(words[index:])


def strip_prompt(text: str, prompt: str) -> str:
    """A caption without the prompt it may begin with (LAVIS' text processors put it there)."""
    prompt = prompt.strip()
    return text.strip().removeprefix(prompt).strip() if prompt else text


def _ocr(tokens: Any) -> str:
    return ", ".join(_texts(tokens, "ocr_tokens")[:MOST_OCR_TOKENS])


def _texts(row: Any, what: str) -> list[str]:
    """One sample's list of texts."""
    if isinstance(row, str) or not isinstance(row, Sequence):
        raise ConfigError(f"{what}: each image has a list of texts, not {shown(row)}.")
    return [as_text(text, what) for text in row]


def _per_sample(rows: Any, batch: int, what: str) -> Sequence[Any]:
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise ConfigError(f"{what}: must be a list with one entry for each image, not {shown(rows)}.")
    if len(rows) != batch:
        raise ConfigError(f"{what}: {len(rows)} rows for {batch} images; give one for each.")
    rows_: Sequence[Any] = rows
    return rows_


def _fill(template: str, *values: str) -> str:
    """Values into the places `{}` in order; other braces stay. Without a place, values have nowhere to go.

    A template may mark control tokens (`lavis_lite.processors.text`); a value cannot.
    """
    parts = template.split(SLOT)
    if len(parts) - 1 != len(values):
        raise ConfigError(f"prompt {shown(template)} has {len(parts) - 1} places {{}} for {len(values)} texts.")
    return "".join(part + without_marks(value) for part, value in zip(parts, [*values, ""], strict=True))


# examples in front of a prompt ----------------------------------------------------------------------------------------
# LAVIS reads few_shot_samples only in the training of InstructBLIP over FlanT5, with a picture for every example; no
# data set of LAVIS yields them. Here examples are text, for every language model, in training and in answering. The
# Q-Former reads the sample's own instruction only, as in LAVIS.
def check_few_shot(count: int, probability: float) -> None:
    """Raise ConfigError for a probability outside 0 to 1, or one above 0 without a number of examples."""
    for key, message in few_shot_errors(count, probability):
        raise ConfigError(f"model.{key}: {message}")


def draw_few_shot(samples: Mapping[str, Any], count: int, probability: float) -> int:
    """How many examples a training batch shows: none, or (with `probability`) 1 to `count`, each as likely (LAVIS)."""
    if probability <= 0 or FEW_SHOT not in samples or float(torch.rand((), dtype=torch.float64)) >= probability:
        return 0
    return int(torch.randint(1, count + 1, ()))


def with_examples(prompts: Sequence[str], samples: Mapping[str, Any], language_model: Any, *, template: str = "",
                  most: int | None = None) -> list[str]:
    """Prompts with their examples in front, as the language model reads them.

    Args:
        prompts: B strings.
        samples: with few_shot_samples (optional): one {text_input: n strings, text_output: n strings (optional)} for
            every sample, or one for all.
        language_model: decides what separates examples: a line break, or a blank before an encoder (T5's
            tokenizer has no line break).
        template: with one `{}`: the examples' text_input goes into it, as the question's does.
        most: examples shown of each sample; None: all.

    Raises:
        ConfigError: not one entry per sample, lists of different lengths, or examples with pictures.
    """
    if FEW_SHOT not in samples or most == 0:
        return list(prompts)
    between = " " if language_model.tokenizer.encoder else "\n"
    given = samples[FEW_SHOT]
    if not isinstance(given, (Mapping, Sequence)):
        raise ConfigError(f"{FEW_SHOT}: give one entry for all images, or a list with one for each, not "
                          f"{shown(given)}.")
    rows = [given] * len(prompts) if isinstance(given, Mapping) else list(given)
    if len(rows) != len(prompts):
        raise ConfigError(f"{FEW_SHOT}: {len(rows)} entries for {len(prompts)} images; give one for all, or one for "
                          "each.")
    return [between.join([*_examples(row, template)[:most], prompt]) for row, prompt in zip(rows, prompts, strict=True)]


def _examples(row: Mapping[str, Any], template: str) -> list[str]:
    """The examples of one sample as they appear in the prompt."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{FEW_SHOT}: an entry is {{text_input: [...], text_output: [...]}}, not {shown(row)}.")
    if "image" in row:
        raise ConfigError(f"{FEW_SHOT}: examples are text here; leave out their pictures (key 'image'). Several "
                          "pictures of one sample go in as a video, float[B,3,T,H,W].")
    questions = _example_texts(row.get("text_input", []))
    answers = _example_texts(row.get("text_output", [""] * len(questions)))
    if len(answers) != len(questions):
        raise ConfigError(f"{FEW_SHOT}: {len(questions)} text_input with {len(answers)} text_output; give as many.")
    if template.count(SLOT) == 1:
        questions = [template.replace(SLOT, question) for question in questions]
    return [f"{question} {answer}".strip() for question, answer in zip(questions, answers, strict=True)]


def _example_texts(texts: Any) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ConfigError(f"{FEW_SHOT}: text_input and text_output are lists of texts, not {shown(texts)}.")
    return [without_marks(as_text(text, FEW_SHOT)) for text in texts]
