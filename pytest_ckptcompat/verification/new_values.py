"""Are the values that a recipe made reproducible, finite, and of the scale of those beside them?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import magnitude, same_bits
from pytest_ckptcompat.tensors.finite import finite
from pytest_ckptcompat.verification.transfer import Checked, _keys

from .regions import corner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.recipes.applied import Applied


REPRODUCIBLE, FINITE, SCALE = "reproducible", "finite", "scale of new rows"

_LEAST, _MOST = 0.1, 3.0


def _finite(growth: Applied, old: Mapping[str, Any]) -> Iterator[Checked]:
    """Nothing that the recipe made is NaN or infinite, unless what it was made from was."""
    made = [key for key in growth.touched if isinstance(growth.state_dict.get(key), torch.Tensor)]
    wrong = [
        finding("recipe-broken-promise", key, message=f"has {bad} values that are NaN or infinite")
        for key in made
        if (bad := _not_finite(growth.state_dict[key]))
        and not any(_not_finite(old[came]) for came in growth.sources[key] if torch.is_tensor(old[came]))
    ]
    if wrong:
        yield Promise(FINITE, "broken", f"{escape(wrong[0].key, 60)} {wrong[0].message}"), wrong
    elif made:
        yield Promise(FINITE, "kept", f"{_keys(len(made))} grown"), []


def _not_finite(tensor: torch.Tensor) -> int:
    return tensor.numel() - finite(tensor)


def _scaled(growth: Applied, old: Mapping[str, Any]) -> Iterator[Checked]:
    """New rows beside old ones are of their size: rows of std 1 beside rows of 0.06 make SGD diverge."""
    ratios: dict[str, float] = {}
    for key, operators in growth.touched.items():
        came, new = growth.origin.get(key), growth.state_dict.get(key)
        if came is None or not isinstance(new, torch.Tensor) or not new.is_floating_point() or new.dim() < 2:
            continue  # a bias has no scale of its own
        ratio = _ratio(materialise(old[came]), materialise(new))
        declared = not any(type(operator).__name__ == "custom" for operator in operators)
        if ratio is not None and not (ratio == 0 and declared):
            ratios[key] = ratio
    odd = {key: ratio for key, ratio in ratios.items() if not _LEAST <= ratio <= _MOST}
    findings = [
        finding(
            "recipe-scale", key, message=f"its new rows are {magnitude(ratio)} times as large as the old ones"
        )
        for key, ratio in odd.items()
    ]
    if odd:
        worst = max(odd, key=lambda key: max(odd[key], 1 / max(odd[key], 1e-9)))
        yield (
            Promise(SCALE, "broken", f"{escape(worst, 60)}: {magnitude(odd[worst])} × the old"),
            findings,
        )
    elif ratios:
        span = sorted({magnitude(min(ratios.values())), magnitude(max(ratios.values()))}, key=float)
        yield Promise(SCALE, "kept", f"{' to '.join(span)} × the old ones"), []


def _ratio(old: torch.Tensor, new: torch.Tensor) -> float | None:
    """Root mean square of what was added beside a tensor over that of what was there; None if nothing was."""
    kept = corner(old, new)
    if kept is None or new.numel() <= old.numel() or not same_bits(old, kept):
        return None
    before, after = _squares(old), _squares(new)
    added = after - before if after > before * (1 + 1e-12) else 0.0
    if not (before > 0 and math.isfinite(added)):
        return None
    return math.sqrt(added / (new.numel() - old.numel()) / before * old.numel())


def _squares(tensor: torch.Tensor) -> float:
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
