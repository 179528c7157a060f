"""Does what was trained once still serve today's network?

pytest examples/onet --ckpt=examples/onet/net.pth
"""

import pytest
from onet import Net, NetV1

from pytest_ckptcompat import Recipe, tile

GROW_OUT2 = Recipe(tile("out2.*", dim=0))  # row i of the new layer is row i mod 4 of the old one


@pytest.mark.ckpt_compat(
    model=Net,
    recipe=GROW_OUT2,  # take this line out: the test fails, and its report asks for this very recipe
    inputs=(2, 3, 48, 48),
    source_model=NetV1,  # its four outputs must still be the first four of Net's
    protect=("conv*",),  # a recipe may not touch what recognises faces
)
def test_v1_weights_still_work(ckpt_model):
    assert ckpt_model.out2.out_features == 14
