from __future__ import annotations

import pytest
import torch

from pytest_ckptcompat.tensors.casts import loses


@pytest.mark.parametrize(
    ("source", "target", "lossy"),
    [
        (torch.float32, torch.float64, False),
        (torch.float64, torch.float32, True),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.bfloat16, True),
        (torch.bfloat16, torch.float16, True),
        (torch.float32, torch.bfloat16, True),
        (torch.float8_e4m3fn, torch.float16, False),
        (torch.float32, torch.int64, True),
        (torch.int64, torch.float32, True),
        (torch.int32, torch.float64, False),
        (torch.uint8, torch.int16, False),
        (torch.int8, torch.uint8, True),
        (torch.bool, torch.float32, False),
        (torch.float32, torch.bool, True),
        (torch.float32, torch.complex64, False),
        (torch.complex64, torch.float32, True),
        (torch.complex64, torch.complex128, False),
    ],
)
def test_which_casts_lose_values(source, target, lossy):
    assert loses(source, target) == lossy


FLOATS = [
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
                 "float16", "bfloat16", "float32", "float64")
    if hasattr(torch, name)
]  # fmt: skip


@pytest.mark.parametrize("source", [dtype for dtype in FLOATS if dtype.itemsize <= 2], ids=str)
def test_every_value_of_a_small_float_is_tried(source):
    """Numbers that are below the smallest normal one are exact in wider formats, too."""
    count = 256**source.itemsize
    integers = torch.uint8 if source.itemsize == 1 else torch.int16
    values = torch.arange(count).to(integers).view(source).double()
    values = values[values.isfinite()]
    some = values if count == 256 else values[:: 1 << 6]  # one by one, of halves the step shows all exponents
    for target in FLOATS:
        changed = [
            value for value in some.tolist() if float(torch.tensor(value).to(target).double()) != value
        ]
        if count == 256 or changed:
            assert loses(source, target) == bool(changed), (target, changed[:3])


def test_wide_floats_fit_into_wider_ones_alone():
    for target in FLOATS:
        assert loses(torch.float32, target) == (target not in (torch.float32, torch.float64))
        assert loses(torch.float64, target) == (target != torch.float64)
