"""Find bad loaded values: not finite, or different under names that the model ties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.tensors.difference import memory
from pytest_ckptcompat.tensors.finite import finite

from .same_values import without_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn


def not_finite(model: nn.Module) -> Iterator[Finding]:
    """Find parameters and buffers with NaN or infinite values; of tied names, only the first.

    The loaded model is checked, not the file, so that no value is read twice.
    """
    seen: set[int] = set()
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or id(value) in seen or without_values(value):
            continue
        seen.add(id(value))
        bad = value.numel() - finite(value)
        if bad:
            counted = f"{bad} of {value.numel()}"
            are = "value is" if bad == 1 else "values are"
            yield finding("non-finite-value", key, counted, message=f"{bad} {are} NaN or infinite")


def tied_conflicts(model: nn.Module, state_dict: Mapping[str, Any]) -> Iterator[Finding]:
    """Find tied names for which the state dict has different values; only the last one stays.

    Values are read only if the state dict does not tie the names too.
    """
    tied: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and name in state_dict:
            tied.setdefault(id(tensor), []).append(name)
    for first, *others in tied.values():
        for other in others:
            one, two = state_dict[first], state_dict[other]
            if memory(one) != memory(two) and not torch.equal(one, two):
                message = f"the model ties it to {escape(first)}; the values differ"
                yield finding("tied-conflict", other, message=message)
