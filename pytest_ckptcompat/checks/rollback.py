"""The other direction: check whether the released model could read a checkpoint of today's model.

The words are those of schema registries: *backward* is new code on old data (what every check tests),
*forward* is old code on new data (which a rollback needs), *full* is both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.recipes.operators import strip_prefix
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.verification.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .subject import Subject

RULES_OF = {
    "missing-key": "rollback-missing",
    "unexpected-key": "rollback-unexpected",
    "shape-mismatch": "rollback-mismatch",
}


def rollback(
    released: Mapping[str, Any], today: Mapping[str, Any], source: nn.Module | None = None
) -> list[Finding]:
    """Find what keeps the released model from strictly loading a checkpoint of today's model.

    Args:
        released: the state dict of the released checkpoint or its lock, on the meta device.
        today: the state dict of today's model, on the meta device.
        source: the released model on the meta device, if available. Its own loader then judges. Otherwise the
            keys and shapes must be exactly those of its checkpoint.
    """
    if source is not None:
        found = compare(source, today).findings
        return [_turned(each) for each in found if each.rule in RULES_OF]
    findings = []
    for key in [*released, *(key for key in today if key not in released)]:
        old, new = _shape(released.get(key)), _shape(today.get(key))
        if key not in today:
            findings.append(finding("rollback-missing", key, _of(released[key]), ""))
        elif key not in released:
            findings.append(finding("rollback-unexpected", key, "", _of(today[key])))
        elif None not in (old, new) and old != new:
            findings.append(finding("rollback-mismatch", key, _of(released[key]), _of(today[key])))
    return findings


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape; None if the value is not a tensor, such as a module's extra state."""
    return tuple(value.shape) if hasattr(value, "shape") else None


def _turned(found: Finding) -> Finding:
    """Turn a finding around, so that the checkpoint's column is still the released side."""
    turned = finding(RULES_OF[found.rule], found.key, found.model, found.checkpoint)
    return replace(turned, message=found.message)


def _of(value: Any) -> str:
    shape = _shape(value)
    return "" if shape is None else shown(shape, str(value.dtype))


def unwrapped(recipe: Recipe) -> Recipe:
    """Return those operators that strip the prefix of a training wrapper, which no released model has."""
    wrappers = ("module.", "_orig_mod.")
    taken = (each for each in recipe.operators if isinstance(each, strip_prefix) and each.prefix in wrappers)
    return Recipe(*taken)


def rollback_stage(subject: Subject, recipe: Recipe) -> None:
    """Check whether the released model would load what today's model saves."""
    released = None if subject.source is None else meta_copy(subject.source.build())
    old, today = unwrapped(recipe).apply(subject.ckpt.meta(), {}), subject.schema.state_dict()
    found = rollback(old, today, released)
    if recipe.operators:
        found = [replace(each, message="the checkpoint as it is, without the recipe") for each in found]
    judge = "judged by keys and shapes" if released is None else "judged by source_model's own loader"
    detail = f"the released model on today's keys: {len(found)} differ, {judge}"
    subject.log.judged("rollback", found, detail, "compare-forward")
