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
from .recipe_text import operator_of, parsed, read, written
from .release_names import check_names, release_tables
from .tables import Table, shapes_of

if TYPE_CHECKING:
    from collections import OrderedDict
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
        return applied(self.steps(state_dict, target), state_dict)

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

    def to_toml(self) -> str:
        """The recipe as a recipe file.

        Raises:
            RecipeError: it has something that TOML can't hold, such as a function without a name.
        """
        return "\n".join(map(written, self.operators))

    @staticmethod
    def from_toml(text: str) -> Recipe:
        """The recipe that a recipe file holds.

        Raises:
            RecipeError: it is not TOML, or not a recipe.
        """
        return _of_content(parsed(text), "")

    @staticmethod
    def from_tables(tables: Any) -> Recipe:
        """The recipe of ``[[recipe]]`` tables, each with ``op`` and its operator's arguments.

        Raises:
            RecipeError: a table names no operator, or gives it other arguments than it takes.
        """
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise RecipeError("a recipe is a list of tables: write [[recipe]]")
        return Recipe(*(operator_of(table, number) for number, table in enumerate(tables, 1)))

    @staticmethod
    @collection.paused()  # locks are many small objects
    def load(path: str | os.PathLike[str]) -> Recipe:
        """The recipe in a file, or the `Releases` if it is a releases file.

        Raises:
            RecipeError: it can't be read, or is not a recipe; the text names the file.
        """
        content = read(os.fspath(path))
        try:
            return _of_content(content, os.path.dirname(path))  # noqa: PTH120  # "" stays ""
        except RecipeError as error:
            raise error.inside(escape(public(str(path)))) from None


class Releases(Recipe):
    """All releases of a model's checkpoints, and what turns each into the next.

    A state dict is recognised by its keys and shapes. From its release on, the recipes are applied in turn,
    each for the table of the release after it; what they give is that table, or a `RecipeError`.

    Args:
        *releases: the oldest first. The last is what today's model saves.

    Raises:
        RecipeError: a lock can't be read, a name is wrong or taken, or two releases have one header.

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

    def __repr__(self) -> str:
        return f"Releases({', '.join(map(repr, self.releases))})"

    def __eq__(self, other: object) -> bool:
        return self.releases == other.releases if isinstance(other, Releases) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.releases)

    def release_of(self, state_dict: Mapping[str, Any]) -> Release:
        """The release with the keys and shapes of a state dict.

        Raises:
            RecipeError: there is none; the text names the nearest and tells the differences.
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
        """``v1 → v2 → v3``: the releases through which a state dict goes; errors as of `release_of`."""
        start = self.releases.index(self.release_of(state_dict))
        return " → ".join(release.name for release in self.releases[start:])

    def completed(self, surroundings: Surroundings) -> Releases:
        """As `Recipe.completed`, of every release."""
        return Releases(
            *(replace(each, recipe=each.recipe.completed(surroundings)) for each in self.releases)
        )

    def steps(self, state_dict: State, target: State) -> Iterator[Step]:
        """Run the recipes from the state dict's release on; as `Recipe.steps`.

        Raises:
            RecipeError: the state dict is of no release, or a recipe does not give the next release's table.
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
        """The releases as a releases file; errors as of `Recipe.to_toml`."""
        return "\n".join(
            f"[[release]]\nname = {toml(each.name)}\nlock = {toml(os.fspath(each.lock))}\n"
            + "".join(written(operator, "release.recipe") for operator in each.recipe.operators)
            for each in self.releases
        )

    @staticmethod
    def of_tables(content: Mapping[str, Any], folder: str) -> Releases:
        """The releases of a parsed releases file; their locks are looked for in its folder.

        Raises:
            RecipeError: it is not one, or as of `Releases`.
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
        lock: path of its lock file.
        recipe: what turns it into the next one; empty for the last.
    """

    name: str
    lock: str | os.PathLike[str]
    recipe: Recipe = field(default_factory=Recipe)

    def __repr__(self) -> str:
        recipe = f", {self.recipe!r}" if self.recipe.operators else ""
        return f"Release({self.name!r}, {os.fspath(self.lock)!r}{recipe})"

    @cached_property
    def table(self) -> Table:
        """Its keys and shapes.

        Raises:
            RecipeError: the lock can't be read.
        """
        try:
            return Table.read(os.fspath(self.lock))
        except RecipeError as error:
            raise error.inside(f"release {self.name!r}") from None


def _of_content(content: dict[str, Any], folder: str) -> Recipe:
    """The recipe, or the releases, of a parsed file in a folder."""
    if "release" in content:
        return Releases.of_tables(content, folder)
    tables = content.pop("recipe", [])
    if content:
        raise RecipeError(f"unknown {escape(min(content))!r} in a recipe: it holds [[recipe]] tables alone")
    return Recipe.from_tables(tables)
