"""What a report says that can be done: a recipe, a part of one, a choice, or nothing."""

from __future__ import annotations

import json

import pytest

from pytest_ckptcompat.recipes.operators import drop, strip_prefix, tile
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.report import html, markdown, terminal
from pytest_ckptcompat.report.advice import Remedy, advice, named
from pytest_ckptcompat.report.report import Report

GROW = Recipe(tile("fc.*", dim=0))


def said(suggestion=None, remedy=None, declared=False):
    return list(advice(suggestion, remedy, declared=declared))


def test_without_a_search_nothing_is_said():
    assert said() == []


def test_nothing_found_is_said_in_one_line():
    (only,) = said(remedy=Remedy(unexplained=["fc.weight"]))
    assert only.recipe is None
    assert only.sentence == "No recipe was found that would make it load."


def test_a_part_is_called_a_part_and_the_rest_is_named():
    (only,) = said(remedy=Remedy(partial=GROW, unexplained=["odd.0.weight", "odd.1.weight", "x.bias"]))
    assert only.recipe is not None
    assert "part of it" in only.sentence
    assert only.notes == ["No recipe was found for the rest: odd.{0,1}.weight and x.bias."]


def test_choices_are_all_shown():
    choices = [Recipe(strip_prefix("a.")), Recipe(strip_prefix("b."))]
    first, *others = said(remedy=Remedy(choices=choices))
    assert "Each of these 2 recipes" in first.sentence
    assert [each.recipe.python for each in others] == list(map(repr, choices))


def test_of_many_keys_a_few_are_named():
    keys = [f"{chr(97 + i)}{leaf}" for i in range(20) for leaf in ("x", "y")]
    assert named(keys).endswith(" and 34 more keys")
    assert named([]) == ""


REPORTS = {
    "whole": Report("c", "m", suggestion=GROW, remedy=Remedy(notes=("It drops trained weights: aux.*.",))),
    "part": Report("c", "m", remedy=Remedy(partial=GROW, unexplained=("odd.weight",))),
    "choice": Report("c", "m", remedy=Remedy(choices=[GROW, Recipe(drop("x"))])),
    "none": Report("c", "m", remedy=Remedy(unexplained=("odd.weight",), notes=("The search was stopped.",))),
    "no search": Report("c", "m"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_form_says_it(name):
    report = REPORTS[name]
    forms = [
        terminal.render(report, 80),
        markdown.render(report),
        html.render([("test", report)], "checks"),
    ]
    for text in forms:
        for each in report.advice:
            assert each.sentence.rstrip(":.")[1:] in text
            assert each.recipe is None or "tile(" in text
            for note in each.notes:
                assert note.rstrip(".").split()[-1].split(".")[0] in text


@pytest.mark.parametrize("name", REPORTS)
def test_it_comes_back_from_another_process(name):
    report = REPORTS[name]
    again = Report.of(json.loads(report.to_json()))
    assert again.advice == report.advice
    assert again.to_json() == report.to_json()
