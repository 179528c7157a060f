from __future__ import annotations

import pytest
import torch
from suggesting import Tensors
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.recipes.operators import drop, rename, select, tile
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.suggest.repair import repair
from pytest_ckptcompat.verification.comparison import compare


def net(hidden=5, outputs=4):
    return nn.ModuleDict({"a": nn.Linear(5, hidden), "b": nn.Linear(hidden, outputs)})


def repaired(declared, old, new):
    schema = meta_copy(new)
    raw, target = meta_copy(old).state_dict(), schema.state_dict()
    return repair(declared, raw, target, lambda recipe: compare(schema, recipe.apply(raw, target)).differing)


def test_a_step_too_many_is_left_out():
    declared = Recipe(tile("b.*", dim=0), drop("a.*"))
    assert repaired(declared, net(), net(outputs=6)).recipe == Recipe(tile("b.*", dim=0))
    assert repaired(Recipe(tile("b.*", dim=0)), net(), net()).recipe == Recipe()


def test_a_step_too_few_is_added():
    old = Tensors({"x.weight": (4, 5), "y.weight": (4, 5)})
    new = Tensors({"z.weight": (4, 5), "y.weight": (6, 5)})
    declared = Recipe(rename("x.*", "z.*"))
    assert repaired(declared, old, new).recipe == Recipe(*declared.operators, tile("y.weight", dim=0))


def test_what_the_recipe_spoiled_is_not_patched_up():
    found = repaired(Recipe(select("*", dim=0, index=[0, 1, 2])), net(), net(outputs=3))
    assert found.recipe == Recipe(select("b.*", dim=0, index=[0, 1, 2]))


def test_a_recipe_that_does_not_apply_is_replaced():
    assert repaired(Recipe(tile("c.*", dim=0)), net(), net(outputs=6)).recipe == Recipe(tile("b.*", dim=0))


def test_an_error_of_the_comparison_is_not_swallowed():
    def broken(recipe):
        raise ZeroDivisionError

    raw = {"weight": torch.zeros(2, 2, device="meta")}
    with pytest.raises(ZeroDivisionError):
        repair(Recipe(), raw, {"weight": torch.zeros(3, 2, device="meta")}, broken)


def test_a_comparison_that_refuses_every_recipe_leaves_nothing_to_suggest():
    def refusing(recipe):
        raise RecipeError("no")

    raw = {"a.weight": torch.zeros(2, 2, device="meta")}
    found = repair(Recipe(), raw, {"a.weight": torch.zeros(3, 2, device="meta")}, refusing)
    assert found.recipe is None
    assert found.partial is None
    assert found.unexplained == ("a.weight",)
