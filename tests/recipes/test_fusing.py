"""Fusing, splitting and sharing tensors."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Words, settle
from proving import statuses
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.fusing import concat, split
from pytest_ckptcompat.recipes.operators.tie import tie
from pytest_ckptcompat.recipes.recipe import Recipe

FUSE = concat(["layers.*.q.*", "layers.*.k.*", "layers.*.v.*"], "layers.*.qkv.*", dim=0)
UNFUSE = split("layers.*.qkv.*", ["layers.*.q.*", "layers.*.k.*", "layers.*.v.*"], dim=0)


def heads(q: int = 8, kv: int = 4) -> OrderedDict[str, Any]:
    """Two layers, keys and values with fewer rows than queries."""
    modules = {"q": nn.Linear(6, q), "k": nn.Linear(6, kv), "v": nn.Linear(6, kv), "o": nn.Linear(q, 6)}
    return OrderedDict(
        (f"layers.{layer}.{name}.{leaf}", torch.randn_like(value))
        for layer in range(2)
        for name, module in modules.items()
        for leaf, value in module.state_dict().items()
    )


def test_fused_in_every_layer_weights_and_biases() -> None:
    old = heads()
    growth = Recipe(FUSE).run(old, {})
    new = growth.state_dict
    assert list(new)[:3] == ["layers.0.qkv.weight", "layers.0.qkv.bias", "layers.0.o.weight"]
    x = torch.randn(3, 6)
    for layer in range(2):
        parts = [(old[f"layers.{layer}.{name}.weight"], old[f"layers.{layer}.{name}.bias"]) for name in "qkv"]
        fused = nn.functional.linear(x, new[f"layers.{layer}.qkv.weight"], new[f"layers.{layer}.qkv.bias"])
        torch.testing.assert_close(fused, torch.cat([nn.functional.linear(x, *part) for part in parts], 1))
    assert statuses(FUSE, old, new, {}) == ["kept"]
    assert growth.origin["layers.0.qkv.bias"] is None
    assert growth.sources["layers.0.qkv.bias"] == ("layers.0.q.bias", "layers.0.k.bias", "layers.0.v.bias")
    assert new["layers.1.o.bias"] is old["layers.1.o.bias"]


def test_there_and_back() -> None:
    old = heads()
    new = Recipe(FUSE, UNFUSE).apply(old, old)
    assert set(new) == set(old)
    assert all(torch.equal(new[key], old[key]) for key in old)


def test_parts_own_their_memory() -> None:
    """Else every part that is saved would carry the whole."""
    fused = FUSE.apply(heads(), {})
    parts = UNFUSE.apply(fused, heads())
    assert parts["layers.0.k.weight"].untyped_storage().nbytes() == 4 * 6 * 4
    assert parts["layers.0.k.weight"].is_contiguous()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.data(),
)
def test_concat_and_split_for_any_shape(sizes: list[int], parts: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float8_e5m2, torch.int64]))
    old = OrderedDict[str, torch.Tensor]()
    for number, size in enumerate(parts):
        each = list(sizes)
        each[dim] = size
        old[f"w{number}"] = (torch.rand(each) * 9).to(dtype)
    names = list(old)
    fuse, unfuse = concat(names, "w", dim=dim), split("w", names, dim=dim, sizes=parts)
    fused = fuse.apply(old, {})
    assert torch.equal(fused["w"].double(), torch.cat([each.double() for each in old.values()], dim))
    assert statuses(fuse, old, fused, {}) == ["kept"]
    again = unfuse.apply(fused, {})
    assert statuses(unfuse, fused, again, {}) == ["kept"]
    assert list(again) == names
    assert all(torch.equal(again[name].double(), old[name].double()) for name in names)


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1]])
def test_parts_in_another_order_are_caught(order: list[int]) -> None:
    old = heads(kv=8)
    new = FUSE.apply(old, {})
    new["layers.1.qkv.weight"] = torch.cat([new["layers.1.qkv.weight"].split(8)[part] for part in order])
    assert statuses(FUSE, old, new, {}) == ["broken"]
    assert statuses(UNFUSE, new, old, old) == ["broken"]


def test_parts_woven_head_by_head_are_caught() -> None:
    old = heads(kv=8)
    new = FUSE.apply(old, {})
    new["layers.0.qkv.weight"] = (
        new["layers.0.qkv.weight"].unflatten(0, (3, 4, 2)).transpose(0, 1).flatten(0, 2)
    )
    assert statuses(FUSE, old, new, {}) == ["broken"]


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (concat(["a", "z"], "w", dim=0), 'does not fit "a": there is no "z" beside it'),
        (concat(["a", "c"], "w", dim=0), '"a" is (2, 3)'),
        (concat(["a", "h"], "w", dim=0), 'it has another dtype than "a": cast one'),
        (concat(["a", "b"], "w", dim=2), "with no dimension 2"),
        (concat(["a", "b"], "c", dim=0), "the name c"),
        (concat(["q*", "k*"], "qk*", dim=0), "matches nothing"),
        (split("a", ["p", "q", "r"], dim=0), "dimension 0 has 2, which is not cut into [0, 0, 0]"),
        (split("a", ["p", "q"], dim=0, sizes=[1, 2]), "dimension 0 has 2, which is not cut into [1, 2]"),
        (split("a", ["p", "q"], dim=5), "with no dimension 5"),
    ],
)
def test_what_can_not_be_joined_or_cut(operator: Any, text: str) -> None:
    old = {"a": torch.rand(2, 3), "b": torch.rand(4, 3), "c": torch.rand(2, 4), "h": torch.rand(2, 3).half()}
    with pytest.raises(RecipeError) as caught:
        operator.apply(old, {})
    assert text in str(caught.value)


def test_stars_stand_for_the_same() -> None:
    with pytest.raises(RecipeError, match="has not as many stars"):
        concat(["*.q", "k"], "*.qk", dim=0)


# -- tie -----------------------------------------------------------------------------------------------------

TIE = tie(["head.weight", "embed.weight"])


def test_a_tie_makes_the_missing_key() -> None:
    old = settle(Words()).state_dict()
    del old["embed.weight"]
    growth = Recipe(TIE).run(old, {})
    assert growth.state_dict["embed.weight"] is growth.state_dict["head.weight"] is old["head.weight"]
    assert (growth.touched, growth.changes_function) == ({}, {})
    assert statuses(TIE, old, growth.state_dict, {}) == ["kept"]
    Words().load_state_dict(growth.state_dict)


def test_a_tie_replaces_the_other_and_says_so() -> None:
    old = settle(Words()).state_dict()
    old["embed.weight"] = old["embed.weight"] + 1
    growth = Recipe(TIE).run(old, {})
    assert growth.state_dict["embed.weight"] is old["head.weight"]
    assert growth.touched == {"embed.weight": (TIE,)}
    assert growth.origin["embed.weight"] == "head.weight"
    assert 'replaces "embed.weight"' in next(iter(growth.changes_function.values()))


def test_a_tie_that_is_there_already_is_an_error() -> None:
    with pytest.raises(RecipeError, match="they are tied"):
        TIE.apply(settle(Words()).state_dict(), {})
    with pytest.raises(RecipeError, match="two at least"):
        tie(["a"])


def test_equal_values_are_no_tie() -> None:
    old = settle(Words()).state_dict()
    old["embed.weight"] = old["embed.weight"] + 1
    after = OrderedDict(old, **{"embed.weight": old["head.weight"].clone()})
    assert statuses(TIE, old, after, {}) == ["broken"]
    after = OrderedDict(old, **{"head.weight": old["embed.weight"]})
    assert statuses(TIE, old, after, {}) == ["broken"]


def test_text_forms() -> None:
    recipe = Recipe(FUSE, UNFUSE, TIE)
    assert repr(recipe.operators[0]) == (
        'concat(["layers.*.q.*", "layers.*.k.*", "layers.*.v.*"], "layers.*.qkv.*", dim=0)'
    )
    assert repr(TIE) == 'tie(["head.weight", "embed.weight"])'
    assert Recipe.from_toml(recipe.to_toml()) == recipe
