"""Check releases: prove their steps without weights, and compare today's model with the last release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.tables import Table, shapes_of
from pytest_ckptcompat.tensors import synthetic
from pytest_ckptcompat.verification.comparison import Comparison
from pytest_ckptcompat.verification.of_steps import of_steps

from .behaviours import too_large
from .log import Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.core.findings import Finding
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .log import Log
    from .subject import Subject

REMEDY = "if that is meant, make a new release: ckptcompat release NAME MODEL --releases FILE"


def prove_steps(subject: Subject, recipe: Recipe, limits: Limits) -> None:
    """Prove the promises of a recipe's steps on synthetic values, if the checkpoint has no values.

    Args:
        subject: of the check; its log has the promises as unproved ones, and the stage without them.
        recipe: a recipe that applies to the checkpoint.
        limits: caps on the synthetic values.
    """
    ckpt, log = subject.ckpt, subject.log
    if large := too_large(ckpt, limits):
        why = f"the steps were not proved on synthetic values: {large}"
        log.add(finding("recipe-unchecked", message=why))
        return
    old, target = synthetic.state_dict(ckpt, ckpt.ties), subject.schema.state_dict()
    found: list[Finding] = []
    proved = []
    try:
        applied = recipe.run(old, target)
        for claim in of_steps(recipe, applied, old, target):
            if (verdict := claim.proved()) is not None:
                proved.append(verdict[0])
                found += verdict[1]
    except RecipeError as error:
        found.append(finding(error.rule, error.key, message=f"on synthetic values: {error}"))
    if not proved and not found:
        return
    names = {promise.name for promise in proved}
    log.promises = [*proved, *(each for each in log.promises if each.name not in names)]
    before = [stage for stage in log.stages if stage.name == "verify"]
    log.stages = [stage for stage in log.stages if stage.name != "verify"]
    kept = sum(promise.status == "kept" for promise in proved)
    told = f"{kept} of {len(proved)} promises of its steps kept on synthetic values"
    rest = "".join(f"; {stage.detail}" for stage in before if stage.status != "skipped")
    if any(stage.status == "failed" for stage in before):
        log.add(*found)
        log.stage("verify", "failed", told + rest)
    else:
        log.judged("verify", found, told + rest)


def drift_stage(last: Checkpoint, schema: nn.Module, log: Log) -> None:
    """Check that today's model saves the same keys and shapes as the last release.

    Raises:
        Stopped: always, since headers are enough for this.
    """
    log.stage("recipe", "skipped", "the last release is compared as it is")
    table, today = Table(last), schema.state_dict()
    found = list(_drift(table, schema))
    both = len(table.specs.keys() & shapes_of(today).keys())
    total = len(table.specs.keys() | shapes_of(today).keys())
    matched = both - sum(1 for each in found if each.checkpoint and each.model)
    log.comparison = Comparison(matched=matched, total=total)
    others = table.other_dtypes(today)
    count = f"{matched} of {total} keys are those of the last release"
    log.judged("compare", found, f"{count}; other dtypes: {others}" if others else count)
    raise Stopped("keys and shapes tell whether a release is due")


def _drift(table: Table, schema: nn.Module) -> Iterator[Finding]:
    today = {key: value for key, value in schema.state_dict().items() if hasattr(value, "shape")}
    apart = table.differences(today)
    for key in [*apart.mismatched, *apart.missing, *apart.unexpected]:
        now = today.get(key)
        side = "" if now is None else shown(tuple(now.shape), str(now.dtype))
        yield finding("release-drift", key, table.shown(key), side, REMEDY)
