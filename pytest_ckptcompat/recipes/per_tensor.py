"""The base class of operators that change tensors one by one: dimensions, sizes, ties."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch

from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.difference import memory

from .arguments import python
from .base import Operator
from .plan import Make, Plan, State, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Change(NamedTuple):
    """How to make the new tensor, and the optimizer's values for its elements (see `Write`)."""

    make: Make
    optimizer_transform: Any = None


@dataclass(frozen=True, repr=False)
class KeyWise(Operator):
    """An operator that makes each new tensor from the old one alone.

    Attributes:
        key: an exact key or a glob. Keys that a glob matches are skipped if they have nothing to change, but
            at least one must change. Tensors tied to one that changes are changed as well.
        computes: whether it computes with the values. Matches of a glob without floats are then skipped.
    """

    computes: ClassVar[bool] = False

    key: str

    def change(self, key: str, state: State, target: State) -> Change | None:
        """Return how one tensor changes, or None if it has nothing to change.

        Raises:
            RecipeError: the tensor should change, but can't.
        """
        raise NotImplementedError

    def plan(self, state: State, target: State) -> Plan:
        """Plan every matched tensor that has something to change, and those tied to it."""
        keys = self.matched(self.key, state)
        ties = tied(state)
        plan: dict[str, list[Write]] = {}
        for key in keys:
            if key in plan or not isinstance(state[key], torch.Tensor) or not self._computable(key, state):
                continue
            change = self.change(key, state, target)
            if change is not None:
                for name in _moved(ties[memory(state[key])], key, target):
                    plan[name] = [Write(name, (name,), *change)]
        if not plan:
            raise self.unused(self.key, f"changes nothing: {self._as_it_is(keys[0], state, target)}")
        return plan

    def tensors(self, state: State) -> list[str]:
        """Return the tensors that `key` matches, for the proof."""
        found = (key for key in select(self.key, state.keys()) if isinstance(state[key], torch.Tensor))
        return [key for key in found if self._computable(key, state)]

    def _computable(self, key: str, state: State) -> bool:
        """Return whether the operator can compute with a tensor.

        Raises:
            RecipeError: it can't, but the key is exact.
        """
        if not self.computes or has_floats(state[key]):
            return True
        if key == self.key:
            raise self.unfit(key, "it holds no real floats")
        return False

    def follows(self, earlier: Operator, state: State) -> bool:
        """Return whether the same operator already changed these tensors under tied names."""
        if not isinstance(earlier, type(self)) or earlier.key == self.key:
            return False
        others = (each.name for each in fields(self) if each.name != "key")
        if any(getattr(earlier, name) != getattr(self, name) for name in others):
            return False
        there = {memory(state[key]) for key in select(earlier.key, state.keys())}
        keys = select(self.key, state.keys())
        return bool(keys) and all(memory(state[key]) in there for key in keys)

    def _as_it_is(self, key: str, state: State, target: State) -> str:
        has = shape(state[key])
        if has is None:
            return f"{python(key)} is not a tensor"
        wanted = shape(target.get(key))
        model = "the model does not have it" if wanted is None else f"the model has {shown(wanted)}"
        return f"{python(key)} is {shown(has)}, {model}"


def has_floats(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds real floats, which can be averaged and drawn."""
    return tensor.is_floating_point()


def tied(state: State) -> dict[object, list[str]]:
    """Group the names of each tensor by its `memory`."""
    ties: dict[object, list[str]] = {}
    for key, value in state.items():
        ties.setdefault(memory(value), []).append(key)
    return ties


def _moved(names: Iterable[str], key: str, target: State) -> Iterator[str]:
    """Yield the names that change with `key`: all, except where the model has another shape."""
    wanted = shape(target.get(key))
    for name in names:
        if name == key or wanted is None or shape(target.get(name)) in (None, wanted):
            yield name


def shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a value, or None if it has none."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):  # None, extra state, uninitialised parameters
        return None


def size_after(
    operator: KeyWise, key: str, dim: int, to: int | None, state: State, target: State
) -> int | None:
    """Return the new size of a tensor's dimension `dim`: the given one, or else the model's.

    Returns:
        The size; None if nothing changes: the tensor already has it, or a glob matched and the model lacks
        the key or the dimension.

    Raises:
        RecipeError: the key is exact, and its size can't be determined or the dimension does not exist.
    """
    has, wanted = tuple(state[key].shape), shape(target.get(key))
    exact = key == operator.key
    if not -len(has) <= dim < len(has):
        if exact or (wanted is not None and wanted != has):
            raise operator.unfit(key, f"it is {shown(has)}, with no dimension {dim}")
        return None
    if to is None and (wanted is None or len(wanted) != len(has)):
        if not exact and wanted is None:
            return None
        why = "the model does not have it" if wanted is None else f"the model has {shown(wanted)}"
        raise operator.unfit(key, f"{why}, so the size of dimension {dim} must be given")
    size = to if to is not None else wanted[dim] if wanted is not None else has[dim]
    return None if size == has[dim] else size


Shape: TypeAlias = tuple[int, ...] | None


def outputs_dim(key: str, old: Callable[[str], Shape], new: Callable[[str], Shape]) -> int | None:
    """Return 0 for a linear layer or a convolution, 1 for a transposed one, judged by the bias's size.

    Args:
        key: the key of the weight.
        old: key -> its shape in the state dict, or None.
        new: key -> its shape in the model, or None.

    Returns:
        The dimension; None if there is no bias, or if both dimensions have its length.
    """
    module, _, leaf = key.rpartition(".")
    bias = f"{module}.bias" if module else "bias"
    if leaf != "weight":
        return None
    for sizes in (new, old):  # a recipe may have changed only one of them so far; the model's match
        weight, length = sizes(key), sizes(bias)
        if weight is None or length is None or len(weight) < 2 or len(length) != 1:
            return None
        found = [dim for dim in (0, 1) if weight[dim] == length[0]]
        if len(found) == 1:
            return found[0]
    return None


def outputs_of(key: str, state: State, target: State) -> int | None:
    """Return `outputs_dim` of a weight in a state dict, for a model with `target`."""
    return outputs_dim(key, lambda name: shape(state.get(name)), lambda name: shape(target.get(name)))
