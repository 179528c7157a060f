from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, answer, lived
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

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


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("wrap", PARTS)
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


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("wrap", PARTS)
def test_a_plain_weight_is_not_taken_for_a_part_of_one(wrap):
    found = answer(lived(net()).state_dict(), net(wrap))
    assert found.recipe is None
    told = set(found.unexplained)
    assert any("weight" in key or "lora" in key for key in told)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("wrap", PARTS)
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
