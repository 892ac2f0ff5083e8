"""Answers in their base form: "two dogs running" -> "two dog run", as LAVIS' `apply_lemmatizer` asks for.

LAVIS takes spaCy's lemmas of nouns and verbs. Where spaCy and its model en_core_web_sm are installed they are used
here too. Otherwise rules and small tables for the short answers of visual question answering are used. They know no
parts of speech, so words that are rarely nouns or verbs in such answers ("left", "living room") are in tables.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

SPACY_MODEL = "en_core_web_sm"
RULES = "rules of this package"
_log = logging.getLogger(__name__)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(">") for pair in text.split())


IRREGULAR = _pairs(
    # nouns
    "men>man women>woman children>child feet>foot teeth>tooth mice>mouse geese>goose oxen>ox dice>die "
    "knives>knife leaves>leaf wolves>wolf shelves>shelf loaves>loaf halves>half calves>calf wives>wife lives>life "
    "thieves>thief scarves>scarf hooves>hoof firemen>fireman policemen>policeman snowmen>snowman "
    "buses>bus gases>gas lenses>lens viruses>virus cactuses>cactus octopuses>octopus walruses>walrus canvases>canvas "
    "movies>movie cookies>cookie brownies>brownie zombies>zombie ties>tie pies>pie hoodies>hoodie selfies>selfie "
    "smoothies>smoothie veggies>veggie calories>calorie shoes>shoe toes>toe canoes>canoe horseshoes>horseshoe "
    "aches>ache headaches>headache axes>axe quizzes>quiz "
    # verbs
    "went>go gone>go ran>run sat>sit ate>eat eaten>eat flew>fly flown>fly held>hold stood>stand wore>wear worn>wear "
    "rode>ride ridden>ride drove>drive driven>drive threw>throw thrown>throw caught>catch took>take taken>take "
    "made>make bought>buy brought>bring came>come fell>fall fallen>fall gave>give given>give grew>grow grown>grow "
    "lost>lose seen>see sent>send slept>sleep sold>sell spoke>speak spoken>speak swam>swim swum>swim told>tell "
    "thought>think wrote>write written>write drawn>draw drank>drink kept>keep built>build hung>hang won>win "
    "lying>lie dying>die tying>tie lied>lie died>die tied>tie skiing>ski skied>ski "
    "bathing>bathe breathing>breathe travelling>travel "
    "travelled>travel controlling>control controlled>control picnicking>picnic")
UNCHANGED = frozenset(
    # end like a plural
    "yes this his its us was is has does as bus gas lens news series species always christmas texas paris dallas "
    "kansas vegas canvas atlas jeans pants shorts scissors sunglasses clothes trousers tongs pliers binoculars pajamas "
    "overalls leggings tights stairs mathematics physics gymnastics athletics "
    # end like a verb's form
    "morning evening ceiling building king ring wing string spring thing nothing something anything everything wedding "
    "painting clothing railing pudding earring sing bring swing sling sting ping fling cling during viking awning "
    "sibling icing frosting stuffing lightning being "
    "red bed shed sled need seed feed speed weed reed bleed breed hundred naked wicked sacred fed led wed bobsled "
    "moped unmanned shred tired bored aged fried striped".split())
MODIFIERS = frozenset("room pool lot machine board cart bag suit pan shoe shoes meter meters garage center mall stick "
                      "pad area ground wall star dress ring hall court match gear glove gloves".split())
"""after these a form in -ing says of what kind the thing is ("living room"): it stays"""
SILENT_E = frozenset("prepar explor compar admir compet invit decid excit creat retir requir provid divid escap chang "
                     "arrang plung lung cring clos us".split())
"""stems of more than one syllable, or of unusual form, that lost an e"""
DOUBLED = frozenset("add egg err purr".split())
"""verbs that end in a doubled consonant anyway"""


def lemma(word: str) -> str:
    """Base form of one lower-case word, by rules.

    Nouns lose their plural; verbs lose -s, -ing and -ed, with doubled consonants and lost e put right.
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in UNCHANGED or len(word) < 4 or "'" in word:
        return word
    if word.endswith("ied"):
        return word[:-3] + "y"
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word:
            good = re.search("[aeiouy]", stem) and len(stem) > 1 and not word.endswith("eed")
            return _verb(stem) if good else word
    return _singular(word)


def _verb(stem: str) -> str:
    """A verb from what is left without -ing or -ed."""
    if stem in DOUBLED:
        return stem
    if stem in SILENT_E:
        return stem + "e"
    if re.search(r"([^aeioulszf])\1$", stem):  # running, but falling, passing
        return stem[:-1]
    lost = (r"^[^aeiouy]*[aeiouy][^aeiouwxy]$"  # riding: one syllable; where no e was lost the consonant is doubled
            r"|[^aeiou]at$|i[zs]$|[bcdfgkptz]l$|[vcu]$|[dr]g$|[aeiou][sz]$")
    return stem + "e" if re.search(lost, stem) else stem


def _singular(word: str) -> str:
    """A noun without its plural (or a verb without its -s)."""
    if not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return word[:-2]
    return word[:-1]


def lemmatise(text: str) -> str:
    """Every word of a text in its base form, by rules; all else stays as it is."""
    words = list(_WORD.finditer(text))
    out, end = [], 0
    for index, match in enumerate(words):
        word, following = (words[at].group().lower() if at < len(words) else "" for at in (index, index + 1))
        base = word if word.endswith("ing") and following in MODIFIERS else lemma(word)
        out += [text[end:match.start()], base.capitalize() if match.group()[0].isupper() else base]
        end = match.end()
    return "".join([*out, text[end:]])


class Lemmatizer:
    """Answers -> answers in base form.

    Attributes:
        source: what does it: spaCy's model, or the rules above.
    """

    def __init__(self) -> None:
        pipeline = _spacy_pipeline()
        self.source = RULES if pipeline is None else f"spaCy {SPACY_MODEL}"
        self._one: Callable[[str], str] = lemmatise if pipeline is None else lambda text: _by_spacy(pipeline, text)
        _log.info("lemmatizer of answers: %s", self.source)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Base forms of every text."""
        return [self._one(text) for text in texts]


@lru_cache(maxsize=1)
def shared_lemmatizer() -> Lemmatizer:
    """The one lemmatizer of this process, made when it is first needed."""
    return Lemmatizer()


def has_spacy() -> bool:
    """Whether spaCy and its English model are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("spacy", SPACY_MODEL))


def _spacy_pipeline() -> Any:
    """spaCy's English model, or None where it is not installed. Nothing is downloaded."""
    if not has_spacy():
        return None
    import spacy

    return spacy.load(SPACY_MODEL)


def _by_spacy(pipeline: Any, text: str) -> str:
    """Lemmas of nouns and verbs, all other tokens as they are, with blanks between them (LAVIS)."""
    return " ".join(token.lemma_ if token.pos_ in ("NOUN", "VERB") else token.text for token in pipeline(text))
