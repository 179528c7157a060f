"""`repeat_channels` and `resample` against timm's functions of the same purpose, where timm is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ckptcompat import Recipe, open_checkpoint
from pytest_ckptcompat.checks.apply import apply
from pytest_ckptcompat.recipes.operators.channels import repeat_channels
from pytest_ckptcompat.recipes.operators.resample import resample
from pytest_ckptcompat.recipes.operators.tile import tile

if TYPE_CHECKING:
    from pathlib import Path

models = pytest.importorskip("timm.models")
layers = pytest.importorskip("timm.layers")

quick = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def applied(operator: object, tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    """What the operator, which names ``x``, makes of a tensor for a model in which it has that shape."""
    new = Recipe(operator).apply({"x": tensor}, {"x": torch.empty(shape, device="meta")})  # type: ignore[arg-type]
    assert new["x"].shape == shape
    return new["x"]


@quick
@given(seeds, st.integers(4, 12), st.integers(1, 4), st.integers(1, 5))
def test_more_input_channels_are_timms(seed: int, channels: int, filters: int, kernel: int) -> None:
    weight = normal(seed, filters, 3, kernel, kernel)
    ours = applied(repeat_channels("x"), weight, filters, channels, kernel, kernel)
    assert torch.equal(ours, models.adapt_input_conv(channels, weight))


def test_in_half_precision_too() -> None:
    weight = normal(0, 4, 3, 3, 3).to(torch.bfloat16)
    ours = applied(repeat_channels("x"), weight, 4, 7, 3, 3)
    assert torch.equal(ours, models.adapt_input_conv(7, weight))


modes = st.sampled_from(["bicubic", "bilinear"])
grids = st.tuples(st.integers(2, 9), st.integers(2, 9))


@quick
@given(seeds, st.integers(2, 8), grids, st.integers(0, 2), modes, st.booleans())
def test_positions_on_another_grid_are_timms(
    seed: int, side: int, size: tuple[int, int], prefix: int, mode: str, antialias: bool
) -> None:
    positions = normal(seed, 1, side * side + prefix, 5)
    operator = resample("x", size=size, mode=mode, prefix_tokens=prefix, antialias=antialias)
    if size == (side, side):
        return  # nothing to change: an error of ours, the same tensor of theirs
    ours = applied(operator, positions, 1, size[0] * size[1] + prefix, 5)
    theirs = layers.resample_abs_pos_embed(
        positions, list(size), num_prefix_tokens=prefix, interpolation=mode, antialias=antialias
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@quick
@given(seeds, st.integers(3, 9), grids)
def test_patch_kernels_of_another_size_are_timms(seed: int, side: int, size: tuple[int, int]) -> None:
    kernel = normal(seed, 4, 3, side, side)
    if size == (side, side):
        return
    ours = applied(resample("x", size=size, mode="pinv"), kernel, 4, 3, *size)
    theirs = layers.resample_patch_embed(kernel, list(size))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_timm_loads_what_apply_writes(tmp_path: Path) -> None:
    """A vision transformer for larger pictures of more channels and more classes, through timm's own loader."""
    timm = pytest.importorskip("timm")
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 16}
    larger = {"img_size": 64, "in_chans": 5, "num_classes": 6, **small}
    old = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, **small)
    torch.save({"state_dict": old.state_dict(), "arch": "vit"}, tmp_path / "old.pth.tar")
    recipe = Recipe(
        resample("pos_embed", prefix_tokens=1),
        repeat_channels("patch_embed.proj.weight"),
        tile("head.*", dim=0),
    )
    new = timm.create_model("vit_tiny_patch16_224", **larger)
    apply(open_checkpoint(tmp_path / "old.pth.tar"), new, recipe, tmp_path / "new.pth.tar")
    loaded = timm.create_model(
        "vit_tiny_patch16_224", checkpoint_path=str(tmp_path / "new.pth.tar"), **larger
    )
    theirs = layers.resample_abs_pos_embed(old.pos_embed, [4, 4])
    torch.testing.assert_close(loaded.pos_embed, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        loaded.patch_embed.proj.weight, models.adapt_input_conv(5, old.patch_embed.proj.weight)
    )
    assert torch.equal(loaded.head.weight, torch.cat([old.head.weight, old.head.weight[:2]]))
    assert torch.equal(loaded.norm.weight, old.norm.weight)
