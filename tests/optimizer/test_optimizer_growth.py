from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Words, settle
from torch import nn
from trainings import FACTORIES, trained

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.optimizer.growth import grown
from pytest_ckptcompat.optimizer.stage import check_optimizer
from pytest_ckptcompat.recipes.operators.append import append
from pytest_ckptcompat.recipes.operators.rename import rename, strip_prefix
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.difference import same_bits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Factory = Any
HEAD = ("out2.weight", "out2.bias")


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {name: dict(optimizer.state[parameter]) for name, parameter in model.named_parameters()}


def meta(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.to("meta") for key, value in model.state_dict().items()}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_old_rows_keep_their_moments_and_their_step(factory: Factory) -> None:
    model = settle(Boxes())
    state = by_name(model, trained(model, factory))
    new = grown(
        Recipe(tile("out2.*", dim=0, optim="zeros")), state, meta(model), Boxes(14).state_dict()
    ).state
    assert list(new) == list(state)
    for name, slots in state.items():
        assert new[name].keys() == slots.keys()
        for slot, value in slots.items():
            if name not in HEAD or slot == "step":
                assert new[name][slot] is value
            else:
                assert new[name][slot].shape[0] == 14
                assert same_bits(new[name][slot][:4], value)
                assert not new[name][slot][4:].any()


def test_copied_moments_are_the_old_rows_again() -> None:
    model = settle(Boxes())
    state = by_name(model, trained(model, torch.optim.Adam))
    new = grown(Recipe(tile("out2.*", dim=0)), state, meta(model), Boxes(14).state_dict()).state
    rows = torch.arange(14) % 4
    for name in HEAD:
        for slot in ("exp_avg", "exp_avg_sq"):
            assert same_bits(new[name][slot], state[name][slot][rows])


def test_second_moments_of_appended_rows_are_the_mean_of_the_old_ones() -> None:
    model = settle(Boxes())
    state = by_name(model, trained(model, torch.optim.Adam))
    new = grown(Recipe(append("out2.*", dim=0)), state, meta(model), Boxes(14).state_dict()).state
    for name in HEAD:
        assert not new[name]["exp_avg"][4:].any()
        old = state[name]["exp_avg_sq"]
        assert torch.allclose(new[name]["exp_avg_sq"][4:], old.mean(0).expand(10, *old.shape[1:]))


def test_a_reset_starts_the_parameter_anew() -> None:
    model = settle(Boxes())
    state = by_name(model, trained(model, torch.optim.Adam))
    new = grown(
        Recipe(tile("out2.*", dim=0, optim="reset")), state, meta(model), Boxes(14).state_dict()
    ).state
    assert set(state) - set(new) == set(HEAD)


def test_names_are_followed_through_several_operators() -> None:
    model = nn.DataParallel(settle(Boxes()))
    state = by_name(model, trained(model, torch.optim.Adam))
    target = {key.replace("out2", "head"): value for key, value in Boxes(14).state_dict().items()}
    recipe = Recipe(strip_prefix("module."), rename("out2.*", "head.*"), tile("head.*", dim=0))
    new = grown(recipe, state, meta(model), target).state
    assert list(new) == [name.removeprefix("module.").replace("out2", "head") for name in state]
    assert new["conv1.0.weight"] is state["module.conv1.0.weight"]
    assert new["head.weight"]["exp_avg"].shape == (14, 8)


def test_a_parameter_without_state_gets_none() -> None:
    model = settle(Boxes())
    state = by_name(model, trained(model, torch.optim.Adam))
    del state["out2.bias"]
    new = grown(Recipe(tile("out2.*", dim=0)), state, meta(model), Boxes(14).state_dict()).state
    assert "out2.bias" not in new
    assert new["out2.weight"]["exp_avg"].shape == (14, 8)


# -- from a file to one step -------------------------------------------------------------------------------


def checkpoint(path: Path, model: nn.Module, factory: Factory, wrap: Callable[..., Any]) -> Any:
    optimizer = trained(model, factory)
    torch.save(wrap(copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())), path)
    return open_checkpoint(path)


def plain(model: Any, optim: Any) -> dict[str, Any]:
    return {"epoch": 3, "model": model, "optimizer": optim}


