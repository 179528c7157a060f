"""Blocks make up a tensor where a mask of its elements says so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ckptcompat.formats.blocks import Sizes, make_up

Block = tuple[Sizes, Sizes]


@st.composite
def cut(draw: st.DrawFn) -> tuple[Sizes, list[Block]]:
    """A shape and blocks that make it up, some of which may then be moved, resized, dropped or doubled."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    blocks: list[Block] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 5)) if shape else 0):
        begin, size = blocks.pop(draw(st.integers(0, len(blocks) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        first = draw(st.integers(0, size[dim]))
        one, two = [*size], [*size]
        one[dim], two[dim] = first, size[dim] - first
        second = [*begin]
        second[dim] += first
        blocks += [(begin, tuple(one)), (tuple(second), tuple(two))]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(blocks) - 1))
        begin, size = blocks[at]
        moved = tuple(draw(st.integers(0, whole - length)) for whole, length in zip(shape, size, strict=True))
        blocks[at] = (moved, size)
    return shape, draw(st.permutations(blocks))


@given(cut())
def test_make_up(case: tuple[Sizes, list[Block]]) -> None:
    shape, blocks = case
    covered = np.zeros(shape, int)
    for begin, size in blocks:
        covered[tuple(slice(low, low + length) for low, length in zip(begin, size, strict=True))] += 1
    assert make_up(shape, blocks) == bool((covered == 1).all())


@pytest.mark.parametrize(
    "blocks", [[((0, 0), (1, 4)), ((0, 0), (1, 4))], [((0, 0), (2, 2)), ((0, 1), (2, 2))]]
)
def test_a_gap_and_an_overlap_of_one_size(blocks: list[Block]) -> None:
    assert not make_up((2, 4), blocks)
