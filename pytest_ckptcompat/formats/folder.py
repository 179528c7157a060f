"""Folders of other libraries: the weights, and the optimizer state if its file is beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.files.folders import kind_of
from pytest_ckptcompat.files.layouts import find
from pytest_ckptcompat.files.paths import about, display, inside

from . import dcp, sharded, torch_zip
from .diagnosis import what_lies_in
from .pickle_stubs import Dict, renamed

if TYPE_CHECKING:
    from pytest_ckptcompat.core.header import Header
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.files import Files

_DEEPEST = 4
"""How many folders deep the file may be."""


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(path: str, file: object, files: Files, limits: Limits) -> Header | None:
    """Read the checkpoint in a folder with a known layout."""
    return None if file is not None else _read(path, files, limits, _DEEPEST)


def _read(path: str, files: Files, limits: Limits, deepest: int) -> Header | None:
    found = find(path, files)
    if found is None or not deepest:
        return None
    if len(found.names) > 1:
        header = sharded.together(path, found.names, files, limits)
        header = replace(
            header, remarks=(*header.remarks, f"all {len(found.names)} shards, without an index")
        )
    else:
        header = _weights(inside(path, found.names[0]), files, limits, deepest)
        header = replace(header, remarks=(f"from {escape(found.names[0], 80)}", *header.remarks))
    return _with_optimizer(header, path, found.optimizer, files, limits) if found.optimizer else header


def _weights(path: str, files: Files, limits: Limits, deepest: int) -> Header:
    """Return the header of a file or an inner folder."""
    if kind_of(path) == "file":
        return sharded.header_of(path, files, limits)
    try:
        header: Header | None = dcp.pytest_ckptcompat_open(path, None, files, limits)
        header = header or torch_zip.pytest_ckptcompat_open(path, None, files, limits)
        header = header or _read(path, files, limits, deepest - 1)
    except CheckpointError as error:
        raise about(path, error) from None
    if header is None:
        raise CheckpointError(f"{display(path)} is a folder {what_lies_in(path)}")
    return header


def _with_optimizer(header: Header, path: str, name: str, files: Files, limits: Limits) -> Header:
    """Join weights and optimizer state as if they were in one file, under ``model`` and ``optimizer``."""
    try:
        state = sharded.header_of(inside(path, name), files, limits)
        tree = renamed(state.tree, name)
    except CheckpointError as error:
        return replace(header, remarks=(*header.remarks, f"{name} was not read: {error}"))
    whole = Dict()
    whole.put("model", header.tree)
    whole.put("optimizer", tree)
    storages = {**header.storages, **{f"{name}:{key}": state.storages[key] for key in state.storages}}
    return replace(header, tree=whole, storages=storages)
