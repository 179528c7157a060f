"""What others can add: formats, operators, and a look at every report.

One file for two hosts: pytest, where a ``conftest.py`` can implement these hooks, and the ``ckptcompat``
command. Packages implement them through the entry-point group ``pytest_ckptcompat``.
"""

from __future__ import annotations

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
        """Exactly `size` bytes from byte `offset` on."""

    def readinto_at(self, offset: int, buffer: memoryview, /) -> None:
        """Fill a buffer from byte `offset` on."""


class Files(Protocol):
    """The files of one checkpoint."""

    def open(self, path: str, /) -> Any:
        """Open one more: a `File`, and a context manager that closes it."""


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
def pytest_ckptcompat_report(report: Any) -> None:
    """Look at the report of a check, passed or failed, once it is made."""


_used: list[HookRelay] = []


def use(hook: HookRelay) -> None:
    """From now on, ask this hook too: pytest's, during a run."""
    _used.append(hook)


def forget(hook: HookRelay) -> None:
    """Ask it no longer."""
    _used[:] = [each for each in _used if each is not hook]


def used() -> tuple[HookRelay, ...]:
    """The hooks of the run, then those of installed packages."""
    return (*_used, installed())


class _ByName(pluggy.PluginManager):
    """Takes our hooks by their names, marked or not, as pytest takes those of a ``conftest.py``."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """The options of a hook; None for what is not one."""
        ours = name.startswith("pytest_ckptcompat_") and callable(getattr(plugin, name))
        return (super().parse_hookimpl_opts(plugin, name) or {}) if ours else None


def of_module(module: object) -> HookRelay:
    """The hooks that a module implements."""
    import sys

    manager = _ByName("pytest")
    manager.add_hookspecs(sys.modules[__name__])
    manager.register(module)
    return manager.hook


@cache
def installed() -> HookRelay:
    """The hooks that installed packages implement, outside pytest."""
    import sys

    manager = pluggy.PluginManager("pytest")
    manager.add_hookspecs(sys.modules[__name__])
    manager.load_setuptools_entrypoints(ENTRY_POINTS)
    return manager.hook
