"""Operators that others add, in a ``conftest.py`` or in an installed package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import RecipeError

if TYPE_CHECKING:
    from pluggy import HookRelay

    from .operators import Operator

_hooks: list[HookRelay] = []


def use(hook: HookRelay) -> None:
    """From now on, ask this hook for operators too: pytest's, during a run."""
    _hooks.append(hook)


def forget(hook: HookRelay) -> None:
    """Ask it no longer."""
    _hooks[:] = [each for each in _hooks if each is not hook]


def operator(name: str) -> type[Operator] | None:
    """The operator of that name; those that come with the plugin can't be replaced."""
    from .operators import OPERATORS

    return OPERATORS.get(name) or _added().get(name)


def operators() -> dict[str, type[Operator]]:
    """Every operator, by its name."""
    from .operators import OPERATORS

    return _added() | OPERATORS


def _added() -> dict[str, type[Operator]]:
    """What the hooks give: the run's first, then those of installed packages.

    Raises:
        RecipeError: a hook gave something else than operators.
    """
    from .formats import installed

    found: dict[str, type[Operator]] = {}
    for hook in (*_hooks, installed()):
        for kinds in hook.pytest_ckptcompat_operators():
            for kind in kinds:
                found.setdefault(_checked(kind).__name__, kind)
    return found


def _checked(kind: Any) -> type[Operator]:
    from .operators import Operator

    if not isinstance(kind, type) or not issubclass(kind, Operator):
        raise RecipeError(f"pytest_ckptcompat_operators gave {kind!r:.80}, which is no Operator class")
    return kind
