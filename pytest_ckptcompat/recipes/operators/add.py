"""The operator `add`: keys that the checkpoint lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from pytest_ckptcompat.core import keys
from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator, did_you_mean
from pytest_ckptcompat.recipes.new_rows import Fresh
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


Start = Literal["zeros", "ones", "constant", "normal", "kaiming_uniform", "xavier_uniform", "model"]


@dataclass(frozen=True, repr=False)
class add(Operator):
    """Add a key that the model has and the checkpoint does not, in the model's shape and dtype.

    ``add("scale", init="ones")``; a new head as the model constructs it: ``add("head2.*", init="model")``.

    Attributes:
        key: an exact key or a glob; it matches keys that the model has and the checkpoint has not.
        init: ``zeros``, ``ones``; ``constant``: `value`; ``normal``: mean 0, `std`; ``kaiming_uniform`` and
            ``xavier_uniform``: as torch fills a new tensor of this size, a bias with the bound that its
            weight gives it; ``model``: as the model constructs it.
        std: for ``normal``.
        value: for ``constant``.
        seed: the seed of random values.
    """

    rounds: ClassVar[bool] = False

    key: str
    init: Start = "zeros"
    std: float | None = None
    value: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.init == "normal") != (self.std is not None):
            raise RecipeError('add: std= goes with init="normal", and with nothing else', key=self.key)

    def caveat(self, state: State, target: State) -> str:
        same = self.init in ("zeros", "ones", "constant")
        return "" if same else f"{self} adds new values"

    @property
    def needs_model(self) -> bool:
        return self.init == "model"

    def plan(self, state: State, target: State) -> Plan:
        if not state:
            raise self.unused(self.key, "has no checkpoint to add to")
        *_, last = state
        on_meta = any(isinstance(value, torch.Tensor) and value.is_meta for value in state.values())
        new = self._new(state, target)
        writes = [Write(name, (), self._make(name, state, target, on_meta)) for name in new]
        return {last: [Write(last, (last,)), *writes]}

    def _new(self, state: State, target: State) -> list[str]:
        """Return the keys to add."""
        named = [key for key in keys.select(self.key, target) if shape(target.get(key)) is not None]
        if not named and shape(target.get(self.key)) is not None:
            named = [self.key]  # a name that a later operator will change
        if not named:
            raise self.unused(self.key, f"matches nothing in the model{did_you_mean(self.key, target)}")
        new = [key for key in named if key not in state]
        if not new:
            raise self.unused(self.key, f"changes nothing: the checkpoint has {python(named[0])}")
        return new

    def _make(self, key: str, state: State, target: State, on_meta: bool) -> Callable[[], torch.Tensor]:
        sizes, dtype = shape(target[key]) or (), _dtype(target[key])
        fresh = None if self.init == "model" else Fresh.of(self.init, self, key, state, target)
        rows = sizes or (1,)

        def make() -> torch.Tensor:
            if on_meta:
                return torch.empty(sizes, dtype=dtype, device="meta")
            if fresh is None:
                return self._as_constructed(key, target)
            return fresh.made(torch.empty((0, *rows[1:]), dtype=dtype), 0, rows[0]).reshape(sizes)

        return make

    def _as_constructed(self, key: str, target: State) -> torch.Tensor:
        value = target[key]
        if not isinstance(value, torch.Tensor) or value.is_meta:
            raise self.unfit(
                key,
                "the target has no values: apply() needs the state dict of a constructed model, not of one "
                "on the meta device",
            )
        return value.detach().clone(memory_format=torch.contiguous_format)

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that new keys have the model's shape and the declared values, and the rest is unchanged."""

        def faults() -> Iterator[str]:
            for key in self._new(before, target):
                made = after.get(key)
                if not isinstance(made, torch.Tensor) or tuple(made.shape) != shape(target[key]):
                    wanted = shown(shape(target[key]) or ())
                    yield f"{escape(key)}: it is not there in the shape {wanted}"
                    return
                made = materialise(made)
                if self.init == "model":
                    yield from differing(key, self._as_constructed(key, target), made)
                else:
                    rows = made.reshape(made.shape or (1,))
                    fresh = Fresh.of(self.init, self, key, before, target)
                    yield from fresh.faults(rows[:0], rows, 0)

        yield Claim.of(f"{self}: new keys are as declared", faults, self.init)


def _dtype(like: Any) -> torch.dtype:
    """Return the dtype of an object, which has it as a dtype or by its name."""
    dtype = like.dtype
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."))
    assert isinstance(found, torch.dtype)
    return found
