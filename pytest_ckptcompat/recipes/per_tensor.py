"""The base class of operators that change tensors one by one: dimensions, sizes, ties."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import memory

from .arguments import python
from .base import Operator
from .plan import Plan, State, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Change = TypeVar("Change")


@dataclass(frozen=True, repr=False)
class KeyWise(Operator, Generic[Change]):
    """An operator that makes each new tensor from the old one alone.

    A subclass says with `change` what happens to a tensor, as far as shapes tell. Everything else, the plan,
    the optimizer's state and the proof, follows from that. `Change` is whatever the subclass needs to know: a
    shape, an order of axes, a map of rows.

    Attributes:
        key: an exact key or a glob. Keys that a glob matches are skipped if they have nothing to change, but
            at least one must change. Tensors tied to one that changes are changed as well.
        computes: whether it computes with the values. Matches of a glob without floats are then skipped.
        promise: what `faults` proves.
        kept: what the report says if there is no fault.
    """

    computes: ClassVar[bool] = False
    promise: ClassVar[str] = ""
    kept: ClassVar[str] = ""

    key: str

    def change(self, key: str, state: State, target: State) -> Change | None:
        """Return how one tensor changes, or None if it has nothing to change.

        Raises:
            RecipeError: the tensor should change, but can't.
        """
        raise NotImplementedError

    def new_shape(self, change: Change, old: torch.Tensor) -> Sequence[int]:
        """Return the shape of the new tensor; by default the old one's."""
        return tuple(old.shape)

    def new_dtype(self, change: Change, old: torch.Tensor) -> torch.dtype:
        """Return the dtype of the new tensor; by default the old one's."""
        return old.dtype

    def make(self, key: str, change: Change, tensor: torch.Tensor) -> torch.Tensor:
        """Make the new tensor, in memory of its own. Never called on meta."""
        raise NotImplementedError

    def moments(self, key: str, change: Change, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        """Make the optimizer's values for the new elements, unless `optim` resets them.

        If they are averages of `squares`, they must not become negative.
        """
        return self.make(key, change, tensor)

    def faults(self, key: str, change: Change, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        """Yield what is wrong with a new tensor, whose shape and dtype are right."""
        raise NotImplementedError

    def plan(self, state: State, target: State) -> Plan:
        """Plan every matched tensor that has something to change, and those tied to it."""
        keys = self.matched(self.key, state)
        ties = tied(state)
        plan: dict[str, list[Write]] = {}
        for key in self.tensors(state):
            change = None if key in plan else self.change(key, state, target)
            if change is not None:
                make, moments = self._makers(key, change)
                for name in _moved(ties[memory(state[key])], key, target):
                    plan[name] = [Write(name, (name,), make, moments)]
        if not plan:
            raise self.unused(self.key, f"changes nothing: {self._as_it_is(keys[0], state, target)}")
        return plan

    def _makers(self, key: str, change: Change) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
        """Return what makes the tensor, and what makes the optimizer's values for it; see `Write`."""

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return self._blank(change, tensor) if tensor.is_meta else self.make(key, change, tensor)

        def moments(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
            return (
                self._blank(change, tensor) if tensor.is_meta else self.moments(key, change, tensor, squares)
            )

        return make, None if getattr(self, "optim", "reset") == "reset" else moments

    def _blank(self, change: Change, old: torch.Tensor) -> torch.Tensor:
        return old.new_empty(tuple(self.new_shape(change, old)), dtype=self.new_dtype(change, old))

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim the operator's `promise` of every tensor that changes."""
        return [self.claim(self.promise, before, after, target, kept=self.kept)]

    def claim(
        self,
        promise: str,
        before: State,
        after: State,
        target: State,
        *,
        faults: Callable[[str, Change, torch.Tensor, torch.Tensor], Iterator[str]] | None = None,
        kept: str | Callable[[], str] = "",
    ) -> Claim:
        """Claim that every tensor that changes has the right shape and dtype, and no `faults`."""

        def found() -> Iterator[str]:
            for key, change in self.changes(before, target):
                old, new = materialise(before[key]), after.get(key)
                wanted = tuple(self.new_shape(change, old)), self.new_dtype(change, old)
                if not isinstance(new, torch.Tensor) or (tuple(new.shape), new.dtype) != wanted:
                    is_now = _described(new.shape, new.dtype) if isinstance(new, torch.Tensor) else "gone"
                    yield f"{escape(key)}: {is_now} instead of {_described(*wanted)}"
                    return
                yield from (faults or self.faults)(key, change, old, materialise(new))

        return Claim.of(f"{self}: {promise}", found, kept)

    def changes(self, state: State, target: State) -> Iterator[tuple[str, Change]]:
        """Yield the matched tensors that change, and how."""
        for key in self.tensors(state):
            change = self.change(key, state, target)
            if change is not None:
                yield key, change

    def tensors(self, state: State) -> list[str]:
        """Return the matched tensors with which the operator can compute.

        Raises:
            RecipeError: the key is exact, and holds no floats.
        """
        found = [key for key in select(self.key, state.keys()) if isinstance(state[key], torch.Tensor)]
        fit = [key for key in found if not self.computes or state[key].is_floating_point()]
        if self.key in found and not fit:
            raise self.unfit(self.key, "it holds no real floats")
        return fit

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

    def has_dimension(self, key: str, dim: int, state: State, target: State) -> bool:
        """Return whether a tensor has a dimension; False only for a glob's match that needs no change.

        Raises:
            RecipeError: it does not, and the key is exact or the model has another shape.
        """
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        if -len(has) <= dim < len(has):
            return True
        if key == self.key or wanted not in (None, has):
            raise self.unfit(key, f"it is {shown(has)}, with no dimension {dim}")
        return False

    def new_size(self, key: str, dim: int, to: int | None, state: State, target: State) -> int | None:
        """Return the new size of a tensor's dimension `dim`: `to`, or else the model's.

        Returns:
            The size; None if nothing changes: the tensor already has it, or a glob matched and the model
            lacks the key or the dimension.

        Raises:
            RecipeError: the key is exact, and its size can't be determined or the dimension does not exist.
        """
        if not self.has_dimension(key, dim, state, target):
            return None
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        if to is None:
            if wanted is None and key != self.key:
                return None
            if wanted is None or len(wanted) != len(has):
                raise self.unfit(key, f"{model_has(wanted)}, so the size of dimension {dim} must be given")
            to = wanted[dim]
        return None if to == has[dim] else to

    def _as_it_is(self, key: str, state: State, target: State) -> str:
        has = shape(state[key])
        if has is None:
            return f"{python(key)} is not a tensor"
        return f"{python(key)} is {shown(has)}, {model_has(shape(target.get(key)))}"


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


Shape: TypeAlias = tuple[int, ...] | None


def shape(value: Any) -> Shape:
    """Return the shape of a value, or None if it has none."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):  # None, extra state, uninitialised parameters
        return None


def model_has(wanted: Shape) -> str:
    """Say for a message which shape the model has."""
    return "the model does not have it" if wanted is None else f"the model has {shown(wanted)}"


def outputs_dim(key: str, old: Callable[[str], Shape], new: Callable[[str], Shape]) -> int | None:
    """Return the dimension of a weight that counts outputs, judged by the bias's size.

    It is 0 for a linear layer or a convolution, 1 for a transposed one, and None if there is no bias, or if
    both dimensions have its length. `old` and `new` return the shapes in the state dict and in the model.
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


def _described(sizes: Sequence[int], dtype: torch.dtype) -> str:
    return shown(tuple(sizes), str(dtype).removeprefix("torch."))
