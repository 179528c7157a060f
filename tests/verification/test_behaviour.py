from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import Boxes, Grown, Words, load_synthetic
from torch import nn

from pytest_ckptcompat.tensors import synthetic
from pytest_ckptcompat.tensors.seeds import seeded
from pytest_ckptcompat.verification import behaviour
from pytest_ckptcompat.verification.behaviour import Behaviour, compare, is_random, reached, record
from pytest_ckptcompat.verification.effects import Effects
from pytest_ckptcompat.verification.recorded_outputs import Recorded
from pytest_ckptcompat.verification.wide_run import Run, Trial, run

IMAGES = synthetic.inputs(((torch.zeros(2, 3, 8, 8),), {}))
RESIZED = Effects(touched=True, precision=torch.float64)
TOKENS = (torch.tensor([[1, 2, 3, 4]]),), {}


def recorded(build, batch=IMAGES):
    made = record(Trial(lambda seed: build(), load_synthetic, batch))
    return Behaviour.from_json(json.loads(json.dumps(made.to_json())))


def now(build, batch=IMAGES, loading=load_synthetic):
    return run(Trial(lambda seed: build(), loading, batch))


@pytest.mark.parametrize(("build", "batch"), [(Boxes, IMAGES), (Words, TOKENS)])
def test_the_same_model_has_not_changed(build, batch):
    then = recorded(build, batch)
    found = compare(then, now(build, batch))
    assert then.uncompared == then.note == ""
    assert len(found.gaps) == len(then.outputs)
    assert not found.changed
    assert not found.alone
    assert not found.grown


def test_another_activation():
    def build():
        model = Boxes()
        model.fc[2] = nn.LeakyReLU(0.25)
        return model

    def load_rest(model):
        load_into = {
            key: value
            for key, value in synthetic.state_dict(Boxes().state_dict()).items()
            if key != "fc.2.weight"
        }
        model.load_state_dict(load_into)

    found = compare(recorded(Boxes), now(build, loading=load_rest))
    assert found.changed
    assert str(found.gaps[0]).startswith("output[")


def test_a_grown_output_is_compared_where_it_was():
    then = recorded(Boxes)
    state = synthetic.state_dict(Boxes().state_dict())

    def grow(model, shift=0.0):
        grown = dict(state)
        for leaf in ("weight", "bias"):
            old = state[f"out2.{leaf}"]
            grown[f"out2.{leaf}"] = torch.cat([old, old, old, old[:2]]) + shift
        model.load_state_dict(grown)

    found = compare(then, now(Grown, loading=grow), RESIZED)
    assert found.grown
    assert not found.changed
    assert compare(then, now(Grown, loading=lambda model: grow(model, 1e-6)), RESIZED).changed


def test_rows_that_moved_are_compared_where_they_are():
    x = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    then = Behaviour({"": Recorded.of("", x)})
    kept = list(range(39, -1, -2))
    rows = {(40, 20): (kept, list(range(20)))}

    def found(now, rows, reach=None):
        return compare(then, Run({"": now}, torch.float64), replace(RESIZED, rows=rows), reach)

    assert found(x[:, kept], rows).gaps[0].times < 0.01
    assert found(x[:, kept] + 1e-5, rows).gaps[0].times > 100
    assert found(x[:, kept], {}).alone == ("output was (3, 40) and is (3, 20)",)
    changed, within = x[:, kept].clone(), torch.zeros(3, 20, dtype=torch.bool)
    changed[:, 3:] += 1
    within[:, 3:] = True
    assert not found(changed, rows, {"": within}).changed
    assert found(changed, rows, {"": within.roll(1, 1)}).changed


def test_a_smaller_output_has_changed_unless_a_recipe_made_it_so():
    then = recorded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))
    pooled = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))  # noqa: E731
    found = compare(then, now(pooled))
    assert found.changed
    assert str(found.gaps[0]) == "output was (2, 4, 6, 6) and is (2, 4, 3, 3)"
    assert compare(then, now(pooled), RESIZED).alone == ("output was (2, 4, 6, 6) and is (2, 4, 3, 3)",)


