from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from proving import statuses
from torch.nn import functional

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.resample import resample


def applied(operator: Any, old: torch.Tensor, *sizes: int) -> torch.Tensor:
    """The operator's answer, with its promises and the meta device's shape checked on the way."""
    target = {"w": torch.empty(sizes)}
    new = operator.apply({"w": old}, target)
    assert statuses(operator, {"w": old}, new, target) == ["kept"]
    meta = operator.apply({"w": old.to("meta")}, target)["w"]
    assert (meta.shape, meta.dtype) == (new["w"].shape, new["w"].dtype)
    return new["w"]


sides = st.tuples(st.integers(1, 7), st.integers(1, 7))


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["bicubic", "bilinear", "nearest"]), st.integers(0, 2), sides, sides, st.integers(0, 99)
)
def test_tokens_are_resized_as_a_picture(
    mode: Any, prefix: int, old_size: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    """Against the picture itself: channels first, class token aside; at the same size, nothing changes."""
    assume(old_size != size)
    generator = torch.Generator().manual_seed(seed)
    (height, width), (taller, wider) = old_size, size
    old = torch.randn(1, prefix + height * width, 8, dtype=torch.float64, generator=generator)
    operator = resample("w", size=size, mode=mode, prefix_tokens=prefix, old_size=old_size)
    new = applied(operator, old, 1, prefix + taller * wider, 8)
    assert torch.equal(new[:, :prefix], old[:, :prefix])
    picture = old[0, prefix:].T.reshape(1, 8, height, width)
    smooth = {"antialias": True} if mode != "nearest" else {}
    expected = functional.interpolate(picture, (height, wider), mode=mode, **smooth)  # type: ignore[arg-type]
    twice = torch.cat([expected] * 2, 3)  # a single column torch smooths wrongly
    expected = functional.interpolate(twice, (taller, 2 * wider), mode=mode, **smooth)[0, ..., :wider]  # type: ignore[arg-type]
    torch.testing.assert_close(new[0, prefix:].T.reshape(8, taller, wider), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("antialias", [True, False])
def test_a_single_column_is_resized_as_a_row_is(antialias: bool) -> None:
    """torch itself, up to 2.14 at least, gives each place of a smoothed column the value of the first."""
    rows = torch.randn(1, 6, 1, 4)
    operator = resample("w", antialias=antialias)
    row = applied(operator, rows, 1, 6, 1, 7)
    assert len(row[0, 0, 0].unique()) == 7
    assert torch.equal(applied(operator, rows.mT.contiguous(), 1, 6, 7, 1), row.mT)


def test_as_many_places_in_another_grid() -> None:
    old = {"w": torch.rand(1, 16, 3)}
    target = {"w": torch.empty(1, 16, 3)}
    operator = resample("w", size=[2, 8])
    new = operator.apply(old, target)
    as_pictures = old["w"].reshape(1, 4, 4, 3).permute(0, 3, 1, 2)
    expected = functional.interpolate(as_pictures, (2, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(new["w"].reshape(1, 2, 8, 3).permute(0, 3, 1, 2), expected)
    assert statuses(operator, old, new, target) == ["kept"]
    assert operator.caveat(old, target)
    with pytest.raises(RecipeError, match="changes nothing"):
        resample("w", size=[4, 4]).apply(old, target)
    with pytest.raises(RecipeError, match="changes nothing"):
        resample("w").apply(old, target)


@pytest.mark.parametrize("shape", [(1, 4, 4, 6), (1, 6, 4, 4)])
def test_pictures_of_positions(shape: tuple[int, ...]) -> None:
    """SAM has the width last, others have it first: the model's shape tells."""
    wanted = [7 if size == 4 else size for size in shape]
    old = torch.randn(shape)
    new = applied(resample("w"), old, *wanted)
    first = (lambda w: w.permute(0, 3, 1, 2)) if shape[3] == 6 else (lambda w: w)
    expected = functional.interpolate(first(old), (7, 7), mode="bicubic", antialias=True)
    assert torch.equal(first(new), expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 6), st.integers(0, 6))
def test_larger_patches_give_with_the_larger_kernel_what_they_gave(
    h: int, w: int, up: int, right: int
) -> None:
    """FlexiViT: ⟨Bx, w'⟩ = ⟨x, w⟩, here with x a picture that is resized patch by patch."""
    if up == right == 0:
        return
    kernel = torch.randn(5, 3, h, w, dtype=torch.float64)
    new = applied(resample("w", mode="pinv"), kernel, 5, 3, h + up, w + right)
    patches = torch.randn(7, 3, h, w, dtype=torch.float64)
    larger = functional.interpolate(patches, (h + up, w + right), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        functional.conv2d(larger, new), functional.conv2d(patches, kernel), rtol=0, atol=1e-9
    )


def test_smaller_patches_give_nearly_what_they_gave() -> None:
    """No other kernel is nearer: random changes only make it worse."""
    kernel = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    new = applied(resample("w", mode="pinv"), kernel, 1, 1, 4, 4)
    patches = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
    smaller = functional.interpolate(patches, (4, 4), mode="bicubic", antialias=True)

    def error(candidate: torch.Tensor) -> float:
        return float(
            (functional.conv2d(smaller, candidate) - functional.conv2d(patches, kernel)).square().sum()
        )

    assert all(error(new + 1e-3 * torch.randn_like(new)) > error(new) for _ in range(20))


def test_another_interpolation_and_plain_resizing_of_a_kernel_are_caught() -> None:
    old, target = {"w": torch.randn(1, 36, 8)}, {"w": torch.empty(1, 81, 8)}
    other = resample("w", mode="bilinear").apply(old, target)
    assert statuses(resample("w"), old, other, target) == ["broken"]
    old, target = {"w": torch.randn(4, 3, 6, 6)}, {"w": torch.empty(4, 3, 9, 9)}
    plain = {"w": functional.interpolate(old["w"], (9, 9), mode="bicubic", antialias=True)}
    assert statuses(resample("w", mode="pinv"), old, plain, target) == ["broken"]


@pytest.mark.parametrize(
    ("operator", "has", "wanted", "text"),
    [
        (
            resample("w"),
            (1, 37, 8),
            (1, 82, 8),
            "its 37 places are not a square: give prefix_tokens=1, or old_size",
        ),
        (
            resample("w"),
            (1, 38, 8),
            (1, 82, 8),
            "its 38 places are not a square: give prefix_tokens=2, or old_size",
        ),
        (resample("w"), (1, 12, 8), (1, 82, 8), "its 12 places are not a square: give old_size=[h, w]"),
        (resample("w", old_size=[3, 5]), (1, 12, 8), (1, 81, 8), "its 12 places are not 3 × 5"),
        (resample("w"), (1, 36, 8), (1, 82, 8), "the new height and width must be given"),
        (resample("w"), (1, 36, 8), None, "the new height and width must be given"),
        (resample("w"), (36,), (81,), "which is not a row of tokens"),
        (resample("w", mode="pinv"), (8, 8), (9, 9), "which is not a kernel"),
        (resample("w", mode="pinv"), (8, 3, 4, 4), (9, 3, 6, 6), "the model has (9, 3, 6, 6)"),
        (resample("w"), (1, 36, 8), (1, 36, 8), "changes nothing"),
        (resample("*"), (1, 36, 8), None, "changes nothing"),
    ],
)
def test_grids_that_can_not_be_told(operator: resample, has: Any, wanted: Any, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        operator.apply({"w": torch.rand(has)}, {"w": torch.empty(wanted)} if wanted else {})
    assert text in str(caught.value)


def test_arguments_are_checked() -> None:
    with pytest.raises(RecipeError, match="size must be a height and a width"):
        resample("w", size=[3])
    with pytest.raises(RecipeError, match="old_size must be a height and a width"):
        resample("w", old_size=[0, 3])
    with pytest.raises(RecipeError, match="pinv is for kernels"):
        resample("w", mode="pinv", prefix_tokens=1)
