from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, suggested

from pytest_ckptcompat import Recipe, stack_tensors, unbind
from pytest_ckptcompat.suggest.fusing import MOST_STACKING, stacks


def apart(layers=2, experts=3, leaf="w1.weight", **more):
    shapes = {f"layers.{i}.experts.{e}.{leaf}": (4, 5) for i in range(layers) for e in range(experts)}
    return Tensors(shapes | more)


def fused(layers=2, experts=3, leaf="w1", **more):
    return Tensors({f"layers.{i}.experts.{leaf}": (experts, 4, 5) for i in range(layers)} | more)


@pytest.mark.parametrize("leaf", ["w1", "w1.weight"])
def test_experts_that_became_one_tensor_are_stacked_in_the_order_of_their_numbers(leaf):
    old = apart(experts=12)
    recipe = suggested(old.state_dict(), fused(experts=12, leaf=leaf))
    assert recipe == Recipe(stack_tensors("layers.*.experts.*.w1.weight", f"layers.*.experts.{leaf}"))
    made = recipe.apply(old.state_dict(), fused(experts=12, leaf=leaf).state_dict())
    wanted = torch.stack([old.state_dict()[f"layers.1.experts.{e}.w1.weight"] for e in range(12)])
    assert torch.equal(made[f"layers.1.experts.{leaf}"], wanted)


def test_one_tensor_that_became_a_list_is_unbound():
    old = fused()
    recipe = suggested(old.state_dict(), apart())
    assert recipe == Recipe(unbind("layers.*.experts.w1", "layers.*.experts.*.w1.weight"))
    made = recipe.apply(old.state_dict(), apart().state_dict())
    assert torch.equal(made["layers.0.experts.2.w1.weight"], old.state_dict()["layers.0.experts.w1"][2])


def test_parameters_of_a_list_became_one():
    old = Tensors({f"prompts.{i}": (2, 3) for i in range(3)})
    new = Tensors({"prompts": (3, 2, 3)})
    assert suggested(old.state_dict(), new) == Recipe(stack_tensors("prompts.*", "prompts"))
    assert suggested(new.state_dict(), old) == Recipe(unbind("prompts", "prompts.*"))


def test_where_one_layer_stays_apart_the_others_are_named():
    rest = {f"layers.1.experts.{e}.w1.weight": (4, 5) for e in range(3)}
    assert suggested(apart().state_dict(), fused(layers=1, **rest)) == Recipe(
        stack_tensors("layers.0.experts.*.w1.weight", "layers.0.experts.w1")
    )


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param({"experts.w": (4, 4, 5)}, id="another number"),
        pytest.param({"experts.w": (3, 5, 4)}, id="another shape"),
        pytest.param({"other.w": (3, 4, 5)}, id="another name"),
    ],
)
def test_what_does_not_agree_is_left_alone(whole):
    shapes = {f"experts.{e}.w": (4, 5) for e in range(3)}
    assert stacks(shapes, whole) == []


def test_numbers_with_a_gap_are_no_list():
    shapes = {"experts.0.w": (4, 5), "experts.2.w": (4, 5)}
    assert stacks(shapes, {"experts.w": (2, 4, 5)}) == []


def test_more_operators_than_anybody_would_read_are_none():
    names = [f"{chr(97 + i)}{chr(97 + i)}" for i in range(MOST_STACKING + 1)]
    shapes = {f"{name}.{e}.w": (4, 5) for name in names for e in range(2)}
    assert stacks(shapes, {f"{name}.w": (2, 4, 5) for name in names}) == []
