from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import settle
from proving import proved, statuses
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pytest_ckptcompat import Recipe, RecipeError, check, fold_batch_norm
from pytest_ckptcompat.optimizer.growth import grown
from pytest_ckptcompat.recipes.base import Surroundings


class Net(nn.Module):
    """Convolutions with and without a bias, one transposed and square, and a linear layer, each with its norm."""

    def __init__(self, norms: bool = True, eps: float = 1e-5, last: bool = True) -> None:
        super().__init__()
        bias = not norms
        norm = (lambda kind, size: kind(size, eps=eps)) if norms else (lambda kind, size: nn.Identity())
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=bias), norm(nn.BatchNorm2d, 4)
        self.conv2, self.bn2 = nn.ConvTranspose2d(4, 4, 3), norm(nn.BatchNorm2d, 4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 3, groups=2), norm(nn.BatchNorm2d, 4)
        self.fc, self.bn4 = nn.Linear(4, 5, bias=bias), norm(nn.BatchNorm1d, 5)
        self.bn5 = nn.BatchNorm1d(5) if last else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.bn5(torch.relu(self.bn4(self.fc(x.mean((2, 3))))))  # type: ignore[no-any-return]


FOLD = (fold_batch_norm("conv*", "bn*"), fold_batch_norm("fc", "bn4"))


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("last", [True, False])
def test_the_function_is_kept_in_eval_mode(eps: float, last: bool, tmp_path: Any) -> None:
    """The eps, and which layer is a transposed one, are told by source_model. Another norm trains on."""
    torch.save(settle(Net(eps=eps, last=last)).state_dict(), tmp_path / "old.pth")
    conv = [fold_batch_norm(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
    report = check(
        lambda: Net(norms=False, last=last), tmp_path / "old.pth", recipe=Recipe(*conv, FOLD[1]),
        source_model=lambda: Net(eps=eps, last=last), inputs=(4, 3, 9, 9), device="cpu",
    )  # fmt: skip
    assert report.ok, str(report)
    told = {promise.name: promise for promise in report.promises}["function kept"]
    assert told.status == "kept"
    assert told.detail.endswith(", eval only, up to float32's rounding") or told.detail.endswith(
        ", eval only"
    )
    assert any(f"eps {eps:g}" in promise.detail for promise in report.promises)


def test_another_eps_is_caught(tmp_path: Any) -> None:
    torch.save(settle(Net(eps=0.1, last=False)).state_dict(), tmp_path / "old.pth")
    folds = [fold_batch_norm(f"conv{i}", f"bn{i}", eps=1e-5) for i in (1, 2, 3)]
    report = check(
        lambda: Net(norms=False, last=False), tmp_path / "old.pth", recipe=Recipe(*folds, FOLD[1]),
        source_model=lambda: Net(eps=0.1, last=False), inputs=(4, 3, 9, 9), device="cpu",
    )  # fmt: skip
    assert "function-changed" in report.verdict


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)], "transposed and ordinary layers"),
        ([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)], "norms with different eps"),
    ],
)
def test_a_glob_does_not_fold_layers_of_two_kinds_as_one(layers: list[nn.Module], text: str) -> None:
    """The sizes of a square layer fit both kinds, and a wrong eps leaves no trace in them."""
    old = nn.ModuleDict()
    for number, layer in enumerate(layers):
        eps = 1e-3 * number if text.startswith("norms") else 1e-5
        old[f"conv{number}"], old[f"bn{number}"] = layer, nn.BatchNorm2d(4, eps=eps)
    surroundings = Surroundings(source=lambda: old)
    with pytest.raises(RecipeError, match=text):
        fold_batch_norm("conv*", "bn*").completed(surroundings)
    for number, layer in enumerate(layers):
        fold = fold_batch_norm(f"conv{number}", f"bn{number}").completed(surroundings)
        assert fold.transposed is isinstance(layer, nn.ConvTranspose2d)


def test_without_source_model_the_default_is_told() -> None:
    state = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).state_dict()
    operator = fold_batch_norm("0", "1")
    [promise] = proved(operator, state, operator.apply(state, {}), {})
    assert promise.detail == "in eval mode, eps 1e-05 (torch's default)"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_values_are_torch_s(bias: bool, affine: bool, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv, norm = settle(kind(3, 5, 2, bias=bias)), settle(nn.BatchNorm2d(5, affine=affine))
    state = nn.Sequential(conv, norm).state_dict()
    operator = fold_batch_norm("0", "1")
    made = operator.apply(state, {})
    weight, shift = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,  # type: ignore[arg-type]
        transpose=transposed,
    )  # fmt: skip
    assert made.keys() == {"0.weight", "0.bias"}
    torch.testing.assert_close(made["0.weight"], weight.detach())
    torch.testing.assert_close(made["0.bias"], shift.detach())
    assert statuses(operator, state, made, {}) == ["kept"]
    for key in made:
        wrong = copy.copy(made)
        wrong[key] = made[key] * 1.001
        assert statuses(operator, state, wrong, {}) == ["broken"]


def test_the_optimizer_starts_weight_and_bias_anew() -> None:
    state = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))).state_dict()
    slots: Any = {key: {"exp_avg": torch.ones_like(value)} for key, value in state.items()}
    meta = {key: value.to("meta") for key, value in state.items()}
    assert grown(Recipe(fold_batch_norm("0", "1")), slots, meta, {}).state.keys() == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (lambda: fold_batch_norm("conv9", "bn9"), '"conv9" matches no layer'),
        (lambda: fold_batch_norm("0", "2"), "no running statistics"),
        (lambda: fold_batch_norm("0", "1", transposed=True), "and the norm has 4 channels"),
        (lambda: fold_batch_norm("conv*", "bn"), "stars"),
    ],
)
def test_mistakes_are_told(operator: Any, text: str) -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    with pytest.raises(RecipeError, match=text):
        operator().apply(state, {})
