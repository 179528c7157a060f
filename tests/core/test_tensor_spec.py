from __future__ import annotations

import pytest

from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, shown


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((4, 256), "float32", "(4, 256) f32"),
        ((4,), "bfloat16", "(4,) bf16"),
        ((), "int64", "() i64"),
        ((0, 2), "uint8", "(0, 2) u8"),
        ((2,), "bool", "(2,) bool"),
        ((2,), "complex64", "(2,) c64"),
        ((2,), "float8_e4m3fn", "(2,) f8_e4m3fn"),
        ((4, 256), "", "(4, 256)"),
    ],
)
def test_a_shape_and_a_dtype_in_short(shape: tuple[int, ...], dtype: str, text: str) -> None:
    assert shown(shape, dtype) == text


def test_no_two_dtypes_look_the_same() -> None:
    assert len({shown((), dtype) for dtype in ITEMSIZE}) == len(ITEMSIZE)
