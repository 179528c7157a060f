"""What a format reads from a checkpoint's header."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .tensor_spec import ITEMSIZE, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .tensor_spec import Extent


@dataclass(frozen=True, slots=True)
class Header:
    """A checkpoint without its values.

    Attributes:
        format: a short name for reports: ``"safetensors"``.
        tree: the outermost object: dicts, lists, plain values and `Stub` objects, with a `TensorSpec` for
            each tensor. A dict of key -> `TensorSpec` is enough. Keys of a `Branch` are joined by dots.
        storages: name of a storage (`TensorSpec.storage`) -> where its bytes are: one extent, or chunks with
            their positions.
        unsafe: why ``torch.load(weights_only=True)`` would refuse the file, or ``""``.
        metadata: the plain values that a lock stores beside the table.
        sha256: the hash of the file's bytes, if a lock recorded it.
        behaviour: the model's outputs on synthetic values, if a lock recorded them.
        remarks: what the report should say about how the file was read, safe to print.
    """

    format: str
    tree: object
    storages: Mapping[str, tuple[Extent, ...]] = field(default_factory=dict)
    unsafe: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    behaviour: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()
    sha256: str = ""

    def fault(self) -> str:
        """Return what is wrong with a header that a plugin made, or ``""``."""
        pending = [self.tree]
        while pending:
            node = pending.pop()
            if isinstance(node, dict):
                pending.extend(node.values())
            elif isinstance(node, TensorSpec):
                if len(node.stride) != len(node.shape):
                    return f"a tensor has shape {node.shape}, and stride {node.stride}"
                if node.dtype not in ITEMSIZE and not node.note:
                    return f"a tensor has dtype {node.dtype!r:.80}, which torch does not have"
                if node.storage and node.storage not in self.storages:
                    return f"a tensor lies in storage {node.storage!r:.80}, and it is not told where that is"
        return ""
