"""Arrange the keys of a report as a tree of the model's modules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.key_groups import group
from pytest_ckptcompat.core.keys import natural

from .rows import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .facts import Facts

FITS = "fits"
DEEPEST = 50
"""The most levels of modules; deeper names are not split."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """Keys that differ only in indices, with the same finding.

    Attributes:
        pattern: the keys as one pattern (see `keys.Group`); ``""`` for a finding without a key.
        count: the number of keys.
        rule: a rule's id, or `FITS`.
        severity: the severity of the finding, or `FITS`.
        checkpoint: what the checkpoint has there.
        model: what the model has there.
        message: further text.
    """

    pattern: str
    count: int
    rule: str
    severity: str
    checkpoint: str
    model: str
    message: str = ""


@dataclass(slots=True)
class Module:
    """A module and its content, or several that differ only in indices (``layers.{0-31}``)."""

    name: str
    modules: dict[str, Module] = field(default_factory=dict)
    leaves: list[tuple[str, Leaf]] = field(default_factory=list)

    def count(self) -> Counter[str]:
        """Count the keys of each severity in the module and below it."""
        total = Counter(dict.fromkeys(("error", "warn", "off", FITS), 0))
        for _, leaf in self.leaves:
            total[leaf.severity] += leaf.count
        for module in self.modules.values():
            total.update(module.count())
        return total

    def shortened(self) -> Module:
        """Merge a module that holds only one other module with it: ``model.encoder.layers``."""
        name, module = self.name, self
        while len(module.modules) == 1 and not module.leaves:
            (module,) = module.modules.values()
            name = f"{name}.{module.name}"
        return Module(name, module.modules, module.leaves)

    def sorted_leaves(self) -> list[tuple[str, Leaf]]:
        """Return the leaves as (name, leaf), in natural order."""
        return sorted(self.leaves, key=lambda each: (natural(each[0]), each[1].rule))

    def sorted_modules(self) -> list[Module]:
        """Return the modules inside, in natural order."""
        return sorted(self.modules.values(), key=lambda each: natural(each.name))


def leaves(report: Facts, fitting: Mapping[str, str]) -> list[Leaf]:
    """Return leaves for the findings of a report and for the keys that fit."""
    found = [
        Leaf(row.pattern, len(row.keys), row.rule, row.severity, row.checkpoint, row.model, row.message)
        for row in rows(report.untold)
    ]
    alike: dict[str, list[str]] = {}
    for key, shown in fitting.items():
        alike.setdefault(shown, []).append(key)
    return found + [
        Leaf(each.pattern, len(each.keys), FITS, FITS, shown, shown)
        for shown, keys in alike.items()
        for each in group(keys)
    ]


def tree(leaves: Iterable[Leaf]) -> Module:
    """Build the tree of modules that contain the leaves; return its nameless root."""
    root = Module("")
    for leaf in leaves:
        *path, name = leaf.pattern.split(".", DEEPEST)
        module = root
        for part in path:
            module = module.modules.setdefault(part, Module(part))
        module.leaves.append((name, leaf))
    return root
