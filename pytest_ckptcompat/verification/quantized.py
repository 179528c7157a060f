"""Find whether a tensor holds the values of another in eight bits, as quantizing loaders do."""

from __future__ import annotations

import torch

_LEAST = 8  # elements of a group with its own scale; fewer would fit any line
_GROUPS = (128, 64, 32)
_PIECE = 1 << 20
_ROUNDED = 1.05  # integer steps that rounding, clipping and a fitted scale may be off
_SHARE = 1 / 8  # relative error of an eight-bit float


def quantized_by_torch(held: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether `value`, quantized with the scales and zero points of `held`, gives its integers."""
    if held.shape != value.shape or not value.is_floating_point():
        return False
    value = value.detach().float().cpu()
    if held.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        made = torch.quantize_per_tensor(value, held.q_scale(), held.q_zero_point(), held.dtype)
    else:
        scales, zeros = held.q_per_channel_scales(), held.q_per_channel_zero_points()
        made = torch.quantize_per_channel(value, scales, zeros, held.q_per_channel_axis(), held.dtype)
    integers = made.int_repr()
    return torch.equal(integers, held.int_repr().cpu()) and bool((integers != integers.flatten()[:1]).any())


def quantized_by_groups(held: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether the integers or small floats of `held` are `value` divided by scales and rounded.

    Rows, or groups of elements in a row, may have their own scale and zero point, wherever the model keeps
    these. A straight line is fitted to each group, and every value must be within rounding of it.
    """
    if held.shape != value.shape or not value.is_floating_point() or value.dtype.itemsize < 2:
        return False
    if held.dtype.itemsize != 1 or held.dtype == torch.bool or not held.dim():
        return False
    row = held.shape[-1] if held.dim() < 3 else held[0].numel()
    lengths = [row, *(each for each in _GROUPS if row % each == 0 and each < row)]
    return any(_fit(held.detach(), value.detach(), length) for length in lengths if length >= _LEAST)


def _fit(held: torch.Tensor, value: torch.Tensor, length: int) -> bool:
    step = max(1, _PIECE // length)
    told = False
    for ours, theirs in zip(
        torch.split(held.reshape(-1, length), step), torch.split(value.reshape(-1, length), step), strict=True
    ):
        ours, theirs = ours.cpu().float(), theirs.cpu().float()
        low, high = ours - ours.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True)
        scale = (low * high).sum(1, keepdim=True) / (low * low).sum(1, keepdim=True)
        flat = ((ours == ours[:, :1]).all(1) & (theirs == theirs[:, :1]).all(1))[:, None]
        steps = _SHARE * ours.abs() + _SHARE if held.dtype.is_floating_point else _ROUNDED
        near = (high - scale * low).abs() <= scale.abs() * steps
        if not bool((near | flat).all()):
            return False
        told = told or not bool(flat.all())
    return told
