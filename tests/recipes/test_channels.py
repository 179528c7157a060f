"""Stems with other channels, and fewer heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import proved, statuses
from torch import nn
from torch.nn import functional

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.channels import reduce, repeat_channels
from pytest_ckptcompat.recipes.recipe import Recipe

# -- reduce --------------------------------------------------------------------------------------------------


def test_a_grey_stem_sees_what_the_coloured_one_saw() -> None:
    colour, grey = nn.Conv2d(3, 5, 3).double(), nn.Conv2d(1, 5, 3).double()
    grey.load_state_dict(
        Recipe(reduce("weight", dim=1, groups=1, op="sum")).apply(colour.state_dict(), grey.state_dict())
    )
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=0, atol=1e-9)


def attention(
    x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, kv: int
) -> torch.Tensor:
    split = lambda w, n: (x @ w.T).unflatten(-1, (n, -1)).transpose(1, 2)  # noqa: E731
    return functional.scaled_dot_product_attention(
        split(q, heads),
        split(k, kv).repeat_interleave(heads // kv, 1),
        split(v, kv).repeat_interleave(heads // kv, 1),
    )


def test_heads_that_were_alike_are_joined_without_a_loss() -> None:
    """8 heads, each pair of which has one key and value, are 4 groups of heads of size 3."""
    q, few_k, few_v = (torch.randn(rows, 6, dtype=torch.float64) for rows in (24, 12, 12))
    many_k, many_v = (
        few.unflatten(0, (4, 3)).repeat_interleave(2, 0).flatten(0, 1) for few in (few_k, few_v)
    )
    old, target = {"k.weight": many_k, "v.weight": many_v}, {"k.weight": few_k, "v.weight": few_v}
    new = Recipe(reduce("*.weight", dim=0, groups=4)).apply(old, target)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(
        attention(x, q, new["k.weight"], new["v.weight"], 8, 4),
        attention(x, q, many_k, many_v, 8, 8),
        rtol=0,
        atol=1e-9,
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), st.sampled_from(["mean", "sum"]), st.data())
def test_reduce_for_any_shape(groups: int, several: int, block: int, op: Any, data: st.DataObject) -> None:
    dim = data.draw(st.sampled_from([0, 1, -1]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    sizes = [2, 3]
    sizes[dim] = groups * several * block
    old = {"w": torch.randn(sizes, dtype=torch.float64).to(dtype)}
    wanted = list(sizes)
    wanted[dim] = groups * block
    target = {"w": torch.empty(wanted)}
    operator = reduce("w", dim=dim, groups=groups, op=op)
    new = operator.apply(old, target)
    assert (tuple(new["w"].shape), new["w"].dtype) == (tuple(wanted), dtype)
    heads = old["w"].double().unflatten(dim, (groups, several, block)).movedim(dim % 2 + 1, 0)
    expected = (sum(heads) / (several if op == "mean" else 1)).flatten(dim % 2, dim % 2 + 1)
    exact = 1e-9 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(new["w"].double(), expected, rtol=exact, atol=exact)
    assert statuses(operator, old, new, target) == ["kept"]
    assert operator.caveat({}, {})


@pytest.mark.parametrize(
    "fault",
    [
        lambda w: w.unflatten(0, (4, 2, 3)).sum(1).flatten(0, 1),
        lambda w: w.unflatten(0, (2, 4, 3)).mean(0).flatten(0, 1),
        lambda w: w.unflatten(0, (4, 3, 2)).mean(2).flatten(0, 1),
        lambda w: w[:12],
    ],
)
def test_heads_joined_wrongly_are_caught(fault: Any) -> None:
    old, target = {"k": torch.randn(24, 6)}, {"k": torch.empty(12, 6)}
    operator = reduce("k", dim=0, groups=4)
    assert statuses(operator, old, operator.apply(old, target), target) == ["kept"]
    assert statuses(operator, old, {"k": fault(old["k"])}, target) == ["broken"]


@pytest.mark.parametrize(
    ("operator", "wanted", "text"),
    [
        (
            reduce("w", dim=0, groups=5),
            (10, 3),
            "dimension 0 has 24 and is to have 10, which can't be reduced to 5 groups",
        ),
        (reduce("w", dim=0, groups=5), None, "dimension 0 has 24, which can't be reduced to 5 groups"),
        (reduce("w", dim=2, groups=1), (12, 3), "with no dimension 2"),
        (reduce("w", dim=0, groups=1), (24, 3), "changes nothing"),
    ],
)
def test_groups_that_do_not_divide(operator: reduce, wanted: Any, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        operator.apply({"w": torch.rand(24, 3)}, {"w": torch.empty(wanted)} if wanted else {})
    assert text in str(caught.value)


def test_the_operation_has_one_name_and_in_python_a_second() -> None:
    recipe = Recipe(reduce("conv1.weight", dim=1, groups=1, op="sum"))
    assert repr(recipe) == 'Recipe(reduce("conv1.weight", dim=1, groups=1, reduction="sum"))'
    assert 'op = "reduce"' in recipe.to_toml()
    assert 'reduction = "sum"' in recipe.to_toml()
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert reduce("conv1.weight", dim=1, groups=1, reduction="sum") == recipe.operators[0]
    with pytest.raises(RecipeError, match="op is another name of reduction"):
        reduce("conv1.weight", dim=1, groups=1, reduction="sum", op="mean")


# -- repeat_channels -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 3), st.integers(0, 99))
@torch.no_grad()
def test_a_stem_for_more_channels(few: int, channels: int, kernel: int, seed: int) -> None:
    torch.manual_seed(seed)
    old = nn.Conv2d(few, 5, kernel, bias=False).double()
    operator = repeat_channels("weight", to=channels)
    if channels <= few:
        with pytest.raises(RecipeError, match="changes nothing" if channels == few else "reduce makes fewer"):
            operator.apply(old.state_dict(), {})
        return
    new = nn.Conv2d(channels, 5, kernel, bias=False).double()
    new.load_state_dict(operator.apply(old.state_dict(), {}))
    [promise] = proved(operator, old.state_dict(), new.state_dict(), {})
    assert promise.status == "kept"
    x = torch.randn(2, few, 8, 8, dtype=torch.float64)
    repeated = x[:, torch.arange(channels) % few]
    if channels % few == 0:
        torch.testing.assert_close(new(repeated), old(x), rtol=0, atol=1e-9)
        assert promise.detail == "their sum is kept"
    else:
        assert float((new(repeated) - old(x)).abs().max()) > 1e-3
        assert promise.detail.endswith(f"as {few} does not divide {channels}")


def test_outputs_of_a_transposed_convolution_are_no_input_channels() -> None:
    old, new = nn.ConvTranspose2d(16, 1, 2), nn.ConvTranspose2d(16, 3, 2)
    with pytest.raises(RecipeError, match=r'counts its outputs.*tile\("weight", dim=1\)'):
        repeat_channels("weight").apply(old.state_dict(), new.state_dict())


@pytest.mark.parametrize("squares", [True, False])
def test_moments_that_are_carried(squares: bool) -> None:
    """Of joined rows the mean, whatever becomes of the weights; of repeated channels the same, undivided."""
    old = torch.tensor([[1.0, 3.0]])
    for operator, expected in (
        (reduce("w", dim=1, groups=1, op="sum", optim="copy"), [[2]]),
        (repeat_channels("w", to=3, optim="copy"), [[1, 3, 1]]),
    ):
        [write] = operator.edit({"w": old}, {}).plan["w"]
        assert write.optimizer_transform is not None
        assert write.optimizer_transform(squares, old).tolist() == expected
