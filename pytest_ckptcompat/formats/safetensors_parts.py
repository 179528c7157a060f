"""Parts of tensors in safetensors files that the ranks of ``torch.distributed.checkpoint`` write."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from .json_header import Scanner, naturals

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits

PLACES_OF_PARTS = "DCP_SHARDING_INFO"
"""The entry of ``__metadata__`` with the offsets of a file's tensors in the whole tensors."""

NAME_OF_PARTS = "shard-"
"""The beginning of a rank's file name."""


def places_of_parts(text: str, limits: Limits) -> dict[str, tuple[int, ...]]:
    """Return key -> offset of the part in the whole tensor, from ``{"weight": {"saved_offsets": [3, 0]}}``.

    Raises:
        CheckpointError: the text is not JSON of this form.
    """
    if not text:
        return {}
    scanner = Scanner(text.encode(), f"its {PLACES_OF_PARTS}", limits)
    found: dict[str, tuple[int, ...]] = {}
    for key in scanner.members():
        for name in scanner.members():
            if name == "saved_offsets":
                found[key] = tuple(islice(naturals(scanner), limits.dims + 1))
            else:
                scanner.skip()
    scanner.end()
    return found
