"""What others can add: formats, operators, and a look at every report.

One file for two hosts: pytest, where a ``conftest.py`` can implement these hooks, and the ``ckptcompat`` command.
Packages implement them through the entry-point group ``pytest_ckptcompat``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .report import Report

hookspec = pluggy.HookspecMarker("pytest")


@hookspec(firstresult=True)
def pytest_ckptcompat_open(path: str, file: BinaryIO | None) -> Any:
    """Read the header of a checkpoint in a format of your own.

    Args:
        path: as the user gave it.
        file: seekable, at its start; None where `path` is a folder.

    Returns:
        The table of its tensors, or None where the content is not of this format.
    """


@hookspec
def pytest_ckptcompat_operators() -> Iterable[type[Any]]:  # type: ignore[empty-body]
    """Further operators for recipes: their classes, which TOML recipes then know by name."""


@hookspec
def pytest_ckptcompat_report(report: Report) -> None:
    """Look at the report of a check, passed or failed, once it is made."""
