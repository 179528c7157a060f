from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torch import nn

from pytest_ckptcompat import Recipe
from pytest_ckptcompat.checks.protection import broken, unknown
from pytest_ckptcompat.recipes.operators.blocks import insert_block
from pytest_ckptcompat.recipes.operators.fusing import concat, split
from pytest_ckptcompat.recipes.operators.rename import drop, rename
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.operators.values import scale

if TYPE_CHECKING:
    from pytest_ckptcompat.recipes.applied import Applied


def layers(**sizes: tuple[int, int]) -> nn.Module:
    """Linear layers by their names, each with its inputs and outputs."""
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})


KEYS = ["conv1.weight", "conv1.bias", "out2.weight"]


def test_patterns_that_name_nothing_are_told_with_the_nearest_keys():
    [found] = unknown(["conv1.*", "conv2.weight"], KEYS)
    assert (found.rule, found.key, found.severity) == ("recipe-protected-key", "conv2.weight", "error")
    assert "conv1.weight" in found.message
    assert unknown(["conv*", "out2.weight"], KEYS) == []


def of(recipe: Recipe, model: nn.Module, today: nn.Module) -> Applied:
    return recipe.run(model.state_dict(), today.state_dict())


def test_every_protected_key_that_is_touched_is_named_with_what_touches_it():
    growth = of(Recipe(tile("*", dim=0)), layers(a=(4, 2), b=(4, 2)), layers(a=(4, 4), b=(4, 4)))
    found = broken(["a.*"], growth)
    assert [each.key for each in found] == ["a.weight", "a.bias"]
    assert "tile(" in found[0].message
    assert "'a.*'" in found[0].message


QKV = layers(q=(4, 4), k=(4, 4), v=(4, 4))
APART, FUSED = ["q.weight", "k.weight", "v.weight"], layers(qkv=(4, 12))


@pytest.mark.parametrize("name", "qkv")
def test_a_key_is_protected_under_whatever_name_its_values_go_on(name: str):
    growth = of(Recipe(concat(APART, "qkv.weight", dim=0), scale("qkv.weight", 3.0)), QKV, FUSED)
    [found] = broken([f"{name}.weight"], growth)
    assert found.key == f"{name}.weight"
    assert "concat(" in found.message


def test_a_protected_key_must_not_be_taken_apart():
    growth = of(Recipe(split("qkv.weight", APART, dim=0), scale("q.weight", 3.0)), FUSED, QKV)
    assert [each.key for each in broken(["qkv.*"], growth)] == ["qkv.weight"]


def test_another_name_alone_is_no_harm_but_what_is_done_under_it():
    old, today = layers(conv=(4, 4)), layers(stem=(4, 4))
    assert broken(["conv.*", "stem.*"], of(Recipe(rename("conv.*", "stem.*")), old, today)) == []
    growth = of(Recipe(rename("conv.*", "stem.*"), scale("stem.*", 5.0)), old, today)
    assert [each.key for each in broken(["conv.*"], growth)] == ["conv.weight", "conv.bias"]
    assert [each.key for each in broken(["stem.*"], growth)] == ["stem.weight", "stem.bias"]


def test_a_copy_of_a_protected_block_does_not_touch_it_and_to_drop_it_does():
    old = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))})
    today = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))})
    growth = of(Recipe(insert_block("layers.0", at=1, zero=["weight"])), old, today)
    assert broken(["layers.0.*"], growth) == []
    dropped = of(Recipe(drop("layers.1.*")), old, old)
    assert broken(["layers.0.*"], dropped) == []
    assert [each.key for each in broken(["layers.1.*"], dropped)] == ["layers.1.weight", "layers.1.bias"]
