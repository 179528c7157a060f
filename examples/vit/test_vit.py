"""A better camera: pictures of 48 instead of 32 pixels a side, and infrared beside the colours.

pytest examples/vit
"""

from pathlib import Path

import pytest
from shapes import accuracy, draw
from vit import ViT

from pytest_ckptcompat import Recipe, repeat_channels, resample

BETTER_CAMERA = Recipe(
    repeat_channels("patch_embed.weight"),  # infrared begins as red, all channels scaled by 3/4
    resample("pos_embed", size=(6, 6), prefix_tokens=1),  # a grid of 4x4 patches becomes one of 6x6
)


def today() -> ViT:
    return ViT(size=48, channels=4)


@pytest.mark.ckpt_compat(
    model=today,
    ckpt=Path(__file__).with_name("vit.pth"),
    recipe=BETTER_CAMERA,
    inputs=(2, 4, 48, 48),
    protect=("blocks.*", "norm.*", "head.*", "cls_token"),
)
def test_the_weights_are_a_start_for_the_better_camera(ckpt_model):
    # Neither step keeps the function, and none is claimed; but what was learnt is not lost: chance is 33 %.
    assert accuracy(ckpt_model, draw(200, seed=-1, size=48, channels=4)) > 0.7
