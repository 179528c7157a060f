"""What to suggest: what the search found, compared with all that was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.recipes.recipe import Releases
from pytest_ckptcompat.report.advice import Remedy
from pytest_ckptcompat.suggest.budget import SECONDS
from pytest_ckptcompat.suggest.repair import repair
from pytest_ckptcompat.verification.comparison import compare
from pytest_ckptcompat.verification.function import NAME as FUNCTION

from .log import Log, Stopped
from .value_stages import load_stage, verify_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.forward.inputs import Inputs
    from pytest_ckptcompat.models.blueprint import Blueprint
    from pytest_ckptcompat.recipes.recipe import Recipe
    from pytest_ckptcompat.suggest.search import Suggestion

    from .arguments import CheckArguments


MOST_SECONDS = 10
"""After which no other variant of a recipe is tried on the values."""
_PARTS = {
    "adapter": "The checkpoint has adapters, and the model has none: merge_lora(alpha=...) merges them.",
    "quantisation": "The weights are quantised, and the model's are not: they must be dequantised.",
}


@dataclass(frozen=True)
class Adviser:
    """Looks for a recipe with which a checkpoint would load.

    Attributes:
        arguments: what is declared.
        ckpt: the checkpoint.
        blueprint: how the model is built.
        schema: the model on meta.
        source: how the model is built that the checkpoint was made for.
        inputs: what both models are run on; None where the values are not to be read.
        log: gets the suggestion, and what is said of it.
    """

    arguments: CheckArguments
    ckpt: Checkpoint
    blueprint: Blueprint
    schema: nn.Module
    source: Blueprint | None
    inputs: Inputs | None
    log: Log

    def advise(self, declared: Recipe) -> None:
        """Suggest a recipe in place of a declared one, or of none; a fault in it leaves the verdict."""
        if isinstance(declared, Releases):
            return  # one recipe can't stand for several; the check of today's model says what to do
        try:
            found = self._found(declared)
            self.log.suggestion, about = self._proved(found)
        except Exception as error:
            fault = f"The search for a recipe failed, an error of pytest-ckptcompat itself: {raised(error)}."
            self.log.suggestion, self.log.remedy = None, Remedy(notes=(fault,))
            return
        self.log.remedy = Remedy(
            partial=found.partial,
            choices=found.choices,
            unexplained=found.unexplained,
            notes=(*about, *_notes(found)),
        )

    def _found(self, declared: Recipe) -> Suggestion:
        target, raw = self.schema.state_dict(), self.ckpt.meta()

        def differences(recipe: Recipe) -> list[str]:
            return compare(self.schema, recipe.apply(raw, target)).differing

        return repair(
            declared, raw, target, differences, dict(self.schema.named_modules(remove_duplicate=False))
        )

    def _proved(self, found: Suggestion) -> tuple[Recipe | None, list[str]]:
        """The recipe, and whether the model with it gives what the old one gave, where that can be told."""
        if found.recipe is None or self.source is None or self.inputs is None:
            return found.recipe, []
        began = perf_counter()
        first = self._function(found.recipe)
        if isinstance(first, str):
            return None, [f"A recipe was found for the shapes, but with the values, {first}."]
        if first.status == "unchecked":
            return found.recipe, [f"Whether it keeps the model's function was not compared: {first.detail}."]
        if first.status == "kept":
            return found.recipe, [f"With it the outputs are those of source_model: {first.detail}."]
        for variant in found.variants():
            if perf_counter() - began > MOST_SECONDS:
                break
            promise = self._function(variant)
            if not isinstance(promise, str) and promise.status == "kept":
                return variant, [f"With it the outputs are those of source_model: {promise.detail}."]
        return found.recipe, [f"It does not keep the model's function: {first.detail}."]

    def _function(self, recipe: Recipe) -> Promise | str:
        """What becomes of the model's function with a recipe, or why the values do not load with it."""
        log = Log()
        try:
            model, applied, old = load_stage(
                self.ckpt, self.blueprint, self.schema, recipe, log.comparison, log
            )
        except Stopped as stop:
            return stop.reason
        arguments = replace(self.arguments, recipe=recipe)
        verify_stage(arguments, old, self.blueprint, self.source, recipe, applied, model, self.inputs, log)
        unknown = Promise(FUNCTION, "unchecked", "no reason is known")
        return next((promise for promise in log.promises if promise.name == FUNCTION), unknown)


def _notes(found: Suggestion) -> Iterator[str]:
    yield from (text for kind, text in _PARTS.items() if kind in found.parts)
    if found.dropped:
        yield f"It drops trained weights: {', '.join(found.dropped)}."
    if found.too_long:
        which = "It is the beginning of" if found.partial else "Too many operators to be tried:"
        yield f"{which} a recipe of {found.too_long:,}."
    if found.stopped:
        yield f"The search for a recipe was stopped after {SECONDS:.0f} s."
