from __future__ import annotations

from collections import OrderedDict

import torch
from suggesting import answer
from torch import nn

from pytest_ckptcompat.suggest.submodels import submodels


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def parts(*names, **more):
    state = OrderedDict()
    for place, name in enumerate(names):
        torch.manual_seed(place)
        state |= {f"{name}.{key}": value for key, value in net().state_dict().items()}
    return state | more


def test_of_two_parts_that_are_the_whole_model_none_is_taken():
    state = parts("online_model", "ema_model", initted=torch.tensor(True), step=torch.tensor(0))
    found = answer(state, net())
    assert found.recipe is None
    assert len(found.choices) == 2
    for recipe, name in zip(found.choices, ("online_model", "ema_model"), strict=True):
        became = recipe.apply(state, net().state_dict())
        net().load_state_dict(became, strict=True)
        assert torch.equal(became["0.weight"], state[f"{name}.0.weight"])


def test_a_wrapper_is_the_model_and_the_other_part_a_copy_of_it():
    found = answer(parts("model", "ema_model"), net())
    assert repr(found.recipe) == 'Recipe(strip_prefix("model."), drop("ema_model.*"))'
    assert found.choices == ()
    assert found.dropped == ("ema_model.*",)


def test_of_two_wrappers_none_is_taken():
    assert len(answer(parts("model", "module"), net()).choices) == 2


def test_a_copy_beside_keys_that_fit_is_no_choice():
    state = parts("ema") | net().state_dict()
    found = answer(state, net())
    assert found.choices == ()
    assert repr(found.recipe) == 'Recipe(drop("ema.*"))'


def test_a_part_of_another_size_is_not_the_model():
    model = {"a.weight": (4, 4), "b.weight": (2, 4)}
    checkpoint = {f"one.{key}": shape for key, shape in model.items()}
    checkpoint |= {f"two.{key}": (5, 5) for key in model}
    assert submodels(checkpoint, model) == submodels({}, model) == submodels(checkpoint, {}) == []
