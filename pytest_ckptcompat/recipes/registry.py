"""Look up operators, including those added by a ``conftest.py`` or an installed package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import RecipeError, raised
from pytest_ckptcompat.core.hooks import used

if TYPE_CHECKING:
    from .base import Operator


def operator(name: str) -> type[Operator] | None:
    """Return the operator of that name, or None. Built-in operators can't be replaced."""
    from .operators import OPERATORS

    return OPERATORS.get(name) or _added().get(name)


def operators() -> dict[str, type[Operator]]:
    """Return every operator by its name."""
    from .operators import OPERATORS

    return _added() | OPERATORS


def _added() -> dict[str, type[Operator]]:
    """Return the operators from hooks: first the run's, then those of installed packages."""
    from .base import Operator

    found: dict[str, type[Operator]] = {}
    for hook in used():
        try:
            given = [kind for kinds in hook.pytest_ckptcompat_operators() for kind in kinds]
        except Exception as error:
            raise RecipeError(f"a hook pytest_ckptcompat_operators failed: {raised(error)}") from error
        for kind in given:
            if not isinstance(kind, type) or not issubclass(kind, Operator):
                what = f"pytest_ckptcompat_operators gave {kind!r:.80}"
                raise RecipeError(f"{what}, which is not an Operator class")
            found.setdefault(kind.__name__, kind)
    return found
