"""The inputs of a check, and a batch of them that other processes can draw again."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.forward.declared_inputs import LOOKED_FOR, known_inputs
from pytest_ckptcompat.forward.inputs import Inputs

from .argument_types import AUTO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_ckptcompat.models.blueprint import Blueprint

    from .arguments import CheckArguments
    from .log import Log


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


class Batch:
    """The inputs of a check in a form that any process can draw again; a callable is called once.

    Attributes:
        inputs: the declared inputs, or None.
    """

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
