"""Facts in which LAVIS' archs over a language model differ, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lavis_lite.models.plain_text import Side


@dataclass(frozen=True)
class ArchDefaults:
    """Facts in which LAVIS' archs differ.

    Attributes:
        family: row of the language model's facts; None: by its type.
        prefix_lm: captions without a text_output are split at random, the first part read, the second learned; else
            the whole caption is learned.
        joint_limit: max_txt_len counts prompt and caption together.
        prompt_side: where a long prompt loses tokens in training.
        max_length, repetition_penalty: defaults of `generate`.
        answer_repetition_penalty, answer_length_penalty: defaults of `predict_answers`.
        counts_start: LAVIS' max_length counts a start token in `generate`; the second value, in `predict_answers`.
    """

    family: str | None = None
    prefix_lm: bool = False
    joint_limit: bool = False
    prompt_side: Side = "left"
    max_length: int = 30
    repetition_penalty: float = 1.0
    answer_repetition_penalty: float = 1.0
    answer_length_penalty: float = 0.0
    counts_start: tuple[bool, bool] = (False, False)

    @staticmethod
    def lengths(longest: int, shortest: int, counts_start: bool) -> dict[str, int]:
        """LAVIS' lengths as numbers of new tokens."""
        return {"max_new_tokens": longest - int(counts_start), "min_new_tokens": max(shortest - 1, 0)}


OPT = ArchDefaults(joint_limit=True, prompt_side="right", counts_start=(True, False))
T5 = ArchDefaults(prefix_lm=True, prompt_side="right", answer_length_penalty=-1.0)
T5_INSTRUCT = replace(T5, prompt_side="left", max_length=256, repetition_penalty=1.5, answer_repetition_penalty=1.5)
VICUNA = ArchDefaults(family="vicuna", joint_limit=True, counts_start=(True, True))
VICUNA_INSTRUCT = replace(VICUNA, joint_limit=False, max_length=256, repetition_penalty=1.5,
                          answer_repetition_penalty=1.5)
