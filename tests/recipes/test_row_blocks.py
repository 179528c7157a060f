"""Rows in several equal blocks: anchors, gates, heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import settle
from proving import statuses
from torch import nn

from pytest_ckptcompat import Recipe, RecipeError, append, check, select, tile
from pytest_ckptcompat.optimizer.growth import grown


class Anchors(nn.Module):
    """The head's rows are anchor by anchor: two numbers of the box, then the classes."""

    def __init__(self, classes: int = 2, anchors: int = 3) -> None:
        super().__init__()
        self.anchors = anchors
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, anchors * (2 + classes), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.head(torch.relu(self.stem(x)))
        return found.unflatten(1, (self.anchors, -1)).permute(0, 1, 3, 4, 2)


class Flat(Anchors):
    """The same with the channels as they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x)))


def expected(value: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Every anchor's rows, taken one by one."""
    return torch.cat([part[rows] for part in value.chunk(3)])


@pytest.mark.parametrize(
    ("operator", "classes", "rows"),
    [
        (tile("head.*", dim=0, blocks=3), 4, [0, 1, 2, 3, 0, 1]),
        (select("head.*", dim=0, index=[0, 1, 3], blocks=3), 1, [0, 1, 3]),  # type: ignore[arg-type]
        (select("head.*", dim=0, index=[0, 1, 3, 2], blocks=3), 2, [0, 1, 3, 2]),  # type: ignore[arg-type]
        (
            select(
                "head.*", dim=0, old_names=["x", "y", "cat", "dog"], new_names=["x", "y", "dog"], blocks=3
            ),  # type: ignore[arg-type]
            1,
            [0, 1, 3],
        ),
    ],
)
@pytest.mark.parametrize("kind", [Anchors, Flat])
def test_every_block_changes_alike(
    kind: Any, operator: Any, classes: int, rows: list[int], tmp_path: Any
) -> None:
    old, new = settle(kind()), kind(classes)
    state = old.state_dict()
    made = operator.apply(state, new.state_dict())
    for key in ("head.weight", "head.bias"):
        assert torch.equal(made[key], expected(state[key], rows))
    assert set(statuses(operator, state, made, new.state_dict())) == {"kept"}
    assert Recipe.from_toml(Recipe(operator).to_toml()) == Recipe(operator)
    torch.save(state, tmp_path / "old.pth")
    report = check(
        lambda: kind(classes), tmp_path / "old.pth", recipe=Recipe(operator), source_model=kind, inputs=(2, 3, 6, 6),
        device="cpu",
    )  # fmt: skip
    told = {promise.name: promise for promise in report.promises}["function kept"]
    assert report.ok, str(report)
    assert told.status == "kept", told
    assert not [found for found in report.findings if found.rule == "function-uncompared"]


def test_without_blocks_the_rows_of_another_anchor_are_in_the_way(tmp_path: Any) -> None:
    torch.save(settle(Anchors()).state_dict(), tmp_path / "old.pth")
    report = check(
        lambda: Anchors(4), tmp_path / "old.pth", recipe=Recipe(tile("head.*", dim=0)), source_model=Anchors,
        inputs=(2, 3, 6, 6), device="cpu",
    )  # fmt: skip
    assert "function-changed" in report.verdict


def test_new_rows_stand_behind_those_of_their_block() -> None:
    state, target = {"w": torch.randn(6, 5)}, {"w": torch.empty(12, 5)}
    operator = append("w", dim=0, init="mean", blocks=3)
    made = operator.apply(state, target)["w"].reshape(3, 4, 5)
    assert torch.equal(made[:, :2].reshape(6, 5), state["w"])
    torch.testing.assert_close(made[:, 2:], state["w"].mean(0).expand(3, 2, 5))
    after = {"w": made.reshape(12, 5)}
    assert statuses(operator, state, after, target) == ["kept", "kept"]
    assert statuses(append("w", dim=0, init="mean"), state, after, target) == ["broken", "broken"]


