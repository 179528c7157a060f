from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Boxes, settle
from proving import statuses
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.select import select
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.verification.function import function_kept

ANIMALS = select(
    "out2.*", dim=0, old_names=["ant", "bee", "cat", "dog"], new_names=["dog", "emu", "ant"], missing="mean"
)


def images(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),), {}


def test_classes_go_by_their_names() -> None:
    old, target = settle(Boxes(4)).state_dict(), Boxes(3).state_dict()
    new = ANIMALS.apply(old, target)
    for key in ("out2.weight", "out2.bias"):
        assert torch.equal(new[key][0], old[key][3])
        assert torch.equal(new[key][2], old[key][0])
        torch.testing.assert_close(new[key][1], old[key].mean(0))
    assert statuses(ANIMALS, old, new, target) == ["kept"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_rows_by_number(sizes: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    index = data.draw(st.lists(st.integers(-sizes[dim], sizes[dim] - 1), min_size=1, max_size=7))
    old = OrderedDict(w=torch.rand(sizes).to(data.draw(st.sampled_from([torch.float64, torch.float8_e5m2]))))
    operator = select("w", dim=dim, index=index)
    if [row % sizes[dim] for row in index] == list(range(sizes[dim])):
        with pytest.raises(RecipeError, match="changes nothing"):
            operator.apply(old, {})
        return
    new = operator.apply(old, {})
    expected = torch.stack([old["w"].double().select(dim, row) for row in index], dim)
    assert torch.equal(new["w"].double(), expected)
    assert statuses(operator, old, new, {}) == ["kept"]


PERMUTED = [5, 2, 7, 0, 1, 3, 4, 6]


def test_hidden_units_in_another_order_keep_the_function() -> None:
    old, new = settle(Boxes()), Boxes()
    recipe = Recipe(
        select("fc.*", dim=0, index=PERMUTED),
        select("out1.weight", dim=1, index=PERMUTED),
        select("out2.weight", dim=1, index=PERMUTED),
    )
    growth = recipe.run(old.state_dict(), new.state_dict())
    new.load_state_dict(growth.state_dict)
    assert not growth.changes_function
    assert function_kept(Boxes, old.state_dict(), new, images)[0].status == "kept"


def test_hidden_units_whose_consumer_was_forgotten_do_not() -> None:
    old, new = settle(Boxes()), Boxes()
    recipe = Recipe(select("fc.*", dim=0, index=PERMUTED), select("out1.weight", dim=1, index=PERMUTED))
    new.load_state_dict(recipe.apply(old.state_dict(), new.state_dict()))
    assert function_kept(Boxes, old.state_dict(), new, images)[0].status == "broken"


def test_a_glob_passes_by_what_has_no_such_rows() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 4)).state_dict()
    target = {**net, "2.weight": torch.empty(2, 6), "2.bias": torch.empty(2)}
    names = [str(row) for row in range(4)]
    growth = Recipe(select("*", dim=0, old_names=names, new_names=["1", "3"])).run(net, target)
    assert list(growth.touched) == ["2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "either index or both"),
        ({"index": [0], "old_names": ["a"], "new_names": ["a"]}, "either index or both"),
        ({"old_names": ["a"]}, "either index or both"),
        ({"old_names": ["a", "a"], "new_names": ["a"]}, 'the name "a" is there twice'),
        ({"old_names": ["a"], "new_names": ["b"]}, 'select: "b" is not among the old names'),
        ({"index": []}, "index is an empty list"),
        ({"old_names": ["a"], "new_names": ["b"], "missing": "zero"}, "missing wants 'zeros'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        select("w", dim=0, **arguments)


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (select("w", dim=0, index=[0, 4]), "it is (4, 2), with no row 4 in dimension 0"),
        (select("w", dim=2, index=[0]), "it is (4, 2), with no dimension 2"),
        (select("w", dim=0, old_names=["a"], new_names=["a"]), "it is (4, 2), and there are 1 old names"),
        (select("w", dim=0, index=[0, 1, 2, 3]), "changes nothing"),
    ],
)
def test_rows_that_are_not_there(operator: select, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        operator.apply({"w": torch.rand(4, 2)}, {})
    assert text in str(caught.value)


def test_new_classes_begin_with_the_second_moments_of_the_old_ones() -> None:
    operator = select("w", dim=0, old_names=["a", "b"], new_names=["b", "c"], missing="zeros")
    old = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    [write] = operator.edit({"w": old}, {}).plan["w"]
    assert write.optimizer_transform is not None
    assert write.optimizer_transform(False, old).tolist() == [[3, 8], [0, 0]]
    assert write.optimizer_transform(True, old).tolist() == [[3, 8], [2, 5]]


@pytest.mark.parametrize(
    ("operator", "claimed"),
    [
        (select("w", dim=0, index=[1]), True),
        (select("w", dim=1, index=[1]), False),
        (select("w", dim=1, index=[0, 1]), False),  # the first ones: others are left out all the same
        (select("w", dim=-1, index=[2, 0]), False),
        (select("w", dim=1, index=[2, 0, 1]), True),
        (select("w", dim=1, index=[2, 0, 1, 0]), False),
        (select("w", dim=1, old_names=["a", "b", "c"], new_names=["c", "a"]), False),
    ],
)
def test_the_claim(operator: select, claimed: bool) -> None:
    changes = Recipe(operator).run({"w": torch.rand(2, 3)}, {}).changes_function
    assert bool(changes) != claimed
    assert claimed or re.search("(leaves out|repeats) inputs", changes[operator])
