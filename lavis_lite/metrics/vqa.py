"""VQA answers scored: one function per rule for one answer, and the accuracy of a whole split, overall and by type.

Pure functions over strings. Scores are fractions in [0, 1]; the official scripts print
percents. Most rules are the VQA evaluation's: min(1, agreeing annotators / 3), averaged over the ways to leave one
annotator out. They differ in how they clean texts and whom they leave out. They need two annotators; use `exact` for
data sets with one answer per question.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.metrics.options import written_option

# --- cleaning of answers ----------------------------------------------------------------------------------------------
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
    return (word[:index] + word[index + 1:] for index, letter in enumerate(word) if letter == "'")


_RESTORED = {"somebody'd": "somebodyd",  # the script's own slip
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
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=100_000)
def normalise_textvqa(text: str) -> str:
    """An answer as TextVQA's own evaluator compares it.

    Commas and question marks vanish first, and a possessive 's becomes a word: "s,j,l" is "sjl" and "macy's" is
    "macy 's". What follows is `normalise`; as no comma is left, no text counts as one with thousands separators.

    Source: EvalAIAnswerProcessor of facebookresearch/mmf (pythia, M4C).
    """
    return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def single_line(text: str) -> str:
    """A text with line breaks and tabs as blanks, and no blanks around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


# --- one answer -------------------------------------------------------------------------------------------------------
Rule = Literal["official", "normalised", "textvqa", "vizwiz", "scienceqa", "exact", "thirds", "halves"]
AnswerRule = Literal["official", "normalised", "textvqa", "vizwiz", "scienceqa", "exact", "thirds", "halves", "auto"]
RULES: tuple[str, ...] = get_args(Rule)
LEAVES_ONE_OUT: tuple[str, ...] = ("official", "normalised", "textvqa", "vizwiz")
"""rules that give 0 to every answer if there is one annotator"""
AGREEING = 3
"""agreeing annotators for the full score"""


@dataclass(frozen=True)
class Truth:
    """Answers, types and options of a question.

    Args:
        answers: one for each annotator; for multiple choice the text of the right option.
        question_type: its type; "": unknown.
        answer_type: the type of its answer; "": unknown.
        confidences: `answer_confidence` of each annotator, in the order of `answers` (VizWiz).
        choices: the options of a multiple-choice question, in order.
        label: the index of the right option.
    """

    answers: Sequence[str]
    question_type: str = ""
    answer_type: str = ""
    confidences: Sequence[str] = ()
    choices: Sequence[str] = ()
    label: int | None = None


def answer_score(prediction: str, answers: Sequence[str | Mapping[str, Any]], rule: Rule = "official",
                 answer_ids: bool = True, confidences: Sequence[str] = (), choices: Sequence[str] = ()) -> float:
    """Accuracy of one prediction, in [0, 1].

    Args:
        prediction: the model's answer.
        answers: one for each annotator, or the annotators' official records {answer, answer_confidence, answer_id};
            for multiple choice the text of the right option.
        rule: one of these. official: the VQA script's, which cleans texts only if the annotators differ. normalised:
            the same, but always cleans them. textvqa: TextVQA's own cleaning, always. vizwiz: as official, but equal
            records (answer and confidence) are left out together. scienceqa: 1 if the prediction names the right
            option. exact: 1 if the cleaned prediction equals any cleaned answer. thirds: min(1, equal annotators / 3)
            without cleaning (A-OKVQA). halves: min(1, equal annotators / 2) after cleaning (iVQA).
        answer_ids: False: as the official script for annotations without answer_id, which leaves out all equal answers
            at once instead of one annotator.
        confidences: for vizwiz, each annotator's confidence; absent: those of the records.
        choices: for scienceqa, the options.

    An empty prediction scores 0, with one exception. By official, textvqa and vizwiz it agrees with an answer that
    cleaning makes empty ("a").

    Raises:
        ValueError: there are no answers, or another number of `confidences`.
    """
    if not answers:
        raise ValueError("a prediction cannot be scored against no answers")
    confidences = confidences or confidences_of(answers)
    if confidences and len(confidences) != len(answers):
        raise ValueError(f"{len(confidences)} confidences do not fit {len(answers)} answers")
    texts = [answer["answer"] if isinstance(answer, Mapping) else answer for answer in answers]
    if rule == "official" and not answer_ids:
        rule, confidences = "vizwiz", ()
    return truth_score(prediction, Truth(texts, confidences=confidences, choices=choices), rule)


