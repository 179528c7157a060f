from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import statuses
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.axes import permute, transpose
from pytest_ckptcompat.recipes.recipe import Recipe


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


@pytest.mark.parametrize(
    "fault",
    [lambda w: w.flip(0), lambda w: w.T, lambda w: w.reshape(-1)[torch.arange(15).roll(1)].reshape(5, 3)],
)
def test_rows_permuted_are_caught(fault: Any) -> None:
    old = {"w": torch.rand(3, 5)}
    assert statuses(transpose("w"), old, {"w": fault(transpose("w").apply(old, {})["w"])}, {}) == ["broken"]


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


def test_text_forms() -> None:
    recipe = Recipe(permute("a", dims=[3, 2, 0, 1]), transpose("b"))
    assert repr(recipe) == 'Recipe(permute("a", dims=[3, 2, 0, 1]), transpose("b"))'
    assert Recipe.from_toml(recipe.to_toml()) == recipe
