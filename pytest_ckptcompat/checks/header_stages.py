"""The stages that need only a checkpoint's header: open, build, source, recipe, compare."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pytest_ckptcompat.checkpoint.plain_metadata import arguments_at
from pytest_ckptcompat.core import collection
from pytest_ckptcompat.core.errors import AmbiguousError, CheckpointError, ModelError, RecipeError
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.core.memory import shown as size_shown
from pytest_ckptcompat.files.paths import is_reference
from pytest_ckptcompat.models.blueprint import Blueprint, blueprint
from pytest_ckptcompat.models.meta_copy import opaque
from pytest_ckptcompat.recipes.recipe import Recipe, Releases
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.verification.comparison import Comparison, compare
from pytest_ckptcompat.verification.source_model import misfit

from . import protection
from .argument_types import FROM_CHECKPOINT
from .choice import chosen
from .completion import completed

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.contents import Contents
    from pytest_ckptcompat.core.findings import Finding
    from pytest_ckptcompat.recipes.applied import Applied

    from .arguments import CheckArguments
    from .log import Log
    from .subject import Subject

    Advise = Callable[[Recipe], None]
    """Looks for a recipe in place of the one that was declared, and notes it."""

_SMALL = 4096
"""The most elements of a tensor whose values a loader may inspect: a version, a scale, a table."""


@collection.paused()
def open_stage(
    opener: Callable[[str | None], Checkpoint], arguments: CheckArguments, log: Log
) -> tuple[Checkpoint, Blueprint, nn.Module]:
    """Open the checkpoint and build the model on meta. Of several state dicts, choose the one that fits.

    Returns:
        The checkpoint, how the model is built, and the model on meta.

    Raises:
        Stopped: the checkpoint can't be read, or the model can't be built.
    """
    contents, ckpt, ambiguous = opened(opener, arguments.state_dict_key, log)
    why = ""
    try:
        blueprint, schema = build_stage(arguments, log, contents)
        if arguments.state_dict_key is None:
            ckpt, why = chosen(contents, ckpt, schema.state_dict(), arguments.recipe)
    finally:
        if ckpt is not None:
            note_opened(ckpt, why, log, arguments.recipe)
    if ckpt is None:
        log.stop(finding("no-checkpoint", message=ambiguous), "the checkpoint can't be read", "open")
    return ckpt, blueprint, schema


def model_arguments(declared: dict[str, Any] | str | None, contents: Contents | None) -> dict[str, Any]:
    """Return the keyword arguments of the model.

    Raises:
        CheckpointError: the checkpoint does not hold them.
    """
    if not isinstance(declared, str):
        return declared or {}
    if contents is None:
        raise CheckpointError(
            f"model_args={declared!r} reads a checkpoint, and a commit has none: give a dict"
        )
    return arguments_at(contents, declared.removeprefix(FROM_CHECKPOINT))


def past_stage(opener: Callable[[], Checkpoint], log: Log) -> Checkpoint:
    """Ask a commit what its model would have saved.

    Raises:
        Stopped: there is no such commit, or its model can't be built.
    """
    try:
        ckpt = opener()
    except CheckpointError as error:
        log.stop(finding("no-checkpoint", message=str(error)), "the commit can't be asked", "open")
    note_opened(ckpt, "", log)
    return ckpt


def opened(
    opener: Callable[[str | None], Checkpoint], state_dict_key: str | None, log: Log
) -> tuple[Contents, Checkpoint | None, str]:
    """Read the header.

    Returns:
        The header, the state dict and ``""``; or the header, None and why, if several are possible.

    Raises:
        Stopped: the checkpoint can't be read.
    """
    try:
        ckpt = opener(state_dict_key)
    except AmbiguousError as error:
        return error.contents, None, str(error)
    except CheckpointError as error:
        log.stop(finding("no-checkpoint", message=str(error)), "the checkpoint can't be read", "open")
    return ckpt.contents, ckpt, ""


def note_opened(ckpt: Checkpoint, why: str, log: Log, recipe: Recipe | str | None = None) -> None:
    """Note what was opened, why this state dict was chosen, and which release it is.

    Raises:
        Stopped: it belongs to no release.
    """
    if ckpt.unsafe:
        log.add(finding("unsafe-pickle", message=ckpt.unsafe))
    what = [f"{ckpt.format}, {len(ckpt)} tensors, {size_shown(ckpt.nbytes)}", *ckpt.contents.header.remarks]
    release = ""
    if isinstance(recipe, Releases) and ckpt.format != "git":
        try:
            release = _released(recipe, ckpt)
        except RecipeError as error:
            log.stop(_refused(error), "it belongs to no release", "open")
    log.stage("open", "passed", ", ".join(filter(None, (*what, why, release))))


def _released(releases: Releases, ckpt: Checkpoint) -> str:
    state = ckpt.meta()
    release = releases.release_of(state)
    others = release.table.other_dtypes(state)
    return f"release {release.name}" + (f" (other dtypes: {others})" if others else "")


def build_stage(
    arguments: CheckArguments, log: Log, contents: Contents | None = None
) -> tuple[Blueprint, nn.Module]:
    """Build the model on the meta device. The report has no line for this.

    Args:
        arguments: ``model``, ``model_args`` and ``method``.
        log: collects the findings.
        contents: the checkpoint, which may hold the model's arguments; None for a commit.

    Returns:
        How the model is built, and the model on meta.

    Raises:
        Stopped: the model can't be built.
    """
    try:
        built = blueprint(arguments.model, model_arguments(arguments.model_args, contents))
        schema = built.schema()
        if not callable(getattr(schema, arguments.method, None)):
            raise ModelError(f"{built.name} has no method {arguments.method!r}, which method= names")
    except (ModelError, CheckpointError) as error:
        log.stop(finding("model-error", message=str(error)), "the model can't be built")
    log.done("build")
    return built, schema


def source_stage(source_model: Any, ckpt: Checkpoint, log: Log) -> Blueprint | None:
    """Return source_model, unless the checkpoint does not fit it: another model proves nothing."""
    past = isinstance(source_model, str) and is_reference(source_model)
    if source_model is None or past or ckpt.format == "git":  # a commit reports what its model computed
        return None
    try:
        source = blueprint(source_model)
        wrong = misfit(source.schema(), ckpt.meta())
    except ModelError as error:
        wrong = f"source_model can't be built: {error}"
    log.done("source")
    if not wrong:
        return source
    log.add(finding("source-model-error", message=wrong))
    return None


def recipe_stage(subject: Subject, advise: Advise) -> tuple[Recipe, Applied]:
    """Apply the recipe to the shapes.

    Returns:
        The recipe (empty if none is declared), and its result.

    Raises:
        Stopped: the recipe can't be read, or does not apply.
    """
    declared, protect = subject.arguments.recipe, subject.arguments.protect
    ckpt, schema, source, log = subject.ckpt, subject.schema, subject.source, subject.log
    target = schema.state_dict()
    log.add(*protection.unknown(protect, list(dict.fromkeys([*ckpt, *target]))))
    as_it_is = Recipe().run(ckpt.meta(), target)
    # The recipe and the waivers may be for checkpoints older than the commit.
    log.lenient = ckpt.format == "git" and compare(schema, as_it_is.state_dict).fits
    if declared is None:
        log.stage("recipe", "skipped", "none declared")
        return Recipe(), as_it_is
    if log.lenient:
        log.stage("recipe", "skipped", "not needed: what the model saved at that commit loads as it is")
        return Recipe(), as_it_is
    try:
        recipe = Recipe.load(declared) if isinstance(declared, str) else declared
    except RecipeError as error:
        log.stop(_refused(error), "the recipe can't be read", "recipe")
    try:
        recipe = completed(recipe, ckpt, schema, None if source is None else source.schema)
        applied = recipe.run(ckpt.meta(), target)
    except RecipeError as error:
        advise(recipe)
        log.stop(_refused(error), "the recipe does not apply", "recipe")
    log.add(*protection.broken(protect, applied))
    way = f"{recipe.way(ckpt.meta())}: " if isinstance(recipe, Releases) else ""
    log.stage("recipe", "passed", way + applied.summary)
    return recipe, applied


@collection.paused()
def compare_stage(subject: Subject, recipe: Recipe, applied: Applied, advise: Advise) -> Comparison:
    """Judge the shapes by the model's own strict load, with small values if it looks at values.

    Raises:
        Stopped: those values can't be read.
    """
    log = subject.log
    try:
        comparison = compared(subject.ckpt, subject.schema, recipe, applied)
    except CheckpointError as error:
        log.stop(finding("no-checkpoint", message=str(error)), "the values can't be read", "compare")
    except RecipeError as error:
        log.stop(_refused(error), "the recipe does not apply to the values", "compare")
    log.comparison = comparison
    refused = "load-error; " if any(each.rule == "load-error" for each in comparison.findings) else ""
    detail = f"{refused}{comparison.matched} of {comparison.total} keys match"
    if log.load_hook:
        detail += f"; {log.load_hook}"
    log.judged("compare", comparison.findings, detail)
    standing = [each for each in log.settled() if each.severity == "error"]
    if not comparison.fits and not all(each.rule.startswith("waiver-") for each in standing):
        advise(recipe)
    return comparison


def compared(ckpt: Checkpoint, schema: nn.Module, recipe: Recipe, applied: Applied) -> Comparison:
    """Compare by the model's own strict load, with shapes and, if it looks at values, small values.

    Raises:
        CheckpointError: the values can't be read.
        RecipeError: the recipe does not apply to them.
    """
    comparison = compare(schema, applied.state_dict)
    if comparison.needs_values or (opaque(schema) and not ckpt.valueless):
        return _compared_by_values(comparison, ckpt, schema, recipe, applied)
    return comparison


def _refused(error: RecipeError) -> Finding:
    return finding(error.rule, error.key, message=str(error))


def _compared_by_values(
    comparison: Comparison, ckpt: Checkpoint, schema: nn.Module, recipe: Recipe, applied: Applied
) -> Comparison:
    """Compare again, with the values of small tensors: version numbers, scales, and the like."""
    if ckpt.valueless:
        what = "a lock" if ckpt.format == "lock" else "a commit"
        why = f"the model's own loader looks at values, and {what} has none: check against the checkpoint; "
        found = [
            replace(each, message=why + each.message) if each.rule == "load-error" else each
            for each in comparison.findings
        ]
        return replace(comparison, findings=found)
    grown = recipe.run(ckpt.stored(), schema.state_dict()).state_dict
    by_value = opaque(schema)
    for key, value in applied.state_dict.items():
        if isinstance(value, torch.Tensor) and key not in by_value and value.numel() > _SMALL:
            grown[key] = value
        else:
            grown[key] = materialise(grown[key])
    return compare(schema, grown)
