"""Advice on a checkpoint that does not fit: recipes, and notes on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.key_groups import group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_ckptcompat.recipes.recipe import Recipe

Suggested: TypeAlias = "Recipe | RecipeText"

_MOST_NAMED = 6


@dataclass(frozen=True)
class RecipeText:
    """A suggested recipe as text, for when the recipe itself is in another process."""

    python: str
    toml: str

    def __repr__(self) -> str:
        return self.python

    def to_toml(self) -> str:
        """Return the recipe's TOML form."""
        return self.toml

    @classmethod
    def of(cls, recipe: Suggested) -> Self:
        """Return the texts of a recipe. The TOML is empty if there is none, as with a nameless function."""
        try:
            return cls(repr(recipe), recipe.to_toml())
        except RecipeError:
            return cls(repr(recipe), "")


@dataclass(frozen=True)
class Remedy:
    """What a search found in addition to, or instead of, a recipe that makes the checkpoint load.

    Attributes:
        partial: a recipe that makes a part of it fit.
        choices: recipes that each make it load.
        unexplained: the keys that still differ.
        notes: sentences about the suggested recipe.
    """

    partial: Suggested | None = None
    choices: Sequence[Suggested] = ()
    unexplained: Sequence[str] = ()
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "partial": None if self.partial is None else asdict(RecipeText.of(self.partial)),
            "choices": [asdict(RecipeText.of(each)) for each in self.choices],
            "unexplained": list(self.unexplained),
            "notes": list(self.notes),
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Restore the object from the result of `to_dict`."""
        partial = content["partial"]
        return cls(
            partial=None if partial is None else RecipeText(**partial),
            choices=tuple(RecipeText(**each) for each in content["choices"]),
            unexplained=tuple(content["unexplained"]),
            notes=tuple(content["notes"]),
        )


class Advice(NamedTuple):
    """One piece of advice.

    Attributes:
        sentence: what to do; ends with a colon if a recipe follows.
        recipe: the recipe as text, or None.
        notes: further sentences.
    """

    sentence: str
    recipe: RecipeText | None = None
    notes: Sequence[str] = ()


def advice(suggestion: Suggested | None, remedy: Remedy | None, *, declared: bool) -> Iterator[Advice]:
    """Yield the advice for the user.

    Args:
        suggestion: the recipe that makes the checkpoint load.
        remedy: what else was found; None if there was no search.
        declared: whether a recipe was declared.
    """
    notes = () if remedy is None else remedy.notes
    instead = ", instead of the one declared," if declared else ""
    if suggestion is not None:
        if declared and repr(suggestion) == "Recipe()":
            yield Advice("Without a recipe it would load.", None, notes)
        else:
            yield Advice(f"This recipe{instead} would make it load:", RecipeText.of(suggestion), notes)
    elif remedy is None:
        return
    elif remedy.choices:
        count = len(remedy.choices)
        yield Advice(f"Each of these {count} recipes would make it load. Choose which of the parts is meant.")
        for place, each in enumerate(remedy.choices):
            yield Advice("Either this one:" if not place else "or this one:", RecipeText.of(each))
    elif remedy.partial is not None:
        rest = f"No recipe was found for the rest: {named(remedy.unexplained)}."
        sentence = f"This recipe{instead} would make a part of it fit:"
        yield Advice(sentence, RecipeText.of(remedy.partial), [rest, *notes])
    else:
        yield Advice("No recipe was found that would make it load.", None, notes)


def named(keys: Sequence[str]) -> str:
    """Return a few keys as text, similar ones grouped, and how many more there are."""
    groups = group(keys)
    shown = groups[:_MOST_NAMED]
    more = sum(len(each.keys) for each in groups[_MOST_NAMED:])
    texts = [escape(each.pattern, limit=120) for each in shown] + ([f"{more:,} more keys"] if more else [])
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]])) if texts else ""
