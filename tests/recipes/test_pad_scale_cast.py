from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import proved, statuses
from torch import nn
from torch.nn import functional

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.channels import reduce
from pytest_ckptcompat.recipes.operators.kernels import pad
from pytest_ckptcompat.recipes.operators.values import cast, scale
from pytest_ckptcompat.recipes.recipe import Recipe

# -- pad -----------------------------------------------------------------------------------------------------


def test_a_larger_kernel_with_more_padding_computes_the_same() -> None:
    small = nn.Conv2d(3, 5, 3, padding=1).double()
    large = nn.Conv2d(3, 5, 7, padding=3).double()
    growth = Recipe(pad("weight")).run(small.state_dict(), large.state_dict())
    large.load_state_dict(growth.state_dict)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x), rtol=0, atol=1e-9)
    assert not growth.changes_function
    assert statuses(pad("weight"), small.state_dict(), growth.state_dict, large.state_dict()) == ["kept"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_sizes_count_as_torch_counts_them(sizes: list[int], data: st.DataObject) -> None:
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=len(sizes))
    )
    zeros = [size for pair in pairs for size in pair]
    old = {"w": torch.rand(sizes, dtype=torch.float64)}
    new = pad("w", sizes=zeros).apply(old, {})
    assert torch.equal(new["w"], functional.pad(old["w"], zeros))
    assert statuses(pad("w", sizes=zeros), old, new, {}) == ["kept"]


@pytest.mark.parametrize(
    ("operator", "sizes", "claim"),
    [
        (pad("w"), (2, 2, 5, 5), ""),
        (pad("w"), (2, 2, 4, 4), "moves the kernel"),
        (pad("w"), (4, 2, 3, 3), "moves outputs"),
        (pad("w"), (2, 4, 3, 3), "moves inputs"),
        (pad("w", mode="end"), (4, 4, 3, 3), ""),
        (pad("w", mode="end"), (2, 2, 5, 5), "moves the kernel"),
    ],
)
def test_what_padding_claims(operator: pad, sizes: tuple[int, ...], claim: str) -> None:
    growth = Recipe(operator).run({"w": torch.rand(2, 2, 3, 3)}, {"w": torch.empty(sizes)})
    assert growth.state_dict["w"].shape == sizes
    assert claim in "".join(growth.changes_function.values())
    assert bool(claim) == bool(growth.changes_function)


@pytest.mark.parametrize(
    ("operator", "target", "text"),
    [
        (pad("w"), {}, "the model does not have it"),
        (pad("w"), {"w": torch.empty(1, 2)}, "the model has (1, 2)"),
        (pad("w", sizes=[0, 0]), {}, "changes nothing"),
        (pad("w", sizes=[1] * 6), {}, "with fewer dimensions than sizes"),
    ],
)
def test_padding_that_does_not_fit(operator: pad, target: Any, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        operator.apply({"w": torch.rand(2, 2)}, target)
    assert text in str(caught.value)


def test_padded_moments_are_zero_and_the_old_ones_mean() -> None:
    old = torch.tensor([[1.0, 5.0]])
    [write] = pad("w", sizes=[1, 0]).edit({"w": old}, {}).plan["w"]
    assert write.optimizer_transform is not None
    assert write.optimizer_transform(False, old).tolist() == [[0, 1, 5]]
    assert write.optimizer_transform(True, old).tolist() == [[3, 1, 5]]


def test_sizes_are_pairs() -> None:
    with pytest.raises(RecipeError, match="pairs"):
        pad("w", sizes=[1])
    with pytest.raises(RecipeError, match="pairs"):
        pad("w", sizes=[-1, 1])


# -- scale ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]),
    st.floats(-8, 8, width=32),
    st.data(),
)
def test_scale_is_linear(dtype: torch.dtype, factor: float, data: st.DataObject) -> None:
    old = {"w": torch.randn(3, 4, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)}
    dim = data.draw(st.sampled_from([None, 0, 1, -1]))
    if dim is None:
        operator = scale("w", factor)
        expected = old["w"] * factor
    else:
        factors = [factor + row for row in range(old["w"].shape[dim])]
        operator = scale("w", factors, dim=dim)
        expected = old["w"] * torch.tensor(factors).reshape((-1, 1) if dim == 0 else (1, -1))
    new = operator.apply(old, {})
    assert new["w"].dtype == dtype
    torch.testing.assert_close(new["w"], expected.to(dtype))
    assert statuses(operator, old, new, {}) == ["kept"]
    assert operator.caveat({}, {})


@pytest.mark.parametrize("operator", [scale("w", 0.5), reduce("w", dim=0, groups=1)])
def test_values_that_are_not_finite_stay_so_and_break_no_promise(operator: scale | reduce) -> None:
    old = {"w": torch.tensor([[-torch.inf, 1.0, torch.nan], [-torch.inf, 2.0, 3.0]])}
    new = operator.apply(old, {})
    assert statuses(operator, old, new, {}) == ["kept"]
    finite = {"w": new["w"].nan_to_num(neginf=-1e30)}
    assert statuses(operator, old, finite, {}) == ["broken"]


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), [1.0, float("-inf")]])
def test_a_factor_is_finite(factor: Any) -> None:
    with pytest.raises(RecipeError, match="a factor is infinite or NaN"):
        scale("w", factor, dim=0 if isinstance(factor, list) else None)


