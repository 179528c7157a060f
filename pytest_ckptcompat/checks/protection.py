"""Check ``protect=``: keys that no operator of a recipe may touch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.keys import nearest, select

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_ckptcompat.recipes.applied import Applied


def unknown(patterns: Iterable[str], keys: Sequence[str]) -> list[Finding]:
    """Find patterns that match no key. They protect nothing and may be typos."""
    found = []
    for pattern in patterns:
        if not select(pattern, keys):
            near = ", ".join(map(escape, nearest(pattern, keys)))
            hint = f"; nearest are {near}" if near else ""
            message = f"protect names no key of checkpoint or model{hint}"
            found.append(finding("recipe-protected-key", pattern, message=message))
    return found


def broken(patterns: Iterable[str], growth: Applied) -> list[Finding]:
    """Find protected keys that operators touch, whatever their values are.

    A key of the checkpoint stays protected if it is renamed: its tensor must still be there, untouched. A key
    of the model is protected by its final name.
    """
    untouched = {old for key, old in growth.origin.items() if key not in growth.touched}
    touched = dict(growth.touched)
    for key, olds in growth.sources.items():
        for old in olds:
            if old not in untouched:
                touched.setdefault(old, growth.touched.get(key, ()))
    return [
        finding(
            "recipe-protected-key",
            key,
            message=f"touched by {', '.join(map(str, touched[key]))}, and protect has {pattern!r}",
        )
        for pattern in patterns
        for key in select(pattern, list(touched))
    ]
