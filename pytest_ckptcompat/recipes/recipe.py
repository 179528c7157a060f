"""Recipes: how an old checkpoint becomes a state dict that the new model loads, declared as data."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core import collection
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.recipes.applied import Applied, Step, _Aimed, applied

from .arguments import toml
from .base import Edit, Operator
from .plan import State, carry_out
from .recipe_text import check_names, operator_of, parsed, read, release_tables, written
from .tables import Table, shapes_of

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Iterator, Mapping

    from .base import Surroundings


class Recipe:
    """Operators, in the order in which they run: ``Recipe(tile("out2.*", dim=0))``.

    A recipe is data. Recipes with equal operators are equal, and `repr` returns Python that makes the recipe.
    """

    def __init__(self, *operators: Operator) -> None:
        for operator in operators:
            if not isinstance(operator, Operator):
                raise RecipeError(
                    f"Recipe(...) takes operators, such as tile('out2.*', dim=0), not {operator!r:.80}"
                )
        self.operators = operators

    @property
    def _arguments(self) -> tuple[Any, ...]:
        return self.operators

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._arguments))})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        return type(self) is type(other) and self._arguments == other._arguments

    def __hash__(self) -> int:
        return hash(self._arguments)

    def apply(self, state_dict: State, target: State) -> OrderedDict[str, Any]:
        """Return the state dict that the new model loads.

        Args:
            state_dict: the old state dict: real, on the meta device, or stored. It is not changed.
            target: key -> anything with a shape and a dtype: the new model's ``state_dict()``.

        Raises:
            RecipeError: an operator matches nothing, changes nothing or does not fit.
        """
        return self.run(state_dict, target).state_dict

    def run(self, state_dict: State, target: State) -> Applied:
        """Apply the recipe, and note which operators touch each key, and where each key comes from."""
        return applied(self.steps(state_dict, target), state_dict)

    def completed(self, surroundings: Surroundings) -> Recipe:
        """Return the recipe with open arguments filled in from what a check knows.

        Raises:
            RecipeError: that contradicts an operator.
        """
        return Recipe(*(operator.completed(surroundings) for operator in self.operators))

    @property
    def needs_model(self) -> bool:
        """Whether an operator takes values from the model, so that `target` must have some."""
        return any(operator.needs_model for operator in self.operators)

    def steps(self, state_dict: State, target: State) -> Iterator[Step]:
        """Run the operators one after the other; only the last state dict is held."""
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

    def to_toml(self) -> str:
        """Return the recipe as the text of a recipe file.

        Raises:
            RecipeError: an argument can't be written as TOML, such as a function without a name.
        """
        return "\n".join(map(written, self.operators))

    @staticmethod
    def from_toml(text: str) -> Recipe:
        """Parse the text of a recipe file.

        Raises:
            RecipeError: the text is not valid TOML, or not a recipe.
        """
        return _of_content(parsed(text), "")

    @staticmethod
    def from_tables(tables: Any) -> Recipe:
        """Make a recipe from ``[[recipe]]`` tables, each with ``op`` and its operator's arguments.

        Raises:
            RecipeError: a table names no operator, or its arguments are wrong.
        """
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise RecipeError("a recipe is a list of tables: write [[recipe]]")
        return Recipe(*(operator_of(table, number) for number, table in enumerate(tables, 1)))

    @staticmethod
    @collection.paused()  # locks consist of many small objects
    def load(path: str | os.PathLike[str]) -> Recipe:
        """Read the recipe in a file, or the `Releases` if it is a releases file.

        Raises:
            RecipeError: the file can't be read, or is not a recipe. The message names the file.
        """
        content = read(os.fspath(path))
        try:
            return _of_content(content, os.path.dirname(path))  # noqa: PTH120  # "" stays ""
        except RecipeError as error:
            raise error.inside(escape(public(str(path)))) from None


class Releases(Recipe):
    """All releases of a model's checkpoints, and the recipes from each to the next.

    A state dict is recognised by its keys and shapes. From its release on, the recipes are applied in turn.
    Each must give exactly the keys and shapes of the next release, or a `RecipeError` is raised.

    Args:
        *releases: the releases, oldest first. The last one is what today's model saves.

    Raises:
        RecipeError: a lock can't be read, a name is invalid or taken, or two releases have the same keys and
            shapes.

    Example::

        grow = Recipe(tile("out2.*", dim=0))
        Releases(Release("v1", "v1.ckpt.json", grow), Release("v2", "v2.ckpt.json"))
    """

    def __init__(self, *releases: Release) -> None:
        for release in releases:
            if not isinstance(release, Release):
                raise RecipeError(f"Releases(...) takes Release(name, lock, recipe), not {release!r:.80}")
        super().__init__(*(operator for release in releases for operator in release.recipe.operators))
        check_names([release.name for release in releases])
        if releases[-1].recipe.operators:
            raise RecipeError(
                f"release {releases[-1].name!r} is the last: there is none that its recipe leads to"
            )
        headers: dict[object, str] = {}
        for release in releases:
            if (other := headers.setdefault(release.table.header, release.name)) != release.name:
                raise RecipeError(
                    f"releases {other!r} and {release.name!r} have the same keys and shapes: keep one of them"
                )
        self.releases = releases

    @property
    def _arguments(self) -> tuple[Any, ...]:
        return self.releases

    def release_of(self, state_dict: Mapping[str, Any]) -> Release:
        """Return the release with the keys and shapes of a state dict.

        Raises:
            RecipeError: there is none. The message names the nearest one and the differences.
        """
        header = frozenset(shapes_of(state_dict).items())
        for release in self.releases:
            if release.table.header == header:
                return release
        apart = [(release.table.differences(state_dict), release.name) for release in reversed(self.releases)]
        nearest, name = min(apart, key=lambda each: len(each[0]))
        raise RecipeError(
            f"no release has these keys and shapes; the nearest is {name}: {nearest}", rule="release-unknown"
        )

    def way(self, state_dict: Mapping[str, Any]) -> str:
        """Return the path of a state dict, such as ``v1 → v2 → v3``; errors as in `release_of`."""
        start = self.releases.index(self.release_of(state_dict))
        return " → ".join(release.name for release in self.releases[start:])

    def completed(self, surroundings: Surroundings) -> Releases:
        """Complete the recipe of every release; see `Recipe.completed`."""
        return Releases(
            *(replace(each, recipe=each.recipe.completed(surroundings)) for each in self.releases)
        )

    def steps(self, state_dict: State, target: State) -> Iterator[Step]:
        """Run the recipes from the state dict's release on; see `Recipe.steps`.

        Raises:
            RecipeError: the state dict belongs to no release, or a recipe does not give the next release's
                table.
        """
        state = state_dict
        start = self.releases.index(self.release_of(state_dict))
        for release, following in pairwise(self.releases[start:]):
            try:
                for step in release.recipe.steps(state, following.table.state):
                    yield step
                    state = step.after
            except RecipeError as error:
                raise error.inside(f"the recipe of release {release.name}") from None
            if apart := following.table.differences(state):
                raise RecipeError(
                    f"the recipe of release {release.name} does not give {following.name}: {apart}",
                    rule="release-step",
                )

    def to_toml(self) -> str:
        """Return the text of a releases file; errors as in `Recipe.to_toml`."""
        return "\n".join(
            f"[[release]]\nname = {toml(each.name)}\nlock = {toml(os.fspath(each.lock))}\n"
            + "".join(written(operator, "release.recipe") for operator in each.recipe.operators)
            for each in self.releases
        )

    @staticmethod
    def of_tables(content: Mapping[str, Any], folder: str) -> Releases:
        """Return the releases of a parsed releases file. Their locks are looked for in its folder.

        Raises:
            RecipeError: it is not a releases file, or as in `Releases`.
        """
        found = []
        for table in release_tables(content):
            try:
                recipe = Recipe.from_tables(table.get("recipe", []))
            except RecipeError as error:
                raise error.inside(f"release {table['name']!r}") from None
            found.append(Release(table["name"], os.path.join(folder, table["lock"]), recipe))  # noqa: PTH118
        return Releases(*found)


@dataclass(frozen=True)
class Release:
    """One release of a model's checkpoints.

    Attributes:
        name: letters, digits, dots, dashes and underscores; not ``today``.
        lock: the path of the lock file.
        recipe: the recipe to the next release; empty for the last one.
    """

    name: str
    lock: str | os.PathLike[str]
    recipe: Recipe = field(default_factory=Recipe)

    def __repr__(self) -> str:
        recipe = f", {self.recipe!r}" if self.recipe.operators else ""
        return f"Release({self.name!r}, {os.fspath(self.lock)!r}{recipe})"

    @cached_property
    def table(self) -> Table:
        """The keys and shapes of the release.

        Raises:
            RecipeError: the lock can't be read.
        """
        try:
            return Table.read(os.fspath(self.lock))
        except RecipeError as error:
            raise error.inside(f"release {self.name!r}") from None


def _of_content(content: dict[str, Any], folder: str) -> Recipe:
    """Return the recipe or the releases of a parsed file in a folder."""
    if "release" in content:
        return Releases.of_tables(content, folder)
    tables = content.pop("recipe", [])
    if content:
        raise RecipeError(f"unknown {escape(min(content))!r} in a recipe: it holds [[recipe]] tables alone")
    return Recipe.from_tables(tables)