def test_scale_passes_by_what_holds_no_floats() -> None:
    net = nn.BatchNorm1d(3).state_dict()
    growth = Recipe(scale("*", 2)).run(net, {})
    assert set(net) - set(growth.touched) == {"num_batches_tracked"}
    with pytest.raises(RecipeError, match="it holds no floats"):
        scale("num_batches_tracked", 2).apply(net, {})
    with pytest.raises(RecipeError, match="with not 2 in dimension 0"):
        scale("weight", [1, 2], dim=0).apply(net, {})
    with pytest.raises(RecipeError, match="dim goes with a list"):
        scale("w", [1, 2])


# -- cast ----------------------------------------------------------------------------------------------------

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 9),
)
def test_cast(before: str, after: str, sizes: list[int], seed: int) -> None:
    values = torch.randn(sizes, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 6)
    net = OrderedDict(
        nn.BatchNorm1d(3).state_dict(), weight=values.clamp(-440, 440).to(getattr(torch, before))
    )
    operator = cast("weight", after)
    if before == after:
        with pytest.raises(RecipeError, match="changes nothing"):
            operator.apply(net, {})
        return
    new = operator.apply(net, {})
    assert torch.equal(new["weight"].double(), net["weight"].to(getattr(torch, after)).double())
    [promise] = proved(operator, net, new, {})
    assert promise.status == "kept"
    exact = torch.equal(new["weight"].double(), net["weight"].double())
    assert (promise.detail == "no value changes") == exact


@pytest.mark.parametrize(
    ("dtype", "values", "told"),
    [
        ("bfloat16", [1.0, 1 + 2**-8, -3.0], "values change by up to 0.0039"),
        ("bfloat16", [1.0, 0.5, -3.0], "no value changes"),
        ("float16", [1.0, 1e-8, 2e-8], "values change by up to 2e-08, 2 values became 0"),
        ("float64", [0.1, 1e-30], "no value changes"),
    ],
)
def test_a_cast_tells_how_far_it_rounds(dtype: str, values: list[float], told: str) -> None:
    old = {"w": torch.tensor(values)}
    [promise] = proved(cast("w", dtype), old, cast("w", dtype).apply(old, {}), {})
    assert (promise.status, promise.detail) == ("kept", told)


def test_cast_of_everything_leaves_integers_alone_and_takes_the_models_dtypes() -> None:
    net, half = nn.BatchNorm1d(3).state_dict(), nn.BatchNorm1d(3).half().state_dict()
    assert {key: value.dtype for key, value in cast("*", "float16").apply(net, {}).items()} == {
        key: value.dtype for key, value in half.items()
    }
    assert {key: value.dtype for key, value in cast("*").apply(net, half).items()} == {
        key: value.dtype for key, value in half.items()
    }


@pytest.mark.parametrize(
    ("value", "dtype", "status"),
    [
        (7e4, "float16", "broken"),
        (float("inf"), "float16", "kept"),
        (float("nan"), "float16", "kept"),
        (6e-8, "float16", "kept"),
        (1e-40, "bfloat16", "kept"),
    ],
)
def test_what_is_beyond_the_new_dtype_is_caught(value: float, dtype: str, status: str) -> None:
    old = {"w": torch.tensor([1.0, value])}
    [promise] = proved(cast("w", dtype), old, cast("w", dtype).apply(old, {}), {})
    assert promise.status == status
    assert ("1 values are beyond the new dtype" in promise.detail) == (status == "broken")


def test_other_values_are_caught() -> None:
    old = {"w": torch.rand(9)}
    assert statuses(cast("w", "float16"), old, {"w": (old["w"] * 1.01).half()}, {}) == ["broken"]
    assert statuses(cast("w", "float16"), old, {"w": old["w"]}, {}) == ["broken"]
    ids = {"w": torch.tensor([1, 300])}
    assert statuses(cast("w", "uint8"), ids, cast("w", "uint8").apply(ids, {}), {}) == ["broken"]


@pytest.mark.parametrize(("value", "status"), [(3e-5, "kept"), (0.0, "broken"), (6e-5, "broken")])
def test_values_below_the_smallest_normal_number_are_compared_too(value: float, status: str) -> None:
    """They are rounded to a step of the new dtype, and no further."""
    old, new = {"w": torch.tensor([1.0, 3e-5])}, {"w": torch.tensor([1.0, value]).half()}
    [promise] = proved(cast("w", "float16"), old, new, {})
    assert promise.status == status


def test_a_dtype_that_is_none() -> None:
    with pytest.raises(RecipeError, match=r"\"half\" is not a dtype"):
        cast("w", "half")
    with pytest.raises(RecipeError, match="did you mean 'bfloat16'"):
        cast("w", "bflot16")
    with pytest.raises(RecipeError, match="the dtype must be given"):
        cast("w").apply({"w": torch.rand(2)}, {})
