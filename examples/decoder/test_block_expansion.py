"""The sorter gets deeper and sorts as before: each new block adds nothing until it is trained.

pytest examples/decoder/test_block_expansion.py
"""

from pathlib import Path

import pytest
from decoder import Decoder
from sorting import accuracy, draw, optimizer

from pytest_ckptcompat import Recipe, insert_block

OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # what a block adds to the stream

# Copies of the first and of the last block, each behind its own; the second line counts what the first made.
EXPANSION = Recipe(
    insert_block("layers.0", at=1, zero=OUTPUTS),
    insert_block("layers.3", at=4, zero=OUTPUTS),
)


def deeper() -> Decoder:
    return Decoder(layers=5)


@pytest.mark.ckpt_compat(
    model=deeper,
    source_model=Decoder,
    ckpt=Path(__file__).with_name("sorter.pth"),
    recipe=EXPANSION,
    inputs="4x10:int64<11",
    protect=("embed_tokens.*", "positions.*", "norm.*"),
    optimizer=optimizer,
)
def test_the_sorter_gets_deeper(ckpt_model):
    assert len(ckpt_model.layers) == 5
    assert accuracy(ckpt_model, draw(200, seed=-1)) > 0.99
