"""`widen` on small real networks: the function is kept, and what would not keep it is caught."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import settle
from pace import within
from proving import proved, statuses
from torch import nn
from torch.nn import functional

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.optimizer.growth import grown
from pytest_ckptcompat.recipes.operators.widen import widen
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.verification.function import function_kept
from pytest_ckptcompat.verification.verify import claims, verify

if TYPE_CHECKING:
    from collections.abc import Callable

SPLITS = ("equal", "unequal", "zero")


class Convolutions(nn.Module):
    """A convolution, a depthwise one, norms, and a consumer behind a flatten; the units also go out sideways."""

    def __init__(self, channels: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.slopes = nn.PReLU(channels)
        self.depthwise = nn.Conv2d(channels, channels, 2, groups=channels)
        self.side = nn.Conv2d(channels, 3, 1)
        self.fc1 = nn.Linear(channels * 9, hidden)
        self.bn2 = nn.BatchNorm1d(hidden)
        self.slope = nn.PReLU()
        self.fc2 = nn.Linear(hidden, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.depthwise(self.slopes(self.bn1(self.conv(x))))
        return self.side(x), self.fc2(self.slope(self.bn2(self.fc1(x.flatten(1)))))


class Gated(nn.Module):
    """Two residual blocks with a gated feed-forward, whose hidden units may have a norm."""

    def __init__(self, hidden: int = 5, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "gate": nn.Linear(4, hidden),
                    "up": nn.Linear(4, hidden),
                    "norm": nn.LayerNorm(hidden) if norm else nn.Identity(),
                    "down": nn.Linear(hidden, 4),
                }
            )
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer["down"](layer["norm"](functional.silu(layer["gate"](x)) * layer["up"](x)))
        return x


def pictures(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(seed)),), {}


def vectors(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)),), {}


CHANNELS = widen("conv", ["side", "fc1"], norms=["bn1", "slopes", "depthwise"])
HIDDEN = widen("fc1", ["fc2"], norms=["bn2", "slope"])
GATES = widen(["layers.*.gate", "layers.*.up"], ["layers.*.down"])


def kept(source: Callable[[], nn.Module], old: nn.Module, new: nn.Module, state: Any, batches: Any) -> bool:
    new.load_state_dict(state)
    promise, _ = function_kept(source, old.state_dict(), new, batches)
    assert promise.status in ("kept", "broken"), promise
    return promise.status == "kept"


def with_split(operator: widen, split: str, **more: Any) -> widen:
    return replace(operator, split=split, **more)  # type: ignore[arg-type]


def with_norms(operator: widen, *norms: str) -> widen:
    return replace(operator, norms=norms)


@settings(deadline=None, max_examples=8)
@given(st.sampled_from(SPLITS), st.integers(5, 11), st.integers(7, 13), st.integers(0, 99))
def test_wider_convolutions_keep_the_function(split: str, channels: int, hidden: int, seed: int) -> None:
    old, new = settle(Convolutions(), seed), Convolutions(channels, hidden)
    recipe = Recipe(with_split(CHANNELS, split, seed=seed), with_split(HIDDEN, split))
    growth = recipe.run(old.state_dict(), new.state_dict())
    assert not growth.changes_function
    for step in recipe.steps(old.state_dict(), new.state_dict()):
        assert statuses(step.operator, step.before, step.after, step.target) == ["kept", "kept"]
    assert kept(Convolutions, old, new, growth.state_dict, pictures)


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(SPLITS), st.integers(6, 14))
def test_gated_blocks_all_at_once(split: str, hidden: int) -> None:
    old, new = settle(Gated()), Gated(hidden)
    operator = with_split(GATES, split)
    state = operator.apply(old.state_dict(), new.state_dict())
    assert statuses(operator, old.state_dict(), state, new.state_dict()) == ["kept", "kept"]
    assert kept(Gated, old, new, state, vectors)


class Normed(nn.Module):
    """Units, a norm of some kind, and a consumer."""

    def __init__(self, hidden: int, kind: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.one = nn.Linear(4, hidden)
        self.norm = kind(hidden)
        self.two = nn.Linear(hidden, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.two(self.norm(self.one(x)))
        return found


def pairs(hidden: int) -> nn.Module:
    return nn.GroupNorm(2, hidden)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("kind", "mapping", "is_kept", "told"),
    [
        (nn.LayerNorm, None, True, False),
        (nn.LayerNorm, [0, 1, 2, 3, 0, 1], False, True),
        (nn.RMSNorm, [0, 0, 1, 1, 2, 2, 3, 3], True, False),
        (nn.RMSNorm, [0, 1, 2, 3, 0, 1, 2], False, True),
        (nn.PReLU, [0, 1, 2, 3, 0], True, True),  # whose slopes look like an RMSNorm's
        (nn.BatchNorm1d, [0, 1, 2, 3, 0], True, False),
        (pairs, None, False, False),
        (pairs, [0, 1, 0, 1, 2, 3, 2, 3], True, False),
    ],
)
def test_norms_over_the_units_are_no_norms_of_each(
    kind: Callable[[int], nn.Module], mapping: list[int] | None, is_kept: bool, told: bool, split: str
) -> None:
    hidden = len(mapping or [0] * 8)
    old, new = settle(Normed(4, kind)), Normed(hidden, kind)
    operator = widen("one", ["two"], norms=["norm"], mapping=mapping, split=split)  # type: ignore[arg-type]
    growth = Recipe(operator).run(old.state_dict(), new.state_dict())
    copied, shared = proved(operator, old.state_dict(), growth.state_dict, new.state_dict())
    assert (copied.status, shared.status) == ("kept", "kept")
    assert shared.detail.startswith("but under no LayerNorm") is told
    assert kept(lambda: Normed(4, kind), old, new, growth.state_dict, vectors) is is_kept


def test_a_flatten_that_weaves_the_units_is_told_and_caught() -> None:
    """As facenet's O-Net does it: (height, width, channels) flattened, where torch's usual has channels first."""

    class Woven(Convolutions):
        def forward(self, x: torch.Tensor) -> Any:
            x = self.slopes(self.bn1(self.conv(x)))
            return self.side(x), self.fc2(self.bn2(self.fc1(x[..., 1:, 1:].movedim(1, 3).flatten(1))))

    old, new = settle(Woven()), Woven(7)
    operator = with_norms(CHANNELS, "bn1", "slopes", "depthwise")
    state = operator.apply(old.state_dict(), new.state_dict())
    copied, shared = proved(operator, old.state_dict(), state, new.state_dict())
    assert (copied.status, shared.status) == ("kept", "kept")
    assert shared.detail.startswith("if a flatten puts each unit's columns side by side")
    assert not kept(Woven, old, new, state, pictures)


def test_units_are_copied_and_columns_divided() -> None:
    old = OrderedDict({"a.weight": torch.tensor([[1.0], [2.0]]), "b.weight": torch.tensor([[6.0, 10.0]])})
    new = widen("a", ["b"], to=5).apply(old, {})
    assert new["a.weight"].tolist() == [[1], [2], [1], [2], [1]]
    assert new["b.weight"].tolist() == [[2, 5, 2, 5, 2]]
    new = widen("a", ["b"], split="zero", mapping=[1, 0, 0]).apply(old, {})
    assert new["a.weight"].tolist() == [[2], [1], [1]]
    assert new["b.weight"].tolist() == [[10, 6, 0]]
    uneven = widen("a", ["b"], to=4, split="unequal", seed=3)
    parts = uneven.apply(old, {})["b.weight"][0]
    assert parts[0] != parts[2]
    assert torch.equal(uneven.apply(old, {})["b.weight"][0], parts)
    assert bool((parts > 0).all())


def test_a_flatten_puts_a_channels_columns_side_by_side() -> None:
    old = OrderedDict(
        {"a.weight": torch.ones(2, 1, 1, 1), "b.weight": torch.tensor([[1.0, 2, 3, 30, 20, 10]])}
    )
    new = widen("a", ["b"], to=3, split="zero", mapping=[0, 1, 1]).apply(old, {})
    assert new["b.weight"].tolist() == [[1, 2, 3, 30, 20, 10, 0, 0, 0]]
    new = widen("a", ["b"], to=3).apply(old, {})
    assert new["b.weight"].tolist() == [[0.5, 1, 1.5, 30, 20, 10, 0.5, 1, 1.5]]


def test_zero_columns_that_are_not_zero_are_caught() -> None:
    old, target = settle(Convolutions()).state_dict(), Convolutions(hidden=9).state_dict()
    operator = with_split(HIDDEN, "zero")
    state = HIDDEN.apply(old, target)  # shared equally: the sums are right, but it is not what was said
    assert statuses(operator, old, state, target) == ["kept", "broken"]


@pytest.mark.parametrize("split", SPLITS)
def test_noise_tells_units_apart(split: str) -> None:
    old, new = settle(Convolutions()), Convolutions(hidden=9)
    operator = with_split(HIDDEN, split, noise_std=0.1)
    state = operator.apply(old.state_dict(), new.state_dict())
    assert statuses(operator, old.state_dict(), state, new.state_dict()) == ["kept", "kept"]
    assert torch.equal(state["fc1.weight"][:6], old.state_dict()["fc1.weight"])
    assert 0.05 < float((state["fc1.weight"][6:] - old.state_dict()["fc1.weight"][:3]).std()) < 0.2
    assert torch.equal(state["bn2.weight"][6:], old.state_dict()["bn2.weight"][:3])
    assert kept(Convolutions, old, new, state, pictures) is (split == "zero")
    assert bool(operator.caveat({}, {})) is (split != "zero")


def test_units_that_will_learn_the_same_are_remarked_upon() -> None:
    old, target = settle(Convolutions()).state_dict(), Convolutions(hidden=9).state_dict()

    def rules(operator: widen) -> list[str]:
        return [found.rule for found in operator.remarks(old, operator.apply(old, target), target)]

    assert rules(HIDDEN) == ["recipe-symmetric-units"]
    assert rules(with_split(HIDDEN, "unequal")) == []
    assert rules(with_split(HIDDEN, "zero")) == []
    assert rules(with_split(HIDDEN, "equal", noise_std=0.01)) == []
    both = GATES.remarks(
        gated := settle(Gated()).state_dict(),
        GATES.apply(gated, Gated(7).state_dict()),
        Gated(7).state_dict(),
    )
    assert len(both) == 1
    assert "in 1 more layers" in both[0].message


@pytest.mark.parametrize("split", SPLITS)
def test_moments_are_those_of_the_new_networks_own_gradients(split: str) -> None:
    """After one step from nothing, the first moment is a tenth of the gradient: as in the wider network."""

    def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
        model.double().train().zero_grad()
        (x,), _ = pictures(0)
        outputs = model(x.double())
        sum((each**3).mean() for each in outputs).backward()  # type: ignore[union-attr]
        return {name: each.grad.clone() for name, each in model.named_parameters()}

    old, new = settle(Convolutions()), Convolutions(6, 9)
    recipe = Recipe(with_split(CHANNELS, split), with_split(HIDDEN, split))
    double = OrderedDict(
        (key, value.double() if value.is_floating_point() else value)
        for key, value in old.state_dict().items()
    )
    new.double().load_state_dict(recipe.apply(double, new.state_dict()))
    before = gradients(old)
    state = {
        name: {"step": 1, "exp_avg": 0.1 * each, "exp_avg_sq": 0.001 * each**2}
        for name, each in before.items()
    }
    meta = Convolutions().to("meta").state_dict()
    carried = grown(recipe, state, meta, new.state_dict()).state
    after = gradients(new)
    assert carried.keys() == after.keys()
    for name, gradient in after.items():
        torch.testing.assert_close(carried[name]["exp_avg"], 0.1 * gradient, rtol=1e-9, atol=1e-12)
        squares = carried[name]["exp_avg_sq"]
        if split != "zero":
            torch.testing.assert_close(squares, 0.001 * gradient**2, rtol=1e-9, atol=1e-14)
        assert bool((squares >= 0.001 * gradient**2 - 1e-14).all())


def test_a_copy_that_counts_nothing_does_not_begin_with_a_second_moment_of_zero() -> None:
    """It has no gradient yet; with a zero there its first real step would be a leap."""
    operator = widen("one", ["two"], to=3, split="zero")
    old = {"one.weight": torch.tensor([[1.0], [4.0]]), "two.weight": torch.ones(1, 2)}
    [write] = operator.edit(old, {}).plan["one.weight"]
    assert write.optimizer_transform is not None
    assert write.optimizer_transform(True, old["one.weight"]).flatten().tolist() == [1, 4, 1]
    assert write.optimizer_transform(False, old["one.weight"]).flatten().tolist() == [1, 4, 0]


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (widen("fc", ["fc2"], to=9), "did you mean"),
        (widen("fc1", ["fc3"], to=9), "did you mean"),
        (widen("fc1", ["fc2"], norms=["bn3"], to=9), "did you mean"),
        (widen("fc1", ["fc2"], norms=["bn1"], to=9), "there are 6 units"),
        (widen("fc1", ["side"], to=9), "not a multiple of 6 units"),
        (widen("fc1", ["fc2"], to=6), "changes nothing"),
        (widen("fc1", ["fc2"], to=5), "use select"),
        (widen("fc1", ["fc2"], mapping=[0, 1, 2, 3, 4, 4, 4]), "each of the units 0 to 5"),
        (widen("fc1", ["fc2"]), "must be given"),
        (widen("fc1", ["fc1"], to=9), "one after the other"),
        (widen("fc1", ["slope"], to=9), "needs a weight"),
    ],
)
def test_what_does_not_fit_is_told(operator: widen, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        operator.apply(Convolutions().state_dict(), {})


@pytest.mark.parametrize(
    "call",
    [
        lambda: widen("a", ["b"], split="fair"),  # type: ignore[arg-type]
        lambda: widen("a", ["b"], noise_std=-1),
        lambda: widen("a", ["b"], to=3, mapping=[0, 1]),
        lambda: widen("a.*", ["b"]),
        lambda: widen("a.*", ["b.*"], norms=["c"]),
        lambda: widen("a", []),
    ],
)
def test_arguments_are_checked(call: Callable[[], Any]) -> None:
    with pytest.raises(RecipeError):
        call()


def test_tied_modules_are_widened_together() -> None:
    """The names of one module that is used twice: widening it under one of them moves the other."""
    shared = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    old = nn.ModuleDict({"a": shared, "b": shared}).state_dict()
    new = widen("a.0", ["a.2"], to=4).apply(old, {})
    for key in ("0.weight", "0.bias", "2.weight"):
        assert new[f"a.{key}"] is new[f"b.{key}"]
    assert new["b.0.weight"].shape == (4, 2)


def test_the_remark_reaches_the_report() -> None:
    old, new = settle(Convolutions()), Convolutions(hidden=9)
    recipe = Recipe(HIDDEN)
    growth = recipe.run(old.state_dict(), new.state_dict())
    new.load_state_dict(growth.state_dict)
    promises, findings = verify(claims(recipe, growth, old=old.state_dict(), model=new))
    assert {promise.status for promise in promises} == {"kept"}
    assert [(found.rule, found.severity) for found in findings] == [("recipe-symmetric-units", "warn")]


def test_many_layers_and_many_units_take_no_time() -> None:
    """Time that grows with the square of either would be minutes here."""
    with torch.device("meta"):
        old = OrderedDict(
            (f"layers.{i}.{key}.weight", torch.empty(shape))
            for i in range(4000)
            for key, shape in (("a", (2, 1)), ("b", (1, 2)))
        )
    with within(20):
        new = widen("layers.*.a", ["layers.*.b"], to=3).apply(old, {})
        assert new["layers.3999.b.weight"].shape == (1, 3)
        wide = OrderedDict({"a.weight": torch.randn(11_000, 2), "b.weight": torch.randn(2, 11_000)})
        operator = widen("a", ["b"], to=16_000, split="zero", noise_std=0.1)
        wider = operator.apply(wide, {})
        assert statuses(operator, wide, wider, {}) == ["kept", "kept"]
        assert operator.remarks(wide, wider, {}) == []
