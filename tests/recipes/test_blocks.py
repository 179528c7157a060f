"""`insert_block` and `stack` on a small decoder."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import settle
from proving import proved
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.optimizer.growth import grown
from pytest_ckptcompat.recipes.operators.blocks import insert_block, stack
from pytest_ckptcompat.recipes.operators.rename import rename
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.verification.function import function_kept

if TYPE_CHECKING:
    from collections.abc import Callable

OUTPUTS = ("mixer.out.*", "mlp.2.*")


class Mixer(nn.Module):
    """Causal averages, weighted: as much of attention as these tests need."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        return self.out(self.value(x).cumsum(1) / counts)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = Mixer(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Deep(nn.Module):
    def __init__(self, layers: int = 3, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def tokens(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randint(9, (2, 5), generator=torch.Generator().manual_seed(seed)),), {}


def statuses(operator: Any, before: Any, after: Any, target: Any) -> set[str]:
    return {promise.status for promise in proved(operator, before, after, target)}


def function_is_kept(old: nn.Module, new: nn.Module, state: dict[str, Any]) -> bool:
    new.load_state_dict(state)
    promise, _ = function_kept(lambda: Deep(len(old.layers)), old.state_dict(), new, tokens)
    assert promise.status in ("kept", "broken"), promise
    return promise.status == "kept"


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 4), st.data())
def test_a_block_that_adds_nothing_keeps_the_function(layers: int, data: st.DataObject) -> None:
    copied = data.draw(st.integers(0, layers - 1))
    at = data.draw(st.integers(0, layers))
    old, new = settle(Deep(layers)), Deep(layers + 1)
    operator = insert_block(f"layers.{copied}", at=at, zero=OUTPUTS)
    growth = Recipe(operator).run(old.state_dict(), new.state_dict())
    assert not growth.changes_function
    assert statuses(operator, old.state_dict(), growth.state_dict, {}) == {"kept"}
    assert function_is_kept(old, new, growth.state_dict)
    with torch.no_grad():  # the copy is not a stub: what is zero are its outputs alone
        assert torch.equal(new.layers[at].mlp[0].weight, old.layers[copied].mlp[0].weight)
        assert not new.layers[at].mixer.out.bias.any()


def test_a_block_with_an_output_left_changes_the_function() -> None:
    old, new = settle(Deep()), Deep(4)
    for zero in ((), OUTPUTS[:1], OUTPUTS[1:], ("mixer.out.weight", "mlp.2.weight")):
        operator = insert_block("layers.1", at=2, zero=zero)
        state = operator.apply(old.state_dict(), new.state_dict())
        assert statuses(operator, old.state_dict(), state, {}) == {"kept"}  # it did as it was told
        assert not function_is_kept(old, new, state)
    assert "not zero" in insert_block("layers.1", at=2).caveat({}, {})


@pytest.mark.parametrize(
    "fault",
    [
        lambda s: s.update({"layers.3.norm1.bias": s["layers.1.mlp.2.bias"]}),
        lambda s: s.update({"layers.1.mlp.2.weight": torch.zeros_like(s["layers.1.mlp.2.weight"])}),
        lambda s: [s.pop(key) for key in list(s) if key.startswith("layers.3.")],
    ],
)
def test_a_wrong_expansion_is_caught(fault: Callable[[Any], object]) -> None:
    old = settle(Deep()).state_dict()
    operator = insert_block("layers.1", at=2, zero=OUTPUTS)
    new = operator.apply(old, {})
    fault(new)
    assert "broken" in statuses(operator, old, new, {})


