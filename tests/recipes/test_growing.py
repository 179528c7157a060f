from __future__ import annotations

from collections import OrderedDict
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import statuses
from torch import nn

from pytest_ckptcompat.recipes.operators.add import add
from pytest_ckptcompat.recipes.operators.append import append
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.recipe import Recipe

State = OrderedDict[str, Any]
INITS = ["zeros", "constant", "normal", "kaiming_uniform", "xavier_uniform", "mean", "multivariate_normal"]
HEAD = OrderedDict(nn.Linear(256, 4).state_dict())
GROWN = nn.Linear(256, 14).state_dict()


def test_the_origin_story_to_the_bit() -> None:
    new = Recipe(tile("*", dim=0)).apply(HEAD, GROWN)
    for key, w in HEAD.items():
        assert torch.equal(new[key], torch.cat([w, w, w, w[0:2]]))
        assert new[key].data_ptr() != w.data_ptr()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.data(),
    st.sampled_from(["float64", "float32", "bfloat16", "float8_e4m3fn", "int64", "complex64"]),
)
def test_tile_for_any_shape_and_dtype(sizes: list[int], data: st.DataObject, dtype: str) -> None:
    dim = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    to = data.draw(st.integers(sizes[dim] + 1, 3 * sizes[dim] + 2))
    old = OrderedDict(w=(torch.rand(sizes, dtype=torch.float64) * 9).to(getattr(torch, dtype)))
    operator = tile("w", dim=dim, to=to)
    new = operator.apply(old, {})
    assert new["w"].dtype == old["w"].dtype
    rows = [old["w"].to(torch.complex128).select(dim, i % sizes[dim]) for i in range(to)]
    assert torch.equal(new["w"].to(torch.complex128), torch.stack(rows, dim))
    assert statuses(operator, old, new, {}) == ["kept", "kept"]


def up(outputs: int = 3, inputs: int = 8, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, inputs, 3), nn.ConvTranspose2d(inputs, outputs, 2, bias=bias))


OUT = [tile("1.weight", dim=1), tile("1.bias", dim=0)]


@pytest.mark.parametrize("operators", [OUT, OUT[::-1], [tile("1.weight", dim=-3), OUT[1]]])
@pytest.mark.parametrize("outputs", [5, 9, 12])
def test_repeated_outputs_of_a_transposed_convolution_leave_the_old_ones(
    operators: list[tile], outputs: int
) -> None:
    old, new = up(), up(outputs)
    growth = Recipe(*operators).run(old.state_dict(), new.state_dict())
    assert not growth.changes_function
    new.load_state_dict(growth.state_dict)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(new(x)[:, :3], old(x))


@pytest.mark.parametrize(
    ("old", "new", "operators", "claim"),
    [
        (up(), up(inputs=16), [tile("0.*", dim=0), tile("1.weight", dim=0)], "repeats inputs"),
        (up(bias=False), up(5, bias=False), [tile("1.weight", dim=1)], "as far as shapes tell"),
        (nn.Linear(4, 3), nn.Linear(8, 3), [tile("weight", dim=1)], "repeats inputs"),
        (nn.Linear(4, 3), nn.Linear(8, 3), [tile("weight", dim=-1)], "repeats inputs"),
        (nn.Linear(4, 3), nn.Linear(4, 6), [tile("*", dim=0)], ""),
        (nn.Linear(4, 3), nn.Linear(4, 6), [tile("weight", dim=-2), tile("bias", dim=-1)], ""),
    ],
)
def test_repeated_inputs_are_not_said_to_keep_the_function(
    old: nn.Module, new: nn.Module, operators: list[tile], claim: str
) -> None:
    growth = Recipe(*operators).run(old.state_dict(), new.state_dict())
    assert claim in "".join(growth.changes_function.values())
    assert bool(claim) == bool(growth.changes_function)


def test_noise_is_seeded_differs_between_tensors_and_leaves_old_rows_alone() -> None:
    old = OrderedDict(a=torch.zeros(3, 50), b=torch.zeros(3, 50))
    one, again, other = (
        tile("*", dim=0, to=7, noise_std=0.1, seed=seed).apply(old, {}) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], again[key]) for key in old)
    assert not torch.equal(one["a"], other["a"])
    assert not torch.equal(one["a"], one["b"])
    assert not one["a"][:3].any()
    assert one["a"][3:].std() == pytest.approx(0.1, rel=0.2)
    assert statuses(tile("*", dim=0, to=7, noise_std=0.1), old, one, {}) == ["kept", "kept"]


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(INITS), st.lists(st.integers(1, 5), min_size=2, max_size=4), st.data())
def test_append_keeps_its_promises_for_any_shape(init: Any, sizes: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, len(sizes) - 1))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    old = OrderedDict(w=torch.rand(sizes, dtype=torch.float64, generator=generator).to(dtype))
    operator = append("w", dim=dim, n=data.draw(st.integers(1, 6)), init=init, value=0.25, seed=3)
    new = operator.apply(old, {})
    assert (new["w"].dtype, new["w"].shape[dim]) == (dtype, sizes[dim] + (operator.n or 0))
    assert torch.equal(new["w"].narrow(dim, 0, sizes[dim]), old["w"])
    assert statuses(operator, old, new, {}) == ["kept", "kept"]
    assert torch.equal(new["w"], operator.apply(old, {})["w"])


