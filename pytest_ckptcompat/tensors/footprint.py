"""How many bytes a model takes."""

from __future__ import annotations

from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


def weights(model: nn.Module, itemsize: int = 0) -> int:
    """Return the bytes of a model's parameters and buffers. Shared ones count once."""
    return tensors(chain(model.parameters(), model.buffers()), itemsize)


def tensors(values: Iterable[Any], itemsize: int = 0) -> int:
    """Return the bytes of the tensors (or placeholders of tensors) in `values`, each counted once."""
    held = {id(value): value for value in values}
    return sum(_size(value, itemsize) for value in held.values())


def _size(value: Any, itemsize: int) -> int:
    try:
        return max(int(value.nbytes), int(prod(value.shape)) * itemsize)
    except (AttributeError, ValueError):  # not a tensor
        return 0
    except RuntimeError:  # torch does not measure sparse and nested tensors; a lazy parameter has no size yet
        return 0 if is_lazy(value) else int(value.numel() * max(value.element_size(), itemsize))
