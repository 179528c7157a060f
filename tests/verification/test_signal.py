"""Weights with which a signal neither dies nor explodes on its way through a model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_ckptcompat.checks.behaviours import recorded
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.models.blueprint import blueprint
from pytest_ckptcompat.tensors import plain, synthetic
from pytest_ckptcompat.verification.behaviour import Behaviour, compare
from pytest_ckptcompat.verification.signal import Signal, echo, fitting
from pytest_ckptcompat.verification.wide_run import Trial, run


class Residual(nn.Module):
    """Thirty blocks without a norm, as networks for super-resolution have them: plain weights explode."""

    def __init__(self, last=nn.ReLU) -> None:
        super().__init__()
        acts = [nn.ReLU] * 29 + [last]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), act(), nn.Linear(16, 16)) for act in acts
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Gated(nn.Module):
    """Blocks whose gates halve what goes through, as in efficient networks: with plain weights it dies."""

    def __init__(self, first=nn.SiLU) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(24))
        self.acts = nn.ModuleList([first(), *(nn.SiLU() for _ in range(23))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, act in zip(self.blocks, self.acts, strict=True):
            x = act(block(x))
            x = x * x.mean(1, keepdim=True).sigmoid()
        return x


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.fc(self.words(ids))


def record_of(build, shape=(4, 16)):
    batch = Inputs.parse(shape).plain()
    found = recorded(blueprint(build), build().state_dict(), (), batch)
    state = synthetic.state_dict(build().state_dict(), gain=found.get("gain", 1))

    def now(other):
        drawn = synthetic.inputs(plain.unpacked(batch))
        return run(Trial(lambda seed: other(), lambda model: model.load_state_dict(state), drawn))

    return found, now


@pytest.mark.parametrize(
    ("build", "changed", "gains"),
    [
        (Residual, lambda: Residual(nn.GELU), (0.05, 0.6)),
        (Gated, lambda: Gated(nn.GELU), (1.4, 8)),
    ],
)
def test_a_change_is_seen_where_plain_weights_would_hide_it(build, changed, gains):
    found, now = record_of(build)
    then = Behaviour.from_json(found)
    assert gains[0] < found["gain"] < gains[1]
    assert not compare(then, now(build)).changed
    assert compare(then, now(changed)).gaps[0].times > 100


def test_a_model_that_is_dead_or_chaotic_is_compared_as_far_as_it_can_be():
    def build():
        return nn.Sequential(*(each for _ in range(200) for each in (nn.Linear(64, 64), nn.Sigmoid())))

    found, now = record_of(build, (2, 64))
    assert "gain" not in found
    assert found["note"] == "the outputs do not depend on the inputs"
    assert not compare(Behaviour.from_json(found), now(build)).changed


@pytest.mark.parametrize(("build", "shape"), [(nn.Sequential, (4, 16)), (Words, "2x5:int64<20")])
def test_plain_weights_are_kept_where_they_do(build, shape):
    assert "gain" not in record_of(build, shape)[0]


@pytest.mark.parametrize("shape", ["2x5:int64<20", "2x5:int64<1"])
def test_a_model_that_does_not_hear_its_inputs_is_told(shape):
    constant = type("Constant", (Words,), {"forward": lambda self, ids: self.fc.bias})
    found = record_of(constant, shape)[0]
    assert "gain" not in found
    if "<20" in shape:
        assert found["note"] == "the outputs do not depend on the inputs"
    else:  # there are no others
        assert "note" not in found


def test_the_search():
    asked = []

    def hear(gain):
        asked.append(gain)
        return Signal(loudest=1e5 * gain**3, echo=1.0)

    assert fitting(hear) == 0.0625
    assert asked == [1, 0.25, 0.0625]
    assert fitting(lambda gain: Signal(1.0, gain / 1e4)) == 64
    assert fitting(lambda gain: Signal(1e9 if gain > 3 else 1.0, 1.0 if gain > 2 else 1e-3)) == math.sqrt(8)
    assert fitting(lambda gain: Signal(1e9 if gain > 1 else 1.0, 1e-3)) == 1
    assert fitting(lambda gain: Signal(math.inf, 0.0)) == 1


def test_an_echo_is_measured_on_numbers():
    one = {"": torch.tensor([1.0, math.inf]), "[1]": torch.zeros(0)}
    assert echo(one, {"": torch.tensor([1.5, math.inf]), "[1]": torch.zeros(0)}) == pytest.approx(0.5)
    assert echo(one, {"": torch.zeros(3)}) == math.inf
