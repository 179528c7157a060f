"""The base class of the operators of recipes."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from pytest_ckptcompat.core.errors import RecipeError, raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import nearest, select

from .arguments import brief, checked, given, hints, positional, python
from .plan import Plan, State, carry_out

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.core.findings import Finding, Promise


@dataclass(frozen=True)
class Surroundings:
    """What a check knows in addition to the state dict, for arguments that a recipe leaves open.

    Attributes:
        beside: reads a file in the checkpoint's folder by its name; returns None if there is none.
        model: the new model, on the meta device; None if it is not known.
        source: gives the model that the checkpoint was made for, on the meta device, or None.
    """

    beside: Callable[[str], bytes | None] = lambda name: None
    model: nn.Module | None = None
    source: Callable[[], nn.Module | None] = lambda: None


class Edit(NamedTuple):
    """The result of one operator: the new state dict, and the plan that made it."""

    state: OrderedDict[str, Any]
    plan: Plan


@dataclass(frozen=True, repr=False)
class Operator:
    """An operation of a recipe: data that can be printed, compared and written as a TOML table.

    A subclass is a frozen dataclass (``repr=False``) with the name of its table, whose fields are its
    arguments: texts, numbers, and lists of them. It makes a `plan`, says what it does not claim, and proves
    what it promises.

    Attributes:
        changes_function: why the operator does not claim to keep the function; ``""`` if it claims to, None
            if it says nothing.
        eval_only: whether its claim about the function holds only in eval mode.
        rounds: whether it computes values, which are rounded to the tensor's dtype; False if it only moves,
            copies or drops values.
    """

    changes_function: ClassVar[str | None] = None
    eval_only: ClassVar[bool] = False
    rounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the types of the arguments.

        Raises:
            RecipeError: an argument is of a wrong type.
        """
        kinds = hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_empty = field.default == () or field.metadata.get("may_be_empty")
            if may_be_empty and value in ((), []):
                value = ()
            else:
                value = checked(type(self).__name__, field.name, value, kinds[field.name])
            object.__setattr__(self, field.name, value)

    def __repr__(self) -> str:
        """Return Python source that makes this operator, without arguments at their defaults."""
        return self._shown(python)

    def __str__(self) -> str:
        """Return the same for messages; long lists are cut."""
        return self._shown(brief)

    def _shown(self, form: Callable[[Any], str]) -> str:
        kinds = hints(type(self))
        by_place = {field.name for field in fields(self) if positional(field, kinds[field.name])}
        arguments = [
            form(value) if name in by_place else f"{name}={form(value)}"
            for name, value in given(self).items()
        ]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def table(self) -> dict[str, Any]:
        """Return the table for a recipe file: ``op``, and the arguments that are not defaults."""
        return {"op": type(self).__name__, **given(self)}

    @classmethod
    def of_table(cls, arguments: Mapping[str, Any]) -> Self:
        """Make the operator from the arguments of a table.

        Raises:
            RecipeError: an argument is unknown, missing or of a wrong type.
        """
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in arguments if name not in names]:
            near = nearest(unknown[0], names, 1)
            hint = f"did you mean {near[0]!r}? It is " if near else ""
            raise RecipeError(f"{cls.__name__}: unknown {escape(unknown[0])!r}: {hint}{cls.signature()}")
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if absent := [name for name in required if name not in arguments]:
            are = "are" if len(absent) > 1 else "is"
            raise RecipeError(f"{cls.__name__}: {' and '.join(absent)} {are} missing: {cls.signature()}")
        return cls(**arguments)

    @classmethod
    def signature(cls) -> str:
        """Return the signature with the names that tables use: ``tile(key, dim, to=None)``."""
        arguments = (
            field.name + ("" if field.default is MISSING else f"={field.default!r}") for field in fields(cls)
        )
        return f"{cls.__name__}({', '.join(arguments)})"

    def plan(self, state: State, target: State) -> Plan:
        """Plan what happens to each key that the operator changes, from keys and shapes alone.

        Args:
            state: the state dict after the previous operators.
            target: key -> anything with a shape and a dtype; the model's state dict.

        Raises:
            RecipeError: the operator matches nothing, changes nothing, or does not fit.
        """
        kind = type(self)
        raise RecipeError(
            f"operator {kind.__name__!r} of {kind.__module__} lacks a method: define {kind.__name__}.plan"
        )

    def edit(self, state: State, target: State) -> Edit:
        """Make the plan and carry it out.

        Raises:
            RecipeError: the plan can't be made.
        """
        try:
            plan = self.plan(state, target)
        except RecipeError:
            raise
        except Exception as error:
            if type(self).__module__.partition(".")[0] == __name__.partition(".")[0]:
                raise  # not a third-party operator: our own error, or a file's
            raise RecipeError(f"{self!r}: its plan raised {raised(error)}") from error
        return Edit(carry_out(plan, state, self), plan)

    def apply(self, state: State, target: State) -> OrderedDict[str, Any]:
        """Return the new state dict. `state` is not changed, and unchanged tensors are the same objects."""
        return self.edit(state, target).state

    def caveat(self, state: State, target: State) -> str:
        """Return why the function may change, for these shapes; ``""`` if it is claimed to be kept."""
        if self.changes_function is None:
            return f"{self} does not say whether it keeps it"
        return self.changes_function

    def completed(self, surroundings: Surroundings) -> Operator:
        """Return the operator with open arguments filled in from what a check knows.

        Raises:
            RecipeError: that contradicts the recipe.
        """
        return self

    @property
    def needs_model(self) -> bool:
        """Whether the operator needs values that the model constructs, and not only its shapes."""
        return False

    def destination(self, key: str) -> str | None:
        """Return the operator's new name for a key; None for a key that it removes."""
        return key

    def follows(self, earlier: Operator, state: State) -> bool:
        """Return whether an earlier operator already did this, because the tensors are tied."""
        return False

    def prove(self, before: State, after: State, target: State) -> Iterable[Claim | Promise]:
        """Yield the operator's promises, with their proofs on the values before and after it.

        A `Claim` is proved later, or only listed if there are no values. A `Promise` is already decided.
        Proofs must not use the operator's own plan: they follow from the meaning of the promises. An operator
        without promises is reported as unchecked.
        """
        return ()

    def remarks(self, before: State, after: State, target: State) -> list[Finding]:
        """Return findings about values that are likely to cause trouble, even if every promise is kept."""
        return []

    def matched(self, pattern: str, state: State) -> list[str]:
        """Return the keys that a pattern matches.

        Raises:
            RecipeError: there are none.
        """
        keys = select(pattern, state.keys())
        if not keys:
            raise self.unused(pattern, f"matches nothing in the checkpoint{did_you_mean(pattern, state)}")
        return keys

    def unused(self, pattern: str, why: str) -> RecipeError:
        """Return the error for an operator that does nothing."""
        return RecipeError(f"{self} {why}", rule="recipe-unused-op", key=pattern)

    def unfit(self, key: str, why: str) -> RecipeError:
        """Return the error for an operator that can't be applied to a key."""
        return RecipeError(f"{self} does not fit {python(key)}: {why}", key=key)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``: did you mean "a" or "b"?`` with the names that look most like one; ``""`` without any."""
    near = " or ".join(map(python, nearest(name, names)))
    return f": did you mean {near}?" if near else ""
