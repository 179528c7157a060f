"""The subject of a check, which is given to all of its stages, and the inputs of its models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.files.paths import is_reference
from pytest_ckptcompat.forward.declared_inputs import LOOKED_FOR, known_inputs
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.recipes.recipe import Recipe

from .argument_types import AUTO
from .past_checkpoint import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.models.blueprint import Blueprint

    from .arguments import CheckArguments
    from .log import Log


class Batch:
    """The declared inputs in a form that any process can draw again; a callable is called once."""

    def __init__(self, inputs: Inputs | None) -> None:
        self.inputs = inputs

    @cached_property
    def _made(self) -> tuple[Any, str]:
        if self.inputs is None:
            return None, "no inputs declared"
        try:
            return self.inputs.plain(), ""
        except ValueError as error:
            return None, str(error)

    @property
    def plain(self) -> Any:
        """The batch in the form of `plain.packed`; None if there is none."""
        return self._made[0]

    @property
    def lacking(self) -> str:
        """Why there is no batch, or ``""``."""
        return self._made[1]


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


def inputs_of(
    arguments: CheckArguments,
    blueprint: Blueprint,
    schema: nn.Module,
    log: Log,
    recorded: Mapping[str, Any] | None = None,
) -> Inputs | None:
    """Return the inputs: declared, provided by the model, or those whose outputs a lock recorded."""
    declared, method = arguments.inputs, arguments.method
    if declared is None and recorded is not None:
        declared = recorded.get("inputs")
        method = method if method != "forward" else str(recorded.get("method", method))
    if declared is None:
        return None
    try:
        return replace(parsed(declared, blueprint, schema), method=method)
    except ValueError as error:
        log.add(finding("forward-error", message=str(error)))
        return None


def parsed(declared: Any, blueprint: Blueprint, schema: nn.Module) -> Inputs:
    """Parse declared inputs; ``"auto"`` stands for those that the model provides.

    Raises:
        ValueError: the inputs are invalid, or the model provides none.
    """
    if declared != AUTO:
        return Inputs.parse(declared)
    known = known_inputs(schema, blueprint.build)
    if known is None:
        raise ValueError(
            f"inputs='auto': {blueprint.name} does not declare its inputs; looked for {LOOKED_FOR}"
        )
    return known
