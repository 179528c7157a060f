"""Check that the values a recipe made are finite, and have the scale of the old values beside them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.claim import Claim, Verdict
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.recipes.operators.custom import custom
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import magnitude
from pytest_ckptcompat.tensors.finite import count_not_finite

from .regions import begins_with
from .transfer import count_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.recipes.applied import Applied


FINITE, SCALE = "finite", "scale of new rows"

_LEAST, _MOST = 0.1, 3.0


def all_finite(growth: Applied, old: Mapping[str, Any]) -> Iterator[Claim]:
    """Claim that nothing the recipe made is NaN or infinite, unless its sources were."""
    made = [key for key in growth.touched if isinstance(growth.state_dict.get(key), torch.Tensor)]

    def proof() -> Verdict:
        wrong = [
            finding("recipe-broken-promise", key, message=f"has {bad} values that are NaN or infinite")
            for key in made
            if (bad := count_not_finite(growth.state_dict[key]))
            and not any(
                count_not_finite(old[came]) for came in growth.sources[key] if torch.is_tensor(old[came])
            )
        ]
        if wrong:
            return Promise(FINITE, "broken", f"{escape(wrong[0].key, 60)} {wrong[0].message}"), wrong
        return Promise(FINITE, "kept", f"{count_keys(len(made))} grown"), []

    if made:
        yield Claim(FINITE, proof)


def scale_of_new_rows(growth: Applied, old: Mapping[str, Any]) -> Iterator[Claim]:
    """Claim that new rows have the scale of old ones: std 1 beside std 0.06 makes SGD diverge."""
    extended = {
        key: (came, new)
        for key in growth.touched
        if (came := growth.origin.get(key)) is not None
        and isinstance(new := growth.state_dict.get(key), torch.Tensor)
        and new.is_floating_point()
        and new.dim() == old[came].dim() > 1  # a bias has no scale of its own
        and new.numel() > old[came].numel()
    }

    def proof() -> Verdict | None:
        ratios: dict[str, float] = {}
        for key, (came, new) in extended.items():
            ratio = _ratio(materialise(old[came]), materialise(new))
            declared = not any(isinstance(operator, custom) for operator in growth.touched[key])
            if ratio is not None and not (ratio == 0 and declared):
                ratios[key] = ratio
        return _judged(ratios) if ratios else None

    if extended:
        yield Claim(SCALE, proof)


def _judged(ratios: Mapping[str, float]) -> Verdict:
    odd = {key: ratio for key, ratio in ratios.items() if not _LEAST <= ratio <= _MOST}
    if not odd:
        span = sorted({magnitude(min(ratios.values())), magnitude(max(ratios.values()))}, key=float)
        return Promise(SCALE, "kept", f"{' to '.join(span)} × the old ones"), []
    findings = [
        finding(
            "recipe-scale", key, message=f"its new rows are {magnitude(ratio)} times as large as the old ones"
        )
        for key, ratio in odd.items()
    ]
    worst = max(odd, key=lambda key: max(odd[key], 1 / max(odd[key], 1e-9)))
    return Promise(SCALE, "broken", f"{escape(worst, 60)}: {magnitude(odd[worst])} × the old"), findings


def _ratio(old: torch.Tensor, new: torch.Tensor) -> float | None:
    """Return the ratio of the RMS of the added values to that of the old ones; None if nothing was added."""
    if new.numel() <= old.numel() or not begins_with(new, old):
        return None
    before, after = _squares(old), _squares(new)
    added = after - before if after > before * (1 + 1e-12) else 0.0
    if not (before > 0 and math.isfinite(added)):
        return None
    return math.sqrt(added / (new.numel() - old.numel()) / before * old.numel())


def _squares(tensor: torch.Tensor) -> float:
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
