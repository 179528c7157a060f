"""Recipes: how an old checkpoint becomes a state dict that the new model loads, declared as data."""

from __future__ import annotations

import tomllib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import extensions
from .errors import RecipeError
from .keys import escape, nearest
from .operators import Edit, Operator
from .operators.arguments import toml
from .operators.plan import State, carry_out

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class Growth:
    """What a recipe made of a state dict.

    Attributes:
        state_dict: the new one; tensors that no operator changed are the objects that they were.
        touched: key -> the operators that gave it other values; keys that were dropped are among them. To
            give a key another name alone is not to touch it.
        origin: new key -> the old key that it comes from; None where it comes from several, or from none.
        sources: new key -> all old keys that it comes from.
        unkept: why the recipe does not claim that the model's function is kept; ``""`` if it claims it.
    """

    state_dict: OrderedDict[str, Any]
    touched: dict[str, tuple[Operator, ...]] = field(default_factory=dict)
    origin: dict[str, str | None] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unkept: str = ""

    @property
    def summary(self) -> str:
        """How many keys are others than before, by name or by value, and how many went without a trace."""
        keys = self.state_dict.keys()
        changed = [key for key in keys if key in self.touched or self.origin[key] != key]
        dropped = self.touched.keys() - keys - {old for olds in self.sources.values() for old in olds}
        also = f", drops {len(dropped)}" if dropped else ""
        return f"changes {len(changed)} of {len(keys)} keys{also}"


@dataclass(frozen=True)
class Step:
    """One operator at work: the state dict before and after it, and the model's sizes as it sees them."""

    operator: Operator
    before: State
    edit: Edit
    target: State

    @property
    def after(self) -> OrderedDict[str, Any]:
        """The state dict after it."""
        return self.edit.state


class Recipe:
    """Operators, in the order in which they run: ``Recipe(tile("out2.*", dim=0))``.

    A recipe is data: recipes with equal operators are equal, `repr` is Python that makes the recipe, and
    `to_toml` is a recipe file that holds it.
    """

    def __init__(self, *operators: Operator) -> None:
        for operator in operators:
            if not isinstance(operator, Operator):
                raise RecipeError(
                    f"Recipe(...) takes operators, such as tile('out2.*', dim=0), not {operator!r:.80}"
                )
        self.operators = operators

    def __repr__(self) -> str:
        return f"Recipe({', '.join(map(repr, self.operators))})"

    def __eq__(self, other: object) -> bool:
        return self.operators == other.operators if isinstance(other, Recipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.operators)

    # -- at work -------------------------------------------------------------------------------------------

    def apply(self, state_dict: State, target: State) -> OrderedDict[str, Any]:
        """The state dict that the new model loads.

        Args:
            state_dict: the old one: real, on the meta device, or stored; left as it is.
            target: key -> anything with a shape and a dtype: the new model's ``state_dict()``.

        Raises:
            RecipeError: an operator matches nothing, changes nothing where it is to grow, or does not fit.
        """
        return self.run(state_dict, target).state_dict

    def run(self, state_dict: State, target: State) -> Growth:
        """`apply`, and what was touched by which operator, and where each key comes from."""
        state = OrderedDict(state_dict)
        if (metadata := getattr(state_dict, "_metadata", None)) is not None:
            state._metadata = metadata  # type: ignore[attr-defined]
        unkept = ""
        sources: dict[str, tuple[str, ...]] = {key: (key,) for key in state}
        touched: dict[str, tuple[Operator, ...]] = {}
        for step in self.steps(state, target):
            unkept = unkept or step.operator.caveat(step.before, step.target)
            state, sources, touched = step.after, _sources(step, sources), _touched(step, touched)
        origin: dict[str, str | None] = {
            key: old[0] if len(old) == 1 else None for key, old in sources.items()
        }
        return Growth(state, touched, origin, sources, unkept)

    def steps(self, state_dict: State, target: State) -> Iterator[Step]:
        """Run the operators one after the other; no state dict but the last is held."""
        state = state_dict
        done: list[Operator] = []
        for number, operator in enumerate(self.operators):
            aimed = _Aimed(target, self.operators[number + 1 :])
            if any(operator.follows(earlier, state) for earlier in done):
                edit = Edit(carry_out({}, state, operator), {})
            else:
                edit = operator.edit(state, aimed)
            yield Step(operator, state, edit, aimed)
            done.append(operator)
            state = edit.state

    # -- as text -------------------------------------------------------------------------------------------

    def to_toml(self) -> str:
        """The recipe as a recipe file.

        Raises:
            RecipeError: it has something that TOML can't hold, such as a function without a name.
        """
        return "\n".join(map(_table, self.operators))

    @staticmethod
    def from_toml(text: str) -> Recipe:
        """The recipe that a recipe file holds.

        Raises:
            RecipeError: it is no TOML, or no recipe.
        """
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"the recipe is no TOML: {error}") from None
        tables = content.pop("recipe", [])
        if content:
            raise RecipeError(
                f"unknown {escape(min(content))!r} in a recipe: it holds [[recipe]] tables alone"
            )
        return Recipe.from_tables(tables)

    @staticmethod
    def from_tables(tables: Any) -> Recipe:
        """The recipe of ``[[recipe]]`` tables, each with ``op`` and its operator's arguments.

        Raises:
            RecipeError: a table names no operator, or gives it other arguments than it takes.
        """
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise RecipeError("a recipe is a list of tables: write [[recipe]]")
        return Recipe(*(_operator(table, number) for number, table in enumerate(tables, 1)))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Recipe:
        """The recipe in a file.

        Raises:
            RecipeError: it can't be read, or is no recipe; the text names the file.
        """
        shown = escape(str(path))
        try:
            return Recipe.from_toml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{shown}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise RecipeError(f"{shown}: the recipe is no UTF-8 text") from None
        except RecipeError as error:
            raise RecipeError(f"{shown}: {error}", rule=error.rule, key=error.key) from None


class _Aimed(Mapping[str, Any]):
    """The model's sizes under the names that keys have before operators that are still to come."""

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


def _sources(step: Step, before: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """New key -> the keys of the first state dict that it comes from."""
    came = {write.key: write.sources for writes in step.edit.plan.values() for write in writes}
    sources = {}
    for key in step.after:
        if key in came:
            sources[key] = tuple(dict.fromkeys(old for source in came[key] for old in before[source]))
        else:
            sources[key] = before[key]
    return sources


def _touched(step: Step, before: Mapping[str, tuple[Operator, ...]]) -> dict[str, tuple[Operator, ...]]:
    """Key -> operators that gave it other values, renamed as the keys are; before this step and in it."""
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


def _table(operator: Operator) -> str:
    lines = [f"{name} = {toml(value)}" for name, value in operator.table().items()]
    return "\n".join(["[[recipe]]", *lines, ""])


def _operator(table: Mapping[str, Any], number: int) -> Operator:
    arguments = dict(table)
    name = arguments.pop("op", None)
    kind = extensions.operator(name) if isinstance(name, str) else None
    if kind is None:
        known = extensions.operators()
        near = nearest(name, known, 1) if isinstance(name, str) else []
        what = f"unknown op {escape(name)!r}" if isinstance(name, str) else "op is missing"
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        raise RecipeError(f"operator {number} of the recipe: {what}: {hint}")
    return kind.of_table(arguments)
