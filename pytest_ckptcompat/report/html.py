"""Render the reports of a run as one self-contained HTML page, complete without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html import escape as quoted
from importlib.resources import files
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape, printable
from pytest_ckptcompat.core.keys import natural

from .advice_text import python_lines
from .module_tree import Module, leaves, tree
from .rows import FITS, Row, stage_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_ckptcompat.core.findings import Promise, Stage

    from .advice import Advice
    from .facts import Facts

MOST_ROWS = 20_000
"""The most rows of a report on the page; a browser can still search as many at once."""


def render(checks: Sequence[tuple[str, Facts]], heading: str) -> str:
    """Render the page, with failed checks first.

    Args:
        checks: (title, such as a test's id, and report) of each check. A report with its `fitting` keys is
            shown as the whole model, otherwise only the findings are.
        heading: the outcome of the run in one line.
    """
    checks = sorted(checks, key=lambda check: check[1].ok)
    found = [leaves(report) for _, report in checks]
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
            _tools(row for each in found for row in each if row.pattern),
            *(_section(place, *check, found[place]) for place, check in enumerate(checks)),
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# -- parts --------------------------------------------------------------------------------------------------


def _contents(checks: Sequence[tuple[str, Facts]]) -> str:
    if len(checks) < 2:
        return ""
    lines = (
        tag(
            "li",
            _sign(report),
            tag("a", safe(title), href=f"#check-{place}"),
            f" {said(report.verdict)}",
            class_=_status(report),
        )
        for place, (title, report) in enumerate(checks)
    )
    return tag("nav", tag("ul", *lines))


def _tools(found: Iterable[Row]) -> str:
    """Return the controls that need the script, hidden until it runs."""
    counts = Counter[str]()
    for row in found:
        counts[row.rule] += len(row.keys)
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


def _section(place: int, title: str, report: Facts, found: Sequence[Row]) -> str:
    return tag(
        "section",
        tag("h2", _sign(report), said(report.verdict)),
        tag("p", safe(title), class_="nodeid"),
        _sentences([row for row in found if not row.pattern]),
        _advice(place, report),
        _keys([row for row in found if row.pattern], report.side),
        _outcomes("Promises of the recipe", "promise", report.promises),
        _outcomes("Stages", "stage", stage_rows(report.stages)),
        id=f"check-{place}",
        class_=_status(report),
    )


def _sentences(found: Sequence[Row]) -> str:
    """Return the findings without a key."""
    lines = (
        tag(
            "li",
            tag("span", safe(row.rule), class_="rule"),
            " ",
            said(" ".join(filter(None, [row.checkpoint, row.model, row.message]))),
            class_=row.severity,
        )
        for row in found
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


def _keys(found: Sequence[Row], side: str) -> str:
    if not found:
        return ""
    heads = (tag("span", head) for head in ("key", "rule", side, "model"))
    more = sum(len(row.keys) for row in found[MOST_ROWS:])
    return "\n".join(
        [
            tag("h3", "Keys"),
            tag("div", *heads, class_="heads"),
            tag("ul", _inside(tree(found[:MOST_ROWS])), class_="tree"),
            tag("p", f"{more:,} more keys are in the JSON report.") if more > 0 else "",
        ]
    )


def _inside(module: Module) -> str:
    keys = sorted(module.leaves, key=lambda each: (natural(each[0]), each[1].rule))
    modules = sorted(module.modules.values(), key=lambda each: natural(each.name))
    return "\n".join(
        [*(_leaf(name, row) for name, row in keys), *(_module(each.shortened()) for each in modules)]
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


def _leaf(name: str, row: Row) -> str:
    times = tag("span", row.times, class_="times") if row.times else ""
    return tag(
        "li",
        tag("span", safe(name), times, class_="name"),
        tag("span", safe(row.rule), class_="rule"),
        *(tag("span", side, class_="side") for side in _sides(row)),
        tag("span", said(row.message), class_="message") if row.message else "",
        class_=f"leaf {row.severity}",
        data_rule=row.rule,
        data_key=row.pattern,
        data_count=str(len(row.keys)),
    )


_ONE_SIDED = {"missing-key", "unexpected-key", "rollback-missing", "rollback-unexpected"}


def _sides(row: Row) -> tuple[str, str]:
    """Return both sides with different sizes marked, or a missing side marked as absent."""
    checkpoint, model = row.checkpoint, row.model
    if not (checkpoint and model):
        absent = tag("span", "absent", class_="absent") if row.rule in _ONE_SIDED else ""
        return safe(checkpoint) or absent, safe(model) or absent
    old, new = (re.findall(r"\w+|\W+", escape(side, 1000)) for side in (checkpoint, model))
    if len(old) != len(new):
        return safe(checkpoint), safe(model)
    pairs = list(zip(old, new, strict=True))
    return _marked(pairs), _marked([(other, word) for word, other in pairs])


def _marked(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(quoted(word) if word == other else tag("mark", quoted(word)) for word, other in pairs)


def _status(report: Facts) -> str:
    return "ok" if report.ok else "error"


def _sign(report: Facts) -> str:
    return tag("span", "✓" if report.ok else "✗", class_="sign")


# -- elements -----------------------------------------------------------------------------------------------


def tag(name: str, *inside: str, **attributes: str | bool) -> str:
    """Return an element. `inside` is HTML, attributes are any text (``data_key=`` becomes data-key)."""
    written = "".join(
        f" {attribute.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{safe(value)}"')
        for attribute, value in attributes.items()
        if value is not False
    )
    return f"<{name}{written}>" if name == "input" else f"<{name}{written}>{''.join(inside)}</{name}>"


def safe(text: str | bool) -> str:
    """Escape text from a file."""
    return quoted(escape(str(text), 1000))


def said(text: str) -> str:
    """Escape text of our own."""
    return quoted(printable(text))
