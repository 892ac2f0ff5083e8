"""Base forms of short answers."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lavis_lite.models.blip2.prompts import clean_answers
from lavis_lite.processors import lemmatizer
from lavis_lite.processors.lemmatizer import RULES, Lemmatizer, lemmatise

FORMS = """
two dogs running > two dog run | riding a horse > ride a horse | Babies > Baby | boxes, buses > box, bus
glasses > glass | houses > house | horses > horse | potatoes > potato | knives > knife | waves > wave | vases > vase
sizes > size | olives > olive | movies > movie | children > child | women > woman | feet > foot | mice > mouse
sitting > sit | swimming > swim | falling > fall | passing > pass | adding > add | skating > skate | making > make
eating > eat | sleeping > sleep | walking > walk | chasing > chase | raising > raise | dancing > dance | using > use
celebrating > celebrate | wrestling > wrestle | cycling > cycle | moving > move | hugging > hug | opening > open
changing > change | hanging > hang | buzzing > buzz | skiing > ski | lying down > lie down | flying > fly | tied > tie
parked > park | stopped > stop | baked > bake | carried > carry | opened > open | ate > eat | took > take
brushing teeth > brush tooth | playing tennis > play tennis | watching tv > watch tv
living room > living room | swimming pool > swimming pool | building > building | morning > morning | ceiling > ceiling
yes > yes | no > no | left > left | red > red | bed > bed | grass > grass | tennis > tennis | bus > bus | gas > gas
jeans > jeans | sheep > sheep | people > people | 3:30 > 3:30 | man's > man's | hundred > hundred | string > string
"""


def test_base_forms_by_rules() -> None:
    pairs = [pair.strip().split(" > ") for line in FORMS.strip().splitlines() for pair in line.split(" | ")]
    wrong = {form: lemmatise(form) for form, base in pairs if lemmatise(form) != base}
    assert len(pairs) > 70 and wrong == {}


def test_answers_are_first_lines() -> None:
    assert clean_answers([" two dogs \n and more", "", "\n a cat"]) == ["two dogs", "", "a cat"]
    assert clean_answers(["two dogs"], Lemmatizer()) == ["two dog"]


def test_without_spacy_the_rules_are_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lemmatizer.importlib.util, "find_spec", lambda name: None)
    assert Lemmatizer().source == RULES


def test_with_spacy_nouns_and_verbs_take_its_lemmas(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [SimpleNamespace(text="the", lemma_="THE", pos_="DET"), SimpleNamespace(text="dogs", lemma_="dog",
                                                                                    pos_="NOUN")]
    spacy = ModuleType("spacy")
    spacy.load = lambda name: lambda text: tokens  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    monkeypatch.setattr(lemmatizer.importlib.util, "find_spec", lambda name: object())
    found = Lemmatizer()
    assert found.source == "spaCy en_core_web_sm" and found(["the dogs"]) == ["the dog"]
