"""What a format reads out of a checkpoint's header."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.tensors import Extent


@dataclass(frozen=True, slots=True)
class Header:
    """A checkpoint without its values.

    Attributes:
        format: a short name for reports: ``"safetensors"``.
        tree: the outer object: dicts, lists, plain values and `Stub` objects, with a `TensorSpec` for each
            tensor. A dict of key -> `TensorSpec` is enough. A `Branch` stands for the dots in keys.
        storages: name of a storage (`TensorSpec.storage`) -> where its bytes lie: one extent, or chunks with
            their places.
        unsafe: why ``torch.load(weights_only=True)`` would refuse the file, or ``""``.
    """

    format: str
    tree: object
    storages: Mapping[str, tuple[Extent, ...]] = field(default_factory=dict)
    unsafe: str = ""
