"""timm's own checkpoint_filter_fn as a step of a recipe.

pytest examples/timm
"""

import pytest
from small_vit import CHECKPOINT, filtered, vit

from pytest_ckptcompat import Recipe, custom


@pytest.mark.ckpt_compat(
    model=vit,
    ckpt=CHECKPOINT,
    recipe=Recipe(custom(filtered, touches=["pos_embed"])),  # it may change nothing else, and that is checked
    inputs="2x3x48x48",
)
def test_the_weights_of_32_pixels_serve_48(ckpt_model):
    assert ckpt_model.pos_embed.shape == (1, 6 * 6 + 1, 32)
