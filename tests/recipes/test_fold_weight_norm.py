from __future__ import annotations

from typing import Any

import pytest
import torch
from proving import statuses
from torch import nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
)
from torch.nn.utils import weight_norm as old_weight_norm

from pytest_ckptcompat import Recipe, RecipeError, check, fold_weight_norm
from pytest_ckptcompat.optimizer.growth import grown

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning"
)  # torch has another way now; checkpoints have both

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "one output": (lambda: nn.Linear(6, 1), (3, 6)),
    "square": (lambda: nn.Linear(5, 5), (3, 5)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 3), (2, 3, 6)),
    "square transposed": (lambda: nn.ConvTranspose1d(4, 4, 3), (2, 4, 6)),
}
WAYS: dict[str, tuple[Any, Any]] = {
    "weight_norm": (old_weight_norm, remove_weight_norm),
    "weight_norm over columns": (lambda m: old_weight_norm(m, dim=1), remove_weight_norm),
    "weight_norm of all": (lambda m: old_weight_norm(m, dim=None), remove_weight_norm),
    "parametrizations.weight_norm": (
        parametrizations.weight_norm, lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "spectral_norm": (spectral_norm, remove_spectral_norm),
    "parametrizations.spectral_norm": (
        parametrizations.spectral_norm, lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
}  # fmt: skip


def trained(make: Any, wrap: Any) -> nn.Module:
    """A wrapped layer whose parts are not as constructed."""
    torch.manual_seed(4)
    module = wrap(make())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    for _ in range(30):  # the power method of a spectral norm goes on in train mode
        module(torch.randn(2, *shape_of(make)[1:]))
    return module.eval()  # type: ignore[no-any-return]


def shape_of(make: Any) -> tuple[int, ...]:
    return next(shape for maker, shape in LAYERS.values() if maker is make)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_weight_is_the_one_that_torch_computes(way: str, layer: str) -> None:
    make, shape = LAYERS[layer]
    wrap, unwrap = WAYS[way]
    module = trained(make, wrap)
    state = {f"net.{key}": value.clone() for key, value in module.state_dict().items()}
    x = torch.randn(shape)
    expected = module(x)
    operator = fold_weight_norm("net")
    made = operator.apply(state, {})
    plain = make()
    plain.load_state_dict({key.removeprefix("net."): value for key, value in made.items()})
    torch.testing.assert_close(plain(x), expected)
    unwrap(module)
    torch.testing.assert_close(made["net.weight"], module.weight)
    assert statuses(operator, state, made, {}) == ["kept"]
    wrong = {**made, "net.weight": made["net.weight"] * 1.001}
    assert statuses(operator, state, wrong, {}) == ["broken"]


class Net(nn.Module):
    def __init__(self, wrap: Any = lambda module: module) -> None:
        super().__init__()
        self.a, self.b = wrap(nn.Linear(5, 6)), wrap(nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize(
    "way", ["weight_norm", "parametrizations.weight_norm", "spectral_norm", "parametrizations.spectral_norm"]
)
def test_the_function_is_kept(way: str, tmp_path: Any) -> None:
    old = Net(WAYS[way][0])
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    torch.save(old.state_dict(), tmp_path / "old.pth")
    report = check(
        Net, tmp_path / "old.pth", recipe=Recipe(fold_weight_norm("*")), source_model=lambda: Net(WAYS[way][0]),
        inputs=(3, 5), device="cpu",
    )  # fmt: skip
    assert report.ok, str(report)
    assert {promise.name: promise.status for promise in report.promises}["function kept"] == "kept"


def test_one_of_several_by_each_of_its_names() -> None:
    state = Net(parametrizations.weight_norm).state_dict()
    for key in ("a", "a.weight", "a*"):
        made = fold_weight_norm(key).apply(state, {})
        assert "a.weight" in made
        assert "b.parametrizations.weight.original0" in made
    assert Recipe.from_toml(Recipe(fold_weight_norm("a")).to_toml()) == Recipe(fold_weight_norm("a"))


def test_the_optimizer_starts_the_weight_anew() -> None:
    state = Net(old_weight_norm).state_dict()
    slots: Any = {key: {"exp_avg": torch.ones_like(value)} for key, value in state.items()}
    meta = {key: value.to("meta") for key, value in state.items()}
    found = grown(Recipe(fold_weight_norm("*")), slots, meta, {}).state
    assert found.keys() == {"a.bias", "b.bias"}


def test_what_can_not_be_computed_is_refused() -> None:
    state = Net(parametrizations.orthogonal).state_dict()
    with pytest.raises(RecipeError, match="remove_parametrizations"):
        fold_weight_norm("a").apply(state, {})
    with pytest.raises(
        RecipeError, match=r'no weight norm or spectral norm in the checkpoint; there is one of "a\.weight"'
    ):
        fold_weight_norm("c").apply(Net(old_weight_norm).state_dict(), {})
