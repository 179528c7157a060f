"""Render the reports of a run as one self-contained HTML page, complete without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from html import escape as quoted
from importlib.resources import files
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape

from .advice_text import python_lines
from .html_elements import safe, said, tag
from .module_tree import FITS, Leaf, Module, leaves, tree
from .rows import stage_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_ckptcompat.core.findings import Promise, Stage

    from .advice import Advice
    from .facts import Facts

MOST_ROWS = 20_000
"""The most rows of a report on the page; a browser can still search as many at once."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check of the run.

    Attributes:
        title: the title of the check, such as a test's id.
        report: the report of the check.
        fitting: key -> shape and dtype (``"(64, 3, 7, 7) f32"``) of the keys that fit, so that the page shows
            the whole model; without them it shows only the findings.
    """

    title: str
    report: Facts
    fitting: Mapping[str, str] = field(default_factory=dict)


def render(checks: Sequence[Check], heading: str) -> str:
    """Render the page, with failed checks first.

    Args:
        checks: the reports.
        heading: the outcome of the run in one line.
    """
    checks = sorted(checks, key=lambda check: check.report.ok)
    found = [leaves(check.report, check.fitting) for check in checks]
    heading = safe(f"Checkpoints: {heading}")
    style, script = _own("page.css"), _own("page.js")
    # Only the page's own script and style may run, whatever the names of a checkpoint's keys.
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head>',
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{heading}</title>",
            f"<style>{style}</style>",
            "</head><body>",
            f"<h1>{heading}</h1>",
            _contents(checks),
            _tools(leaf for each in found for leaf in each if leaf.pattern),
            *(_section(place, check, found[place]) for place, check in enumerate(checks)),
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# -- parts --------------------------------------------------------------------------------------------------


def _contents(checks: Sequence[Check]) -> str:
    if len(checks) < 2:
        return ""
    lines = (
        tag(
            "li",
            _sign(check.report),
            tag("a", safe(check.title), href=f"#check-{place}"),
            f" {said(check.report.verdict)}",
            class_=_status(check.report),
        )
        for place, check in enumerate(checks)
    )
    return tag("nav", tag("ul", *lines))


def _tools(found: Iterable[Leaf]) -> str:
    """Return the controls that need the script, hidden until it runs."""
    counts = Counter[str]()
    for leaf in found:
        counts[leaf.rule] += leaf.count
    return tag(
        "div",
        tag("input", type="search", id="search", placeholder="Search keys ( / )", aria_label="Search keys"),
        *(
            tag("button", f"{safe(rule)} {count:,}", type="button", data_filter=rule, aria_pressed="true")
            for rule, count in sorted(counts.items())
        ),
        tag("button", "open all", type="button", data_open="all"),
        tag("button", "close all", type="button", data_open="none"),
        tag("span", id="found", role="status"),
        id="tools",
        hidden=True,
    )


def _section(place: int, check: Check, found: Sequence[Leaf]) -> str:
    report = check.report
    return tag(
        "section",
        tag("h2", _sign(report), said(report.verdict)),
        tag("p", safe(check.title), class_="nodeid"),
        _sentences([leaf for leaf in found if not leaf.pattern]),
        _advice(place, report),
        _keys([leaf for leaf in found if leaf.pattern], report.side),
        _outcomes("Promises of the recipe", "promise", report.promises),
        _outcomes("Stages", "stage", stage_rows(report.stages)),
        id=f"check-{place}",
        class_=_status(report),
    )


def _sentences(found: Sequence[Leaf]) -> str:
    """Return the findings without a key."""
    lines = (
        tag(
            "li",
            tag("span", safe(leaf.rule), class_="rule"),
            " ",
            said(" ".join(filter(None, [leaf.checkpoint, leaf.model, leaf.message]))),
            class_=leaf.severity,
        )
        for leaf in found
    )
    return tag("ul", *lines, class_="said") if found else ""


def _advice(place: int, report: Facts) -> str:
    return "\n".join(
        line for number, each in enumerate(report.advice) for line in _advised(f"{place}-{number}", each)
    )


def _advised(place: str, advice: Advice) -> Iterator[str]:
    yield tag("h3", advice.sentence.rstrip(":."))
    if advice.recipe is not None:
        python, toml = "\n".join(python_lines(advice.recipe, 100)), advice.recipe.toml
        yield tag("pre", tag("code", quoted(python), id=f"python-{place}"))
        yield tag("button", "copy", type="button", data_copy=f"python-{place}", hidden=True)
        if toml:
            yield tag(
                "details",
                tag("summary", "As TOML, for a recipe file"),
                tag("pre", tag("code", quoted(toml))),
            )
    yield from (tag("p", said(note)) for note in advice.notes)


def _outcomes(title: str, name: str, outcomes: Iterable[Promise | Stage]) -> str:
    lines = [
        tag(
            "tr",
            tag("td", said(each.name)),
            tag("td", each.status, class_=each.status),
            tag("td", said(each.detail)),
        )
        for each in outcomes
    ]
    heads = tag("tr", *(tag("th", head) for head in (name, "status", "detail")))
    table = tag("table", tag("thead", heads), tag("tbody", *lines))
    return f"{tag('h3', title)}\n{table}" if lines else ""


# -- the tree of modules ------------------------------------------------------------------------------------

_WORDS = {"error": "wrong", "warn": "doubtful", "off": "waived", FITS: "fit"}


def _keys(found: Sequence[Leaf], side: str) -> str:
    if not found:
        return ""
    heads = (tag("span", head) for head in ("key", "rule", side, "model"))
    more = sum(leaf.count for leaf in found[MOST_ROWS:])
    return "\n".join(
        [
            tag("h3", "Keys"),
            tag("div", *heads, class_="heads"),
            tag("ul", _inside(tree(found[:MOST_ROWS])), class_="tree"),
            tag("p", f"{more:,} more keys are in the JSON report.") if more > 0 else "",
        ]
    )


def _inside(module: Module) -> str:
    return "\n".join(
        [
            *(_leaf(name, leaf) for name, leaf in module.sorted_leaves()),
            *(_module(each.shortened()) for each in module.sorted_modules()),
        ]
    )


def _module(module: Module) -> str:
    count = module.count()
    counts = (
        tag("b", f"{number:,} {_WORDS[severity]}", class_=severity)
        for severity, number in count.items()
        if number
    )
    summary = tag(
        "summary",
        tag("span", safe(module.name), class_="name"),
        " ",
        tag("span", *counts, class_="counts"),
    )
    is_open = count["error"] + count["warn"] > 0
    return tag("li", tag("details", summary, tag("ul", _inside(module)), open=is_open))


def _leaf(name: str, leaf: Leaf) -> str:
    times = tag("span", f" \N{MULTIPLICATION SIGN}{leaf.count:,}", class_="times") if leaf.count > 1 else ""
    return tag(
        "li",
        tag("span", safe(name), times, class_="name"),
        tag("span", safe(leaf.rule), class_="rule"),
        *(tag("span", side, class_="side") for side in _sides(leaf)),
        tag("span", said(leaf.message), class_="message") if leaf.message else "",
        class_=f"leaf {leaf.severity}",
        data_rule=leaf.rule,
        data_key=leaf.pattern,
        data_count=str(leaf.count),
    )


_ONE_SIDED = {"missing-key", "unexpected-key", "rollback-missing", "rollback-unexpected"}


def _sides(leaf: Leaf) -> tuple[str, str]:
    """Return both sides with different sizes marked, or a missing side marked as absent."""
    checkpoint, model = leaf.checkpoint, leaf.model
    if not (checkpoint and model):
        absent = tag("span", "absent", class_="absent") if leaf.rule in _ONE_SIDED else ""
        return safe(checkpoint) or absent, safe(model) or absent
    old, new = (re.findall(r"\w+|\W+", escape(side, 1000)) for side in (checkpoint, model))
    if len(old) != len(new):
        return safe(checkpoint), safe(model)
    pairs = [(word, other) for word, other in zip(old, new, strict=True)]
    return _marked(pairs), _marked([(other, word) for word, other in pairs])


def _marked(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(quoted(word) if word == other else tag("mark", quoted(word)) for word, other in pairs)


def _status(report: Facts) -> str:
    return "ok" if report.ok else "error"


def _sign(report: Facts) -> str:
    return tag("span", "✓" if report.ok else "✗", class_="sign")
