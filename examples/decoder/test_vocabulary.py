"""The sorter learns letters: five more words, in an embedding that the head shares.

pytest examples/decoder/test_vocabulary.py
"""

from pathlib import Path

import pytest
import torch
from decoder import LETTERS, SYMBOLS, Decoder
from sorting import accuracy, draw, optimizer

from pytest_ckptcompat import Recipe, append

# The head is tied to the embedding and moves along. New words begin at the mean of the old ones: with rows of
# another scale they would be said far too often, or hardly ever (Hewitt, 2021).
NEW_WORDS = Recipe(append("embed_tokens.weight", dim=0, init="multivariate_normal"))


def lettered() -> Decoder:
    return Decoder(vocabulary=len(SYMBOLS) + len(LETTERS))


@pytest.mark.ckpt_compat(
    model=lettered,
    source_model=Decoder,  # what it said of digits it must still say
    ckpt=Path(__file__).with_name("sorter.pth"),
    recipe=NEW_WORDS,
    inputs="4x10:int64<11",
    protect=("layers.*", "positions.*"),
    optimizer=optimizer,  # AdamW's state grows with the words, and takes a step
)
def test_the_sorter_can_learn_letters(ckpt_model):
    assert ckpt_model.lm_head.weight is ckpt_model.embed_tokens.weight
    assert accuracy(ckpt_model, draw(200, seed=-1)) > 0.99
    letters = ckpt_model.embed_tokens.weight[len(SYMBOLS) :]
    torch.testing.assert_close(letters, letters.mean(0).expand_as(letters), atol=1e-3, rtol=0)
