from __future__ import annotations

import math

import pytest
import torch

from pytest_ckptcompat.tensors.difference import Difference, difference, magnitude, same_bits

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.complex128, torch.int64, torch.int8, torch.uint8, torch.uint16, torch.uint64,
    torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 3)], ids=str)
def test_a_copy_has_the_same_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape).to(dtype)
    assert same_bits(tensor, tensor.clone())
    assert difference(tensor, tensor.clone()) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_flipped_bit_is_found_where_it_is(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 4).to(dtype)
    other = tensor.clone()
    place = (1 * 4 + 2) * other.element_size()
    other.reshape(-1).view(torch.uint8)[place] ^= 1
    found = difference(tensor, other)
    assert found is not None
    assert (found.position, found.count) == ((1, 2), 1)
    assert not same_bits(tensor, other)


def test_nan_bits_and_signs_of_zero_are_bits() -> None:
    payloads = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert same_bits(payloads, payloads.clone())
    assert str(difference(payloads, payloads[[0, 0]])) == "other bits at [1]"
    assert str(difference(torch.zeros(2), torch.tensor([0.0, -0.0]))) == "other bits at [1]"


def test_the_worst_element_is_named_across_pieces() -> None:
    tensor = torch.zeros(3, 1 << 20)
    other = tensor.clone()
    other[0, 5], other[1, 7], other[2, 9] = 0.25, -3.0, 1.0
    found = difference(tensor, other)
    assert found == Difference(3.0, (1, 7), 3)
    assert str(found) == "max |Δ| 3 at [1, 7]"


def test_tolerance_is_absolute_and_excluded_elements_do_not_count() -> None:
    left, right = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 3.01])
    assert difference(left, right, 0.1) == Difference(0.5, (1,), 1)
    assert difference(left, right, 0.5) is None


def test_one_nan_alone_is_infinitely_far_but_two_are_equal() -> None:
    nan, inf = math.nan, math.inf
    assert difference(torch.tensor([nan, inf, -inf]), torch.tensor([nan, inf, -inf]), 0.0) is None
    for left, right in ((nan, 1.0), (1.0, nan), (inf, 1.0), (inf, -inf), (nan, inf)):
        assert difference(torch.tensor([left]), torch.tensor([right]), 1e9) == Difference(math.inf, (0,), 1)


def test_shapes_and_dtypes_are_told_apart() -> None:
    assert str(difference(torch.zeros(4, 2), torch.zeros(2, 4))) == "shape (2, 4) instead of (4, 2)"
    assert (
        str(difference(torch.zeros(2), torch.zeros(2, dtype=torch.float64))) == "float64 instead of float32"
    )
    assert difference(torch.zeros(2), torch.zeros(2, dtype=torch.float64), 0.0) is None


def test_layout_is_no_difference() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert same_bits(tensor, tensor.t().contiguous().t())
    conjugated = torch.tensor([1 + 2j, 3 - 1j]).conj()
    assert same_bits(conjugated, conjugated.resolve_conj())


@pytest.mark.parametrize(
    ("size", "text"), [(0.61234, "0.61"), (1.9e-6, "1.9e-06"), (0.0, "0"), (12345.0, "1.2e+04")]
)
def test_magnitude(size: float, text: str) -> None:
    assert magnitude(size) == text
