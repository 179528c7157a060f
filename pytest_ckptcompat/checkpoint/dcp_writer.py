"""Write a distributed checkpoint with torch's own writer, and only one tensor in memory at a time."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save, save_state_dict

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.attempts import without_logs

from .written import Value

_METADATA, _SUFFIX = ".metadata", ".distcp"


def write_dcp(folder: str, content: Any) -> int:
    """Write `content` as ``torch.distributed.checkpoint.save`` does, and return the bytes written.

    The checkpoint is written beside `folder` and moved when it is complete. An existing folder is replaced if
    it is a distributed checkpoint.

    Raises:
        ValueError: `content` is not a dict, a part of it holds itself, or the existing folder is not a
            distributed checkpoint.
        OSError: the folder can't be written.
        CheckpointError: a value can't be read.
    """
    if not isinstance(content, dict):
        raise ValueError("a distributed checkpoint is a dict of tensors")
    place = Path(os.path.realpath(folder))
    _check_kind(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name[:40]}.{secrets.token_hex(6)}.tmp")
    planner = _Planner()
    try:
        with without_logs(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the save is not distributed
            if "no_dist" in signature(save).parameters:
                save(planner.planned(content), checkpoint_id=temporary, planner=planner, no_dist=True)
            else:  # torch 2.6
                writer = FileSystemWriter(temporary)
                save_state_dict(planner.planned(content), writer, planner=planner, no_dist=True)
        size = sum(file.stat().st_size for file in temporary.iterdir())
        _swap(temporary, place)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, CheckpointException):  # torch's wrapping of what was raised during the save
            raise next(cause for cause, _ in error.failures.values()) from None
        if isinstance(error, RecursionError):
            raise ValueError("a part of the checkpoint holds itself, which only a .pth file can") from None
        raise
    return size


class _Planner(DefaultSavePlanner):
    """A planner that uses meta tensors, and reads the values of each when the writer needs them."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[int, Value] = {}

    def planned(self, node: Any) -> Any:
        """Return the content with a meta tensor in place of every `Value`."""
        if isinstance(node, Value):
            standing = torch.empty(node.shape, dtype=node.dtype, device="meta")
            self._values[id(standing)] = node
            return standing
        if isinstance(node, dict):
            return {key: self.planned(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(map(self.planned, node))
        return node

    def lookup_object(self, index: Any) -> Any:
        found = super().lookup_object(index)
        value = self._values.get(id(found))
        if value is None:
            return found
        return value.read().detach().resolve_conj().resolve_neg().cpu().contiguous()


def _check_kind(place: Path) -> None:
    if place.is_dir():
        mine = (file for file in place.iterdir() if file.name == _METADATA or file.suffix == _SUFFIX)
        foreign = sorted({file.name for file in place.iterdir()} - {file.name for file in mine})
        if foreign:
            raise ValueError(
                f"{escape(str(place))} is not replaced: {escape(foreign[0], 80)} in it is not part of "
                "a distributed checkpoint"
            )


def _swap(new: Path, place: Path) -> None:
    """Move a folder to its place, and remove the one that was there."""
    if not place.exists():
        new.rename(place)
        return
    old = new.with_suffix(".old")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