def test_what_is_in_a_file_is_read_grown_and_stepped(tmp_path: Path) -> None:
    ckpt = checkpoint(tmp_path / "net.pth", settle(Boxes()), torch.optim.AdamW, plain)
    recipe = Recipe(tile("out2.*", dim=0))
    model = Boxes(14)
    model.load_state_dict(recipe.apply(ckpt.stored(), model.state_dict()))
    promises, findings = check_optimizer(lambda p: torch.optim.AdamW(p, fused=True), ckpt, recipe, model)
    assert findings == []
    assert [promise.status for promise in promises] == ["kept", "kept"]
    assert promises[0].detail == "AdamW: 19 of 19 by name, old rows of 2 kept"
    assert promises[1].detail == "one step of AdamW, all finite"


def test_state_of_another_shape_than_the_old_weights_is_not_grown_into_the_right_one(tmp_path: Path) -> None:
    """Three rows repeated to fourteen would pass for a state of fourteen rows."""

    def short(model: Any, optim: Any) -> Any:
        for slots in list(optim["state"].values())[-2:]:
            slots["exp_avg"] = slots["exp_avg"][:3]
        return {"model": model, "optimizer": optim}

    ckpt = checkpoint(tmp_path / "net.pth", settle(Boxes()), torch.optim.Adam, short)
    recipe = Recipe(tile("out2.*", dim=0))
    model = Boxes(14)
    model.load_state_dict(recipe.apply(ckpt.stored(), model.state_dict()))
    [promise], findings = check_optimizer(torch.optim.Adam, ckpt, recipe, model)
    assert promise.status == "broken"
    assert [(found.key, found.checkpoint, found.model) for found in findings] == [
        ("out2.weight", "exp_avg (3, 8) f32", "(4, 8) f32"),
        ("out2.bias", "exp_avg (3,) f32", "(4,) f32"),
    ]


def test_a_grown_vocabulary_takes_its_tied_state_along(tmp_path: Path) -> None:
    ckpt = checkpoint(tmp_path / "words.pth", settle(Words()), torch.optim.Adam, plain)
    recipe = Recipe(append("embed.weight", dim=0, init="mean"))
    model = Words(15)
    model.load_state_dict(recipe.apply(ckpt.stored(), model.state_dict()))
    for source in (None, Words()):
        promises, findings = check_optimizer(torch.optim.Adam, ckpt, recipe, model, source)
        assert findings == []
        assert [promise.status for promise in promises] == ["kept", "kept"]
        assert promises[0].detail == "Adam: 16 of 16 by name, old rows of 1 kept"


def test_zero_moments_beside_a_long_training_are_a_warning(tmp_path: Path) -> None:
    def long(model: Any, optim: Any) -> Any:
        for slots in optim["state"].values():
            slots["step"].fill_(50_000)
        return {"model": model, "optimizer": optim}

    ckpt = checkpoint(tmp_path / "net.pth", settle(Boxes()), torch.optim.Adam, long)
    model = Boxes(14)
    for optim, warned in (("zeros", set(HEAD)), ("copy", set()), ("reset", set())):
        recipe = Recipe(tile("out2.*", dim=0, optim=optim))
        model.load_state_dict(recipe.apply(ckpt.stored(), model.state_dict()))
        _, findings = check_optimizer(torch.optim.Adam, ckpt, recipe, model)
        assert {found.key for found in findings} == warned
        assert {(found.rule, found.severity) for found in findings} <= {("optimizer-restart", "warn")}
        assert all("beside step 50000: its first updates are up to 6.6×" in each.message for each in findings)


def test_a_history_of_all_parameters_together_goes_with_the_first_that_changes(tmp_path: Path) -> None:
    """LBFGS files its state under one parameter, also before it has a second step to keep."""

    def lbfgs(model: nn.Module, steps: int) -> Any:
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
        for seed in range(steps):
            for each in model.parameters():
                each.grad = torch.randn(each.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step(lambda: torch.tensor(1.0))
        return optimizer

    for steps in (1, 3):
        model = settle(Boxes())
        content = {"model": model.state_dict(), "optimizer": lbfgs(model, steps).state_dict()}
        torch.save(content, tmp_path / "net.pth")
        ckpt = open_checkpoint(tmp_path / "net.pth", "model")
        for recipe, rows, left in ((Recipe(), 4, 0), (Recipe(tile("out2.*", dim=0)), 14, 19)):
            new = Boxes(rows)
            new.load_state_dict(recipe.apply(ckpt.stored(), new.state_dict()))
            promises, findings = check_optimizer(torch.optim.LBFGS, ckpt, recipe, new)
            assert [promise.status for promise in promises] == ["kept", "unchecked"]
            assert len(findings) == left
            assert all(found.message.endswith("one history of all parameters together") for found in findings)