def test_later_insertions_count_what_earlier_ones_made() -> None:
    old, new = settle(Deep()), Deep(5)
    recipe = Recipe(
        insert_block("layers.0", at=1, zero=OUTPUTS), insert_block("layers.3", at=4, zero=OUTPUTS)
    )
    growth = recipe.run(old.state_dict(), new.state_dict())
    assert list(growth.state_dict) == list(new.state_dict())
    assert growth.origin["layers.2.norm1.weight"] == "layers.1.norm1.weight"
    assert growth.origin["layers.4.norm1.weight"] == "layers.2.norm1.weight"
    assert {key.split(".")[1] for key in growth.touched} == {"1", "4"}
    assert growth.state_dict["layers.3.norm1.weight"] is not growth.state_dict["layers.4.norm1.weight"]
    assert function_is_kept(old, new, growth.state_dict)


def test_sizes_before_a_block_is_inserted_are_the_models() -> None:
    """A growth before it finds the model's size under the block's later number."""
    from pytest_ckptcompat.recipes.operators.tile import tile

    old = Deep(2).state_dict()
    target = Deep(3).state_dict()
    target["layers.2.mlp.0.bias"] = torch.empty(24)
    recipe = Recipe(tile("layers.1.mlp.0.bias", dim=0), insert_block("layers.0", at=0, zero=OUTPUTS))
    assert recipe.apply(old, target)["layers.2.mlp.0.bias"].shape == (24,)


def test_moments_move_with_their_blocks_and_the_copy_starts_anew() -> None:
    old = Deep(2)
    names = [name for name, _ in old.named_parameters()]
    state = {
        name: {"step": torch.tensor(5.0), "exp_avg": torch.full(each.shape, float(place))}
        for place, (name, each) in enumerate(old.named_parameters())
    }
    meta = Deep(2).to("meta").state_dict()
    target = Deep(3).state_dict()
    expanded = grown(Recipe(insert_block("layers.0", at=1, zero=OUTPUTS)), state, meta, target).state
    assert not any(key.startswith("layers.1.") for key in expanded)
    assert expanded.keys() == {name.replace("layers.1.", "layers.2.") for name in names}
    for name in names:
        assert expanded[name.replace("layers.1.", "layers.2.")] == state[name]
    copied = grown(Recipe(insert_block("layers.0", at=1, optim="copy")), state, meta, target).state
    assert torch.equal(copied["layers.1.mlp.0.weight"]["exp_avg"], state["layers.0.mlp.0.weight"]["exp_avg"])


def test_versions_of_modules_move_with_their_blocks() -> None:
    old = Deep(2).state_dict()
    old._metadata["layers.1.norm1"]["version"] = 7
    new = insert_block("layers.0", at=1, zero=OUTPUTS).apply(old, {})
    assert new._metadata["layers.2.norm1"] == {"version": 7}
    assert (
        new._metadata["layers.1.norm1"] == new._metadata["layers.0.norm1"] == old._metadata["layers.0.norm1"]
    )


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (insert_block("layer.1", at=2), "did you mean"),
        (insert_block("layers.7", at=2), "matches nothing"),
        (insert_block("layers.1", at=5), "the new one can be 3 at most"),
        (insert_block("layers.1", at=2, zero=["mixer.proj.*"]), "did you mean"),
        (stack("layer", times=2), "matches nothing"),
        (stack("layers"), "the model has 4, which is not a multiple"),
    ],
)
def test_what_does_not_fit_is_told(operator: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        operator.apply(Deep().state_dict(), Deep(4).state_dict())


@pytest.mark.parametrize(
    "call",
    [
        lambda: insert_block("layers", at=1),
        lambda: insert_block("layers.x", at=1),
        lambda: insert_block("layers.1", at=-1),
        lambda: stack("layers", times=1),
    ],
)
def test_arguments_are_checked(call: Callable[[], Any]) -> None:
    with pytest.raises(RecipeError):
        call()


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 3), st.integers(2, 4), st.booleans())
def test_stacked_blocks_are_the_old_ones_in_turn(count: int, times: int, told: bool) -> None:
    old, new = settle(Deep(count)), Deep(count * times)
    operator = stack("layers", times=times if told else None)
    state = operator.apply(old.state_dict(), new.state_dict())
    assert list(state) == list(new.state_dict())
    new.load_state_dict(state)
    for number, block in enumerate(new.layers):
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, old.layers[number % count].state_dict()[name])
    assert statuses(operator, old.state_dict(), state, new.state_dict()) == {"kept"}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert not function_is_kept(old, new, state)
    assert operator.caveat({}, {})


