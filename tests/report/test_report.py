"""The report: its verdict, its JSON, and the way there and back."""

import json
import re
import tomllib

import pytest
import torch
from torch import nn

from pytest_ckptcompat import Recipe, check, custom, rename, tile
from pytest_ckptcompat.core.findings import Finding, Promise, Stage, finding
from pytest_ckptcompat.report import html, terminal
from pytest_ckptcompat.report.advice import RecipeText as Suggestion
from pytest_ckptcompat.report.report import Report

BROKEN = Report(
    "net.pth",
    "onet.Net",
    missing=["a"],
    unexpected=["b", "c"],
    mismatched=[("out2.bias", (4,), (14,))],
    matched=60,
    total=64,
    findings=[
        finding("missing-key", "a", "", "(3,) f32"),
        Finding("unexpected-key", "off", "b", message="waived: r"),
    ],
    promises=[Promise("untouched", "kept", "60 keys")],
    stages=[Stage("open", "passed", "torch-zip")],
    suggestion=Recipe(tile("out2.*", dim=0)),
    recipe=True,
)


ABSENT = finding("no-checkpoint", message="x.pth does not exist")
EMPTY = finding("no-checkpoint", message="runs/x.pth: it is empty: copy it again")
LATER = [
    finding("forward-error", "fc", message="RuntimeError: no"),
    finding("forward-non-finite", message="NaN"),
]
WAIVED = [
    Finding("missing-key", "off", f"extra.{leaf}", message="waived: new") for leaf in ("weight", "bias")
]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"matched": 63, "total": 63}, "x.pth fits onet.Net: 63 of 63 keys match"),
        ({"matched": 63, "total": 63, "recipe": True}, "x.pth fits onet.Net with the recipe: 63 of 63 keys match"),
        ({"matched": 4, "total": 6, "findings": WAIVED}, "x.pth fits onet.Net (2 findings waived): 4 of 6 keys match"),
        ({"total": 3, "findings": LATER}, "x.pth fits onet.Net, but forward-error: fc: RuntimeError: no (and 1 more)"),
        ({"findings": [ABSENT]}, "x.pth was not checked: it does not exist"),
        ({"findings": [EMPTY]}, "x.pth was not checked: it is empty: copy it again"),
    ],
    ids=["fits", "with a recipe", "waivers are not hidden", "fails later", "not checked", "named once"],
)  # fmt: skip
def test_the_verdict_says_what_was_found_first(fields, verdict):
    report = Report("x.pth", "onet.Net", **fields)
    assert report.verdict == verdict
    assert report.ok == (" fits " in verdict and ", but " not in verdict)


def test_the_verdict_of_one_that_does_not_fit_counts_everything():
    counts = "1 mismatched, 1 missing, 2 unexpected (60 of 64 keys match)"
    assert BROKEN.verdict == f"net.pth does not fit onet.Net: {counts}"
    assert not BROKEN.ok


def test_warnings_and_waived_findings_do_not_fail():
    found = [finding("dtype-mismatch", "a"), Finding("missing-key", "off", "b")]
    assert Report("n", "m", findings=found).ok


def test_the_verdict_is_one_safe_line():
    report = Report(
        "n", "m", total=1, findings=[finding("forward-error", "a\x1b[2J\n::error::x", message="two\nlines")]
    )
    assert report.verdict.isprintable()
    assert "\n" not in report.verdict


def test_the_documented_json():
    content = json.loads(BROKEN.to_json())
    assert {
        "schema_version", "ok", "verdict", "checkpoint", "model", "missing", "unexpected", "mismatched", "findings",
        "stages", "suggestion",
    } <= set(content)  # fmt: skip
    assert content["schema_version"] == 1
    assert content["mismatched"] == [{"key": "out2.bias", "checkpoint": [4], "model": [14]}]
    assert content["findings"][0] == {
        "rule": "missing-key", "severity": "error", "key": "a", "checkpoint": "", "model": "(3,) f32", "message": "",
    }  # fmt: skip
    assert content["suggestion"]["python"] == 'Recipe(tile("out2.*", dim=0))'
    assert Recipe.from_toml(content["suggestion"]["toml"]) == BROKEN.suggestion
    assert json.loads(Report("n", "m").to_json())["suggestion"] is None


def test_there_and_back():
    back = Report.of(json.loads(BROKEN.to_json()))
    assert back.to_dict() == BROKEN.to_dict()
    assert str(back) == str(BROKEN)
    assert back.to_markdown() == BROKEN.to_markdown()


def test_a_suggestion_that_has_no_toml_form_is_still_reported(tmp_path):
    """A recipe may call a function without a name, and what is suggested beside it goes on from there."""
    net, path = nn.Linear(3, 4), tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    doubled = custom(lambda state: {**state, "bias": state["bias"] * 2}, touches=["bias"])
    report = check(lambda: nn.Linear(3, 8), path, recipe=Recipe(doubled))
    assert 'tile("bias", dim=0)' in repr(report.suggestion)
    assert json.loads(report.to_json())["suggestion"]["toml"] == ""
    assert "As TOML" not in report.to_markdown()
    assert "as TOML" not in terminal.render(report, table="check.recipe")
    assert "As TOML" not in html.render([("t", report)], "")


@pytest.mark.parametrize("key", ["out2.weight", "x" * 90, "##[group]", "\x1b[31m", "\U0001f600"])
def test_a_suggestion_is_what_the_user_pastes_whole(key):
    suggestion = Recipe(tile(key, dim=0), rename("a", "b"))
    text = terminal.render(Report("n", "m", suggestion=suggestion), 80, table="check.recipe")
    assert text.isascii()
    assert "#" not in text
    shown, told = re.search(r"would make it load:\n(.*?)\n(put it .*)", text, re.DOTALL).groups()
    tables = tomllib.loads(f"[[check]]\nmodel = 'm:n'\n{shown}")["check"][0]["recipe"]
    assert Recipe.from_tables(tables) == suggestion
    assert told == "put it below its [[check]], in place of any recipe there"
    assert "Recipe(" not in text
    python = terminal.render(Report("n", "m", suggestion=suggestion), 60)
    recipe, imports = re.search(
        r"would make it load:\n(.*?)\npass it as .*?:\n(.*)", python, re.DOTALL
    ).groups()
    space = {}
    exec(imports.strip(), space)
    assert eval(recipe.strip(), space) == suggestion


def test_a_long_suggestion_is_never_cut():
    suggestion = Recipe(*(tile(f"layers.{place}.{'x' * 60}", dim=0) for place in range(60)))
    report = Report("n", "m", suggestion=suggestion)
    for verbosity in (-1, 0):
        text = terminal.render(report, 80, verbosity)
        assert text.count("tile(") == 60
        text = terminal.render(report, 80, verbosity, table="recipe")
        assert text.count("[[recipe]]") == 60
        assert "--recipe FILE.toml" in text


def test_many_imports_are_one_a_line():
    names = [
        *("add_prefix", "append", "cast", "drop", "permute"),
        *("rename", "scale", "strip_prefix", "tile", "transpose"),
    ]
    suggestion = Suggestion(f"Recipe({', '.join(f'{name}(1)' for name in names)})", "")
    text = terminal.render(Report("n", "m", suggestion=suggestion), 60)
    assert all(f"        {name}," in text for name in ("Recipe", *names))
    assert max(map(len, text.splitlines())) <= 60
