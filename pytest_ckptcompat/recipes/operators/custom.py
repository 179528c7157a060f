"""The operator `custom`: a repository's own function as a step of a recipe."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

import torch

from pytest_ckptcompat.core.claim import Claim, Verdict
from pytest_ckptcompat.core.errors import ModelError, RecipeError, raised
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.core.imports import imported
from pytest_ckptcompat.core.keys import matches
from pytest_ckptcompat.recipes.base import Edit, Operator
from pytest_ckptcompat.recipes.plan import Write, carry_out
from pytest_ckptcompat.recipes.promises import displaced

if TYPE_CHECKING:
    from pytest_ckptcompat.recipes.plan import Plan, State


@dataclass(frozen=True, repr=False)
class custom(Operator):
    """Call a function ``state_dict -> state_dict``, such as a model's own checkpoint filter.

    ``custom("package.module:remap", touches=["head.*"])``, or the function itself instead of its name. It is
    also called with tensors on the meta device, which have no values. Only `touches` and the outputs are
    checked. A tensor that it returns unchanged, under any name, counts as untouched.

    Attributes:
        fn: the function, or its name. It gets a copy of the mapping, which it may change. It must not change
            tensors in place.
        touches: keys or globs of all that it makes, replaces or removes.
        keeps_function: False if the outputs should change; otherwise they are compared as for any other step.
        optim: optimizer state of the keys that it touches: ``reset`` starts it anew; ``copy`` keeps it if the
            shape is the same.
    """

    fn: Callable[..., Any] | str
    touches: tuple[str, ...] = ("*",)
    optim: Literal["copy", "reset"] = "reset"
    keeps_function: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.fn, str) and (name := _name(self.fn)):
            object.__setattr__(self, "fn", name)  # so that it can be printed, compared and written

    def caveat(self, state: State, target: State) -> str:
        return "" if self.keeps_function else f"{self} does not keep it"

    def plan(self, state: State, target: State) -> Plan:
        return self.edit(state, target).plan

    def edit(self, state: State, target: State) -> Edit:
        given = carry_out({}, state, self)
        versions = [(key, value, _version(value)) for key, value in state.items()]
        new = self._called(given)
        for key, value, version in versions:
            if _version(value) != version:
                raise self.unfit(key, "the function changes it in place: let it make a new tensor")
        plan = self._planned(state, new) if state else {}
        if not plan:
            raise self.unused(self.touches[0], "changes nothing")
        return Edit(new, plan)

    def _called(self, given: OrderedDict[str, Any]) -> OrderedDict[str, Any]:
        on_meta = any(isinstance(value, torch.Tensor) and value.is_meta for value in given.values())
        metadata = getattr(given, "_metadata", None)
        try:
            fn = imported(self.fn) if isinstance(self.fn, str) else self.fn
            with torch.no_grad():
                new = fn(given)
        except ModelError as error:
            raise RecipeError(f"{self}: {error}") from None
        except (Exception, SystemExit) as error:
            where = ", called with tensors on the meta device" if on_meta else ""
            raise RecipeError(f"{self} raised {raised(error)}{where}") from error
        new = given if new is None else new
        if not isinstance(new, Mapping) or not all(isinstance(key, str) for key in new):
            raise RecipeError(f"{self} did not return a state dict but {type(new).__name__}")
        made = new if isinstance(new, OrderedDict) else OrderedDict(new)
        if metadata is not None and not hasattr(made, "_metadata"):
            made._metadata = metadata  # type: ignore[attr-defined]
        return made

    def _planned(self, state: State, new: State) -> dict[str, list[Write]]:
        """Derive a plan from the tensors that the function returned."""
        holders: dict[int, list[str]] = {}
        for key, value in new.items():
            if not (key in state and state[key] is value):
                holders.setdefault(id(value), []).append(key)
        plan: dict[str, list[Write]] = {}
        for old, value in state.items():
            stays = old in new and new[old] is value
            moved = [Write(key, (old,), overwrites=key in state) for key in holders.pop(id(value), [])]
            if moved or not stays:
                plan[old] = [Write(old, (old,))] * stays + moved
        *_, last = state
        for key in [key for made in holders.values() for key in made]:
            anchor = key if key in state else last
            plan.setdefault(anchor, [Write(anchor, (anchor,))]).append(self._write(key, new[key], state))
        self._hold_declared(plan)
        return plan

    def _write(self, key: str, value: Any, state: State) -> Write:
        def make(*_: torch.Tensor) -> Any:
            return value

        alike = key in state and getattr(state[key], "shape", None) == getattr(value, "shape", ())
        optimizer_transform = (lambda _, tensor: tensor) if self.optim == "copy" and alike else None
        return Write(key, (key,) if key in state else (), make, optimizer_transform)

    def _hold_declared(self, plan: Plan) -> None:
        """Require that `touches` names what is made, replaced or removed, but not what is renamed."""
        changed = [key for key, writes in plan.items() if not writes]
        changed += [
            write.key for writes in plan.values() for write in writes if write.make or write.overwrites
        ]
        for key in changed:
            if not any(matches(pattern, key) for pattern in self.touches):
                raise self.unfit(key, "the function changes it, and touches= does not name it")

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that keys outside `touches` are unchanged, bit for bit. Nothing is known about the rest."""
        values = {id(value) for value in after.values()}

        def untouched(key: str) -> str | None:
            touched = any(matches(pattern, key) for pattern in self.touches)
            return None if touched or id(before[key]) in values else key

        why = "what a function of your own does is not checked"

        def unchecked() -> Verdict:
            return Promise(f"{self}", "unchecked", why), [
                finding("recipe-unchecked", message=f"{self}: {why}")
            ]

        rest = Claim.of(
            f"{self}: what it does not touch", lambda: displaced(before, after, untouched), "bit for bit"
        )
        return [rest, Claim(f"{self}", unchecked, why)]


def _name(fn: Callable[..., Any]) -> str:
    """Return ``package.module:name`` if that is this function, else ``""``."""
    module, path = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    try:
        found: object = reduce(getattr, path.split("."), sys.modules[module or ""])
    except (KeyError, AttributeError):
        return ""
    return f"{module}:{path}" if found is fn else ""


def _version(value: Any) -> int:
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0
