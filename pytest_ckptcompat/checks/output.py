"""Write a grown checkpoint to a torch file, a safetensors file or a distributed checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.checkpoint.safetensors_writer import write_safetensors
from pytest_ckptcompat.checkpoint.torch_zip_writer import write_torch_zip
from pytest_ckptcompat.checkpoint.written_object import Content
from pytest_ckptcompat.checkpoint.written_tensor import Value
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.redaction import is_meant_as_url, is_url
from pytest_ckptcompat.files.atomic_write import whole_file
from pytest_ckptcompat.files.paths import display

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.core.tensor_spec import TensorSpec

    from .resuming import Resuming

_TORCH = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_ROOT = "archive"  # torch accepts any; a name that does not depend on the file's gives the same bytes


def kind_of_output(out: str) -> str:
    """Return ``"torch"``, ``"safetensors"`` or ``"folder"``, depending on the path.

    Raises:
        ValueError: the suffix is unknown, or the path is a URL.
    """
    if is_meant_as_url(out):
        raise ValueError(f"{display(out)} is a URL, and files are written on this machine alone")
    suffix = Path(out).suffix.lower()
    if out.endswith(("/", os.sep)) or Path(out).is_dir() or not suffix:
        return "folder"
    if suffix == ".safetensors":
        return "safetensors"
    if suffix in _TORCH:
        return "torch"
    raise ValueError(
        f"{display(out)}: write a .safetensors or a .pth file, or a folder (which ends with a slash) for a "
        "distributed checkpoint"
    )


def keep_source(checkpoint: Checkpoint, out: str) -> None:
    """Raise ValueError if `out` is a file that the values come from."""
    files = {extent.file for extents in checkpoint.contents.header.storages.values() for extent in extents}
    for file in {checkpoint.path, *files}:
        if not is_url(file) and os.path.lexists(out) and os.path.exists(file) and os.path.samefile(file, out):  # noqa: PTH110, PTH121
            raise ValueError(
                f"{display(out)} is the checkpoint itself, which only --force (force=True) replaces"
            )


def check_replaceable(folder: str) -> None:
    """Refuse to replace a folder that holds something.

    Raises:
        ValueError: the folder is a file, or not empty.
    """
    path = Path(folder)
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{escape(folder)} is not empty, and only --force (force=True) replaces a folder")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{escape(folder)} is a file; write a distributed checkpoint to a folder")


def write(out: str, whole: Any) -> int:
    """Write a torch file or a folder, and return its size in bytes."""
    if kind_of_output(out) == "folder":
        return _write_folder(out, whole)
    with whole_file(out) as file:
        write_torch_zip(file, whole, _ROOT)
    return Path(out).stat().st_size


def _write_folder(out: str, whole: Any) -> int:
    from pytest_ckptcompat.checkpoint.dcp_writer import (
        write_dcp,  # takes as long to import as torch itself
    )

    return write_dcp(out, whole)


def write_state_dict(
    checkpoint: Checkpoint, values: Mapping[str, Any], out: str
) -> tuple[int, tuple[str, ...]]:
    """Write a safetensors file, and return its size in bytes and notes on what it leaves out.

    Raises:
        ValueError: the format can't hold the state dict.
    """
    for key, value in values.items():
        if not isinstance(value, Value):
            raise ValueError(f"{escape(key)} is not a tensor, and safetensors holds nothing else: write .pth")
    with whole_file(out) as file:
        write_safetensors(file, values, {"format": "pt"})
    notes = ("the state dict alone: safetensors holds nothing else",) if checkpoint.state_dict_key else ()
    return Path(out).stat().st_size, notes


@dataclass(frozen=True)
class StateOfItsOwn:
    """The grown state of an optimizer that has its own file."""

    path: str = ""
    content: Any = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, out: str, state: Checkpoint | None, resuming: Resuming) -> StateOfItsOwn:
        """Prepare the file before anything is written; empty if the state has no file of its own."""
        if state is None:
            return cls()
        kind = kind_of_output(out)
        content = Content(lambda spec: stored(state, spec))
        notes = tuple(resuming.rewrite(content, state, by_name=kind == "folder"))
        stem = Path(out.rstrip("/")).with_suffix("") if kind != "folder" else out.rstrip("/")
        suffix = {"folder": "", "safetensors": ".pt"}.get(kind, Path(out).suffix)
        return cls(f"{stem}.optimizer{suffix}", content.of(state.wrapper), notes)

    def write(self) -> Iterator[str]:
        """Write the file and yield notes. If all the state is left out, no file is written."""
        if isinstance(self.content, dict):
            if self.path.endswith(".optimizer"):
                _write_folder(self.path, self.content)
            else:
                write(self.path, self.content)
            yield f"{escape(self.path)} is written beside it"
        yield from self.notes


def stored(checkpoint: Checkpoint, spec: TensorSpec) -> Value:
    """Wrap a tensor of a checkpoint, which is read when it is written."""
    same = (spec.storage or id(spec), spec.offset, spec.shape, spec.stride)
    return Value(tuple(spec.shape), getattr(torch, spec.dtype), lambda: checkpoint.materialise(spec), same)
