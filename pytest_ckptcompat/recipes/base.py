"""What every operator of a recipe has in common."""

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
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.core.findings import Finding, Promise


@dataclass(frozen=True)
class Surroundings:
    """What a check knows besides the state dict, for arguments that a recipe leaves open.

    Attributes:
        beside: reads a file in the checkpoint's folder by its name; None where there is none.
        model: the new model, on the meta device; None if it is not known.
        source: gives the model that the checkpoint was made for, likewise.
    """

    beside: Callable[[str], bytes | None] = lambda name: None
    model: nn.Module | None = None
    source: Callable[[], nn.Module | None] = lambda: None


class Edit(NamedTuple):
    """What one operator did: the new state dict, and the plan by which it was made."""

    state: OrderedDict[str, Any]
    plan: Plan


@dataclass(frozen=True, repr=False)
class Operator:
    """One step of a recipe: data that can be printed, compared and written as a table.

    A subclass is a frozen dataclass (``repr=False``) named as its table is, whose fields are its arguments:
    texts, numbers, and lists of them. It gives a `plan`, says what it does not claim, and proves what it
    promises.

    Attributes:
        changes_function: why the operator does not claim that the function is kept; ``""`` if it claims it,
            None if it says nothing.
        eval_only: whether what it claims of the function is so in eval mode alone.
        rounds: whether it computes values, which are rounded to the tensor's dtype; False for one that moves,
            copies or leaves out values alone.
    """

    changes_function: ClassVar[str | None] = None
    eval_only: ClassVar[bool] = False
    rounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the arguments' types.

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
        """Python that makes this operator, arguments that are at their defaults left out."""
        return self._shown(python)

    def __str__(self) -> str:
        """The same for a text to be read: of a long list, only its beginning."""
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
        """The operator as a table of a recipe file: ``op``, and the arguments that are not defaults."""
        return {
            "op": type(self).__name__,
            **given(self),
        }

    @classmethod
    def of_table(cls, arguments: Mapping[str, Any]) -> Self:
        """The operator with the arguments of a table.

        Raises:
            RecipeError: an argument is unknown, missing or of a wrong type.
        """
        names = {field.name: field for field in fields(cls)}
        for name in arguments:
            if name not in names:
                near = nearest(name, names, 1)
                hint = f"did you mean {near[0]!r}? It is " if near else ""
                raise RecipeError(f"{cls.__name__}: unknown {escape(name)!r}: {hint}{cls.signature()}")
        required = [name for name, field in names.items() if field.default is MISSING]
        if absent := [name for name in required if name not in arguments]:
            are = "are" if len(absent) > 1 else "is"
            raise RecipeError(f"{cls.__name__}: {' and '.join(absent)} {are} missing: {cls.signature()}")
        return cls(**{names[name].name: value for name, value in arguments.items()})

    @classmethod
    def signature(cls) -> str:
        """``tile(key, dim, to=None)``: the arguments by the names that they have in tables."""
        arguments = (
            field.name + ("" if field.default is MISSING else f"={field.default!r}") for field in fields(cls)
        )
        return f"{cls.__name__}({', '.join(arguments)})"

    def plan(self, state: State, target: State) -> Plan:
        """What becomes of each key that the operator changes, told from keys and shapes alone.

        Args:
            state: the state dict as the operators before this one left it.
            target: key -> anything with a shape and a dtype: what the model has.

        Raises:
            RecipeError: the operator matches nothing, changes nothing, or does not fit.
        """
        kind = type(self)
        raise RecipeError(
            f"operator {kind.__name__!r} of {kind.__module__} lacks a method: define {kind.__name__}.plan"
        )

    def edit(self, state: State, target: State) -> Edit:
        """Plan, and carry the plan out.

        Raises:
            RecipeError: the plan can't be made.
        """
        try:
            plan = self.plan(state, target)
        except RecipeError:
            raise
        except Exception as error:
            if type(self).__module__.partition(".")[0] == __name__.partition(".")[0]:
                raise  # not somebody else's operator: an error of ours, or of a file
            raise RecipeError(f"{self!r}: its plan raised {raised(error)}") from error
        return Edit(carry_out(plan, state, self), plan)

    def apply(self, state: State, target: State) -> OrderedDict[str, Any]:
        """The new state dict; `state` is left as it is, and what does not change is the same tensor."""
        return self.edit(state, target).state

    def caveat(self, state: State, target: State) -> str:
        """Why the function may change, for these shapes; ``""`` if it is claimed to be kept."""
        if self.changes_function is None:
            return f"{self} does not say whether it keeps it"
        return self.changes_function

    def completed(self, surroundings: Surroundings) -> Operator:
        """The same with what a check knows besides, where the recipe leaves it open.

        Raises:
            RecipeError: it is not what the recipe says.
        """
        return self

    @property
    def needs_model(self) -> bool:
        """Whether values that the model constructs are needed, and not its shapes alone."""
        return False

    def destination(self, key: str) -> str | None:
        """What the operator calls a key that it is given; None for a key that it takes away."""
        return key

    def follows(self, earlier: Operator, state: State) -> bool:
        """Whether an earlier operator did what this one is to do, because their tensors are tied."""
        return False

    def prove(self, before: State, after: State, target: State) -> Iterable[Claim | Promise]:
        """What the operator promises, each with what proves it on the values before and after it.

        A `Claim` is proved when it is asked for, and listed where there are no values; a `Promise` was proved
        already. Nothing here may use the operator's own plan: the promises are told from what they mean. An
        operator that promises nothing is reported as unchecked.
        """
        return ()

    def remarks(self, before: State, after: State, target: State) -> list[Finding]:
        """What people regret in the values after it, though every promise be kept."""
        return []

    def matched(self, pattern: str, state: State) -> list[str]:
        """The keys that a pattern names.

        Raises:
            RecipeError: there are none.
        """
        keys = select(pattern, state.keys())
        if not keys:
            raise self.unused(pattern, f"matches nothing in the checkpoint{_hint(pattern, state)}")
        return keys

    def unused(self, pattern: str, why: str) -> RecipeError:
        """The error of an operator that does nothing."""
        return RecipeError(f"{self} {why}", rule="recipe-unused-op", key=pattern)

    def unfit(self, key: str, why: str) -> RecipeError:
        """The error of an operator that can't do what it says."""
        return RecipeError(f"{self} does not fit {python(key)}: {why}", key=key)


def _hint(pattern: str, state: State) -> str:
    near = nearest(pattern, state.keys())
    return f": did you mean {_listed([python(key) for key in near])}?" if near else ""


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