def test_a_unit_that_is_silent_for_one_sample_is_in_reach_for_it():
    """Behind a ReLU, only the first sample shows that the output depends on the weight."""
    batch = (torch.tensor([[1.0], [-1.0]]),), {}
    trial = Trial(
        lambda seed: nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()),
        lambda model: model[0].weight.data.fill_(1),
        batch,
    )
    assert reached(run(trial), trial, {"0.weight": None})[""].tolist() == [[True], [True]]
    assert reached(run(trial), trial, {"not a key of the model": None}) is None


class Named(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(4, 4), how

    def forward(self, x: torch.Tensor):
        y = self.fc(x)
        return {"tensor": y, "dict": {"y": y}, "two": (y, y.sum(1)), "same": (y, -y), "none": None}[self.how]


@pytest.mark.parametrize(
    ("then", "later", "paired", "alone"),
    [
        ("tensor", "dict", 1, 0),
        ("tensor", "two", 1, 0),
        ("two", "tensor", 1, 1),
        ("tensor", "same", 0, 1),
    ],
)
def test_outputs_that_have_other_names(then, later, paired, alone):
    batch = synthetic.inputs(((torch.zeros(2, 4),), {}))
    found = compare(recorded(lambda: Named(then), batch), now(lambda: Named(later), batch))
    assert (len(found.gaps), len(found.alone)) == (paired, alone)
    assert not found.changed


class Random(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.how = how
        self.noise = {"torch": torch.rand(4), "python": torch.tensor(random.random())}.get(how, torch.ones(4))

    def forward(self, x: torch.Tensor) -> Any:
        x = nn.functional.dropout(x) if self.how == "dropout" else x
        x = self.fc(x) * self.noise
        if self.how in ("rows", "outputs"):
            some = 100 - int(torch.randint(1, 99, ()))
            return x.repeat(some, 1) if self.how == "rows" else [x] * some
        return x


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("torch", "two constructions"),
        ("python", "two constructions"),
        ("dropout", "two runs"),
        ("rows", "two runs"),
        ("outputs", "two runs"),
        ("none", ""),
    ],
)
def test_random_models_are_told(how, told):
    batch = synthetic.inputs(((torch.zeros(2, 4),), {}))

    def build(seed):
        with seeded(seed):
            return Random(how)

    trial = Trial(build, load_synthetic, batch)
    assert record(trial).uncompared.startswith(told)
    assert is_random(run(trial), trial).startswith(told)


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (lambda self, x: x.nope, "the model did not run: AttributeError"),
        (lambda self, x: None, "the model gave no tensor"),
        (lambda self, x: self.fc(x) * float("nan"), "the outputs were NaN"),
    ],
)
def test_what_can_not_be_compared_is_told(forward, told):
    build = type("Odd", (Named,), {"forward": forward})
    batch = synthetic.inputs(((torch.zeros(2, 4),), {}))
    assert recorded(lambda: build("none"), batch).uncompared.startswith(told)


class Waves(nn.Module):
    """Sines of sines: each layer amplifies what rounding has changed, as in SIREN (Sitzmann et al., 2020)."""

    def __init__(self, depth: int, last=torch.sin) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(depth))
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.last(x)


def test_a_model_that_amplifies_rounding_is_given_slack():
    batch = synthetic.inputs(((torch.zeros(4, 16),), {}))

    def other_rounding(model):
        load_synthetic(model)
        with torch.no_grad():
            for layer in model.layers:
                layer.weight.mul_(1 + 2**-52)

    then = recorded(lambda: Waves(4), batch)
    assert 1 < then.slack < 1e6
    assert recorded(Boxes).slack == 1
    assert not compare(then, now(lambda: Waves(4), batch, other_rounding)).changed
    assert compare(then, now(lambda: Waves(4, torch.tanh), batch)).gaps[0].times > 100
    assert "amplifies the rounding errors" in recorded(lambda: Waves(12), batch).uncompared


@pytest.mark.parametrize(
    "change",
    [{"outputs": []}, {"precision": "float8"}, {"outputs": {"": {}}}, {"slack": 0.5}, {"slack": "x"}],
)
def test_a_damaged_record_is_refused(change):
    with pytest.raises(ValueError, match="recorded"):
        behaviour.Behaviour.from_json(recorded(Boxes).to_json() | change)
