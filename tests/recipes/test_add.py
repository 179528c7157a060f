from __future__ import annotations

from typing import Any

import pytest
import torch
from proving import proved, statuses
from torch import nn

from pytest_ckptcompat import Recipe, RecipeError, add, check, rename


class Net(nn.Module):
    def __init__(self, scaled: bool = False, second: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(5, 4)
        if scaled:
            self.scale = nn.Parameter(torch.ones(()))
        if second:
            self.head2 = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body(x)
        if hasattr(self, "scale"):
            x = x * self.scale
        return (x, self.head2(x)) if hasattr(self, "head2") else x


def old(tmp_path: Any) -> Any:
    torch.manual_seed(7)
    path = tmp_path / "old.pth"
    torch.save(Net().state_dict(), path)
    return path


def test_a_scale_of_ones_keeps_the_function_and_one_of_zeros_does_not(tmp_path: Any) -> None:
    for init, ok in (("ones", True), ("zeros", False)):
        report = check(
            lambda: Net(scaled=True), old(tmp_path), recipe=Recipe(add("scale", init=init)),  # type: ignore[arg-type]
            source_model=Net, inputs=(2, 5), device="cpu",
        )  # fmt: skip
        assert report.ok is ok, report.verdict
        assert ok or "function-changed" in report.verdict


def test_a_new_head_is_as_the_model_constructs_it(tmp_path: Any) -> None:
    recipe = Recipe(add("head2.*", init="model"))
    report = check(
        lambda: Net(second=True), old(tmp_path), recipe=recipe, source_model=Net, inputs=(2, 5), device="cpu"
    )
    assert report.ok, str(report)
    torch.manual_seed(3)
    model = Net(second=True)
    state = Net().state_dict()
    made = recipe.apply(state, model.state_dict())
    assert torch.equal(made["head2.weight"], model.head2.weight)
    assert made["head2.weight"].data_ptr() != model.head2.weight.data_ptr()
    assert statuses(recipe.operators[0], state, made, model.state_dict()) == ["kept"]
    made["head2.bias"] += 1
    assert statuses(recipe.operators[0], state, made, model.state_dict()) == ["broken"]


def test_without_values_of_the_model_there_is_one_error() -> None:
    with torch.device("meta"):
        target = Net(second=True).state_dict()
    with pytest.raises(RecipeError, match="the target has no values"):
        Recipe(add("head2.*", init="model")).apply(Net().state_dict(), target)


@pytest.mark.parametrize("init", ["kaiming_uniform", "xavier_uniform"])
def test_random_values_are_those_that_torch_draws(init: Any) -> None:
    """A weight and its bias have the bounds of torch's own initialisation."""
    layer = nn.Linear(400, 300)
    state, target = {"x": torch.ones(1)}, {f"new.{key}": value for key, value in layer.state_dict().items()}
    made = add("new.*", init=init, seed=5).apply(state, target)
    bound = 1 / 400**0.5 if init == "kaiming_uniform" else (6 / 700) ** 0.5
    assert bound * 0.99 < float(made["new.weight"].abs().max()) <= bound
    assert float(made["new.bias"].abs().max()) <= 1 / 400**0.5
    again = add("new.*", init=init, seed=5).apply(state, target)
    other = add("new.*", init=init, seed=6).apply(state, target)
    assert torch.equal(made["new.weight"], again["new.weight"])
    assert not torch.equal(made["new.weight"], other["new.weight"])
    double = {key: value * 2 if key != "x" else value for key, value in made.items()}
    assert statuses(add("new.*", init=init, seed=5), state, double, target) == ["broken"]


def test_the_dtype_is_the_model_s_and_existing_keys_are_left() -> None:
    target = {
        "a": torch.empty(2),
        "b": torch.empty(2, 3, dtype=torch.bfloat16),
        "n": torch.empty((), dtype=torch.int64),
    }
    made = add("*", init="zeros").apply({"a": torch.ones(2)}, target)
    assert made["a"].tolist() == [1, 1]
    assert (made["b"].dtype, made["n"].dtype, made["n"].shape) == (torch.bfloat16, torch.int64, ())
    [promise] = proved(add("*", init="zeros"), {"a": torch.ones(2)}, made, target)
    assert (promise.status, promise.detail) == ("kept", "zeros")


def test_a_key_that_is_renamed_later_has_the_size_that_the_model_has_then() -> None:
    recipe = Recipe(add("fresh", init="ones"), rename("fresh", "scale"))
    assert recipe.apply({"a": torch.ones(1)}, {"a": torch.ones(1), "scale": torch.ones(4)})[
        "scale"
    ].shape == (4,)


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (lambda: add("x", init="normal"), "std= goes with"),
        (lambda: add("x", std=1.0), "std= goes with"),
        (lambda: add("scal").apply({"a": torch.ones(1)}, {"scale": torch.ones(1)}), 'did you mean "scale"'),
        (lambda: add("a").apply({"a": torch.ones(1)}, {"a": torch.ones(1)}), 'the checkpoint has "a"'),
        (
            lambda: add("x", init="kaiming_uniform").apply(
                {"a": torch.ones(1, device="meta")}, {"x": torch.ones(3, device="meta")}
            ),
            "goes by a weight's size",
        ),
        (
            lambda: add("x", init="constant", value=0.5).apply(
                {"a": torch.ones(1)}, {"x": torch.ones(3, dtype=torch.int8)}
            ),
            "its dtype int8 does not hold 0.5",
        ),
    ],
)
def test_mistakes_are_told(operator: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        operator()
