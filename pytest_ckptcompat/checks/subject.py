"""The subject of a check, which is given to all of its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_ckptcompat.files.paths import is_reference
from pytest_ckptcompat.recipes.recipe import Recipe

from .past_checkpoint import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.forward.inputs import Inputs
    from pytest_ckptcompat.models.blueprint import Blueprint

    from .arguments import CheckArguments
    from .batches import Batch
    from .log import Log


@dataclass(frozen=True)
class Subject:
    """The two sides of a check.

    Attributes:
        arguments: the declared arguments.
        ckpt: the checkpoint.
        blueprint: how the model is built.
        schema: the model on the meta device.
        source: how the model is built that the checkpoint was made for; None if it is not known.
        batch: the inputs of the models.
        reason: why no values are read; ``""`` if they are.
        log: collects the findings.
        recipe: the recipe, after its stage; empty if the checkpoint is loaded as it is.
        place: where to look for past commits.
    """

    arguments: CheckArguments
    ckpt: Checkpoint
    blueprint: Blueprint
    schema: nn.Module
    source: Blueprint | None
    batch: Batch
    reason: str
    log: Log
    recipe: Recipe = field(default_factory=Recipe)
    place: Place = field(default_factory=Place)

    @property
    def inputs(self) -> Inputs | None:
        """The inputs, as declared."""
        return self.batch.inputs

    @property
    def source_commit(self) -> str:
        """The commit that ``source_model="git:REF"`` names, or ``""``."""
        source = self.arguments.source_model
        return source if isinstance(source, str) and is_reference(source) else ""

    @property
    def both_models(self) -> dict[str, Any]:
        """Arguments for proofs of the function: ``source`` builds the old model, ``batches`` calls both."""
        source: Callable[[], nn.Module] | None = None if self.source is None else self.source.build
        batches: Callable[[int], Sequence[Any]] | None = None if self.inputs is None else self.inputs.batch
        return {"source": source, "batches": batches}
