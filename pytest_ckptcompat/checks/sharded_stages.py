"""The stages of a model that shards itself: shapes are judged anywhere, values where its ranks are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.forward.real import forward
from pytest_ckptcompat.models.blueprint import Blueprint
from pytest_ckptcompat.models.sharded import HOW, has_ranks, load_sharded, stand_in
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.unread import spared, unread
from pytest_ckptcompat.verification.loaded import not_finite, tied_conflicts

from . import value_stages as values
from .completion import target_of
from .log import Stopped

if TYPE_CHECKING:
    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.forward.inputs import Inputs
    from pytest_ckptcompat.models.sharded import Sharded
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe
    from pytest_ckptcompat.verification.comparison import Comparison

    from .arguments import CheckArguments
    from .log import Log

_FUNCTION = "function kept"


def sharded_stages(
    arguments: CheckArguments,
    ckpt: Checkpoint,
    blueprint: Blueprint,
    schema: nn.Module,
    source: Blueprint | None,
    recipe: Recipe,
    applied: Applied,
    comparison: Comparison,
    inputs: Inputs | None,
    reason: str,
    log: Log,
) -> nn.Module | None:
    """What follows the comparison; where the other ranks are not there, nothing is loaded, and it is said.

    Args:
        arguments: what is declared.
        ckpt: the checkpoint.
        blueprint: how the model is built.
        schema: its stand-in on the meta device.
        source: the model that the checkpoint was made for.
        recipe: what turns the one into the other.
        applied: what it made of the header.
        comparison: of the header with the model.
        inputs: of the forward pass.
        reason: why no values are needed, or ``""``.
        log: takes what is found.

    Returns:
        The model with this rank's part of the values, if they were loaded.
    """
    if not reason and isinstance(arguments.model, nn.Module):
        reason = "not loaded: a model that shards itself can't be copied; give what makes it"
    if reason or not has_ranks():
        reason = reason or f"not loaded: {HOW}"
        log.stage("load", "skipped", reason)
        values.list_promises(arguments, ckpt, schema, None, recipe, applied, None, reason, log)
        raise Stopped(reason)
    model, whole, applied = _loaded(ckpt, blueprint, schema, recipe, comparison, log)
    plain = Blueprint(blueprint.name, lambda: stand_in(blueprint.make(), values=True))
    values.verify_stage(arguments, ckpt.stored(), plain, None, recipe, applied, whole, None, log)
    if source is not None and inputs is not None:
        log.promises.append(Promise(_FUNCTION, "unchecked", "the model shards itself"))
    device = arguments.device or "auto"
    if device == "rehearse" or inputs is None:
        log.stage("forward", "skipped", "no inputs declared" if inputs is None else "the model shards itself")
    else:
        outcome = forward(model, inputs, "cpu" if device == "auto" else device, or_skip=device == "auto")
        log.add(*outcome.findings)
        log.stage("forward", outcome.status, outcome.detail)
    values.optimizer_stage(arguments, ckpt, source, recipe, whole, "", log)
    return model


def _loaded(
    ckpt: Checkpoint,
    blueprint: Blueprint,
    schema: nn.Module,
    recipe: Recipe,
    comparison: Comparison,
    log: Log,
) -> tuple[nn.Module, Sharded, Applied]:
    """The model with the values, the same as a whole, and what the recipe made of the checkpoint."""
    if comparison.mismatched:
        raise Stopped("shapes differ (waived): nothing can be loaded")
    with values.loading(log):
        applied = recipe.run(ckpt.stored(), target_of(recipe, schema, blueprint.build))
        if withheld := unread(applied.state_dict):
            raise Stopped(withheld)
        model = blueprint.build()
        state = {key: materialise(value) for key, value in applied.state_dict.items()}
        with spared(model, state):
            load_sharded(model, state, strict=comparison.fits)
        whole = stand_in(model, values=True)
    model.eval()
    strictly = "strictly" if comparison.fits else "without the waived keys"
    found = [*not_finite(whole), *tied_conflicts(whole, applied.state_dict)]
    log.judged("load", found, f"{strictly}, this rank's part of it")
    return model, whole, applied
