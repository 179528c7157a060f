"""Find the format that knows a file. Our formats are asked first, then those of plugins."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pluggy import PluginManager

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import used
from pytest_ckptcompat.files.layouts import part_of
from pytest_ckptcompat.files.paths import about, display

from .diagnosis import what_it_is, what_lies_in

if TYPE_CHECKING:
    from pluggy import HookRelay

    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.files import Files


def recognised(path: str, file: Any, files: Files, limits: Limits) -> Header:
    """Return the header from the first format that knows the file; raise CheckpointError if none does."""
    arguments = {"path": path, "file": file, "files": files, "limits": limits}
    try:
        header: Header | None = built_in().pytest_ckptcompat_open(**arguments)
        header = header or _by_others(arguments)
        if header is not None:
            remark = "" if file is None else part_of(path)
            return replace(header, remarks=(*header.remarks, remark)) if remark else header
    except CheckpointError as error:
        if file is not None and path.endswith(".distcp"):
            shown = display(path)
            raise CheckpointError(
                f"{shown} is one rank's file of a distributed checkpoint: name its folder"
            ) from None
        raise about(path, error) from None
    if file is None:
        raise CheckpointError(f"{display(path)} is a folder {what_lies_in(path)}")
    raise CheckpointError(f"{display(path)} is {what_it_is(file)}")


def _by_others(arguments: dict[str, Any]) -> Header | None:
    """Return the header from a plugin of the run, or else (which takes longer) of an installed package.

    Raises:
        CheckpointError: the plugin raised an error or returned a wrong header.
    """
    for relay in used():
        try:
            header = relay.pytest_ckptcompat_open(**arguments)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"the plugin that reads this format failed: {type(error).__name__}: {escape(str(error))}"
            ) from error
        if header is None:
            continue
        fault = header.fault() if isinstance(header, Header) else f"{type(header).__name__} is not a Header"
        if isinstance(header, Header) and not fault:
            return header
        raise CheckpointError(f"the plugin that reads this format gave a wrong header: {escape(fault)}")
    return None


def register(manager: PluginManager) -> None:
    """Add the hook specifications and the built-in formats to a plugin manager."""
    from pytest_ckptcompat.core import hooks as hookspecs

    from . import (
        dcp,
        folder,
        lock,
        pickled_arrays,
        safetensors,
        safetensors_ranks,
        sharded,
        torch_legacy,
        torch_zip,
        zipped_checkpoints,
    )

    manager.add_hookspecs(hookspecs)
    # The last registered format is asked first.
    files = (pickled_arrays, zipped_checkpoints, sharded, lock, safetensors, torch_legacy, torch_zip)
    for module in (folder, safetensors_ranks, dcp, *files):
        manager.register(module, f"ckptcompat-{module.__name__.rpartition('.')[2]}")


@cache
def built_in() -> HookRelay:
    """Return the hook with only the built-in formats."""
    manager = PluginManager("pytest")
    register(manager)
    return manager.hook
