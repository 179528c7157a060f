"""Arrange the keys of a report as a tree of the model's modules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.key_groups import grouped

from .rows import FITS, Row, rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .facts import Facts

DEEPEST = 50
"""The most levels of modules; deeper names are not split."""


@dataclass(slots=True)
class Module:
    """A module and its content, or several that differ only in indices (``layers.{0-31}``)."""

    name: str
    modules: dict[str, Module] = field(default_factory=dict)
    leaves: list[tuple[str, Row]] = field(default_factory=list)

    def count(self) -> Counter[str]:
        """Count the keys of each severity in the module and below it."""
        total = Counter(dict.fromkeys(("error", "warn", "off", FITS), 0))
        for _, row in self.leaves:
            total[row.severity] += len(row.keys)
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


def leaves(report: Facts) -> list[Row]:
    """Return rows for the findings of a report and for the keys that fit, as far as they are known."""
    fitting = grouped((shown, key) for key, shown in report.fitting.items())
    return rows(report.untold) + [
        Row(FITS, FITS, each.pattern, each.keys, shown, shown) for shown, each in fitting
    ]


def tree(leaves: Iterable[Row]) -> Module:
    """Build the tree of modules that contain the leaves; return its nameless root."""
    root = Module("")
    for row in leaves:
        *path, name = row.pattern.split(".", DEEPEST)
        module = root
        for part in path:
            module = module.modules.setdefault(part, Module(part))
        module.leaves.append((name, row))
    return root
