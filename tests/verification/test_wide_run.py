from __future__ import annotations

import math
import random

import pytest
import torch
from networks import load_synthetic
from torch import nn

from pytest_ckptcompat.tensors import synthetic
from pytest_ckptcompat.verification.wide_run import Run, RunError, Trial, run


class Casting(nn.Module):
    """Computes in float32 and bfloat16 inside, whatever dtype it has, as norms and rotary embeddings do."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        steps = torch.arange(0, width, dtype=torch.float32) / width
        self.register_buffer("frequencies", 1.0 / 10_000**steps, persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        angle = x.float() * self.frequencies.to(torch.float32)
        half = (angle.cos() * torch.tensor([0.1], dtype=torch.float32)).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return {"y": self.fc(half.to(x.dtype)), "p": torch.softmax(x, -1, dtype=torch.float32)}


def given(build, *shapes, method="forward", **more) -> Run:
    batch = synthetic.inputs((tuple(map(torch.zeros, shapes)), {}))
    return run(Trial(lambda seed: build(), load_synthetic, batch, method), **more)


def by_hand(build, *shapes):
    """The same in plain torch, for a model without casts and buffers."""
    model = build().double().eval()
    load_synthetic(model)
    with torch.no_grad():
        return model(*synthetic.inputs(tuple(map(torch.zeros, shapes))))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        ),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AdaptiveAvgPool2d(2)),
        lambda: nn.Conv2d(3, 300, 5),
    ],
)
def test_a_plain_model_gives_what_torch_gives(build):
    found = given(build, (2, 3, 6, 6))
    assert found.precision == torch.float64
    assert torch.allclose(found.outputs[""], by_hand(build, (2, 3, 6, 6)), rtol=1e-12, atol=1e-12)


def test_nothing_is_computed_in_fewer_digits():
    found = given(Casting, (3, 16))
    x = synthetic.signal("input 1", (3, 16))
    frequencies = 1.0 / 10_000 ** (torch.arange(16, dtype=torch.float64) / 16)
    mantissa, exponent = torch.frexp(frequencies)
    frequencies = torch.ldexp((mantissa * 2**20).round() / 2**20, exponent)
    half = (x * frequencies).cos() * torch.tensor([0.1], dtype=torch.float32).double()
    weight, bias = synthetic.values("fc.weight", (16, 16)), synthetic.values("fc.bias", (16,))
    assert torch.allclose(found.outputs["['y']"], half @ weight.T + bias, rtol=1e-12, atol=1e-13)
    assert torch.allclose(found.outputs["['p']"], torch.softmax(x, -1), rtol=1e-12, atol=1e-15)
    assert (found.precision, found.note) == (torch.float64, "")


def test_the_default_dtype_of_the_process_is_no_matter():
    before = given(Casting, (3, 16)).outputs
    torch.set_default_dtype(torch.bfloat16)
    try:
        after = given(Casting, (3, 16)).outputs
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(before[path], after[path]) for path in before)


def test_the_dtype_of_the_weights_is_no_matter():
    build = lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))  # noqa: E731
    assert torch.equal(given(build, (2, 8)).outputs[""], given(lambda: build().half(), (2, 8)).outputs[""])


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch groups no matrices")
@pytest.mark.parametrize("ends", [[1, 4, 4], [2, 3, 7]])
def test_experts_run_in_float64(ends):
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch._grouped_mm(x, self.weight, offs=torch.tensor(ends, dtype=torch.int32))[: ends[-1]]

    found = given(Experts, (7, 8))
    x, weight = synthetic.signal("input 1", (7, 8)), synthetic.values("weight", (3, 8, 4))
    starts = [0, *ends]
    assert (found.precision, found.note) == (torch.float64, "")
    assert torch.equal(
        found.outputs[""],
        torch.cat([x[starts[each] : ends[each]] @ weight[each] for each in range(3)]),
    )


class Float32Only(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"this kernel wants float32, not {x.dtype}")
        return self.fc(x)


def test_what_can_not_run_in_float64_runs_in_float32():
    found = given(Float32Only, (2, 4))
    assert found.precision == torch.float32
    assert "this kernel wants float32" in found.note
    weight, bias = synthetic.values("fc.weight", (4, 4)), synthetic.values("fc.bias", (4,))
    assert torch.allclose(found.outputs[""], synthetic.signal("input 1", (2, 4)) @ weight.T + bias, atol=1e-6)


class Raising(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.fc, self.error = nn.Linear(4, 4), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no such thing"), SystemExit(3)])
def test_what_a_model_raises_is_one_error(error):
    with pytest.raises(RunError, match=r"no such thing|sys\.exit\(3\)"):
        given(lambda: Raising(error), (2, 4))


class Generating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.noise = torch.randn(4)

    def infer(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + self.noise + torch.rand(4)


def test_a_method_and_the_seed():
    one, again = (given(Generating, (2, 4), method="infer").outputs[""] for _ in range(2))
    other = given(Generating, (2, 4), method="infer", seed=1).outputs[""]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_generators_and_the_batch_are_left_as_they_were():
    batch = (torch.zeros(2, 4),), {}
    torch.manual_seed(7)
    random.seed(7)
    states = torch.get_rng_state(), random.getstate()
    run(Trial(lambda seed: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), load_synthetic, batch))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert batch[0][0].abs().max() == 0
    assert batch[0][0].dtype == torch.float32


def test_complex_numbers_are_wide_too():
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.zeros(4, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.complex64) * self.phase

    found = given(Turning, (2, 4)).outputs[""]
    phase = torch.view_as_complex(synthetic.values("phase", (4, 2)))
    assert found.dtype == torch.complex128
    assert torch.equal(found, synthetic.signal("input 1", (2, 4)) * phase)
    assert math.isfinite(found.abs().max())
