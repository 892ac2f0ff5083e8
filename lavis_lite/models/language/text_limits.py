"""How much text a language model has room for: its positions, known before anything is computed.

A model with learned positions (OPT, GPT-2, BART) has no more of them; one with rotary positions (LLaMA, Qwen) was
trained for so many. T5's are relative: it has no such limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis_lite.errors import ConfigError, TextTooLongError


def positions_of(config: Any) -> int | None:
    """Most tokens in one row of a model (encoder and decoder each), from its configuration; None: any number."""
    text = config.get_text_config()
    if getattr(text, "relative_attention_num_buckets", None) is not None:
        return None
    found = getattr(text, "max_position_embeddings", None)
    return int(found) if isinstance(found, int) and found > 0 else None


@dataclass(frozen=True)
class Room:
    """The positions of a model and what shares them with a prompt.

    Attributes:
        positions: most tokens in a row; None: any number.
        joint: prompt and answer share the positions (decoder-only); else each side has as many.
    """

    positions: int | None
    joint: bool

    def after(self, vectors: int, prompt: int) -> int | None:
        """Most tokens of an answer behind so many vectors and a prompt of so many tokens; None: any number."""
        if self.positions is None:
            return None
        return self.positions - (vectors + prompt if self.joint else 0)

    def check_answer(self, answer: int) -> None:
        """Refuse answers that are longer than the model's positions by themselves.

        Raises:
            ConfigError: as said.
        """
        if self.positions is not None and answer > self.positions:
            raise ConfigError(f"max_new_tokens is {answer}, and this language model has {self.positions} positions; "
                              "ask for fewer tokens.")

    def check_candidates(self, longest: Sequence[int]) -> None:
        """Refuse candidates that are longer than the model's positions by themselves.

        Args:
            longest: tokens of the longest candidate of each of B rows.

        Raises:
            TextTooLongError: names the rows.
        """
        over = {} if self.positions is None else {row: tokens for row, tokens in enumerate(longest)
                                                  if tokens > self.positions}
        if over:
            first = next(iter(over))
            raise TextTooLongError(
                f"{len(over)} of {len(longest)} rows {'has a candidate' if len(over) == 1 else 'have candidates'} too "
                f"long for the language model: one of row {first} has {over[first]} tokens, and there are "
                f"{self.positions} positions. Shorten the candidate or take it out.", over)

    def check_prompts(self, rows: Sequence[Sequence[int]], vectors: int, answers: Sequence[int]) -> None:
        """Refuse prompts that leave no room for their answer.

        Args:
            rows: ids of B prompts.
            vectors: of the soft prompt before each.
            answers: tokens that may follow each prompt: max_new_tokens, or the longest candidate.

        Raises:
            TextTooLongError: names the rows.
        """
        if self.positions is None:
            return
        over = {number: len(row) for number, (row, answer) in enumerate(zip(rows, answers, strict=True))
                if len(row) > self.positions - vectors - (answer if self.joint else 0)}
        if not over:
            return
        first = next(iter(over))
        follows = f" - {answers[first]} for the answer" if self.joint else ""
        room = max(self.positions - vectors - (answers[first] if self.joint else 0), 0)
        raise TextTooLongError(
            f"{len(over)} of {len(rows)} prompts {'is' if len(over) == 1 else 'are'} too long for the language model: "
            f"row {first} has {over[first]} tokens, and there is room for {room} ({self.positions} positions - "
            f"{vectors} vectors of the picture{follows}). Shorten the text or its examples"
            + (", or ask for fewer new tokens (max_new_tokens; run.max_len)." if follows else "."), over)

    def fit_training(self, vectors: int, prompt: int, target: int) -> tuple[int, int]:
        """Most tokens of a prompt, and of prompt and target together (each side by itself: of the target), in training.

        A prompt that shares the positions with its target leaves it at least half the room.

        Args:
            vectors: of the soft prompt.
            prompt: most tokens of a prompt by the settings.
            target: most tokens of a target by the settings.

        Raises:
            ConfigError: the vectors leave no room for text.
        """
        if self.positions is None:
            return prompt, prompt + target if self.joint else target
        room = self.positions - vectors
        if room < 2:
            raise ConfigError(f"{vectors} vectors of the picture leave no room for text in {self.positions} positions "
                              "of the language model: use fewer queries or frames.")
        if not self.joint:
            return min(prompt, room), min(target, self.positions)
        return min(prompt, max(room - target, room // 2)), room
