"""The formats of checkpoints, each a plugin of the hook ``pytest_ckptcompat_open``."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pluggy import PluginManager

if TYPE_CHECKING:
    from pluggy import HookRelay

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
