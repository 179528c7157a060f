from __future__ import annotations

import pytest
import torch

from pytest_ckptcompat.forward.outputs import gap, tolerance


def noisy(tensor, relative):
    torch.manual_seed(0)
    return tensor + relative * tensor.float().square().mean().sqrt() * torch.randn(tensor.shape)


@pytest.mark.parametrize(
    ("dtype", "fine", "wrong"),
    [
        (torch.float64, 1e-9, 1e-4),
        (torch.float32, 1e-3, 0.1),  # what TF32 does to a deep network, and what a wrong weight does
        (torch.bfloat16, 1e-2, 0.3),
        (torch.float16, 1e-2, 0.3),
    ],
)
def test_what_agrees_and_what_does_not(dtype, fine, wrong):
    torch.manual_seed(1)
    value = torch.randn(100, dtype=torch.float64)
    assert gap(value.to(dtype), noisy(value, fine).to(dtype)).ok
    assert not gap(value.to(dtype), noisy(value, wrong).to(dtype)).ok


def test_the_worst_output_is_named():
    value = torch.ones(4)
    worst = gap({"a": value, "b": [value]}, {"a": value, "b": [value * 2]})
    assert (worst.path, worst.error) == ("['b'][0]", pytest.approx(1.0))


def test_coarser_parameters_widen_the_tolerance():
    value, other = torch.ones(4), torch.full((4,), 1.03)
    assert not gap(value, other).ok
    assert gap(value, other, [torch.bfloat16]).ok
    assert not gap(value, other, [torch.int64, torch.bool]).ok
    assert tolerance([torch.float8_e4m3fn]) == 0.25
    assert tolerance([]) == 0


def test_noise_around_zero_is_no_disagreement():
    assert gap(torch.zeros(8), torch.full((8,), 1e-7)).ok
    assert gap(torch.full((8,), 1e-8), torch.full((8,), -1e-8)).ok
    assert not gap(torch.zeros(8), torch.ones(8)).ok


@pytest.mark.parametrize(("size", "ok"), [(5e-3, False), (2e-3, False), (1e-5, True)])
def test_small_outputs_are_judged_by_their_size_down_to_a_floor(size, ok):
    """A tenth too large is wrong where outputs are small, and noise where they are as good as zero."""
    value = torch.full((8,), size)
    assert gap(value, value * 1.1).ok is ok


def test_complex_outputs_and_empty_ones():
    value = torch.randn(4, dtype=torch.complex64)
    assert gap(value, value.clone()).ok
    assert not gap(value, value.conj().resolve_conj() + 1j).ok
    assert gap(torch.ones(0, 3), torch.ones(0, 3)).ok


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)),  # classes flip at a tie
        (torch.ones(3, 4), torch.ones(2, 4)),  # boxes left after suppression
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
        ("text", "text"),
    ],
)
def test_what_can_not_be_compared(left, right):
    assert gap(left, right) is None
