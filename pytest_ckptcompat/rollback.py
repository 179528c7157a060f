"""The other direction: whether the released model could read a checkpoint of today's.

The words are those of schema registries: *backward* is new code on old data (what every check is about),
*forward* is old code on new data, which a rollback needs, *full* is both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from .compare import compare
from .rules import Finding, finding
from .tensors import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .tensors import TensorSpec

Direction = Literal["backward", "forward", "full"]

RULES_OF = {
    "missing-key": "rollback-missing",
    "unexpected-key": "rollback-unexpected",
    "shape-mismatch": "rollback-mismatch",
}


def rollback(
    released: Mapping[str, TensorSpec], today: Mapping[str, Any], source: nn.Module | None = None
) -> list[Finding]:
    """What keeps the released model from strictly loading a checkpoint of today's model.

    Args:
        released: the released checkpoint or its lock: key -> row of the table.
        today: the state dict of today's model, on the meta device.
        source: the released model on the meta device, where its code is at hand: its own loader then judges.
            Without it, it is taken to want exactly the keys and shapes of its checkpoint.
    """
    if source is not None:
        found = compare(source, today).findings
        return [_turned(each) for each in found if each.rule in RULES_OF]
    findings = []
    for key in [*released, *(key for key in today if key not in released)]:
        old, new = released.get(key), today.get(key)
        old_side = "" if old is None else shown(old.shape, old.dtype)
        new_side = "" if new is None or not hasattr(new, "shape") else _of(new)
        if new is None:
            findings.append(finding("rollback-missing", key, old_side, ""))
        elif old is None:
            findings.append(finding("rollback-unexpected", key, "", new_side))
        elif old.shape != tuple(new.shape):
            findings.append(finding("rollback-mismatch", key, old_side, new_side))
    return findings


def _turned(found: Finding) -> Finding:
    """The released side stays the checkpoint's column, whoever reads."""
    turned = finding(RULES_OF[found.rule], found.key, found.model, found.checkpoint)
    return replace(turned, message=found.message)


def _of(tensor: Any) -> str:
    return shown(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