def chosen_rule(rule: AnswerRule, annotators: Iterable[int]) -> Rule:
    """The rule itself. For `auto`, official if every question has at least four annotators, else exact.

    With fewer annotators no answer could score 1 by the official rule, which leaves one out. A warning tells if a
    minority of the questions decides so: exact gives far higher numbers.

    Args:
        rule: one of RULES, or auto.
        annotators: answers of each question.

    Raises:
        ConfigError: unknown rule; the message names the nearest.
    """
    if rule == "auto":
        few = [count <= AGREEING for count in annotators]
        if few and 0 < sum(few) < len(few) / 2:
            warnings.warn(f"{sum(few)} of {len(few)} questions have fewer than {AGREEING + 1} answers, so the rule "
                          "auto scores all by exact: one annotator's answer is enough. For the VQA accuracy set "
                          "run.vqa_rule=official.", stacklevel=3)
        return "official" if few and not any(few) else "exact"
    if rule not in RULES:
        raise ConfigError(f"unknown rule {rule!r} for answers; {did_you_mean(rule, [*RULES, 'auto'])}")
    return rule


def confidences_of(records: Sequence[Any]) -> list[str]:
    """`answer_confidence` of each annotator's record; [] if no record has it, or the records have an answer_id."""
    objects = [record for record in records if isinstance(record, Mapping)]
    has_ids = any("answer_id" in record for record in objects)
    if has_ids or not any("answer_confidence" in record for record in objects):
        return []
    return [str(record.get("answer_confidence", "")) if isinstance(record, Mapping) else "" for record in records]


def truth_score(prediction: str, truth: Truth, rule: Rule) -> float:
    """`answer_score` of one prediction for its question."""
    return _RULES[rule](single_line(prediction), truth)


def lacking(truth: Truth, rule: Rule) -> str:
    """What a question lacks for a rule, and what to do about it; "" if it lacks nothing."""
    if rule in LEAVES_ONE_OUT and not truth.answers:
        return f"the rule {rule} needs the answers of annotators, but the question has none. Leave the question out"
    if rule == "vizwiz" and len(truth.confidences) not in (0, len(truth.answers)):
        return f"it has {len(truth.confidences)} confidences for {len(truth.answers)} answers"
    if rule == "vizwiz" and not truth.confidences:
        return ("the rule vizwiz needs annotations with answer_confidence and without answer_id. Use VizWiz' own "
                "annotations, or score with the rule official")
    if rule == "scienceqa" and not truth.choices:
        return ("the rule scienceqa needs options, but the question has none. Name their column in columns.choices of "
                "the data set, or score with the rule exact")
    return ""


def _official(prediction: str, truth: Truth) -> float:
    prediction, answers = _cleaned_if_they_differ(prediction, truth)
    return _leaving_one_out(prediction, list(enumerate(answers)))


def _vizwiz(prediction: str, truth: Truth) -> float:
    prediction, answers = _cleaned_if_they_differ(prediction, truth)
    confidences = truth.confidences or [""] * len(answers)
    return _leaving_one_out(prediction, list(zip(confidences, answers, strict=True)))


def _textvqa(prediction: str, truth: Truth) -> float:
    answers = [normalise_textvqa(single_line(answer)) for answer in truth.answers]
    return _leaving_one_out(normalise_textvqa(prediction), list(enumerate(answers)))


def _normalised(prediction: str, truth: Truth) -> float:
    answers = list(enumerate(map(_always_cleaned, truth.answers)))
    return _leaving_one_out(_always_cleaned(prediction), answers) if prediction else 0.0


def _exact(prediction: str, truth: Truth) -> float:
    return float(_agreeing(prediction, truth) > 0)


def _halves(prediction: str, truth: Truth) -> float:
    return min(1.0, _agreeing(prediction, truth) / 2)


def _thirds(prediction: str, truth: Truth) -> float:
    return min(1.0, list(truth.answers).count(prediction) / AGREEING) if prediction else 0.0


def _scienceqa(prediction: str, truth: Truth) -> float:
    chosen = written_option(prediction, truth.choices)
    if chosen is None:
        return 0.0
    return float(chosen == truth.label if truth.label is not None else truth.choices[chosen] in truth.answers)


_RULES: dict[str, Callable[[str, Truth], float]] = {
    "official": _official, "normalised": _normalised, "textvqa": _textvqa, "vizwiz": _vizwiz,
    "scienceqa": _scienceqa, "exact": _exact, "thirds": _thirds, "halves": _halves}


