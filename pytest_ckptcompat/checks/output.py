"""Write a grown checkpoint to a torch file, a safetensors file or a distributed checkpoint."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from pytest_ckptcompat.checkpoint.safetensors_writer import write_safetensors
from pytest_ckptcompat.checkpoint.torch_zip_writer import write_torch_zip
from pytest_ckptcompat.checkpoint.written import Value
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.redaction import is_meant_as_url, is_url
from pytest_ckptcompat.files.atomic_write import whole_file
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.tensors.difference import is_strided

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.written import Content

Kind = Literal["torch", "safetensors", "folder"]

_TORCH = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_ROOT = "archive"  # torch accepts any; a name that does not depend on the file's gives the same bytes


def kind_of_output(out: str) -> Kind:
    """Return the kind of output that a path means.

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


def refuse_replacing(checkpoint: Checkpoint, out: str) -> None:
    """Refuse an output that replaces the checkpoint itself, or a folder that holds something.

    Raises:
        ValueError: `out` is a file that the values come from, a folder that is not empty, or a file where a
            folder is to be written.
    """
    files = {extent.file for extents in checkpoint.contents.header.storages.values() for extent in extents}
    path = Path(out)
    for file in {checkpoint.path, *files}:
        if not is_url(file) and os.path.lexists(out) and os.path.exists(file) and path.samefile(file):  # noqa: PTH110
            raise ValueError(
                f"{display(out)} is the checkpoint itself, which only --force (force=True) replaces"
            )
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{escape(out)} is not empty, and only --force (force=True) replaces a folder")
    if kind_of_output(out) == "folder" and path.exists() and not path.is_dir():
        raise ValueError(f"{escape(out)} is a file; write a distributed checkpoint to a folder")


def write(out: str, kind: Kind, content: Any) -> int:
    """Write a file or a folder, and return its size in bytes.

    Raises:
        ValueError: the format can't hold the content.
        OSError: it can't be written.
    """
    if kind == "folder":
        from pytest_ckptcompat.checkpoint.dcp_writer import write_dcp  # its import takes as long as torch's

        return write_dcp(out, content)
    if kind == "safetensors":
        for key, value in content.items():
            if not isinstance(value, Value):
                raise ValueError(
                    f"{escape(key)} is not a tensor, and safetensors holds nothing else: write .pth"
                )
    with whole_file(out) as file:
        if kind == "safetensors":
            write_safetensors(file, content, {"format": "pt"})
        else:
            write_torch_zip(file, content, _ROOT)
    return Path(out).stat().st_size


def grown_state(state_dict: Mapping[str, Any], model: nn.Module, content: Content) -> OrderedDict[str, Any]:
    """Return a grown state dict for writing, in the order of the model, as optimizers number parameters.

    Keys share memory in the output only if the model ties them as well. A copied block shares memory with its
    original here, but is a parameter of its own.

    Raises:
        ValueError: a tensor can't be written.
    """
    owners = {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()}
    others = content.of({
        key: value for key, value in state_dict.items() if not isinstance(value, torch.Tensor)
    })  # fmt: skip
    state: OrderedDict[str, Any] = OrderedDict()
    for key in dict.fromkeys([*owners, *state_dict]):
        value = state_dict.get(key)
        if isinstance(value, torch.Tensor):
            if not is_strided(value):
                raise ValueError(f"{escape(key)} is quantized, sparse or nested, and can't be written")
            state[key] = Value.of(value, owners.get(key, key))
        elif key in others:
            state[key] = others[key]
    if (metadata := getattr(state_dict, "_metadata", None)) is not None:
        state._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    return state
