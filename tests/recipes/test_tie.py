"""Tensors under further names, tied and copied."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from networks import Words, settle
from proving import statuses
from torch import nn

from pytest_ckptcompat import Recipe, RecipeError, copy, tie
from pytest_ckptcompat.optimizer.growth import grown

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
    with pytest.raises(RecipeError, match="at least two"):
        tie(["a"])


def test_equal_values_are_no_tie() -> None:
    old = settle(Words()).state_dict()
    old["embed.weight"] = old["embed.weight"] + 1
    after = OrderedDict(old, **{"embed.weight": old["head.weight"].clone()})
    assert statuses(TIE, old, after, {}) == ["broken"]
    after = OrderedDict(old, **{"head.weight": old["embed.weight"]})
    assert statuses(TIE, old, after, {}) == ["broken"]


class Lm(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_a_head_is_untied_from_its_embedding() -> None:
    old, new = Lm(tied=True), Lm(tied=False)
    recipe = Recipe(copy("embed.weight", "head.weight"))
    applied = recipe.run(old.state_dict(), new.state_dict())
    made = applied.state_dict
    assert not applied.changes_function
    assert list(made) == ["embed.weight", "head.weight"]
    assert torch.equal(made["head.weight"], old.embed.weight)
    assert made["head.weight"].data_ptr() != made["embed.weight"].data_ptr()
    assert statuses(recipe.operators[0], old.state_dict(), made, new.state_dict()) == ["kept"]
    assert statuses(recipe.operators[0], old.state_dict(), old.state_dict(), new.state_dict()) == ["broken"]


def test_a_second_head_starts_from_the_first_with_its_optimizer_state() -> None:
    state = nn.Sequential(nn.Linear(3, 2)).state_dict()
    recipe = Recipe(copy("0.*", "1.*"))
    made = recipe.apply(state, {})
    assert torch.equal(made["1.weight"], state["0.weight"])
    slots: Any = {key: {"exp_avg": value + 1} for key, value in state.items()}
    meta = {key: value.to("meta") for key, value in state.items()}
    carried = grown(recipe, slots, meta, {}).state
    assert torch.equal(carried["1.bias"]["exp_avg"], state["0.bias"] + 1)
    fresh = grown(Recipe(copy("0.*", "1.*", optim="reset")), slots, meta, {}).state
    assert "1.bias" not in fresh
    assert "0.bias" in fresh


def test_a_tensor_that_is_replaced_is_told() -> None:
    applied = Recipe(copy("a", "b")).run({"a": torch.ones(2), "b": torch.zeros(2)}, {})
    assert 'replaces "b"' in next(iter(applied.changes_function.values()))
    assert applied.state_dict["b"].tolist() == [1, 1]


def test_mistakes_are_told() -> None:
    with pytest.raises(RecipeError, match="are the same"):
        copy("a", "a")
    with pytest.raises(RecipeError, match="stars"):
        copy("a.*", "b")
