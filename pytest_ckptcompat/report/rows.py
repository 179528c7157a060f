"""Group findings into table rows: the same finding on keys that differ only in indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.findings import Stage
from pytest_ckptcompat.core.key_groups import grouped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ckptcompat.core.findings import Finding


FITS = "fits"


@dataclass(frozen=True, slots=True)
class Row:
    """Findings that differ only in the indices of their keys, or keys that fit.

    Attributes:
        rule: the rule's id, or `FITS`.
        severity: the severity of the findings, or `FITS`.
        pattern: the keys as one pattern (see `Group`), unescaped; ``""`` for a finding without a key.
        keys: the keys, in natural order.
        checkpoint: what the checkpoint has there, for every key.
        model: what the model has there, for every key.
        message: the message for every key.
    """

    rule: str
    severity: str
    pattern: str
    keys: tuple[str, ...]
    checkpoint: str
    model: str
    message: str = ""

    @property
    def times(self) -> str:
        """`` ×31`` behind the pattern of several keys."""
        return f" \N{MULTIPLICATION SIGN}{len(self.keys):,}" if len(self.keys) > 1 else ""


def rows(findings: Iterable[Finding]) -> list[Row]:
    """Group findings, with rules and the rows of a rule in the order of their first appearance.

    Keys that are missing and unexpected only because of a prefix form one row at the top.
    """
    findings, prefixed = _without_prefixes(list(findings))
    places: dict[tuple[tuple[str, str, str, str, str], str], int] = {}
    rules: dict[str, int] = {}
    for place, found in enumerate(findings):
        said = (found.rule, found.severity, found.checkpoint, found.model, found.message)
        places.setdefault((said, found.key), place)
        rules.setdefault(found.rule, place)
    placed = []
    for alike, keys in grouped(places):
        rule, severity, checkpoint, model, message = alike
        first = min(places[alike, key] for key in keys.keys)
        row = Row(rule, severity, keys.pattern, keys.keys, checkpoint, model, message)
        placed.append((rules[rule], first, row))
    return [*prefixed, *(row for _, _, row in sorted(placed, key=lambda each: each[:2]))]


def _without_prefixes(findings: list[Finding]) -> tuple[list[Finding], list[Row]]:
    """Separate findings on keys that differ only in a prefix; return the others and rows for these."""
    pairs: dict[tuple[str, str], list[tuple[Finding, Finding]]] = {}
    for longer, shorter in (("unexpected-key", "missing-key"), ("missing-key", "unexpected-key")):
        known = {_alike(each, each.key): each for each in findings if each.rule == shorter}
        for each in findings if known else ():
            for prefix, rest in _splits(each.key) if each.rule == longer else ():
                if (other := known.get(_alike(each, rest))) is not None:
                    pairs.setdefault((longer, prefix), []).append((each, other))
    rows, told = [], set[int]()
    for (rule, prefix), found in sorted(pairs.items(), key=lambda each: -len(each[1])):
        new = [pair for pair in found if told.isdisjoint(map(id, pair))]
        if len(new) > 1:
            told.update(id(each) for pair in new for each in pair)
            rows.append(_prefix_row(rule, prefix, [longer for longer, _ in new]))
    return [each for each in findings if id(each) not in told], rows


def _prefix_row(rule: str, prefix: str, longer: list[Finding]) -> Row:
    sides = f"prefix {prefix}", "no such prefix"
    checkpoint, model = sides if rule == "unexpected-key" else sides[::-1]
    keys = tuple(each.key for each in longer)
    return Row(rule, longer[0].severity, f"{prefix}*", keys, checkpoint, model, longer[0].message)


def _alike(found: Finding, key: str) -> tuple[str, str, str, str]:
    return key, found.checkpoint or found.model, found.severity, found.message


def _splits(key: str) -> list[tuple[str, str]]:
    """Return the ways to split a key into a prefix of a few parts and the rest."""
    parts = key.split(".", _DEEPEST_PREFIX)
    return [(".".join([*parts[:n], ""]), ".".join(parts[n:])) for n in range(1, len(parts))]


_DEEPEST_PREFIX = 4


def stage_rows(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages that were run, in order, then the skipped ones, grouped by reason."""
    ran = [stage for stage in stages if stage.status != "skipped"]
    skipped: dict[str, list[str]] = {}
    for stage in stages:
        if stage.status == "skipped":
            skipped.setdefault(stage.detail, []).append(stage.name)
    return ran + [Stage(", ".join(names), "skipped", reason) for reason, names in skipped.items()]
