"""Outputs recorded in a few numbers: small changes of what a model computes are seen, rounding is not."""

from __future__ import annotations

import json
import math

import pytest
import torch
from networks import load_synthetic
from torch import nn
from torch.nn import functional

from pytest_ckptcompat.tensors import synthetic
from pytest_ckptcompat.verification.recorded_outputs import Recorded, gap
from pytest_ckptcompat.verification.wide_run import Trial, run

CHANGES = ("activation", "eps", "residual", "softmax", "padding", "pooling", "scale", "order")


class Small(nn.Module):
    """Convolutions, a pool, attention and a norm; each of eight things can be done otherwise."""

    def __init__(self, changed: str = "") -> None:
        super().__init__()
        self.changed = changed
        padding = "reflect" if changed == "padding" else "zeros"
        self.conv = nn.Conv2d(3, 16, 3, padding=1, padding_mode=padding)
        self.bn = nn.BatchNorm2d(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16, eps=1e-6 if changed == "eps" else 1e-5)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        act = functional.gelu if self.changed == "activation" else functional.relu
        pool = functional.avg_pool2d if self.changed == "pooling" else functional.max_pool2d
        x = pool(act(self.bn(self.conv(x))), 2).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(-1, (4, 12)).transpose(1, 2).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1] + (self.changed == "scale"))
        scores = scores.softmax(-2 if self.changed == "softmax" else -1)
        mixed = self.out((scores @ v).transpose(1, 2).flatten(2))
        if self.changed == "residual":
            x = self.norm(mixed)
        else:
            x = x + self.norm(mixed) if self.changed == "order" else self.norm(x + mixed)
        return {"logits": self.head(x.mean(1)), "features": x}


def outputs(build=Small, shape=(2, 3, 16, 16)):
    return run(
        Trial(lambda seed: build(), load_synthetic, synthetic.inputs(((torch.zeros(shape),), {})))
    ).outputs


def recorded(found):
    made = {path: Recorded.of(path, tensor) for path, tensor in found.items()}
    return {path: Recorded.from_json(json.loads(json.dumps(each.to_json()))) for path, each in made.items()}


def worst(then, now, precision=torch.float64):
    return max(
        (gap(path, each, now[path], precision) for path, each in then.items()), key=lambda each: each.times
    )


@pytest.fixture(scope="module")
def then():
    return recorded(outputs())


def test_the_same_again_is_the_same(then):
    assert worst(then, outputs()).times < 0.01


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_no_change(then, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert worst(then, outputs()).times < 0.01
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("changed", CHANGES)
def test_a_small_change_is_seen(then, changed):
    found = worst(then, outputs(lambda: Small(changed)))
    assert found.times > 100
    assert found.size > 0


def test_the_size_of_a_change_is_told():
    x = torch.linspace(-2, 2, 1000, dtype=torch.float64)
    found = gap("", Recorded.of("", x), x + 0.25, torch.float64)
    assert found.size == pytest.approx(0.25, rel=0.3)
    assert found.rms == pytest.approx(float(x.square().mean().sqrt()))
    assert str(found).startswith("output differs by 0.2")


@pytest.mark.parametrize("place", [0, 54_321, 99_999])
def test_one_element_of_many_is_seen(place):
    x = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    then, now = Recorded.of("", x), x.clone()
    now[place] += 0.01
    assert gap("", then, now, torch.float64).times > 100


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 4096, 4097, 10_000])
def test_rounding_is_no_change(count):
    x = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = 1 + 1e-12 * torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert gap("", Recorded.of("", x), x * noise, torch.float64).times < 0.1
    coarse = (x.float() * noise.float()).double()
    assert gap("", Recorded.of("", x), coarse, torch.float32).times < 0.1


def test_a_mask_hides_no_other_element():
    x = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for masked in (-math.inf, -1e9, torch.finfo(torch.float64).min):
        y = x.masked_fill(torch.ones(64, 64).triu(1).bool(), masked)
        then = Recorded.of("", y)
        assert gap("", then, y, torch.float64).times < 1
        assert gap("", then, torch.where(y == x, x + 1e-5, y), torch.float64).times > 100
        shifted = x.masked_fill(torch.ones(64, 64).triu(2).bool(), masked)
        assert "extreme" in str(gap("", then, shifted, torch.float64))


def test_integers_and_booleans_are_compared():
    ids = torch.arange(100)
    then = Recorded.of("", ids)
    assert gap("", then, ids.clone(), torch.float64).times == 0
    assert gap("", then, ids.roll(1), torch.float64).times > 100
    assert gap("", Recorded.of("", ids > 5), ids > 6, torch.float64).times > 100


def test_complex_outputs():
    x = torch.view_as_complex(
        torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    then = recorded({"": x})[""]
    assert gap("", then, x, torch.float64).times < 0.01
    assert gap("", then, x.conj(), torch.float64).times > 100
    for count in (5, 20, 32, 500):
        was_complex, was_real = Recorded.of("", x[:count]), Recorded.of("", x[:count].real)
        assert gap("", was_complex, x[:count].real, torch.float64).times > 100
        assert gap("", was_real, x[:count], torch.float64).times > 100


def test_not_a_number():
    x = torch.ones(50, dtype=torch.float64)
    assert Recorded.of("", x.log() / 0) is None
    assert "NaN" in str(gap("", Recorded.of("", x), x * math.nan, torch.float64))


def test_a_record_is_small():
    then = recorded(outputs())
    assert len(json.dumps([each.to_json() for each in then.values()])) < 2600


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 3]},
        {"shape": "ten"},
        {"entries": []},
        {"typical": 0},
        {"rms": math.inf},
        {"projections": [math.nan]},
        {"projections": [0.5]},
        {"extreme": None},
    ],
)
def test_a_damaged_record_is_refused(change):
    row = Recorded.of("", torch.linspace(0, 1, 64, dtype=torch.float64)).to_json()
    with pytest.raises(ValueError, match="an output "):
        Recorded.from_json(row | change)


def test_float32_is_judged_by_the_size_of_all():
    x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = 1e-6 * torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    then = Recorded.of("", x)
    assert gap("", then, x + error, torch.float32).times < 0.5
    assert gap("", then, x + error, torch.float64).times > 100
