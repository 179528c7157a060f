from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import statuses
from torch import nn
from torch.nn import functional

from pytest_ckptcompat import Recipe, RecipeError, permute, reshape, transpose


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_permute_as_torch_does(sizes: list[int], data: st.DataObject) -> None:
    dims = data.draw(
        st.permutations([axis - data.draw(st.sampled_from([0, len(sizes)])) for axis in range(len(sizes))])
    )
    old = {
        "w": torch.rand(sizes).to(
            data.draw(st.sampled_from([torch.float64, torch.float8_e4m3fn, torch.int32]))
        )
    }
    operator = permute("w", dims=dims)
    new = operator.apply(old, {})
    assert torch.equal(new["w"].double(), old["w"].double().permute(dims))
    assert new["w"].is_contiguous()
    assert statuses(operator, old, new, {}) == ["kept"]


def test_conv1d_of_gpt2_becomes_linear() -> None:
    """Square weights too: their shape does not tell."""
    x = torch.randn(2, 8, dtype=torch.float64)
    old = OrderedDict[str, torch.Tensor]()
    for name, sizes in {"fc": (8, 32), "proj": (8, 8)}.items():
        old[f"h.{name}.weight"] = torch.randn(sizes, dtype=torch.float64)
        old[f"h.{name}.bias"] = torch.randn(sizes[1], dtype=torch.float64)
    new = nn.ModuleDict({"h": nn.ModuleDict({"fc": nn.Linear(8, 32), "proj": nn.Linear(8, 8)})}).double()
    new.load_state_dict(Recipe(transpose("h.*")).apply(old, new.state_dict()))
    for name in ("fc", "proj"):
        expected = torch.addmm(old[f"h.{name}.bias"], x, old[f"h.{name}.weight"])
        torch.testing.assert_close(new["h"][name](x), expected, rtol=0, atol=1e-9)  # type: ignore[index]


def test_what_fits_the_model_already_is_passed_by() -> None:
    old = OrderedDict(a=torch.rand(2, 3), b=torch.rand(4, 5), c=torch.rand(6))
    target = {"a": torch.empty(3, 2), "b": torch.empty(4, 5)}
    growth = Recipe(transpose("*")).run(old, target)
    assert list(growth.touched) == ["a"]


def test_a_reshape_is_no_transpose() -> None:
    old = {"w": torch.rand(3, 5)}
    assert statuses(transpose("w"), old, {"w": old["w"].reshape(5, 3)}, {}) == ["broken"]


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (transpose("w"), "it is (2, 3, 4), not of 2 dimensions"),
        (permute("w", dims=[1, 0]), "it is (2, 3, 4), not of 2 dimensions"),
        (transpose("*"), "changes nothing"),
    ],
)
def test_axes_that_are_not_there(operator: Any, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        operator.apply({"w": torch.rand(2, 3, 4)}, {})
    assert text in str(caught.value)


def test_every_axis_once() -> None:
    with pytest.raises(RecipeError, match="every axis once"):
        permute("w", dims=[0, 0])


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
