"""Severities as the user wants them, and findings that are known and accepted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.keys import matches, nearest
from pytest_ckptcompat.core.rules import RULES, Severity, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Waiver:
    """A finding that is known and accepted, with a reason and, perhaps, an end. Made by `allow`."""

    rule: str
    key: str
    reason: str
    until: date | None = None

    @staticmethod
    def parse(text: str) -> Waiver:
        """The waiver that the command's ``--allow RULE:KEY:REASON`` declares.

        Raises:
            ValueError: it has another form, or is not a waiver that `allow` takes.
        """
        rule, _, rest = text.partition(":")
        key, _, reason = rest.partition(":")
        if not reason:
            example = "unexpected-key:aux.*:dropped in v2"
            raise ValueError(f"--allow {text!r}: use RULE:KEY:REASON, for example {example!r}")
        return allow(rule.strip(), key.strip(), reason=reason.strip())

    def covers(self, found: Finding) -> bool:
        """Whether this waiver speaks of that finding."""
        return found.rule == self.rule and matches(self.key, found.key)

    def __str__(self) -> str:
        return f"allow({self.rule!r}, {self.key!r})"


def allow(rule: str, key: str = "*", *, reason: str, until: str | date | None = None) -> Waiver:
    """Accept the findings of `rule` on keys that match the glob `key`.

    Args:
        rule: a rule's id; see ``ckptcompat rules``.
        key: an exact key or a glob (``aux.*``).
        reason: why it is accepted; it is printed in the report.
        until: the last day on which it holds, ``"2027-06-30"`` or a date; afterwards the check fails.

    Raises:
        ValueError: the rule is unknown or no finding, the reason empty, or the date no date.
    """
    if not isinstance(key, str):
        raise ValueError(f"allow: key wants a key or a glob, not {key!r}")
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"allow: {unknown(rule)}")
    if RULES[rule].stage == "waivers":
        raise ValueError(f"allow: {rule!r} can't be waived: remove or renew the waiver that it is about")
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"allow({rule!r}, {key!r}): say why: reason=...")
    return Waiver(rule, key, reason, _day(until, f"allow({rule!r}, {key!r})"))


def settle(
    findings: Sequence[Finding],
    waivers: Iterable[Waiver] = (),
    severities: Mapping[str, Severity] | None = None,
    today: date | None = None,
    judged: Callable[[str], bool] = lambda rule: True,
) -> list[Finding]:
    """The findings with the severities that the user configured and without weight where they are waived.

    A waived finding stays, with severity ``off`` and the reason as its message, so that a report can list it;
    a finding that the configuration turns ``off`` is dropped. A waiver that covers nothing, or whose last day
    has passed, is a finding itself; nothing is said of rules that were not `judged`: their stage was not run.
    """
    today = today or date.today()
    severities = severities or {}
    waivers = list(waivers)
    current = [waiver for waiver in waivers if waiver.until is None or waiver.until >= today]
    used: set[Waiver] = set()
    settled = []
    for found in findings:
        covering = [waiver for waiver in waivers if waiver.covers(found)]
        used.update(covering)
        held = next((waiver for waiver in covering if waiver in current), None)
        severity = severities.get(found.rule, found.severity)
        if held is not None:
            settled.append(replace(found, severity="off", message=f"waived: {held.reason}"))
        elif severity != "off":
            settled.append(replace(found, severity=severity))
    for waiver in waivers:
        if waiver not in current:
            message = f"{waiver} ended on {waiver.until}: {waiver.reason}"
            settled += _about(waiver, "waiver-expired", message, severities)
        elif waiver not in used and judged(waiver.rule):
            message = f"{waiver} {_missed(waiver, findings, used)}"
            settled += _about(waiver, "waiver-unused", message, severities)
    return settled


def severities_of(lines: Iterable[str]) -> dict[str, Severity]:
    """The ini option ``ckpt_severity``: lines of ``rule=error``, ``rule=warn`` or ``rule=off``.

    Raises:
        ValueError: a line has another form, or names no rule.
    """
    chosen: dict[str, Severity] = {}
    for line in lines:
        rule, _, severity = (part.strip() for part in line.partition("="))
        if rule not in RULES:
            raise ValueError(f"the ini key ckpt_severity: {unknown(rule)}")
        if severity not in _SEVERITIES:
            raise ValueError(f"the ini key ckpt_severity: {rule}={severity!r}: use error, warn or off")
        chosen[rule] = _SEVERITIES[severity]
    return chosen


_SEVERITIES: dict[str, Severity] = {"error": "error", "warn": "warn", "off": "off"}


def _missed(waiver: Waiver, findings: Sequence[Finding], used: Collection[Waiver]) -> str:
    """Why a waiver covers nothing, and what to do: its key may be mistyped, or its time is over."""
    alike = [found for found in findings if found.rule == waiver.rule]
    if not alike:
        return "waives nothing: remove it"
    count = f"{len(alike)} {waiver.rule} finding{'s' * (len(alike) > 1)}"
    keys = [found.key for found in alike if not any(other.covers(found) for other in used)]
    if not keys:
        return f"waives nothing, other waivers cover the {count}: remove it"
    near = nearest(waiver.key, _patterns_like(waiver.key, keys), 1)
    if near:
        hint = f"did you mean '{escape(near[0], 80)}'?"
    else:
        hint = f"the first is on '{escape(keys[0], 80)}'" if keys[0] else "they have no key: leave it out"
    return f"matches none of the {count}: {hint}"


def _patterns_like(pattern: str, keys: Iterable[str]) -> Iterable[str]:
    """The keys; for a pattern such as ``aux.*``, as many parts of each, with the star that follows them."""
    if not pattern.endswith(".*"):
        return dict.fromkeys(keys)
    depth = pattern.count(".")
    parts = [(key, key.split(".")) for key in keys]
    return dict.fromkeys(
        ".".join([*split[:depth], "*"]) if len(split) > depth else key for key, split in parts
    )


def _about(waiver: Waiver, rule: str, message: str, severities: Mapping[str, Severity]) -> list[Finding]:
    found = finding(rule, waiver.key, message=message)
    severity = severities.get(rule, found.severity)
    return [] if severity == "off" else [replace(found, severity=severity)]


def _day(until: str | date | None, whose: str) -> date | None:
    if until is None:
        return None
    if isinstance(until, datetime):
        return until.date()
    if isinstance(until, date):
        return until
    try:
        return date.fromisoformat(until)
    except (TypeError, ValueError):
        raise ValueError(f"{whose}: until={until!r} is not a date like 2027-06-30") from None
