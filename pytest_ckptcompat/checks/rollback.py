"""The other direction: check whether the released model could read a checkpoint of today's model.

The words are those of schema registries: *backward* is new code on old data (what every check tests),
*forward* is old code on new data (which a rollback needs), *full* is both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.tensor_spec import described
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.recipes.operators import strip_prefix
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.verification.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .subject import Subject

_RULES = {
    "missing-key": "rollback-missing",
    "unexpected-key": "rollback-unexpected",
    "shape-mismatch": "rollback-mismatch",
}


def rollback_stage(subject: Subject) -> None:
    """Check whether the released model would load what today's model saves.

    If source_model is known, its own loader judges. Otherwise the keys and shapes must be those of the
    checkpoint, without the prefix of a training wrapper, which no released model has.
    """
    today = subject.schema.state_dict()
    if subject.source is not None:
        judge = "source_model's own loader"
        verdict = compare(meta_copy(subject.source.build()), today)
        found = [_turned(each) for each in verdict.findings if each.rule in _RULES]
    else:
        judge = "keys and shapes"
        wrappers = ("module.", "_orig_mod.")
        operators = subject.recipe.operators
        taken = [each for each in operators if isinstance(each, strip_prefix) and each.prefix in wrappers]
        found = list(_differences(Recipe(*taken).apply(subject.ckpt.meta(), {}), today))
    if subject.recipe.operators:
        found = [replace(each, message="the checkpoint as it is, without the recipe") for each in found]
    detail = f"the released model on today's keys: {len(found)} differ, judged by {judge}"
    subject.log.judged("rollback", found, detail, "compare-forward")


def _turned(found: Finding) -> Finding:
    """Turn a finding around, so that the checkpoint's column is still the released side."""
    turned = finding(_RULES[found.rule], found.key, found.model, found.checkpoint)
    return replace(turned, message=found.message)


def _differences(released: Mapping[str, Any], today: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the keys of two state dicts, and the shapes of what is a tensor in both."""
    for key in dict.fromkeys([*released, *today]):
        old: Any = released.get(key)
        new: Any = today.get(key)
        if is_lazy(new):  # it takes any shape
            new = old
        if key not in today:
            yield finding("rollback-missing", key, described(old))
        elif key not in released:
            yield finding("rollback-unexpected", key, "", described(new))
        elif hasattr(old, "shape") and hasattr(new, "shape") and old.shape != new.shape:
            yield finding("rollback-mismatch", key, described(old), described(new))
