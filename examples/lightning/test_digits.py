"""A Trainer's .ckpt: the state dict in it is found by itself, and so is the optimizer's state.

pytest examples/lightning
"""

from functools import partial

import pytest
import torch
from digits import CHECKPOINT, Digits

from pytest_ckptcompat import Recipe, open_checkpoint, tile


def as_it_was_trained():
    """What load_from_checkpoint builds: today's code, the hyperparameters of that day."""
    return Digits(**open_checkpoint(CHECKPOINT).wrapper["hyper_parameters"])


@pytest.mark.ckpt_compat(model=as_it_was_trained, ckpt=CHECKPOINT, inputs="2x1x8x8")
def test_the_checkpoint_still_loads(ckpt_model):
    assert ckpt_model.hparams.classes == 10


@pytest.mark.ckpt_compat(
    model=partial(Digits, classes=12),
    ckpt=CHECKPOINT,
    recipe=Recipe(tile("head.*", dim=0)),
    inputs="2x1x8x8",
    source_model=as_it_was_trained,
    optimizer=partial(torch.optim.Adam, lr=1e-3),  # training goes on: its state grows with the head
)
def test_two_more_classes(ckpt_report):
    assert ckpt_report.ok
