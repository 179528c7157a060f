"""The command ``ckptcompat rules``."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

from .options import JSON, option
from .output import OK, Outcome, columns, table

if TYPE_CHECKING:
    import argparse

    from pytest_ckptcompat.core.rules import Rule

SUMMARY = "list the rules, or explain one: meaning, example, remedy"
EXITS = "0 listed, 2 no such rule"
OPTIONS = (option("rule", metavar="RULE", nargs="?", help="the id of the rule to explain"), JSON)


def run(options: argparse.Namespace) -> Outcome:
    """Return the list of rules, or one rule in full.

    Raises:
        ValueError: there is no such rule.
    """
    from pytest_ckptcompat.core.rules import RULES, unknown

    if options.rule is not None and options.rule not in RULES:
        raise ValueError(unknown(options.rule))
    rules = list(RULES.values()) if options.rule is None else [RULES[options.rule]]
    if options.json:
        return Outcome(OK, json.dumps({"schema_version": 1, "rules": list(map(_plain, rules))}, indent=2))
    if options.rule is not None:
        return Outcome(OK, _explained(rules[0]))
    rows = [(rule.id, rule.severity, rule.meaning) for rule in rules]
    return Outcome(OK, table(("rule", "severity", "meaning"), rows))


def _plain(rule: Rule) -> dict[str, str]:
    plain = rule._asdict()
    del plain["stage"]
    return plain


def _explained(rule: Rule) -> str:
    width = columns()
    parts = ("meaning", f"{rule.meaning}."), ("example", rule.example), ("remedy", rule.remedy)
    lines = [f"{rule.id} ({rule.severity})"]
    for name, text in parts:
        said = text[0].upper() + text[1:]
        lines += textwrap.wrap(said, width, initial_indent=f"{name + ':':9}", subsequent_indent=" " * 9)
    return "\n".join(lines)
