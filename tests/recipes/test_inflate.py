from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import statuses
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.kernels import inflate
from pytest_ckptcompat.recipes.recipe import Recipe


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["mean", "centre"]),
    st.integers(1, 6),
    st.tuples(*[st.integers(1, 4)] * 4),
    st.integers(0, 99),
)
@torch.no_grad()
def test_a_clip_that_stands_still_gives_what_the_picture_gave(
    mode: Any, time: int, sizes: tuple[int, int, int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    channels, filters, *kernel = sizes
    flat = nn.Conv2d(channels, filters, kernel).double()
    deep = nn.Conv3d(channels, filters, (time, *kernel)).double()
    operator = inflate("*", mode=mode)
    new = operator.apply(flat.state_dict(), deep.state_dict())
    deep.load_state_dict(new)
    picture = torch.randn(2, channels, 6, 6, dtype=torch.float64)
    clip = picture.unsqueeze(2).expand(-1, -1, time + 2, -1, -1)
    expected = flat(picture).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(deep(clip), expected, rtol=0, atol=1e-9)
    assert statuses(operator, flat.state_dict(), new, deep.state_dict()) == ["kept"]
    assert operator.caveat({}, {})


@torch.no_grad()
def test_the_centre_holds_at_padded_borders_too() -> None:
    flat, deep = nn.Conv2d(3, 5, 3).double(), nn.Conv3d(3, 5, 3, padding=(1, 0, 0)).double()
    deep.load_state_dict(inflate("weight", mode="centre").apply(flat.state_dict(), deep.state_dict()))
    picture = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    frames = deep(picture.unsqueeze(2).expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(frames, flat(picture).unsqueeze(2).expand_as(frames), rtol=0, atol=1e-9)


def test_a_glob_passes_by_what_stays_flat() -> None:
    old = {"a": torch.rand(2, 2, 3, 3), "b": torch.rand(2, 2, 1, 1), "bias": torch.rand(2)}
    target = {**old, "a": torch.empty(2, 2, 5, 3, 3)}
    assert list(Recipe(inflate("*")).run(old, target).touched) == ["a"]


@pytest.mark.parametrize(
    ("operator", "target", "text"),
    [
        (inflate("w"), {}, "the model does not have it, so the time must be given"),
        (
            inflate("w"),
            {"w": torch.empty(2, 2, 3, 3)},
            "the model has (2, 2, 3, 3), so the time must be given",
        ),
        (inflate("b"), {}, "it is (2,), which is not a 2-D kernel"),
        (inflate("*"), {}, "changes nothing"),
    ],
)
def test_what_can_not_be_inflated(operator: inflate, target: Any, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        operator.apply({"w": torch.rand(2, 2, 3, 3), "b": torch.rand(2)}, target)
    assert text in str(caught.value)
    with pytest.raises(RecipeError, match="at least 1"):
        inflate("w", time=0)
