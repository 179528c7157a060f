from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, settle
from proving import proved

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.optimizer.growth import grown
from pytest_ckptcompat.recipes.operators.custom import custom
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable


def halved(state: OrderedDict[str, Any]) -> OrderedDict[str, Any]:
    """A filter as repositories have them: one tensor changed, a key dropped, all others renamed."""
    new = OrderedDict((f"net.{key}", value) for key, value in state.items() if key != "out1.bias")
    new["net.out2.weight"] = state["out2.weight"] / 2
    return new


HALVED = custom(halved, touches=["net.out2.weight", "out2.weight", "out1.bias"])


def boxes() -> OrderedDict[str, Any]:
    return settle(Boxes()).state_dict()


def statuses(operator: Any, before: Any, after: Any) -> list[str]:
    return [promise.status for promise in proved(operator, before, after, {})]


def test_what_a_function_did_is_told_from_the_tensors_that_it_gave_back() -> None:
    old = boxes()
    growth = Recipe(HALVED).run(old, {})
    assert torch.equal(growth.state_dict["net.out2.weight"], old["out2.weight"] / 2)
    assert growth.touched == {
        "net.out2.weight": (HALVED,),
        "out2.weight": (HALVED,),
        "out1.bias": (HALVED,),
    }
    assert growth.origin["net.fc.0.weight"] == "fc.0.weight"
    assert growth.origin["net.out2.weight"] is None
    assert not growth.changes_function
    assert statuses(HALVED, old, growth.state_dict) == ["kept", "unchecked"]
    assert growth.state_dict._metadata == old._metadata  # type: ignore[attr-defined]


def test_what_it_does_not_touch_and_is_not_there_or_not_the_same_is_caught() -> None:
    old = boxes()
    kept = custom(dict, touches=["out2.weight"])
    assert statuses(kept, old, dict(old)) == ["kept", "unchecked"]
    assert statuses(kept, old, {**old, "out2.weight": torch.zeros(1)}) == ["kept", "unchecked"]
    assert statuses(kept, old, {**old, "out1.bias": old["out1.bias"] + 1}) == ["broken", "unchecked"]
    assert statuses(kept, old, {key: old[key] for key in old if key != "out1.bias"}) == [
        "broken",
        "unchecked",
    ]


def test_it_runs_on_meta_tensors_and_between_other_operators() -> None:
    target = {f"net.{key}": value for key, value in Boxes(14).state_dict().items()}
    recipe = Recipe(HALVED, tile("net.out2.*", dim=0))
    with torch.device("meta"):
        meta = recipe.apply(Boxes().state_dict(), target)
    assert {key: value.shape for key, value in meta.items()} == {
        key: value.shape for key, value in recipe.apply(boxes(), target).items()
    }


def test_the_given_mapping_may_be_changed_and_nothing_be_returned() -> None:
    def clean(state: OrderedDict[str, Any]) -> None:
        state["box.weight"] = state.pop("out2.weight")
        state["alias"] = state["out1.weight"]

    old = boxes()
    before = list(old)
    growth = Recipe(custom(clean)).run(old, {})
    assert list(old) == before
    assert growth.state_dict["box.weight"] is old["out2.weight"]
    assert growth.state_dict["alias"] is growth.state_dict["out1.weight"] is old["out1.weight"]
    assert (growth.origin["box.weight"], growth.origin["alias"]) == ("out2.weight", "out1.weight")
    assert growth.touched == {}


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda state: {**state, "out1.bias": state["out1.bias"] * 2}, "touches= does not name it"),
        (lambda state: {**state, "new": torch.ones(1)}, "touches= does not name it"),
        (lambda state: {key: state[key] for key in state if key != "out1.bias"}, "touches= does not name it"),
        (lambda state: {**state, "out1.bias": state["out2.bias"]}, "touches= does not name it"),
        (lambda state: dict(state), "changes nothing"),
        (lambda state: [], "did not return a state dict but list"),
        (lambda state: state["nothing"], "raised KeyError: 'nothing'"),
        (lambda state: {**state, "out2.bias": state["out2.bias"].mul_(2)}, "changes it in place"),
    ],
)
def test_what_a_function_must_not_do(fn: Callable[..., Any], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        custom(fn, touches=["out2.*"]).apply(boxes(), {})
    assert text in str(caught.value)


def test_a_function_that_wants_values_is_told_that_it_gets_none() -> None:
    with torch.device("meta"):
        old = Boxes().state_dict()
    with pytest.raises(RecipeError, match="called with tensors on the meta device"):
        custom(lambda state: {**state, "scale": state["out2.weight"].max().item()}).apply(old, {})


@pytest.mark.parametrize(("optim", "kept"), [("reset", {"a", "c"}), ("copy", {"a", "b", "c"})])
def test_optimizer_state(optim: Any, kept: set[str]) -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        return {"a": state["a"], "b": state["b"] * 2, "c": state["z"], "d": torch.zeros(2)}

    old = {key: torch.ones(2) for key in "abz"}
    slots = {key: {"exp_avg": torch.full((2,), 0.5)} for key in old}
    carried = grown(Recipe(custom(change, optim=optim)), slots, old, {}).state
    assert set(carried) == kept
    assert all(torch.equal(each["exp_avg"], torch.full((2,), 0.5)) for each in carried.values())


def test_a_function_that_can_be_imported_goes_by_its_name() -> None:
    recipe = Recipe(HALVED)
    name = f"{__name__}:halved"
    assert (
        repr(recipe) == f'Recipe(custom("{name}", touches=["net.out2.weight", "out2.weight", "out1.bias"]))'
    )
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert recipe == Recipe(custom(name, touches=HALVED.touches))
    assert set(Recipe.from_toml(recipe.to_toml()).apply(boxes(), {})) == set(recipe.apply(boxes(), {}))


def test_one_that_can_not_has_no_text_form() -> None:
    recipe = Recipe(custom(lambda state: state))
    assert repr(recipe) == "Recipe(custom(<lambda>))"
    with pytest.raises(RecipeError, match="can't be written as TOML"):
        recipe.to_toml()
    with pytest.raises(RecipeError, match="there is no module 'nowhere'"):
        custom("nowhere:remap").apply(boxes(), {})
    with pytest.raises(RecipeError, match="fn wants a callable or a text, not 3"):
        custom(3)  # type: ignore[arg-type]
