"""Combine the marks of a test, its classes and its module."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from .session import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.checks.arguments import CheckArguments

JOINED = ("allow", "protect")
"""Arguments that marks add up. For all others, the mark closest to the test wins."""


def is_marked(node: pytest.Item) -> bool:
    """Return whether a test has the mark, itself or from its class or module."""
    return node.get_closest_marker(MARKER) is not None


def cases(node: pytest.Item, added: Sequence[pytest.Mark] = ()) -> list[CheckArguments]:
    """Return the arguments of each check of a marked test. Several marks in one place are several checks.

    Args:
        node: the test, or its definition before it is parametrized.
        added: the marks of its ``pytest.param``, if it is not parametrized yet.

    Raises:
        ValueError: an argument is positional, unknown, missing or of a wrong type.
    """
    from pytest_ckptcompat.checks.arguments import CheckArguments

    places = [*_places(node), *_of_parameters(node, added)]
    checks = product(*(marks for marks in places if marks))
    return [CheckArguments.of(**_joined(marks)) for marks in checks]


def where(node: pytest.Item) -> str:
    """Return where a test starts: ``tests/test_net.py:12``."""
    path, line, _ = node.location
    return f"{path}:{(line or 0) + 1}"


def _places(node: pytest.Item) -> Iterator[Sequence[pytest.Mark]]:
    """Yield the marks of each place, from the module inwards."""
    for each in node.listchain():
        marks = [mark for mark in each.own_markers if mark.name == MARKER]
        if not marks:
            continue
        for owner in _owners(each):
            theirs = [getattr(mark, "mark", mark) for mark in _listed(vars(owner).get("pytestmark"))]
            yield [mark for mark in marks if any(mark is other for other in theirs)]
            marks = [mark for mark in marks if not any(mark is other for other in theirs)]
        given = getattr(getattr(each, "callspec", None), "marks", ())
        of_parameters = [mark for mark in marks if any(mark is other for other in given)]
        yield from _of_parameters(node, of_parameters)
        yield from ([mark] for mark in marks if not any(mark is other for other in given))  # node.add_marker


def _owners(node: Any) -> Sequence[Any]:
    """Return what a node's marks were written on: a class and its bases, farthest first, or one object."""
    if isinstance(node, pytest.Class):
        return tuple(node.obj.__mro__[::-1])
    owner = getattr(node, "obj", None)
    return [getattr(owner, "__func__", owner)] if hasattr(owner, "__dict__") else []


def _of_parameters(node: pytest.Item, marks: Sequence[pytest.Mark]) -> Sequence[Sequence[pytest.Mark]]:
    """Split marks of parameters: those of one ``pytest.param`` are several checks, others add up."""
    marks = [mark for mark in marks if mark.name == MARKER]
    several = len(list(node.iter_markers("parametrize"))) > 1
    return [[mark] for mark in marks] if several else [marks]


def _joined(marks: Sequence[pytest.Mark]) -> dict[str, Any]:
    """Join the arguments of one mark from each place, the closest last."""
    arguments: dict[str, Any] = {}
    for mark in marks:
        if mark.args:
            raise ValueError(f"takes keywords only, not {mark.args[0]!r}: write model=...")
        for name, value in mark.kwargs.items():
            before = arguments.get(name) if name in JOINED else None
            arguments[name] = value if before is None else [*_listed(before), *_listed(value)]
    for name, value in arguments.items():
        if type(value).__name__ == "FixtureFunctionDefinition":
            raise ValueError(
                f"{name}= is the fixture {value.__name__!r}, which has no value before the test runs: "
                f"give a function, or call ckpt_check({value.__name__}, ...) in the test"
            )
    return arguments


def _listed(value: Any) -> Sequence[Any]:
    """Return a list of several values, one value, or None."""
    if value is None:
        return []
    return value if isinstance(value, (list, tuple)) else [value]
