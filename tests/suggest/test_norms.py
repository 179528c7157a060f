from __future__ import annotations

import pytest
import torch
from suggesting import lived, loaded, suggested
from torch import nn

from pytest_ckptcompat import Recipe, fold_batch_norm, rename


def net(folded, bias=False, middle=True):
    """Two convolutions, each with a norm behind it or, once these are folded, with a bias of its own."""
    layers = []
    for inputs in (3, 6):
        layers.append(nn.Conv2d(inputs, 6, 3, bias=folded or bias))
        layers += [] if folded else [nn.BatchNorm2d(6)]
        layers += [nn.ReLU()] if middle else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 4, 2))


class Named(nn.Module):
    def __init__(self, folded, bias=False):
        super().__init__()
        for number, (inputs, outputs) in enumerate(((3, 6), (6, 5)), 1):
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, 3, bias=folded or bias))
            if not folded:
                setattr(self, f"bn{number}", nn.BatchNorm2d(outputs))
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        for number in (1, 2):
            x = getattr(self, f"conv{number}")(x)
            x = torch.relu(getattr(self, f"bn{number}", nn.Identity())(x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("make", [net, Named])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_that_are_gone_are_folded(make, bias):
    old = lived(make(False, bias))
    recipe = suggested(old.state_dict(), make(True))
    new = loaded(make(True), old.state_dict(), recipe)
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(new(images), old(images))


def test_norms_of_alike_layers_are_folded_in_one_step():
    assert suggested(lived(Named(False)).state_dict(), Named(True)) == Recipe(fold_batch_norm("conv*", "bn*"))


def test_a_norm_that_became_another_kind_is_not_folded():
    old, new = (nn.Sequential(nn.Linear(5, 6), norm) for norm in (nn.BatchNorm1d(6), nn.GroupNorm(2, 6)))
    assert "fold" not in repr(suggested(old.state_dict(), new))


def test_a_norm_that_does_not_count_the_outputs_before_it_is_not_folded():
    old, new = nn.Sequential(nn.Linear(5, 6), nn.Flatten(), nn.BatchNorm1d(4)), nn.Sequential(nn.Linear(5, 6))
    assert "fold" not in repr(suggested(old.state_dict(), new))


def test_the_layer_behind_a_folded_norm_moves_up():
    old = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3))
    new = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    recipe = suggested(old.state_dict(), new)
    assert recipe == Recipe(fold_batch_norm("0", "1"), rename("2.*", "1.*"))


def test_a_norm_behind_an_activation_is_not_folded():
    old = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    new = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    assert "fold" not in repr(suggested(old.state_dict(), new))
