"""The rows of a report's table: findings that say the same of keys that differ in indices alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.key_groups import group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ckptcompat.core.findings import Finding
    from pytest_ckptcompat.core.rules import Severity


@dataclass(frozen=True, slots=True)
class Row:
    """Findings that differ in their keys alone.

    Attributes:
        rule: the rule's id.
        severity: of each of the findings.
        pattern: the keys as one pattern (see `keys.Group`), unescaped; ``""`` for a finding without a key.
        keys: the keys, in natural order.
        checkpoint: what the checkpoint has there, for every key.
        model: what the model has there, for every key.
        message: said of every key.
    """

    rule: str
    severity: Severity
    pattern: str
    keys: tuple[str, ...]
    checkpoint: str
    model: str
    message: str


def rows(findings: Iterable[Finding]) -> list[Row]:
    """The findings, grouped: rules in the order in which they first appear, and so are the rows of a rule."""
    alike: dict[tuple[str, Severity, str, str, str], dict[str, int]] = {}
    rules: dict[str, int] = {}
    for place, found in enumerate(findings):
        sides = (found.rule, found.severity, found.checkpoint, found.model, found.message)
        alike.setdefault(sides, {}).setdefault(found.key, place)
        rules.setdefault(found.rule, place)
    placed = []
    for (rule, severity, checkpoint, model, message), places in alike.items():
        for keys in group(places):
            first = min(map(places.__getitem__, keys.keys))
            row = Row(rule, severity, keys.pattern, keys.keys, checkpoint, model, message)
            placed.append((rules[rule], first, row))
    return [row for _, _, row in sorted(placed, key=lambda each: each[:2])]