def test_blocks_are_counted_by_the_names_that_they_have_then() -> None:
    old = settle(Deep(2)).state_dict()
    target = {key.replace("layers.", "blocks."): value for key, value in Deep(6).state_dict().items()}
    for operators in (
        (stack("layers"), rename("layers.*", "blocks.*")),
        (rename("layers.*", "blocks.*"), stack("blocks")),
    ):
        assert set(Recipe(*operators).apply(old, target)) == set(target)


def test_ties_inside_a_copied_block_are_kept_and_none_come_up() -> None:
    shared = torch.rand(3, 3)
    old = OrderedDict({"layers.0.a": shared, "layers.0.b": shared, "layers.0._extra_state": {"scale": 2}})
    for operator in (
        insert_block("layers.0", at=1, zero=["a", "b"]),
        insert_block("layers.0", at=1),
        stack("layers", times=3),
    ):
        new = operator.apply(old, {})
        assert new["layers.1.a"] is new["layers.1.b"]
        assert new["layers.0.a"] is shared
        assert new["layers.1.a"] is not shared
        assert new["layers.1._extra_state"] == {"scale": 2}
        if "layers.2.a" in new:
            assert new["layers.2.a"] is not new["layers.1.a"]


def test_a_rename_before_it() -> None:
    old = OrderedDict(
        (key.replace("layers.", "blocks."), value) for key, value in Deep(2).state_dict().items()
    )
    recipe = Recipe(rename("blocks.*", "layers.*"), insert_block("layers.1", at=2, zero=OUTPUTS))
    assert list(recipe.apply(old, {})) == list(Deep(3).state_dict())


class Towers(nn.Module):
    """An encoder and a decoder, each of so many residual layers."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        for part in (self.encoder, self.decoder):
            part.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (self.encoder, self.decoder):
            for layer in part.layers:  # type: ignore[union-attr]
                x = x + torch.tanh(layer(x))  # type: ignore[operator]
        return x


def test_a_glob_puts_a_block_into_every_tower() -> None:
    old, new = settle(Towers()), Towers(3)
    operator = insert_block("*.layers.1", at=2, zero=["weight", "bias"])  # type: ignore[arg-type]
    made = Recipe(operator).apply(old.state_dict(), new.state_dict())
    new.load_state_dict(made)
    assert statuses(operator, old.state_dict(), made, new.state_dict()) == {"kept"}
    x = torch.randn(3, 5)
    assert torch.equal(new(x), old(x))
    made["decoder.layers.2.bias"] = torch.ones(5)
    assert "broken" in statuses(operator, old.state_dict(), made, new.state_dict())


def test_a_glob_repeats_the_blocks_of_every_tower() -> None:
    old, new = Towers(), Towers(4)
    made = Recipe(stack("*.layers")).apply(old.state_dict(), new.state_dict())
    new.load_state_dict(made)
    for tower in ("encoder", "decoder"):
        for number in range(4):
            original = old.state_dict()[f"{tower}.layers.{number % 2}.weight"]
            assert torch.equal(made[f"{tower}.layers.{number}.weight"], original)
    assert statuses(stack("*.layers"), old.state_dict(), made, new.state_dict()) == {"kept"}
    made["encoder.layers.3.weight"] = old.state_dict()["decoder.layers.1.weight"]
    assert statuses(stack("*.layers"), old.state_dict(), made, new.state_dict()) == {"broken"}


@pytest.mark.parametrize("operator", [insert_block("*.blocks.1", at=2), stack("*.blocks")])
def test_a_glob_without_any_match_is_one_error(operator: Any) -> None:
    with pytest.raises(RecipeError, match="matches nothing in the checkpoint"):
        operator.apply(Towers().state_dict(), Towers(3).state_dict())