def test_moments_go_with_their_rows() -> None:
    moments: Any = {"w": {"exp_avg": torch.arange(6.0), "exp_avg_sq": torch.arange(6.0)}}
    meta, target = {"w": torch.empty(6, device="meta")}, {"w": torch.empty(9)}
    tiled = grown(Recipe(tile("w", dim=0, blocks=3)), moments, meta, target).state["w"]
    assert tiled["exp_avg"].tolist() == [0, 1, 0, 2, 3, 2, 4, 5, 4]
    zeros = grown(Recipe(tile("w", dim=0, blocks=3, optim="zeros")), moments, meta, target).state["w"]
    assert zeros["exp_avg"].tolist() == [0, 1, 0, 2, 3, 0, 4, 5, 0]
    more = grown(Recipe(append("w", dim=0, blocks=3)), moments, meta, target).state["w"]
    assert more["exp_avg"].tolist() == [0, 1, 0, 2, 3, 0, 4, 5, 0]
    assert more["exp_avg_sq"].tolist() == [0, 1, 2.5, 2, 3, 2.5, 4, 5, 2.5]
    chosen = grown(Recipe(select("w", dim=0, index=[1], blocks=3)), moments, meta, {}).state["w"]  # type: ignore[arg-type]
    assert chosen["exp_avg"].tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (lambda: tile("w", dim=0, blocks=0), "blocks=0"),
        (lambda: tile("w", dim=0, to=8, blocks=4), "6 rows in dimension 0 are not 4 equal blocks"),
        (lambda: tile("w", dim=0, to=8, blocks=3), "8 rows in dimension 0 are not 3 equal blocks"),
        (lambda: append("w", dim=0, n=1, blocks=2), "7 rows in dimension 0 are not 2 equal blocks"),
        (lambda: select("w", dim=0, index=[3], blocks=2), "no row 3 in dimension 0 of each block"),  # type: ignore[arg-type]
        (lambda: select("w", dim=0, index=[0], missing="zeros"), "missing= goes with old_names"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_told(operator: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        operator().apply({"w": torch.ones(6, 2)}, {})


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "uint16", "int8", "bool"])
def test_dtypes_for_which_torch_lacks_operations(name: str) -> None:
    values = torch.arange(12).reshape(4, 3) % 2 == 0
    state = {"w": values if name == "bool" else values.to(getattr(torch, name))}
    for operator in (
        tile("w", dim=0, to=6, blocks=2), select("w", dim=1, index=[2, 0]), append("w", dim=0, n=3)  # type: ignore[arg-type]
    ):  # fmt: skip
        made = operator.apply(state, {})
        assert made["w"].dtype == state["w"].dtype
        assert set(statuses(operator, state, made, {})) == {"kept"}


@pytest.mark.parametrize(
    "init", ["normal", "kaiming_uniform", "xavier_uniform", "mean", "multivariate_normal"]
)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_rounding_to_a_coarse_dtype_breaks_no_promise(init: Any, dtype: torch.dtype) -> None:
    state = {"w": torch.linspace(-2, 2, 40).reshape(8, 5).to(dtype)}
    for seed in range(8):
        operator = append("w", dim=0, n=4, init=init, seed=seed)
        assert set(statuses(operator, state, operator.apply(state, {}), {})) == {"kept"}
    noisy = tile("w", dim=0, to=16, noise_std=0.05)
    assert set(statuses(noisy, state, noisy.apply(state, {}), {})) == {"kept"}


def test_integers_have_a_mean_and_nothing_that_is_drawn() -> None:
    state = {"w": torch.arange(20).reshape(4, 5).to(torch.int8)}
    operator = append("w", dim=0, n=2, init="mean")
    made = operator.apply(state, {})
    assert made["w"][4].tolist() == [7, 8, 9, 10, 11]  # of 7.5, 8.5, ...: cut off behind the point
    assert statuses(operator, state, made, {}) == ["kept", "kept"]
    with pytest.raises(RecipeError, match="holds no real numbers"):
        append("w", dim=0, n=2, init="normal").apply(state, {})


@pytest.mark.parametrize("init", ["zeros", "normal", "kaiming_uniform", "mean"])
def test_tensors_without_values(init: Any) -> None:
    """Rows without columns have no values; a mean of no rows is none."""
    state = {"w": torch.empty(3, 0)}
    operator = append("w", dim=0, n=2, init=init, std=1.0 if init == "normal" else None)
    if init in ("kaiming_uniform", "mean"):
        with pytest.raises(RecipeError, match=r"no values|by a weight's size"):
            operator.apply(state, {})
        return
    made = operator.apply(state, {})
    assert made["w"].shape == (5, 0)
    assert set(statuses(operator, state, made, {})) == {"kept"}
