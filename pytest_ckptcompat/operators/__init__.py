"""The operators of recipes, by the names that recipes and recipe files call them."""

from __future__ import annotations

from .append import append
from .drop import drop
from .operator import Edit, Operator
from .prefixes import add_prefix, strip_prefix
from .renaming import rename
from .tile import tile

OPERATORS: dict[str, type[Operator]] = {
    kind.__name__: kind for kind in (add_prefix, append, drop, rename, strip_prefix, tile)
}
"""Name -> operator."""

__all__ = [
    "OPERATORS",
    "Edit",
    "Operator",
    "add_prefix",
    "append",
    "drop",
    "rename",
    "strip_prefix",
    "tile",
]
