"""Match the stars of a glob, and fill them in."""

from __future__ import annotations

import re

from pytest_ckptcompat.core.errors import RecipeError

from .arguments import python


def stars(pattern: str, key: str) -> tuple[str, ...] | None:
    """Return the text that each star matches in `key`, as short as possible; None without a match."""
    if pattern == key:
        return ("*",) * pattern.count("*")
    parts = re.split(r"(\[!?[^\]]+\]|[*?])", pattern)
    found = re.fullmatch("".join(map(_regex, parts)), key, re.DOTALL)
    return found.groups() if found else None


def filled(pattern: str, values: tuple[str, ...]) -> str:
    """Replace the stars of `pattern`, if any, by the texts."""
    if "*" not in pattern:
        return pattern
    first, *rest = pattern.split("*")
    return first + "".join(value + text for value, text in zip(values, rest, strict=True))


def alike(operator: str, first: str, *others: str) -> None:
    """Require that all patterns have as many stars as the first.

    Raises:
        RecipeError: one has another number of stars.
    """
    for other in others:
        if other.count("*") != first.count("*"):
            raise RecipeError(
                f"{operator}: {python(other)} doesn't have as many stars as {python(first)}", key=first
            )


def _regex(part: str) -> str:
    if part == "*":
        return "(.*?)"
    if part == "?":
        return "."
    if part.startswith("[") and part.endswith("]"):
        return part.replace("[!", "[^", 1)
    return re.escape(part)
