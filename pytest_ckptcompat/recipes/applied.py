"""The result of a recipe on a state dict."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .base import Edit, Operator
    from .plan import State


@dataclass(frozen=True)
class Applied:
    """The result of a recipe on a state dict.

    Attributes:
        state_dict: the new state dict. Tensors that no operator changed are the same objects as before.
        touched: key -> the operators that changed its values; includes dropped keys. Renaming a key alone
            does not touch it.
        origin: new key -> the old key that it comes from; None if it comes from several or none.
        sources: new key -> all old keys that it comes from.
        changes_function: operator -> why it does not claim to keep the function; operators that do are not
            included.
        lost: old key -> the operator that dropped it.
        eval_only: whether the function is claimed to be kept only in eval mode.
    """

    state_dict: OrderedDict[str, Any]
    touched: dict[str, tuple[Operator, ...]] = field(default_factory=dict)
    origin: dict[str, str | None] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    changes_function: Mapping[Operator, str] = field(default_factory=dict)
    lost: Mapping[str, Operator] = field(default_factory=dict)
    eval_only: bool = False

    @property
    def summary(self) -> str:
        """How many keys have a new name or new values, and how many were dropped."""
        keys = self.state_dict.keys()
        changed = [key for key in keys if key in self.touched or self.origin[key] != key]
        dropped = self.touched.keys() - keys - {old for olds in self.sources.values() for old in olds}
        also = f", drops {len(dropped)}" if dropped else ""
        return f"changes {len(changed)} of {len(keys)} keys{also}"


@dataclass(frozen=True)
class Step:
    """One step of a run: an operator, the state dict before and after it, and the model's sizes for it."""

    operator: Operator
    before: State
    edit: Edit
    target: State

    @property
    def after(self) -> OrderedDict[str, Any]:
        """The state dict after the step."""
        return self.edit.state


def applied(steps: Iterable[Step], state_dict: State) -> Applied:
    """Run steps on a state dict; note which operators touch each key, and where each key comes from."""
    state = OrderedDict(state_dict)
    if (metadata := getattr(state_dict, "_metadata", None)) is not None:
        state._metadata = metadata  # type: ignore[attr-defined]
    changes: dict[Operator, str] = {}
    lost: dict[str, Operator] = {}
    eval_only = False
    sources: dict[str, tuple[str, ...]] = {key: (key,) for key in state}
    touched: dict[str, tuple[Operator, ...]] = {}
    for step in steps:
        if caveat := step.operator.caveat(step.before, step.target):
            changes.setdefault(step.operator, caveat)
        eval_only |= step.operator.eval_only
        lost |= {old: step.operator for key in _left_out(step) for old in sources[key]}
        state, sources, touched = step.after, _sources(step, sources), _touched(step, touched)
    origin: dict[str, str | None] = {key: old[0] if len(old) == 1 else None for key, old in sources.items()}
    return Applied(state, touched, origin, sources, changes, lost, eval_only)


class _Aimed(Mapping[str, Any]):
    """The model's sizes under the names that keys have before later operators rename them."""

    def __init__(self, target: State, coming: Sequence[Operator]) -> None:
        self._target = target
        self._coming = coming

    def __getitem__(self, key: str) -> Any:
        name = key
        for operator in self._coming:
            destination = operator.destination(name)
            if destination is None:
                raise KeyError(key)
            name = destination
        return self._target[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._target)

    def __len__(self) -> int:
        return len(self._target)


def _left_out(step: Step) -> list[str]:
    """Return the keys of which nothing is left after a step."""
    used = {source for writes in step.edit.plan.values() for write in writes for source in write.sources}
    return [key for key in step.edit.plan if key not in used and key not in step.after]


def _sources(step: Step, before: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return new key -> the keys of the original state dict that it comes from."""
    came = {write.key: write.sources for writes in step.edit.plan.values() for write in writes}
    return {
        key: tuple(dict.fromkeys(old for source in came.get(key, (key,)) for old in before[source]))
        for key in step.after
    }


def _touched(step: Step, before: Mapping[str, tuple[Operator, ...]]) -> dict[str, tuple[Operator, ...]]:
    """Return key -> operators that changed its values, up to this step, under the new names."""
    plan = step.edit.plan
    touched = {key: operators for key, operators in before.items() if key not in plan}
    for old, writes in plan.items():
        if not writes and old not in step.after:
            touched[old] = (*before.get(old, ()), step.operator)
        for write in writes:
            earlier = [operator for source in write.sources for operator in before.get(source, ())]
            if write.make is not None or write.overwrites:
                earlier.append(step.operator)
            if earlier:
                touched[write.key] = tuple(dict.fromkeys(earlier))
    return touched
