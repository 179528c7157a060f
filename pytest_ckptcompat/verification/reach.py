"""Find the elements of outputs that depend on some tensors of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

Elements = torch.Tensor | None
"""A mask of elements of a tensor; None for all of them."""

_TRIES = 2


def reach(
    given: Sequence[Mapping[str, torch.Tensor]], again: Callable[[int], Sequence[Mapping[str, torch.Tensor]]]
) -> list[dict[str, torch.Tensor]]:
    """Find what changes in a model's outputs if some of its tensors are disturbed.

    An element with the same bits does not depend on them. A part of an output that is in reach for one sample
    is taken to be in reach for all samples, since a unit may be silent for some.

    Args:
        given: for each batch, output path -> tensor.
        again: seed -> the outputs after `disturb` with this seed.

    Returns:
        For each batch, output path -> True for elements in reach.
    """
    masks = [{path: torch.zeros(each.shape, dtype=torch.bool) for path, each in one.items()} for one in given]
    for seed in range(_TRIES):
        for found, before, after in zip(masks, given, again(seed), strict=True):
            for path, tensor in before.items():
                found[path] |= _differs(tensor, after.get(path))
    shown: dict[tuple[str, torch.Size], torch.Tensor] = {}
    for path, mask in (each for found in masks for each in found.items() if each[1].dim() > 1):
        key = path, mask.shape[1:]
        shown[key] = mask.any(0) | shown.get(key, torch.tensor(False))
    for found in masks:
        for path, mask in found.items():
            if mask.dim() > 1:
                found[path] = shown[path, mask.shape[1:]].expand(mask.shape)
    return masks


def disturb(model: nn.Module, tensors: Mapping[str, Elements], seed: int) -> None:
    """Write other values of the same magnitude into some elements of tensors; positive ones stay positive."""
    held = model.state_dict(keep_vars=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, elements in tensors.items():
            other = _other_values(held[key], generator)
            held[key].copy_(other if elements is None else torch.where(elements, other, held[key]))


def _other_values(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    size = tensor.float().square().mean().sqrt().to(tensor) if tensor.numel() else 0
    return tensor * (1.2 + drawn) + (0.1 + 0.3 * drawn.roll(1)) * (size or 1)


def _differs(one: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    if other is None or one.shape != other.shape:
        return torch.ones(one.shape, dtype=torch.bool)
    return (one != other) & ~(one.isnan() & other.isnan())
