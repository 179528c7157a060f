"""Every operator made wrong on purpose, and what `verify` says of it: of all its nets one must hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from operator_examples import EXAMPLES, Example, State
from torch import nn

from pytest_ckptcompat import Recipe
from pytest_ckptcompat.recipes.base import Edit, Operator
from pytest_ckptcompat.recipes.operators.add import add
from pytest_ckptcompat.tensors.difference import same_bits
from pytest_ckptcompat.verification.verify import claims, verify

Fault = Callable[[State, list[str], State], object]
"""Spoils a new state dict in place, given the keys that the operator made and the state before it."""


def rows_permuted(dim: int) -> Fault:
    def spoil(new: State, made: list[str], old: State) -> None:
        for key in made:
            if new[key].dim() > dim:
                new[key] = new[key].roll(1, dim)

    return spoil


def of_each(change: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    def spoil(new: State, made: list[str], old: State) -> None:
        new.update((key, change(new[key].double()).to(new[key].dtype)) for key in made)

    return spoil


def one_element_zeroed(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = 0
    return tensor


def one_key_forgotten(new: State, made: list[str], old: State) -> None:
    for key in made[-1:]:
        new[key] = torch.zeros_like(new[key])


def new_rows_too_large(new: State, made: list[str], old: State) -> None:
    for key in made:
        was = old.get(key)
        if was is not None and was.dim() == new[key].dim():
            scaled = new[key].double() * 3
            kept = tuple(map(slice, was.shape))
            scaled[kept] = new[key][kept].double()
            new[key] = scaled.to(new[key].dtype)


def a_neighbour_changed(new: State, made: list[str], old: State) -> None:
    key = next(key for key in new if key.endswith("aside.weight"))
    new[key] = new[key] + 1e-6


def tensors_exchanged(new: State, made: list[str], old: State) -> None:
    for one in made:
        for other in new:
            if one != other and new[one].shape == new[other].shape:
                new[one], new[other] = new[other], new[one]
                return


FAULTS: dict[str, Fault] = {
    "rows permuted": rows_permuted(0),
    "columns permuted": rows_permuted(1),
    "a little too large": of_each(lambda tensor: tensor * 1.001),
    "divided": of_each(lambda tensor: tensor / 2),
    "negated": of_each(torch.neg),
    "one element zeroed": of_each(one_element_zeroed),
    "one key forgotten": one_key_forgotten,
    "new rows too large": new_rows_too_large,
    "a neighbour changed": a_neighbour_changed,
    "tensors exchanged": tensors_exchanged,
}


def wrong(operator: Operator, fault: Fault) -> Operator:
    """The same operator, with its own promises, whose work is spoiled."""
    kind = type(operator)

    def edit(self: Operator, state: State, target: State) -> Edit:
        right = kind.edit(self, state, target)
        new = OrderedDict((key, value) for key, value in right.state.items())
        writes = [write for key in state for write in right.plan.get(key, ())]
        made = [write.key for write in writes if write.make is not None or write.key not in state]
        fault(new, made, state)
        return Edit(new, right.plan)

    arguments = {field.name: getattr(operator, field.name) for field in fields(operator)}
    return type(kind.__name__, (kind,), {"edit": edit})(**arguments)  # type: ignore[no-any-return]


def holder(state: State) -> nn.Module:
    """A module that has, and loads, a state dict of these keys."""
    module = nn.Module()
    for key, value in state.items():
        *path, name = key.split(".")
        inner = module
        for part in path:
            if part not in dict(inner.named_children()):
                inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        inner.register_buffer(name, torch.zeros_like(value))
    return module


def judged(example: Example, operator: Operator) -> tuple[list[str], State]:
    """The promises that are broken, and the grown state dict."""
    old = example.state(torch.float64)
    model = holder(Recipe(example.operator).apply(old, example.target))
    growth = Recipe(operator).run(old, model.state_dict())
    model.load_state_dict(growth.state_dict)
    promises, findings = verify(claims(Recipe(operator), growth, old=old, model=model))
    broken = [promise.name for promise in promises if promise.status == "broken"]
    assert bool(broken) == any(finding.severity == "error" for finding in findings)
    return broken, growth.state_dict


def is_random(example: Example) -> bool:
    """Whether it makes random values alone, of which any others of their kind are as good."""
    return getattr(example.operator, "init", "") in DRAWN and isinstance(example.operator, add)


DRAWN = ("normal", "kaiming_uniform", "xavier_uniform")

CASES = [
    pytest.param(example, fault, id=f"{example.name}, {name}")
    for example in EXAMPLES
    for name, fault in FAULTS.items()
    if not is_random(example) or name in ("new rows too large", "a neighbour changed")
]


@pytest.mark.parametrize(("example", "fault"), CASES)
def test_a_wrong_operator_is_caught(example: Example, fault: Fault) -> None:
    broken, right = judged(example, example.operator)
    assert broken == []
    broken, spoiled = judged(example, wrong(example.operator, fault))
    differs = not all(same_bits(value, spoiled[key]) for key, value in right.items())
    assert bool(broken) == differs, broken


ROUNDING = (
    "cast", "fold_batch_norm", "fold_weight_norm", "inflate", "merge_lora", "reduce", "repeat_channels", "resample",
    "scale", "widen",
)  # fmt: skip
"""Those that compute, so that the last bit is not theirs to promise."""


def last_bit_of_the_first_element(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    integers = torch.int64 if tensor.element_size() == 8 else torch.int32
    tensor.view(-1).view(integers)[0] ^= 1
    return tensor


@pytest.mark.parametrize(
    "example",
    [each for each in EXAMPLES if type(each.operator).__name__ not in ROUNDING and not is_random(each)],
    ids=lambda example: example.name,
)
def test_a_flipped_bit_is_caught(example: Example) -> None:
    def spoil(new: State, made: list[str], old: State) -> None:
        for key in made or list(new)[:1]:
            new[key] = last_bit_of_the_first_element(new[key])

    broken, _ = judged(example, wrong(example.operator, spoil))
    assert broken
