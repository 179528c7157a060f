"""Which dimension of a weight counts a layer's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from .keywise import shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import State

Shape: TypeAlias = tuple[int, ...] | None


def outputs_dim(key: str, old: Callable[[str], Shape], new: Callable[[str], Shape]) -> int | None:
    """0 for a linear layer or a convolution, 1 for a transposed one: there is a bias for every output.

    Args:
        key: of the weight.
        old: key -> its shape in the state dict, None where it has none.
        new: key -> its shape in the model, likewise.

    Returns:
        None where the layer has no bias, or where both dimensions are as long as it.
    """
    module, _, leaf = key.rpartition(".")
    bias = f"{module}.bias" if module else "bias"
    if leaf != "weight":
        return None
    for sizes in (new, old):  # a recipe may have changed one of the two already; the model's belong together
        weight, length = sizes(key), sizes(bias)
        if weight is None or length is None or len(weight) < 2 or len(length) != 1:
            return None
        found = [dim for dim in (0, 1) if weight[dim] == length[0]]
        if len(found) == 1:
            return found[0]
    return None


def outputs_of(key: str, state: State, target: State) -> int | None:
    """`outputs_dim` of a weight in a state dict, for a model that has `target`."""
    return outputs_dim(key, lambda name: shape(state.get(name)), lambda name: shape(target.get(name)))
