"""What ``protect=`` keeps as it is: keys that no operator of a recipe may touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .keys import escape, nearest, select
from .rules import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def unknown(patterns: Iterable[str], keys: Sequence[str]) -> list[Finding]:
    """Patterns that name none of the keys: they protect nothing, and a typo must not pass."""
    found = []
    for pattern in patterns:
        if not select(pattern, keys):
            near = ", ".join(map(escape, nearest(pattern, keys)))
            hint = f"; nearest are {near}" if near else ""
            message = f"protect names no key of checkpoint or model{hint}"
            found.append(finding("recipe-protected-key", pattern, message=message))
    return found


def broken(patterns: Iterable[str], touched: Mapping[str, Sequence[Any]]) -> list[Finding]:
    """Protected keys among those that operators touch, whatever their values are.

    Args:
        patterns: of ``protect=``.
        touched: key -> the operators that touch it.
    """
    return [
        finding(
            "recipe-protected-key",
            key,
            message=f"{', '.join(map(str, touched[key]))} touches it, and protect has {pattern!r}",
        )
        for pattern in patterns
        for key in select(pattern, list(touched))
    ]
