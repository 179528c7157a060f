from __future__ import annotations

import pytest
import torch

from pytest_ckptcompat.recipes.operators import append, drop, resample, select, tile, widen
from pytest_ckptcompat.suggest.variants import variants


def state(**shapes):
    return {key.replace("__", "."): torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("operator", "old", "new", "expected"),
    [
        (
            tile("head.*", dim=0),
            state(head__weight=(21, 8)),
            state(head__weight=(27, 8)),
            [[tile("head.*", dim=0, blocks=3)]],
        ),
        (tile("head.*", dim=0), state(head__weight=(4, 8)), state(head__weight=(7, 8)), []),
        (
            select("head.*", dim=0, index=[0, 1, 2, 3]),
            state(head__weight=(6, 8)),
            state(head__weight=(4, 8)),
            [[select("head.*", dim=0, index=[0, 1], blocks=2)]],
        ),
        (
            resample("wpe", size=(24, 1), old_size=(16, 1)),
            state(wpe=(16, 8)),
            state(wpe=(24, 8)),
            [[append("wpe", dim=0, init="mean")]],
        ),
        (resample("pos", size=(8, 8)), state(pos=(16, 8)), state(pos=(64, 8)), []),
        (
            widen("a", ["fc"]),
            state(a__weight=(4, 3, 3, 3), fc__weight=(3, 64)),
            state(a__weight=(8, 3, 3, 3), fc__weight=(3, 128)),
            [[tile("a.*", dim=0), append("fc.weight", dim=1, blocks=16)]],
        ),
        (
            widen("a", ["b"]),
            state(a__weight=(4, 3), b__weight=(3, 4)),
            state(a__weight=(8, 3), b__weight=(3, 8)),
            [],
        ),
        (drop("x"), state(x=(3,)), {}, []),
    ],
)
def test_other_ways_to_do_the_same(operator, old, new, expected):
    assert list(variants([operator], old, new)) == expected
