from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, answer, lived, loaded, suggested
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from pytest_ckptcompat import Recipe, fold_batch_norm, rename
from pytest_ckptcompat.suggest.budget import Budget
from pytest_ckptcompat.suggest.folding import set_apart


def net(wrap=lambda module: module):
    return nn.Sequential(wrap(nn.Linear(5, 6)), nn.ReLU(), wrap(nn.Linear(6, 4)))


def pruned(module):
    return prune.l1_unstructured(module, "weight", amount=0.3)


class Adapted(nn.Module):
    """A linear layer as PEFT wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})


PARTS = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    weight_norm,
    spectral_norm,
    pruned,
    Adapted,
]


def of_every_kind(test):
    quiet = pytest.mark.filterwarnings(
        "ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning"
    )
    return quiet(pytest.mark.parametrize("wrap", PARTS)(test))


@of_every_kind
@pytest.mark.parametrize("prefix", ["", "module."])
def test_no_part_of_a_weight_is_taken_for_it_and_none_is_dropped(wrap, prefix):
    state = {prefix + key: value for key, value in lived(net(wrap)).state_dict().items()}
    found = answer(state, net())
    assert found.recipe is None or "drop" not in repr(found.recipe)
    for recipe in filter(None, (found.recipe, found.partial)):
        became = recipe.apply(state, net().state_dict())
        parts = [
            value
            for key, value in state.items()
            if key in set_apart(state, dict(net().state_dict()), Budget()).checkpoint
        ]
        weights = [became[key] for key in ("0.weight", "2.weight") if key in became]
        assert not any(
            torch.equal(weight, part) for weight in weights for part in parts if part.shape == weight.shape
        )


@of_every_kind
def test_a_plain_weight_is_not_taken_for_a_part_of_one(wrap):
    found = answer(lived(net()).state_dict(), net(wrap))
    assert found.recipe is None
    told = set(found.unexplained)
    assert any("weight" in key or "lora" in key for key in told)


@of_every_kind
def test_parts_that_both_have_are_as_any_other_key(wrap):
    state = {f"module.{key}": value for key, value in lived(net(wrap)).state_dict().items()}
    assert repr(answer(state, net(wrap)).recipe) == 'Recipe(strip_prefix("module."))'


@pytest.mark.parametrize("scale", ["weight_scale", "scales", "SCB", "weight_scale_inv", "zero_point"])
def test_the_scale_of_quantised_weights_is_not_dropped(scale):
    state = {"fc.weight": torch.ones(4, 5, dtype=torch.int8), f"fc.{scale}": torch.rand(4)}
    found = answer(state, Tensors({"fc.weight": (4, 5)}))
    assert found.recipe is None
    assert found.partial is None
    assert found.unexplained == (f"fc.{scale}",)


def test_the_rest_of_a_model_beside_adapters_is_still_explained():
    class Whole(nn.Module):
        def __init__(self, wrap, words):
            super().__init__()
            self.embed, self.fc = nn.Embedding(words, 4), wrap(nn.Linear(4, 4))

    found = answer(lived(Whole(Adapted, 10)).state_dict(), Whole(lambda module: module, 12))
    assert repr(found.partial) == 'Recipe(append("embed.weight", dim=0, init="mean"))'
    assert {key.partition(".")[0] for key in found.unexplained} == {"fc"}


def convolutions(folded, bias=False, middle=True):
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


@pytest.mark.parametrize("make", [convolutions, Named])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_that_are_gone_are_folded(make, bias):
    old = lived(make(False, bias))
    recipe = suggested(old.state_dict(), make(True))
    new = loaded(make(True), old.state_dict(), recipe)
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(new(images), old(images))


def test_norms_of_alike_layers_are_folded_in_one_step():
    assert suggested(lived(Named(False)).state_dict(), Named(True)) == Recipe(fold_batch_norm("conv*", "bn*"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            [nn.Linear(5, 6), nn.BatchNorm1d(6)], [nn.Linear(5, 6), nn.GroupNorm(2, 6)], id="another kind"
        ),
        pytest.param(
            [nn.Linear(5, 6), nn.Flatten(), nn.BatchNorm1d(4)],
            [nn.Linear(5, 6)],
            id="not the outputs before it",
        ),
        pytest.param(
            [nn.Linear(5, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)],
            [nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)],
            id="behind an activation",
        ),
    ],
)
def test_other_norms_are_not_folded(old, new):
    assert "fold" not in repr(suggested(nn.Sequential(*old).state_dict(), nn.Sequential(*new)))


def test_the_layer_behind_a_folded_norm_moves_up():
    old = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3))
    new = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    recipe = suggested(old.state_dict(), new)
    assert recipe == Recipe(fold_batch_norm("0", "1"), rename("2.*", "1.*"))
