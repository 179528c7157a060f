"""The stages that need only a checkpoint's header: open, build, source, recipe, compare."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from torch.nn.parameter import is_lazy

from pytest_ckptcompat.core import collection
from pytest_ckptcompat.core.errors import CheckpointError, ModelError, RecipeError
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.core.memory import shown as size_shown
from pytest_ckptcompat.core.tensor_spec import described
from pytest_ckptcompat.files.paths import is_reference
from pytest_ckptcompat.models.blueprint import Blueprint, blueprint
from pytest_ckptcompat.recipes.recipe import Recipe, Releases
from pytest_ckptcompat.recipes.tables import Table
from pytest_ckptcompat.verification.comparison import Comparison, compare
from pytest_ckptcompat.verification.source_model import misfit

from . import protection
from .fitting import Opened, compared, completed
from .log import Stopped
from .suggestion import advise

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.contents import Contents
    from pytest_ckptcompat.recipes.applied import Applied

    from .arguments import CheckArguments
    from .log import Log
    from .subject import Subject


def read_stage(opener: Callable[[str | None], Checkpoint], key: str | None, log: Log) -> Opened:
    """Read the header of the checkpoint; `note_opened` adds the stage when the state dict is known."""
    try:
        return Opened.by(opener, key)
    except CheckpointError as error:
        log.stop(error, "the checkpoint can't be read", "open")


@collection.paused()
def open_stage(
    opened: Opened, arguments: CheckArguments, log: Log
) -> tuple[Checkpoint, Blueprint, nn.Module]:
    """Build the model on meta, and choose the state dict that fits it.

    Returns:
        The checkpoint, how the model is built, and the model on meta.
    """
    ckpt, why = opened.usual, ""
    try:
        blueprint, schema = build_stage(arguments, log, opened.contents)
        ckpt, why = opened.chosen(schema.state_dict(), arguments.recipe)
    finally:
        if ckpt is not None:
            note_opened(ckpt, why, log, arguments.recipe)
    if ckpt is None:
        log.stop(CheckpointError(opened.ambiguous), "the checkpoint can't be read", "open")
    return ckpt, blueprint, schema


def note_opened(ckpt: Checkpoint, why: str, log: Log, recipe: Recipe | str | None = None) -> None:
    """Note what was opened, why this state dict was chosen, and which release it is."""
    if ckpt.unsafe:
        log.add(finding("unsafe-pickle", message=ckpt.unsafe))
    what = [f"{ckpt.format}, {len(ckpt)} tensors, {size_shown(ckpt.nbytes)}", *ckpt.contents.header.remarks]
    what += [why] if why else []
    if isinstance(recipe, Releases) and ckpt.format != "git":
        state = ckpt.meta()
        try:
            release = recipe.release_of(state)
        except RecipeError as error:
            log.stop(error, "it belongs to no release", "open")
        others = release.table.other_dtypes(state)
        what.append(f"release {release.name}{f' (other dtypes: {others})' if others else ''}")
    log.stage("open", "passed", ", ".join(what))


def build_stage(
    arguments: CheckArguments, log: Log, contents: Contents | None = None
) -> tuple[Blueprint, nn.Module]:
    """Build the model on the meta device; return how it is built, too. The report has no line for this.

    Its arguments may be in the checkpoint; a commit, for which `contents` is None, has none.
    """
    try:
        built = blueprint(arguments.model, arguments.arguments_of_model(contents))
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


def recipe_stage(subject: Subject) -> tuple[Subject, Applied]:
    """Apply the recipe to the shapes; return the subject with the recipe, and its result."""
    declared, protect = subject.arguments.recipe, subject.arguments.protect
    ckpt, schema, source, log = subject.ckpt, subject.schema, subject.source, subject.log
    target = schema.state_dict()
    log.add(*protection.unknown(protect, list(dict.fromkeys([*ckpt, *target]))))
    as_it_is = Recipe().run(ckpt.meta(), target)
    # The recipe and the waivers may be for checkpoints older than the commit.
    log.lenient = ckpt.format == "git" and compare(schema, as_it_is.state_dict).fits
    if declared is None or log.lenient:
        unneeded = "not needed: what the model saved at that commit loads as it is"
        log.stage("recipe", "skipped", "none declared" if declared is None else unneeded)
        return subject, as_it_is
    try:
        recipe = Recipe.load(declared) if isinstance(declared, str) else declared
    except RecipeError as error:
        log.stop(error, "the recipe can't be read", "recipe")
    try:
        recipe = completed(recipe, ckpt, schema, None if source is None else source.schema)
        applied = recipe.run(ckpt.meta(), target)
    except RecipeError as error:
        if not log.loader:
            advise(subject, recipe)
        log.stop(error, "the recipe does not apply", "recipe")
    log.add(*protection.broken(protect, applied))
    way = f"{recipe.way(ckpt.meta())}: " if isinstance(recipe, Releases) else ""
    log.stage("recipe", "passed", way + applied.summary)
    return replace(subject, recipe=recipe), applied


@collection.paused()
def compare_stage(subject: Subject, applied: Applied) -> Comparison:
    """Judge the shapes by the model's own strict load, with small values if it looks at values."""
    log = subject.log
    try:
        comparison = compared(subject.ckpt, subject.schema, subject.recipe, applied)
    except CheckpointError as error:
        log.stop(error, "the values can't be read", "compare")
    except RecipeError as error:
        log.stop(error, "the recipe does not apply to the values", "compare")
    log.comparison = comparison
    refused = "load-error; " if any(each.rule == "load-error" for each in comparison.findings) else ""
    detail = f"{refused}{comparison.matched} of {comparison.total} keys match"
    if log.load_hook:
        detail += f"; {log.load_hook}"
    log.judged("compare", comparison.findings, detail)
    standing = [each for each in log.settled() if each.severity == "error"]
    if not comparison.fits and not all(each.rule.startswith("waiver-") for each in standing):
        advise(subject, subject.recipe)
    return comparison


def drift_stage(last: Checkpoint, schema: nn.Module, log: Log) -> NoReturn:
    """Check that today's model saves the same keys and shapes as the last release."""
    log.stage("recipe", "skipped", "the last release is compared as it is")
    table, today = Table(last), schema.state_dict()
    apart = table.differences(today)
    told = {key: described(value) for key, value in today.items() if not is_lazy(value)}
    found = [
        finding("release-drift", key, described(last.get(key)), told.get(key, ""), _DRIFTED)
        for key in [*apart.mismatched, *apart.missing, *apart.unexpected]
    ]
    matched, total = len(last) - len(apart.missing) - len(apart.mismatched), len(last) + len(apart.unexpected)
    log.comparison = Comparison(matched=matched, total=total)
    others = table.other_dtypes(today)
    count = f"{matched} of {total} keys are those of the last release"
    log.judged("compare", found, f"{count}; other dtypes: {others}" if others else count)
    raise Stopped("keys and shapes tell whether a release is due")


_DRIFTED = "if that is meant, make a new release: ckptcompat release NAME MODEL --releases FILE"