def _leaving_one_out(prediction: str, records: Sequence[tuple[Hashable, str]]) -> float:
    """Mean of min(1, agreeing others / 3) over the annotators; the others are the records that differ.

    Args:
        records: (the identity of an annotator's record, the answer).
    """
    agreeing, equal = sum(answer == prediction for _, answer in records), Counter(records)
    left = (agreeing - equal[record] if record[1] == prediction else agreeing for record in records)
    return sum(min(1.0, count / AGREEING) for count in left) / len(records)


def _cleaned_if_they_differ(prediction: str, truth: Truth) -> tuple[str, Sequence[str]]:
    answers = [single_line(answer) for answer in truth.answers]
    if len(set(answers)) == 1:
        return prediction, answers
    return normalise(prediction), [normalise(answer) for answer in answers]


def _agreeing(prediction: str, truth: Truth) -> int:
    """Annotators with the same text after cleaning."""
    return [*map(_always_cleaned, truth.answers)].count(_always_cleaned(prediction)) if prediction else 0


def _always_cleaned(text: str) -> str:
    """A cleaned text, or the text itself if cleaning leaves nothing: "The" is not the option "A"."""
    return normalise(text) or single_line(text).lower()


__all__ = ["RULES", "AnswerRule", "Id", "Majority", "Rule", "Truth", "accuracies", "answer_score", "gqa_accuracy",
           "normalise", "normalise_textvqa", "question_scores", "vqa_accuracy"]

Id = int | str


def question_scores(predictions: Mapping[Id, str], truths: Mapping[Id, Truth], rule: AnswerRule = "official",
                    answer_ids: bool = True) -> dict[Id, float]:
    """`answer_score` of every question by its id; the rule auto is chosen by the number of annotators.

    Raises:
        ConfigError: there is no such rule.
        DataError: a prediction for an unknown question, or a question without one (both as in the official script). A
            prediction that is not text. A question that lacks what the rule needs.
    """
    rule = chosen_rule(rule, (len(truth.answers) for truth in truths.values()))
    _check_question_ids(predictions, truths)
    for name, text in predictions.items():
        if not isinstance(text, str):
            raise DataError(f"question_id {name!r}: the prediction must be text; it is {text!r}.")
        if reason := lacking(truths[name], rule):
            raise DataError(f"question_id {name!r}: {reason}.")
    if rule == "official" and not answer_ids:
        return {name: answer_score(text, truths[name].answers, rule, False) for name, text in predictions.items()}
    return {name: truth_score(text, truths[name], rule) for name, text in predictions.items()}


def _check_question_ids(predictions: Mapping[Id, str], truths: Mapping[Id, Truth]) -> None:
    """Check that predictions and questions have the same ids."""
    unknown = [name for name in predictions if name not in truths]
    if unknown:
        alike = {str(name): name for name in truths}.get(str(unknown[0]))
        hint = ("Score them with the annotations of the split they were made for." if alike is None else
                f"The annotations have {alike!r}: ids must be numbers in both files, or text in both.")
        what = "1 prediction is for an unknown question" if len(unknown) == 1 else (
            f"{len(unknown)} predictions are for unknown questions")
        raise DataError(f"{what}, the first for question_id {unknown[0]!r}. {hint}")
    bare = [name for name in truths if name not in predictions]
    if bare:
        raise DataError(f"{len(bare)} of {len(truths)} questions have no prediction, the first is question_id "
                        f"{bare[0]!r}; evaluate the whole split.")


def accuracies(scores: Mapping[Id, float], truths: Mapping[Id, Truth]) -> dict[str, float]:
    """Means of per-question scores.

    Returns:
        accuracy, and accuracy_answer_<type> and accuracy_question_<type> for the types that occur.

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


def vqa_accuracy(predictions: Mapping[Id, str], truths: Mapping[Id, Truth], rule: AnswerRule = "official",
                 answer_ids: bool = True) -> dict[str, float]:
    """Accuracy of a split, overall and by type; see `question_scores` and `accuracies`."""
    return accuracies(question_scores(predictions, truths, rule, answer_ids), truths)


def gqa_accuracy(predictions: Mapping[Id, str], answers: Mapping[Id, str]) -> float:
    """GQA: share of right answers after cleaning both texts as VQA answers (as LAVIS does).

    Raises:
        DataError: as `question_scores`.
    """
    return vqa_accuracy(predictions, {name: Truth([answer]) for name, answer in answers.items()}, "exact")["accuracy"]


class Majority:
    """A baseline without images: the most frequent answer of the training questions.

    Args:
        pairs: (question, its most frequent answer) of the training split.
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
        """The most frequent answer to this question, or of all questions if it is new."""
        return self.by_question.get(question.strip().lower(), self.overall)
