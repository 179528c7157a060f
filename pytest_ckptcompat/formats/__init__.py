"""The formats of checkpoints, each a plugin of the hook ``pytest_ckptcompat_open``.

What a format of your own is made of can be imported from here, and stays: ``Header``, ``TensorSpec`` and
``Extent``, ``ITEMSIZE`` (by dtype), ``contiguous_stride``, ``CheckpointError`` and ``escape``; ``File``,
``Files`` and ``Limits``, which the hook gives; and ``hookimpl``, which marks the hook in an installed package
(a ``conftest.py`` needs no mark). ``examples/npz`` adds a format.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pluggy import PluginManager

from pytest_ckptcompat.errors import CheckpointError
from pytest_ckptcompat.hookspecs import hookimpl
from pytest_ckptcompat.keys import escape
from pytest_ckptcompat.reading.caps import Limits
from pytest_ckptcompat.reading.files import File, Files
from pytest_ckptcompat.tensors import ITEMSIZE, Extent, TensorSpec, contiguous_stride

from .header import Header

if TYPE_CHECKING:
    from pluggy import HookRelay

__all__ = [
    "ITEMSIZE",
    "CheckpointError",
    "Extent",
    "File",
    "Files",
    "Header",
    "Limits",
    "TensorSpec",
    "built_in",
    "contiguous_stride",
    "escape",
    "hookimpl",
    "installed",
    "register",
]

ENTRY_POINTS = "pytest_ckptcompat"
"""The entry point group of packages that add formats."""


def register(manager: PluginManager) -> None:
    """Add the hook's specification and the formats that come with the plugin to a plugin manager."""
    from pytest_ckptcompat import hookspecs

    from . import dcp, lock, safetensors, sharded, torch_legacy, torch_zip

    manager.add_hookspecs(hookspecs)
    # The last one that is registered is asked first.
    for module in (dcp, sharded, lock, safetensors, torch_legacy, torch_zip):
        manager.register(module, f"ckptcompat-{module.__name__.rpartition('.')[2]}")


@cache
def built_in() -> HookRelay:
    """The hook outside pytest, with the formats that come with the plugin."""
    manager = PluginManager("pytest")
    register(manager)
    return manager.hook


@cache
def installed() -> HookRelay:
    """The hook outside pytest, with the formats of installed packages too."""
    manager = PluginManager("pytest")
    register(manager)
    manager.load_setuptools_entrypoints(ENTRY_POINTS)
    return manager.hook
