"""Weights that JAX left behind, in a format that ``conftest.py`` adds.

pytest examples/npz
"""

from pathlib import Path

import pytest
import torch
from xor import Xor

from pytest_ckptcompat import Recipe, rename, transpose

FROM_FLAX = Recipe(
    rename("*/bias", "*.bias"),
    rename("*/kernel", "*.weight"),
    transpose("*.weight"),  # a kernel is (in, out), a weight (out, in)
)


@pytest.mark.ckpt_compat(model=Xor, ckpt=Path(__file__).with_name("xor.npz"), recipe=FROM_FLAX, inputs=(4, 2))
def test_the_exported_weights_still_compute_the_same(ckpt_model):
    with torch.no_grad():
        outputs = ckpt_model(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    assert outputs.flatten().tolist() == [0, 1, 1, 0]
