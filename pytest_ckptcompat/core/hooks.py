"""Hooks through which others add formats and operators, and see every report.

A ``conftest.py`` can implement these hooks for pytest and for the ``ckptcompat`` command. Packages implement
them through the entry-point group ``pytest_ckptcompat``.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pluggy import HookRelay

    from .header import Header
    from .limits import Limits

ENTRY_POINTS = "pytest_ckptcompat"
"""The entry point group of packages that add formats or operators."""

hookspec = pluggy.HookspecMarker("pytest")

hookimpl = pluggy.HookimplMarker("pytest")


class File(Protocol):
    """One open file of a checkpoint."""

    path: str
    size: int

    def read_at(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes, starting at byte `offset`."""

    def readinto_at(self, offset: int, buffer: memoryview, /) -> None:
        """Fill the buffer with the bytes that start at byte `offset`."""


class Files(Protocol):
    """The files of one checkpoint."""

    def open(self, path: str, /) -> Any:
        """Open another file. The result is a `File` and a context manager that closes it."""


@hookspec(firstresult=True)
def pytest_ckptcompat_open(path: str, file: File | None, files: Files, limits: Limits) -> Header | None:
    """Read the header of a checkpoint in a format of your own.

    The formats of this package use the same hook and are asked first. Recognise your format by the file's
    content, never by its name. Take only the arguments that you need. `pytest_ckptcompat.formats` has what a
    header is made of.

    Args:
        path: as the user gave it. It may be an fsspec URL.
        file: the open file, seekable and binary, at its start; None if `path` is a folder.
        files: opens further files of the checkpoint, counts what is read and notices changes.
        limits: how much of a header may be read.

    Returns:
        The header, or None if the content is not in this format. Values are read from the byte ranges in the
        header. A tensor without byte ranges (for example a compressed one) says why in its `note`.

    Raises:
        CheckpointError: the file is in your format but damaged. Say what is wrong, without the path. The
            message is shown, so pass text from the file through `escape`. Any other exception is reported as
            a fault of the plugin.
    """


@hookspec
def pytest_ckptcompat_operators() -> Iterable[type[Any]]:  # type: ignore[empty-body]
    """Return further operator classes, which TOML recipes can then use by name."""


@hookspec
def pytest_ckptcompat_report(report: Any) -> None:
    """Receive the report of a check, passed or failed."""


_used: list[HookRelay] = []


def use(hook: HookRelay) -> None:
    """Add a hook relay, such as pytest's during a run."""
    _used.append(hook)


def forget(hook: HookRelay) -> None:
    """Remove a hook relay that `use` added."""
    _used[:] = [each for each in _used if each is not hook]


def used() -> tuple[HookRelay, ...]:
    """Return the hooks of the run, then those of installed packages."""
    return (*_used, installed())


class _ByName(pluggy.PluginManager):
    """A plugin manager that accepts our hooks by name, marked or not, like pytest in a ``conftest.py``."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Return the options of a hook, or None if `name` is not a hook of ours."""
        ours = name.startswith("pytest_ckptcompat_") and callable(getattr(plugin, name))
        return (super().parse_hookimpl_opts(plugin, name) or {}) if ours else None


def of_module(module: object) -> HookRelay:
    """Return the hooks that a module implements."""
    manager = _ByName("pytest")
    manager.add_hookspecs(sys.modules[__name__])
    manager.register(module)
    return manager.hook


@cache
def installed() -> HookRelay:
    """Return the hooks that installed packages implement."""
    manager = pluggy.PluginManager("pytest")
    manager.add_hookspecs(sys.modules[__name__])
    manager.load_setuptools_entrypoints(ENTRY_POINTS)
    return manager.hook
