"""Find the model's state dict among several in a checkpoint, by keys and shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.checkpoint.checkpoint import candidates
from pytest_ckptcompat.core.errors import AmbiguousError, CheckpointError, RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.contents import Contents

Shapes = dict[str, tuple[int, ...]]


class Opened(NamedTuple):
    """A checkpoint whose header was read.

    Attributes:
        contents: the header.
        usual: the state dict that is chosen without a model; None if several are possible.
        ambiguous: the error message if several are possible.
        key: the key of the state dict, if it was given.
    """

    contents: Contents
    usual: Checkpoint | None
    ambiguous: str = ""
    key: str | None = None

    @classmethod
    def by(cls, opener: Callable[[str | None], Checkpoint], key: str | None) -> Opened:
        """Open the checkpoint at a state dict key, or at the usual one for None.

        Raises:
            CheckpointError: the checkpoint can't be read.
        """
        try:
            usual = opener(key)
        except AmbiguousError as error:
            return cls(error.contents, None, str(error), key)
        return cls(usual.contents, usual, "", key)

    def chosen(
        self, target: Mapping[str, Any], declared: Recipe | str | None
    ) -> tuple[Checkpoint | None, str]:
        """Choose the state dict that fits the model.

        Args:
            target: the model's state dict.
            declared: the recipe, which is applied to each state dict before the comparison. One that can't be
                read is reported later.

        Returns:
            The state dict, and why it was chosen if it is not `usual`. Returns `usual` if several fit, or if
            none fits but several share names with the model.
        """
        recipe, wanted, usual = (
            declared if isinstance(declared, Recipe) else Recipe(),
            _shapes(target),
            self.usual,
        )
        if self.key is not None or (usual is not None and _made(usual, target, recipe) == wanted):
            return usual, ""
        found = candidates(self.contents)
        if len(found) < 2 and usual is not None:
            return usual, ""
        fitting = [each for each in found if _made(each, target, recipe) == wanted]
        if len(fitting) == 1:
            return fitting[0], f"{_named(fitting[0])}, the only one that fits"
        alike = [each for each in found if not wanted.keys().isdisjoint(each)]
        if usual is None and not fitting and len(alike) == 1:
            return alike[0], f"{_named(alike[0])}, the only one with keys of the model"
        return usual, ""


def _made(ckpt: Checkpoint, target: Mapping[str, Any], recipe: Recipe) -> Shapes | None:
    """Return the shapes that the recipe makes of a state dict, or None if it does not apply."""
    if not recipe.operators:
        return {key: spec.shape for key, spec in ckpt.items()}
    try:
        return _shapes(recipe.run(ckpt.meta(), target).state_dict)
    except (CheckpointError, RecipeError):
        return None


def _shapes(state: Mapping[str, Any]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items() if _has_shape(value)}


def _has_shape(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not torch.nn.parameter.is_lazy(value) and not value.is_nested


def _named(ckpt: Checkpoint) -> str:
    return f"state dict {escape(ckpt.state_dict_key, 60)!r}"
