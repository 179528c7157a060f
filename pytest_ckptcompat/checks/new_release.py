"""Make a new release: lock today's model, and draft the recipe from the release before it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.checkpoint.lock_writer import lock_text, write_lock, write_text
from pytest_ckptcompat.core.errors import CheckpointError, RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.recipes.arguments import toml
from pytest_ckptcompat.recipes.recipe import Recipe, Release, Releases
from pytest_ckptcompat.recipes.recipe_text import check_names, parsed
from pytest_ckptcompat.recipes.recipe_text import written as operator_text
from pytest_ckptcompat.recipes.tables import shapes_of
from pytest_ckptcompat.suggest.repair import repair
from pytest_ckptcompat.verification.comparison import compare

from .locks import built, lock_of_model

if TYPE_CHECKING:
    from torch import nn

    from pytest_ckptcompat.checkpoint.lock_writer import Content
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.recipes.tables import Table

    from .past_checkpoint import Question


class NotDueError(ValueError):
    """Raised if there is nothing to release, or if the release's name is taken."""


@dataclass(frozen=True)
class NewRelease:
    """A new release, as it was written.

    Attributes:
        name: the name of the release.
        path: the path of the releases file.
        lock: the path of the lock.
        content: the content of the lock.
        before: the name of the previous release; ``""`` if this is the first.
        recipe: the verified recipe from the previous release to this one; None if none was found.
    """

    name: str
    path: str
    lock: str
    content: Content
    before: str = ""
    recipe: Recipe | None = None

    def __str__(self) -> str:
        count = len(self.content["tensors"])
        keys = f"{count:,} key{'' if count == 1 else 's'}"
        told = [f"{escape(self.path)}: release {self.name}, with {escape(self.lock)} ({keys})"]
        if self.before and self.recipe is None:
            told.append(
                f"the recipe of {self.before} is still empty, because none was found: write what turns it "
                f"into {self.name} as [[release.recipe]] below its [[release]]; until then its check fails"
            )
        elif self.before:
            told.append(
                f"the recipe of {self.before} gives {self.name}, on shapes: read it before you commit"
            )
            told.append(f"    {self.recipe!r}")
        return "\n".join(told)


def release(name: str, question: Question, path: str, limits: Limits) -> NewRelease:
    """Lock today's model beside a releases file, and append the release; a missing file is made.

    Raises:
        NotDueError: there is nothing to release.
        CheckpointError: the model can't be built, or a file can't be written.
        RecipeError: the file is not a releases file, or the name is ill-formed.
    """
    check_names([name])
    text, before = _read(path)
    if name in (each.name for each in before):
        raise NotDueError(f"{display(path)} has a release {name} already")
    content, (_, schema) = lock_of_model(question, limits), built(question)
    if not content["tensors"]:
        raise CheckpointError(
            f"{question.model} has no parameters and no buffers: there is nothing to release"
        )
    for other in before:
        if not other.table.differences(schema.state_dict()):
            if other is before[-1]:
                raise NotDueError(
                    f"{question.model} saves what the last release has, {other.name}: nothing to release"
                )
            older = f"{question.model} saves what release {other.name} has, which is not the last"
            raise CheckpointError(f"{older}: two releases with one header can't be told apart")
    recipe = _draft(before[-1].table, schema) if before else None
    lock = f"locks/{name}.ckpt.json"
    place = os.path.join(os.path.dirname(path), lock)  # noqa: PTH118, PTH120  # paths stay text
    added = _added(text, name, lock, recipe)
    if os.path.lexists(place) and not _holds(place, lock_text(content)):
        raise CheckpointError(f"{display(place)} is there already, with something else: remove it first")
    write_lock(place, content)
    if _read(path)[0] != text:
        raise CheckpointError(f"{display(path)} was changed meanwhile: run it again")
    write_text(path, added)
    return NewRelease(name, path, place, content, before[-1].name if before else "", recipe)


def _read(path: str) -> tuple[str, tuple[Release, ...]]:
    """Return the text of the releases file and its releases; both are empty if there is no file."""
    if not os.path.lexists(path):
        return "", ()
    loaded = Recipe.load(path)
    text = Path(path).read_text(encoding="utf-8")
    if isinstance(loaded, Releases):
        return text, loaded.releases
    if loaded.operators:
        raise RecipeError(f"{display(path)} is a recipe file, not a releases file: it has no [[release]]")
    return text, ()


def _holds(path: str, text: str) -> bool:
    try:
        return Path(path).read_bytes() == text.encode("ascii")
    except OSError:  # a folder, a link that leads nowhere
        return False


def _draft(old: Table, schema: nn.Module) -> Recipe | None:
    """Return a recipe that gives exactly what today's model saves, or None if none was found."""
    target = schema.state_dict()

    def differences(recipe: Recipe) -> list[str]:
        return compare(schema, recipe.apply(old.state, target)).differing

    found = repair(
        Recipe(), old.state, target, differences, dict(schema.named_modules(remove_duplicate=False))
    )
    if found.recipe is None:
        return None
    given = found.recipe.apply(old.state, target)
    return found.recipe if shapes_of(given) == shapes_of(target) else None


def _added(text: str, name: str, lock: str, recipe: Recipe | None) -> str:
    """Append the recipe to the last release, and the new release after it; return the new text."""
    indented = [
        "".join(f"  {line}\n" if line else "" for line in operator_text(each, "release.recipe").splitlines())
        for each in (recipe.operators if recipe is not None else ())
    ]
    head = text if not text or text.endswith("\n") else f"{text}\n"
    blank = "\n" if head else ""
    added = f"{head}{''.join(indented)}{blank}[[release]]\nname = {toml(name)}\nlock = {toml(lock)}\n"
    try:
        tables = parsed(added)["release"]
    except RecipeError as error:
        raise RecipeError(
            f"nothing can be added to the releases file: write [[release]] tables ({error})"
        ) from None
    assert tables[-1]["name"] == name
    return added
