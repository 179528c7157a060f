"""Recipes: how an old checkpoint becomes a state dict that the new model loads, declared as data."""

from __future__ import annotations

import tomllib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import nearest
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.recipes.applied import Applied, Step, _Aimed, _left_out, _sources, _touched

from . import registry as extensions
from .arguments import toml
from .base import Edit, Operator
from .plan import State, carry_out

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from .base import Surroundings


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

    def run(self, state_dict: State, target: State) -> Applied:
        """`apply`, and what was touched by which operator, and where each key comes from."""
        state = OrderedDict(state_dict)
        if (metadata := getattr(state_dict, "_metadata", None)) is not None:
            state._metadata = metadata  # type: ignore[attr-defined]
        changes: dict[Operator, str] = {}
        lost: dict[str, Operator] = {}
        eval_only = False
        sources: dict[str, tuple[str, ...]] = {key: (key,) for key in state}
        touched: dict[str, tuple[Operator, ...]] = {}
        for step in self.steps(state, target):
            if caveat := step.operator.caveat(step.before, step.target):
                changes.setdefault(step.operator, caveat)
            eval_only |= step.operator.eval_only
            lost |= {old: step.operator for key in _left_out(step) for old in sources[key]}
            state, sources, touched = step.after, _sources(step, sources), _touched(step, touched)
        origin: dict[str, str | None] = {
            key: old[0] if len(old) == 1 else None for key, old in sources.items()
        }
        return Applied(state, touched, origin, sources, changes, lost, eval_only)

    def completed(self, surroundings: Surroundings) -> Recipe:
        """The recipe with what a check knows besides the state dict, where an operator leaves it open.

        Raises:
            RecipeError: it is not what an operator says.
        """
        return Recipe(*(operator.completed(surroundings) for operator in self.operators))

    @property
    def needs_model(self) -> bool:
        """Whether an operator takes values from the model, so that `target` must have some."""
        return any(operator.needs_model for operator in self.operators)

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
            raise RecipeError(f"the recipe file is not valid TOML: {error}") from None
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
        shown = escape(public(str(path)))
        try:
            return Recipe.from_toml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{shown}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise RecipeError(f"{shown}: the recipe file is not UTF-8 text") from None
        except RecipeError as error:
            raise RecipeError(f"{shown}: {error}", rule=error.rule, key=error.key) from None


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
