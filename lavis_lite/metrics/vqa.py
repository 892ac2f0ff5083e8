"""VQA accuracy as the official evaluation gives it, quirks included; pure functions over strings.

A prediction scores min(1, agreeing annotators / 3), averaged over all ways to leave one annotator out. The official
script cleans prediction and answers only where the annotators are not unanimous; `rule="normalised"` always does.
Leaving one annotator out takes two: for data sets with a single answer per question there is `rule="exact"`.
Scores are fractions in [0, 1] (the script prints percents).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lavis_lite.errors import DataError

Rule = Literal["official", "normalised", "exact", "thirds", "halves"]
Id = int | str
AGREEING = 3
"""annotators that make an answer fully right"""

_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))}}
_ARTICLES = ("a", "an", "the")
_MARKS = ";/[]\"{}()=+\\_-><@`,?!"
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""the script passes a flag where the number of replacements belongs, and so removes this many"""
_CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""


def _without_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:place] + word[place + 1:] for place, letter in enumerate(word) if letter == "'")


_MENDED = {"somebody'd": "somebodyd",  # the script's own slip
           **{broken: word for word in _CONTRACTIONS.split() for broken in _without_one_apostrophe(word)}}


def _clean_marks(text: str) -> str:
    """Marks become blanks, or vanish where the text has one beside a blank or a comma between digits."""
    cleaned, thousands = text, _THOUSANDS.search(text) is not None
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if thousands or beside_blank else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)


@lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """An answer as the official script compares it: marks, case, number words, articles, contractions."""
    words = [_NUMBERS.get(word, word) for word in _clean_marks(text).lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def answer_score(prediction: str, answers: Sequence[str], rule: Rule = "official", answer_ids: bool = True) -> float:
    """Accuracy of one prediction, in [0, 1].

    Args:
        prediction: the model's answer.
        answers: one per annotator.
        rule: official; normalised: clean the texts also where the annotators are unanimous; exact: 1 where the
            cleaned texts are equal for any annotator; thirds: min(1, equal annotators / 3), texts as written
            (A-OKVQA); halves: min(1, equal annotators / 2), texts cleaned (iVQA).
        answer_ids: False gives what the official script does to annotations that lack answer_id: it leaves out all
            equal answers at once and not one annotator.

    An empty prediction scores 0; by the official rule it agrees with an answer of which cleaning leaves nothing ("a").

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("a prediction cannot be scored against no answers")
    prediction = prediction.replace("\n", " ").replace("\t", " ").strip()
    if not prediction and rule != "official":
        return 0.0
    if rule == "thirds":
        return min(1.0, list(answers).count(prediction) / AGREEING)
    if rule != "official" or len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    if rule == "exact":
        return float(prediction in answers)
    counts = Counter(answers)
    agreeing = counts[prediction]
    if rule == "halves":
        return min(1.0, agreeing / 2)
    total = 0.0
    for answer, count in counts.items():
        left = agreeing if answer != prediction else agreeing - 1 if answer_ids else 0
        total += count * min(1.0, left / AGREEING)
    return total / len(answers)


@dataclass(frozen=True)
class Truth:
    """What is known of a question: its annotators' answers, and its types where it has any."""

    answers: Sequence[str]
    question_type: str = ""
    answer_type: str = ""


def question_scores(predictions: Mapping[Id, str], truths: Mapping[Id, Truth], rule: Rule = "official",
                    answer_ids: bool = True) -> dict[Id, float]:
    """`answer_score` of every question by its id.

    Raises:
        DataError: a prediction for an unknown question, or a question without one; both as the official script.
    """
    unknown = [name for name in predictions if name not in truths]
    if unknown:
        raise DataError(f"{len(unknown)} predictions are for unknown questions, the first for question_id "
                        f"{unknown[0]!r}. Score them with the annotations of the split they were made for.")
    bare = [name for name in truths if name not in predictions]
    if bare:
        raise DataError(f"{len(bare)} of {len(truths)} questions have no prediction, the first is question_id "
                        f"{bare[0]!r}; evaluate the whole split.")
    return {name: answer_score(text, truths[name].answers, rule, answer_ids) for name, text in predictions.items()}


def accuracies(scores: Mapping[Id, float], truths: Mapping[Id, Truth]) -> dict[str, float]:
    """Means of per-question scores.

    Returns:
        accuracy; accuracy_answer_<type> and accuracy_question_<type> for the types that occur.

    Raises:
        DataError: there is no question.
    """
    if not scores:
        raise DataError("no question was answered, so there is nothing to score.")
    groups: dict[str, list[float]] = {"accuracy": []}
    for name, score in scores.items():
        truth = truths[name]
        groups["accuracy"].append(score)
        for kind, value in (("answer", truth.answer_type), ("question", truth.question_type)):
            if value:
                groups.setdefault(f"accuracy_{kind}_{_slug(value)}", []).append(score)
    return {name: sum(group) / len(group) for name, group in groups.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def vqa_accuracy(predictions: Mapping[Id, str], truths: Mapping[Id, Truth], rule: Rule = "official",
                 answer_ids: bool = True) -> dict[str, float]:
    """Accuracy of a split, overall and by type; see `question_scores` and `accuracies`."""
    return accuracies(question_scores(predictions, truths, rule, answer_ids), truths)


def gqa_accuracy(predictions: Mapping[Id, str], answers: Mapping[Id, str]) -> float:
    """GQA: share of questions whose answer is the right one once both are cleaned as VQA answers (as LAVIS does).

    Raises:
        DataError: as `question_scores`.
    """
    return vqa_accuracy(predictions, {name: Truth([answer]) for name, answer in answers.items()}, "exact")["accuracy"]


class Majority:
    """Answers without looking: the commonest answer of the training questions.

    Args:
        pairs: (question, its commonest answer) of the training split.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        by_question: dict[str, Counter[str]] = {}
        overall: Counter[str] = Counter()
        for question, answer in pairs:
            by_question.setdefault(question.strip().lower(), Counter())[answer] += 1
            overall[answer] += 1
        if not overall:
            raise DataError("the training split has no answers, so there is no majority to compare with.")
        self.overall = overall.most_common(1)[0][0]
        self.by_question = {question: counts.most_common(1)[0][0] for question, counts in by_question.items()}

    def answer(self, question: str) -> str:
        """The commonest answer to this very question, or of all where it was never asked."""
        return self.by_question.get(question.strip().lower(), self.overall)
