"""Errors: their family, their words, and the suggestions in them."""

from __future__ import annotations

import inspect

import pytest

from lavis_lite import errors
from lavis_lite.errors import (
    ErrorList,
    LavisLiteError,
    MissingExtraError,
    RegistryError,
    counted,
    did_you_mean,
    listed,
    nearest,
)

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_a_user_error_with_a_docstring(cls: type) -> None:
    assert issubclass(cls, LavisLiteError)
    assert cls.__doc__


def test_standard_families_are_kept_for_callers_who_catch_them() -> None:
    assert issubclass(RegistryError, KeyError)
    assert issubclass(MissingExtraError, ImportError)


def test_registry_error_is_not_quoted() -> None:
    assert str(RegistryError("unknown model 'x'")) == "unknown model 'x'"
    assert str(RegistryError()) == ""


def test_errors_are_numbered_and_kept() -> None:
    error = ErrorList("a.yaml has", ["first.", "second."])
    assert str(error) == "a.yaml has 2 errors:\n  1. first.\n  2. second."
    assert error.errors == ["first.", "second."]
    assert str(ErrorList("a.yaml has", ["only."])).startswith("a.yaml has 1 error:")


def test_nearest_puts_the_best_first() -> None:
    assert nearest("max_epohc", ["max_iters", "max_epoch", "min_lr"])[0] == "max_epoch"
    assert nearest("zzz", ["max_iters"]) == []


def test_did_you_mean_suggests() -> None:
    assert did_you_mean("blip2_op", ["blip2_opt", "albef"]) == "did you mean 'blip2_opt'?"


def test_did_you_mean_lists_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "choose one of: a, b."
    assert did_you_mean("zzz", []) == "there is nothing to choose from."


def test_lists_are_cut_and_numbers_have_their_noun() -> None:
    assert listed(["a", "b"], 2) == "a, b" and listed([1, 2, 3], 2) == "1, 2 and 1 more"
    assert listed(["a: 1", "b: 2"], 2, "; ", total=9) == "a: 1; b: 2 and 7 more"
    assert (counted(0, "error"), counted(1, "error"), counted(2, "error")) == ("0 errors", "1 error", "2 errors")


def test_did_you_mean_cuts_long_lists() -> None:
    clause = did_you_mean("zzz", [f"name{number:02}" for number in range(30)], most=3)
    assert clause == "choose one of: name00, name01, name02, ... (30 in all)."
