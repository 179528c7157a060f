"""What others can add: formats, operators, and a look at every report.

One file for two hosts: pytest, where a ``conftest.py`` can implement these hooks, and the ``ckptcompat``
command. Packages implement them through the entry-point group ``pytest_ckptcompat``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pluggy import HookRelay

    from pytest_ckptcompat.files.file import File
    from pytest_ckptcompat.files.files import Files
    from pytest_ckptcompat.report.report import Report

    from .header import Header
    from .limits import Limits

_hooks: list[HookRelay] = []


def use(hook: HookRelay) -> None:
    """From now on, ask this hook for operators too: pytest's, during a run."""
    _hooks.append(hook)


def forget(hook: HookRelay) -> None:
    """Ask it no longer."""
    _hooks[:] = [each for each in _hooks if each is not hook]


hookspec = pluggy.HookspecMarker("pytest")

hookimpl = pluggy.HookimplMarker("pytest")


@hookspec(firstresult=True)
def pytest_ckptcompat_open(path: str, file: File | None, files: Files, limits: Limits) -> Header | None:
    """Read the header of a checkpoint in a format of your own.

    The formats that come with the plugin are asked first, through this hook too. Tell yours by its content,
    never by its name. Take those arguments that you need. What a header is made of is in
    `pytest_ckptcompat.formats`.

    Args:
        path: as the user gave it; it may be an fsspec URL.
        file: the open file, seekable and binary, at its start; None where `path` is a folder.
        files: opens further files of the checkpoint, so that they are counted and a change is noticed.
        limits: how much of a header may be read.

    Returns:
        The header, or None where the content is not of this format. Values are read from the byte ranges
        that it names; a tensor that has none (its bytes are compressed) says why in its `note`.

    Raises:
        CheckpointError: the format is yours, and the file is damaged: what is wrong, without the path. The
            text is shown; what comes from the file goes through `escape`. Any other exception is reported
            as a fault of the plugin.
    """


@hookspec
def pytest_ckptcompat_operators() -> Iterable[type[Any]]:  # type: ignore[empty-body]
    """Further operators for recipes: their classes, which TOML recipes then know by name."""


@hookspec
def pytest_ckptcompat_report(report: Report) -> None:
    """Look at the report of a check, passed or failed, once it is made."""
