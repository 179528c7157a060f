"""Load checkpoints in production, with the same recipe that the gate checked."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint, open_checkpoint
from pytest_ckptcompat.core.errors import (
    AmbiguousError,
    CheckpointError,
    MisfitError,
    ModelError,
    RecipeError,
    raised,
)
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.models.blueprint import Blueprint, blueprint
from pytest_ckptcompat.models.lightning import as_it_was
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.models.real_tensors import give_memory, read_deferred
from pytest_ckptcompat.models.skeleton import LARGE, skeleton
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.footprint import weights
from pytest_ckptcompat.tensors.unread import Unread
from pytest_ckptcompat.verification.loaded import tied_conflicts

from .fitting import Opened, compared, completed, target_of
from .lightning_hook import with_hook
from .log import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_ckptcompat.core.findings import Finding
    from pytest_ckptcompat.report.report import Report


def load(
    model: nn.Module | Callable[[], nn.Module] | str,
    path: str | os.PathLike[str] | Checkpoint,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    *,
    state_dict_key: str | None = None,
) -> nn.Module:
    """Load a checkpoint into a model; a recipe converts an old one.

    The load is always strict. The values are read once, straight into the model, so there is no second copy
    of them. If loading takes a while, a line on the terminal shows the progress. A LightningModule's
    `on_load_checkpoint` is run as Lightning runs it.

    Args:
        model: an ``nn.Module``, which is loaded in place (one on the meta device gets memory on the CPU); or
            a callable that gives the model, or its name, ``"package.module:name"``. The model is then built
            first, without drawing random numbers that the load overwrites.
        path: a file, a folder, an fsspec URL, or the result of `open_checkpoint`.
        recipe: a recipe, or the path of a recipe file.
        state_dict_key: dotted path to the state dict inside. Without it, the usual wrappers are tried.

    Returns:
        The model, in the same mode (training or eval) as before.

    Raises:
        CheckpointError: the checkpoint can't be read. If its values end too early, a module that was given
            may be loaded in part.
        RecipeError: the recipe does not apply.
        MisfitError: the result does not fit the model, or the model can't be built. The message contains the
            table. A module that was given is unchanged, unless its own loader raised on the values.

    Example::

        net = load(Net, "net-2024.pth", recipe="grow.toml").eval()
    """
    plan, schema = _planned(model)
    declared = _recipe(recipe)
    if isinstance(path, Checkpoint):
        ckpt = path.at(state_dict_key)
    else:
        ckpt = _opened(path, state_dict_key, schema, declared)
    if ckpt.valueless:
        raise CheckpointError(f"{ckpt.name} can't be loaded: {ckpt.valueless}")
    plan, schema, _ = with_hook(ckpt, plan, schema)
    try:
        return as_it_was(_loaded(plan, schema, ckpt, declared, in_place=isinstance(model, nn.Module)))
    finally:
        if isinstance(model, nn.Module):
            as_it_was(model)


def _loaded(
    plan: Blueprint, schema: nn.Module, ckpt: Checkpoint, declared: Recipe, *, in_place: bool
) -> nn.Module:
    applicable = completed(declared, ckpt, schema, None)
    applied = applicable.run(ckpt.meta(), schema.state_dict())
    verdict = compared(ckpt, schema, applicable, applied)
    report = Log(comparison=verdict).report(ckpt.name, plan.name, recipe=bool(applicable.operators))
    if not verdict.fits:
        raise _misfit(report, verdict.findings)
    state_dict = applicable.run(ckpt.stored(), target_of(applicable, schema, plan.build)).state_dict
    for key, value in state_dict.items():
        if isinstance(value, Unread):
            raise CheckpointError(f"{ckpt.name}: {escape(key)} was not read: {value.why}")

    def fill(module: nn.Module) -> None:
        give_memory(module)
        with ckpt.progress(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.load_state_dict(state_dict, strict=True)
        read_deferred(module)

    large = weights(schema) > LARGE
    loaded = skeleton(plan.make, fill) if large and not in_place else None
    if loaded is None:
        loaded = plan.make()
        try:
            fill(loaded)
        except (CheckpointError, RecipeError, MisfitError):
            raise
        except Exception as error:
            refused = finding("load-error", message=escape(raised(error), limit=500))
            raise _misfit(report, [refused]) from error
    if conflicts := list(tied_conflicts(loaded, state_dict)):
        raise _misfit(report, conflicts)
    return loaded


def _opened(
    path: str | os.PathLike[str], state_dict_key: str | None, schema: nn.Module, recipe: Recipe
) -> Checkpoint:
    """Open the checkpoint. Of several state dicts, choose the one that fits, as in a check."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise CheckpointError(
            f"path is of type {type(path).__name__}: give a path, or the Checkpoint that open_checkpoint gave"
        )
    opened = Opened.by(lambda key: open_checkpoint(path, key), state_dict_key)
    ckpt, _ = opened.chosen(schema.state_dict(), recipe)
    if ckpt is None:
        raise AmbiguousError(opened.ambiguous)
    return ckpt


def _planned(model: nn.Module | Callable[[], nn.Module] | str) -> tuple[Blueprint, nn.Module]:
    """Return how the model is made, and a copy on the meta device."""
    if isinstance(model, nn.Module):
        return Blueprint(type(model).__name__, lambda: model), meta_copy(model)
    try:
        plan = blueprint(model)
        return plan, plan.schema()
    except ModelError as error:
        raise MisfitError(f"the model can't be built: {error}") from error


def _recipe(recipe: Recipe | str | os.PathLike[str] | None) -> Recipe:
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, (str, os.PathLike)):
        raise RecipeError(f"recipe={recipe!r:.80} is not a Recipe, and not the path of a recipe file")
    return Recipe.load(recipe)


def _misfit(report: Report, findings: Iterable[Finding]) -> MisfitError:
    found = [each for each in findings if each.severity == "error"]
    return MisfitError(str(replace(report, findings=found)))
