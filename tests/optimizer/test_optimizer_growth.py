from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Boxes, settle
from torch import nn
from trainings import FACTORIES, trained

from pytest_ckptcompat import Recipe, append, rename, strip_prefix, tile
from pytest_ckptcompat.optimizer.growth import grown
from pytest_ckptcompat.tensors.difference import same_bits

Factory = Any
HEAD = ("out2.weight", "out2.bias")


def by_name(model: nn.Module, factory: Factory = torch.optim.Adam) -> dict[str, dict[str, Any]]:
    """The state that some steps of training leave."""
    optimizer = trained(model, factory)
    return {name: dict(optimizer.state[parameter]) for name, parameter in model.named_parameters()}


def grow(recipe: Recipe, state: Any, model: nn.Module | None = None, target: Any = None) -> Any:
    old = {key: value.to("meta") for key, value in (model or Boxes()).state_dict().items()}
    return grown(recipe, state, old, target or Boxes(14).state_dict()).state


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_old_rows_keep_their_moments_and_their_step(factory: Factory) -> None:
    state = by_name(settle(Boxes()), factory)
    new = grow(Recipe(tile("out2.*", dim=0, optim="zeros")), state)
    assert list(new) == list(state)
    for name, slots in state.items():
        assert new[name].keys() == slots.keys()
        for slot, value in slots.items():
            if name not in HEAD or slot == "step":
                assert new[name][slot] is value
            else:
                assert new[name][slot].shape[0] == 14
                assert same_bits(new[name][slot][:4], value)
                assert not new[name][slot][4:].any()


def test_copied_moments_are_the_old_rows_again() -> None:
    state = by_name(settle(Boxes()))
    new = grow(Recipe(tile("out2.*", dim=0)), state)
    rows = torch.arange(14) % 4
    for name in HEAD:
        for slot in ("exp_avg", "exp_avg_sq"):
            assert same_bits(new[name][slot], state[name][slot][rows])


def test_second_moments_of_appended_rows_are_the_mean_of_the_old_ones() -> None:
    state = by_name(settle(Boxes()))
    new = grow(Recipe(append("out2.*", dim=0)), state)
    for name in HEAD:
        assert not new[name]["exp_avg"][4:].any()
        old = state[name]["exp_avg_sq"]
        assert torch.allclose(new[name]["exp_avg_sq"][4:], old.mean(0).expand(10, *old.shape[1:]))


def test_a_reset_starts_the_parameter_anew() -> None:
    state = by_name(settle(Boxes()))
    assert set(state) - set(grow(Recipe(tile("out2.*", dim=0, optim="reset")), state)) == set(HEAD)


def test_names_are_followed_through_several_operators() -> None:
    model = nn.DataParallel(settle(Boxes()))
    state = by_name(model)
    target = {key.replace("out2", "head"): value for key, value in Boxes(14).state_dict().items()}
    recipe = Recipe(strip_prefix("module."), rename("out2.*", "head.*"), tile("head.*", dim=0))
    new = grow(recipe, state, model, target)
    assert list(new) == [name.removeprefix("module.").replace("out2", "head") for name in state]
    assert new["conv1.0.weight"] is state["module.conv1.0.weight"]
    assert new["head.weight"]["exp_avg"].shape == (14, 8)


def test_a_parameter_without_state_gets_none() -> None:
    state = by_name(settle(Boxes()))
    del state["out2.bias"]
    new = grow(Recipe(tile("out2.*", dim=0)), state)
    assert "out2.bias" not in new
    assert new["out2.weight"]["exp_avg"].shape == (14, 8)
