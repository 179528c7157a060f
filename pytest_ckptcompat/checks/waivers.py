"""Apply the user's severities and waivers to findings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, cast, get_args

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.keys import matches, nearest
from pytest_ckptcompat.core.rules import RULES, Severity, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Waiver:
    """A known and accepted finding, with a reason and an optional last day. Made by `allow`."""

    rule: str
    key: str
    reason: str
    until: date | None = None

    @staticmethod
    def parse(text: str) -> Waiver:
        """Parse the command's ``--allow RULE:KEY:REASON``.

        Raises:
            ValueError: the text has another form, or `allow` refuses the waiver.
        """
        rule, _, rest = text.partition(":")
        key, _, reason = rest.partition(":")
        if not reason:
            example = "unexpected-key:aux.*:dropped in v2"
            raise ValueError(f"--allow {text!r}: use RULE:KEY:REASON, for example {example!r}")
        return allow(rule.strip(), key.strip(), reason=reason.strip())

    def covers(self, found: Finding) -> bool:
        """Return whether this waiver covers the finding."""
        return found.rule == self.rule and matches(self.key, found.key)

    def __str__(self) -> str:
        return f"allow({self.rule!r}, {self.key!r})"


def allow(rule: str, key: str = "*", *, reason: str, until: str | date | None = None) -> Waiver:
    """Accept the findings of `rule` on keys that match the glob `key`.

    Args:
        rule: a rule's id; see ``ckptcompat rules``.
        key: an exact key or a glob (``aux.*``).
        reason: why they are accepted; printed in the report.
        until: the last day of the waiver, ``"2027-06-30"`` or a date. Afterwards the check fails.

    Raises:
        ValueError: the rule is unknown or can't be waived, the reason is empty, or the date is invalid.
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
    """Apply the user's severities and waivers.

    A waived finding stays, with severity ``off`` and the reason as its message, so that a report can list it.
    A finding that the configuration turns ``off`` is dropped. A waiver whose last day has passed becomes a
    finding. So does one that covers nothing, unless `judged` says that the stage of its rule was not run.
    """
    today = today or date.today()
    severities = severities or {}
    waivers = list(waivers)
    current = [waiver for waiver in waivers if waiver.until is None or waiver.until >= today]
    used = {waiver for waiver in waivers if any(map(waiver.covers, findings))}
    about = []
    for waiver in waivers:
        if waiver not in current:
            ended = f"{waiver} ended on {waiver.until}: {waiver.reason}"
            about.append(finding("waiver-expired", waiver.key, message=ended))
        elif waiver not in used and judged(waiver.rule):
            unused = f"{waiver} {_missed(waiver, findings, used)}"
            about.append(finding("waiver-unused", waiver.key, message=unused))
    settled = []
    for found in [*findings, *about]:
        held = next((waiver for waiver in current if waiver.covers(found)), None)
        severity = severities.get(found.rule, found.severity)
        if held is not None:
            settled.append(replace(found, severity="off", message=f"waived: {held.reason}"))
        elif severity != "off":
            settled.append(replace(found, severity=severity))
    return settled


def unwaived(findings: Sequence[Finding], waivers: Iterable[Waiver]) -> list[Finding]:
    """Return the errors that no waiver covers."""
    settled = settle(findings, waivers, judged=lambda rule: False)
    return [found for found in settled if found.severity == "error"]


def severities_of(lines: Iterable[str]) -> dict[str, Severity]:
    """Parse the ini option ``ckpt_severity``: lines of ``rule=error``, ``rule=warn`` or ``rule=off``.

    Raises:
        ValueError: a line has another form, or an unknown rule.
    """
    chosen: dict[str, Severity] = {}
    for line in lines:
        rule, _, severity = (part.strip() for part in line.partition("="))
        if rule not in RULES:
            raise ValueError(f"the ini key ckpt_severity: {unknown(rule)}")
        if severity not in get_args(Severity):
            raise ValueError(f"the ini key ckpt_severity: {rule}={severity!r}: use error, warn or off")
        chosen[rule] = cast("Severity", severity)
    return chosen


def _missed(waiver: Waiver, findings: Sequence[Finding], used: Collection[Waiver]) -> str:
    """Say why a waiver covers nothing and what to do: its key may be mistyped, or it is no longer needed."""
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
    """Return the keys; for a pattern such as ``aux.*``, their prefixes of the same depth, with ``.*``."""
    if not pattern.endswith(".*"):
        return dict.fromkeys(keys)
    depth = pattern.count(".")
    parts = [(key, key.split(".")) for key in keys]
    return dict.fromkeys(
        ".".join([*split[:depth], "*"]) if len(split) > depth else key for key, split in parts
    )


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
