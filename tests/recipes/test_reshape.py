from __future__ import annotations

import pytest
import torch
from proving import statuses
from torch import nn
from torch.nn import functional

from pytest_ckptcompat import Recipe, RecipeError, reshape


def test_a_linear_layer_becomes_a_convolution_of_one_pixel_and_back() -> None:
    linear, conv = nn.Linear(6, 4), nn.Conv2d(6, 4, 1)
    recipe = Recipe(reshape("weight"))
    conv.load_state_dict(recipe.apply(linear.state_dict(), conv.state_dict()))
    x = torch.randn(3, 6)
    torch.testing.assert_close(conv(x[:, :, None, None])[:, :, 0, 0], linear(x))
    back = recipe.apply(conv.state_dict(), linear.state_dict())
    assert torch.equal(back["weight"], linear.weight)
    assert functional.linear(x, back["weight"], back["bias"]).equal(linear(x))


@pytest.mark.parametrize(
    ("old", "new", "shape"),
    [((), (1,), None), ((1,), (), None), ((), (1, 1), [1, -1]), ((1, 64), (64,), None), ((4, 6), (), [])],
)
def test_sizes_of_one_come_and_go(
    old: tuple[int, ...], new: tuple[int, ...], shape: list[int] | None
) -> None:
    state = {"w": torch.randn(old)}
    target = {"w": torch.empty(new, device="meta")}
    operator = reshape("w", shape=shape)  # type: ignore[arg-type]
    if torch.Size(old).numel() != torch.Size(new).numel():
        with pytest.raises(RecipeError, match="whose 24 elements do not fill"):
            operator.apply(state, target)
        return
    made = operator.apply(state, target)
    assert made["w"].shape == new
    assert torch.equal(made["w"].flatten(), state["w"].flatten())
    assert statuses(operator, state, made, target) == ["kept"]
    assert Recipe.from_toml(Recipe(operator).to_toml()) == Recipe(operator)


def test_of_a_glob_those_are_reshaped_that_fit() -> None:
    state = {"a.w": torch.randn(4, 6), "a.b": torch.randn(5), "a.c": torch.randn(3)}
    target = {"a.w": torch.empty(6, 4), "a.b": torch.empty(5, 1), "a.c": torch.empty(4)}
    made = reshape("a.*").apply(state, target)
    assert [tuple(value.shape) for value in made.values()] == [(6, 4), (5, 1), (3,)]
    with pytest.raises(RecipeError, match="changes nothing"):
        reshape("a.*").apply(made, {"a.w": torch.empty(6, 4)})


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (lambda: reshape("w", shape=[-1, -1]), "not a valid shape"),
        (lambda: reshape("w", shape=[-2]), "not a valid shape"),
        (lambda: reshape("w").apply({"w": torch.ones(2)}, {}), "the shape must be given"),
    ],
)
def test_mistakes_are_told(operator: object, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        operator()  # type: ignore[operator]


def test_transposed_numbers_are_caught() -> None:
    state, target = {"w": torch.randn(4, 6)}, {"w": torch.empty(6, 4)}
    assert statuses(reshape("w"), state, {"w": state["w"].T.contiguous()}, target) == ["broken"]