@pytest.mark.parametrize("module", [nn.Linear(64, 700), nn.Conv2d(6, 700, 3)])
def test_kaiming_rows_spread_as_those_of_a_new_module(module: nn.Module) -> None:
    target = module.state_dict()
    old = OrderedDict((key, value[:200].clone()) for key, value in target.items())
    new = append("*", dim=0, init="kaiming_uniform").apply(old, target)
    for key, fresh in target.items():
        added = new[key][200:]
        assert added.shape == fresh[200:].shape
        assert float(added.abs().max()) == pytest.approx(float(fresh.abs().max()), rel=0.02)
        assert float(added.std()) == pytest.approx(float(fresh.std()), rel=0.1)


def test_xavier_rows_spread_as_torch_fills_the_new_weight() -> None:
    target = OrderedDict(w=nn.init.xavier_uniform_(torch.empty(600, 50)))
    new = append("w", dim=0, init="xavier_uniform").apply(OrderedDict(w=target["w"][:100].clone()), target)
    assert float(new["w"][100:].std()) == pytest.approx(float(target["w"].std()), rel=0.03)


def test_new_columns_go_by_the_models_fan_in() -> None:
    target = nn.Linear(400, 30).state_dict()
    old = OrderedDict(target, weight=target["weight"][:, :100].clone())
    new = append("weight", dim=1, init="kaiming_uniform").apply(old, target)
    assert float(new["weight"][:, 100:].abs().max()) == pytest.approx(1 / sqrt(400), rel=0.01)


def test_normal_rows_spread_as_the_old_ones_unless_told() -> None:
    old = OrderedDict(w=torch.randn(200, 50) * 0.06 + 1)
    assert float(append("w", dim=0, n=300, init="normal").apply(old, {})["w"][200:].std()) == pytest.approx(
        0.06, rel=0.03
    )
    rows = append("w", dim=0, n=300, init="normal", std=2.0).apply(old, {})["w"][200:]
    assert float(rows.std()) == pytest.approx(2, rel=0.03)
    assert abs(float(rows.mean())) < 0.1


def test_words_drawn_around_the_mean_have_the_old_ones_covariance() -> None:
    """Against the definition: deviations, scaled back, have the covariance of the old rows."""
    basis = torch.randn(3, 3, dtype=torch.float64)
    old = OrderedDict(w=torch.randn(500, 3, dtype=torch.float64) @ basis + 5)
    rows = append("w", dim=0, n=20_000, init="multivariate_normal").apply(old, {})["w"][500:]
    deviations = (rows - old["w"].mean(0)) / sqrt(1e-9)
    expected = torch.cov(old["w"].T, correction=0)
    torch.testing.assert_close(
        torch.cov(deviations.T), expected, rtol=0.1, atol=0.05 * float(expected.abs().max())
    )


@pytest.mark.parametrize(
    ("init", "fault"),
    [
        ("zeros", lambda w, n: torch.full_like(n, 1e-30)),
        ("constant", lambda w, n: torch.full_like(n, 0.2)),
        ("mean", lambda w, n: w[:1].expand_as(n)),
        ("mean", lambda w, n: w.mean().expand_as(n)),
        ("multivariate_normal", lambda w, n: torch.randn_like(n) * w.std() + w.mean(0)),
        ("normal", lambda w, n: torch.randn_like(n)),
        ("normal", lambda w, n: torch.zeros_like(n)),
        ("normal", lambda w, n: torch.randn_like(n) * w.std() + w.std()),
        ("kaiming_uniform", lambda w, n: torch.randn_like(n) / 16),
        ("kaiming_uniform", lambda w, n: n / 2),
        ("kaiming_uniform", lambda w, n: torch.where(n == n.max(), 0.2, n)),
        ("xavier_uniform", lambda w, n: n * 1.4),
    ],
)
def test_rows_that_are_not_as_declared_are_caught(init: Any, fault: Any) -> None:
    operator = append("weight", dim=0, init=init, value=0.25)
    new = operator.apply(HEAD, GROWN)
    torch.manual_seed(0)
    new["weight"] = torch.cat([HEAD["weight"], fault(HEAD["weight"], new["weight"][4:])])
    assert statuses(operator, HEAD, new, GROWN) == ["kept", "broken"]


@pytest.mark.parametrize("dtype", ["float4_e2m1fn_x2", "float8_e8m0fnu", "uint16", "complex64"])
def test_zeros_are_appended_to_every_dtype(dtype: str) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    kind = getattr(torch, dtype)
    state = {"w": torch.arange(64, dtype=torch.uint8).view(kind).reshape(2, -1)}
    operator = append("w", dim=0, n=1)
    made = operator.apply(state, {})
    assert made["w"].dtype == kind
    assert not made["w"][2].view(torch.uint8).any()
    assert statuses(operator, state, made, {}) == ["kept", "kept"]
    target = {"new": torch.empty(2, 3, dtype=kind, device="meta")}
    new = add("new").apply(state, target)
    assert statuses(add("new"), state, new, target) == ["kept"]


@pytest.mark.parametrize(
    ("dtype", "value", "held"),
    [
        ("int8", 127.0, True),
        ("int8", 1000.0, False),
        ("int64", 0.5, False),
        ("bool", 1.0, True),
        ("bool", 2.0, False),
        ("float8_e4m3fn", 448.0, True),
        ("float8_e4m3fn", 1000.0, False),
        ("float16", float("-inf"), True),
        ("complex64", 0.5, True),
    ],
)
def test_a_constant_is_one_of_the_dtype(dtype: str, value: float, held: bool) -> None:
    state = {"w": torch.ones(2, dtype=getattr(torch, dtype))}
    operator = append("w", dim=0, n=1, init="constant", value=value)
    if held:
        added = operator.apply(state, {})["w"][2]
        assert complex(added.to(torch.complex64)) == value
    else:
        with pytest.raises(ValueError, match=f"its dtype {dtype} does not hold {value:g}"):
            operator.apply({"w": state["w"].to("meta")}, {})
