"""Every optimizer through every kind of recipe and layout: resumed with the moments that it had, or left out and said.

torch is the oracle: what was written is loaded by its own functions, and a step is taken.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from pytest_ckptcompat import Recipe, append, drop, open_checkpoint, select, tile, widen
from pytest_ckptcompat.checks.apply import Written, apply

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

Optimizer = torch.optim.Optimizer
Factory = Callable[[Any], Optimizer]
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Net(nn.Module):
    def __init__(self, hidden: int = 3, out: int = 5, *, aux: bool = True) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, hidden), nn.Linear(hidden, out)
        if aux:
            self.aux = nn.Linear(2, 7)


def _third_party(module: str, name: str, **options: Any) -> Factory:
    def make(groups: Any) -> Optimizer:
        made: Optimizer = getattr(pytest.importorskip(module), name)(groups, **options)
        return made

    return make


OPTIMIZERS: dict[str, Factory] = {
    "SGD": lambda groups: optim.SGD(groups, lr=0.1),
    "SGD momentum": lambda groups: optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "Adam amsgrad": lambda groups: optim.Adam(groups, amsgrad=True),
    "Rprop": lambda groups: optim.Rprop(groups, lr=0.01),
    "RMSprop centered": lambda groups: optim.RMSprop(groups, momentum=0.9, centered=True),
    **{
        name: getattr(optim, name)
        for name in (
            "AdamW",
            "NAdam",
            "RAdam",
            "Adamax",
            "Adadelta",
            "Adagrad",
            "ASGD",
            "LBFGS",
            "SparseAdam",
        )
    },
    **{name: getattr(optim, name) for name in ("Adafactor", "Muon") if hasattr(optim, name)},
    "transformers Adafactor": _third_party("transformers", "Adafactor"),
    "Lion": _third_party("lion_pytorch", "Lion"),
    "AdaBelief": _third_party("adabelief_pytorch", "AdaBelief", print_change_log=False),
}

Kept = Callable[[str, torch.Tensor], torch.Tensor]
"""Name and new tensor -> the part of it that is the old one, in the old order."""


def first_rows(name: str, new: torch.Tensor) -> torch.Tensor:
    return new[:5] if name.startswith("fc2") else new


def first_units(name: str, new: torch.Tensor) -> torch.Tensor:
    if name == "fc2.weight":
        return new[:, :3]
    return new[:3] if name.startswith("fc1") else new


def in_old_order(name: str, new: torch.Tensor) -> torch.Tensor:
    return new[[1, 0, 2, 4, 3]] if name.startswith("fc2") else new


def all_of_it(name: str, new: torch.Tensor) -> torch.Tensor:
    return new


RECIPES: dict[str, tuple[Recipe, Callable[[], nn.Module], Kept]] = {
    "tile": (Recipe(tile("fc2.*", dim=0)), lambda: Net(out=11), first_rows),
    "append": (Recipe(append("fc2.*", dim=0, init="normal")), lambda: Net(out=8), first_rows),
    "widen": (Recipe(widen("fc1", ["fc2"], split="zero")), lambda: Net(hidden=7), first_units),
    "select": (Recipe(select("fc2.*", dim=0, index=[1, 0, 2, 4, 3])), Net, in_old_order),
    "drop": (Recipe(drop("aux.*")), lambda: Net(aux=False), all_of_it),
}


# -- layouts: how the optimizer is made, saved and loaded --------------------------------------------------


def served(name: str, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, each) for key, each in model.named_parameters() if name != "Muon" or each.ndim == 2]


def alone(make: Factory, named: list[tuple[str, nn.Parameter]]) -> Optimizer:
    return make([each for _, each in named])


def in_groups(make: Factory, named: list[tuple[str, nn.Parameter]], *, names: bool = False) -> Optimizer:
    """Weights and biases apart, under another learning rate each, as trainers do."""
    parts = [[pair for pair in named if (pair[1].ndim > 1) is matrices] for matrices in (False, True)]
    return make([
        {"params": part if names else [each for _, each in part], "lr": lr}
        for part, lr in zip(parts, (0.01, 0.02), strict=True)
        if part
    ])  # fmt: skip


def in_named_groups(make: Factory, named: list[tuple[str, nn.Parameter]]) -> Optimizer:
    return in_groups(make, named, names=True)


LAYOUTS = {
    "plain": alone,
    "named groups": in_named_groups,
    "unnamed groups": in_groups,
    "flattened": alone,
    "distributed": alone,
}


def save(layout: str, path: Path, model: nn.Module, optimizer: Optimizer) -> Path:
    if layout == "flattened":
        state: Any = get_optimizer_state_dict(model, optimizer, options=FLAT)
    elif layout == "distributed":
        state = get_optimizer_state_dict(model, optimizer)
    else:
        state = optimizer.state_dict()
    content = copy.deepcopy({"model": model.state_dict(), "optim": state})
    if layout == "distributed":
        dcp.save(content, checkpoint_id=path)
    else:
        torch.save(content, path)
    return path


def load(layout: str, path: Path, model: nn.Module, optimizer: Optimizer) -> bool:
    """Load the model, and the optimizer if its state was written; whether it was."""
    if layout == "distributed":
        if not saved_optim(path):
            return False
        content: Any = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}
        dcp.load(content, checkpoint_id=path)
    else:
        content = torch.load(path, weights_only=True)
    model.load_state_dict(content["model"])
    if layout in ("flattened", "distributed"):
        options = FLAT if layout == "flattened" else None
        if "optim" in content:
            set_optimizer_state_dict(model, optimizer, content["optim"], options=options)
    elif "optim" in content:
        optimizer.load_state_dict(content["optim"])
    return "optim" in content


def saved_optim(path: Path) -> bool:
    wrapper: Any = open_checkpoint(path, "model").wrapper
    return "optim" in wrapper


def step(name: str, optimizer: Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for each in group["params"]:
            grad = torch.randn(each.shape, generator=generator)
            each.grad = grad.to_sparse() if name == "SparseAdam" else grad
    optimizer.step(*([lambda: torch.tensor(1.0 / (seed + 1))] if name == "LBFGS" else []))


def elementwise(model: nn.Module, optimizer: Optimizer) -> dict[tuple[str, str], torch.Tensor]:
    """What the optimizer keeps for each element of a parameter, by the parameter's name and its own."""
    return {
        (name, slot): value.detach().clone()
        for name, each in model.named_parameters()
        for slot, value in optimizer.state.get(each, {}).items()
        if isinstance(value, torch.Tensor) and value.shape == each.shape
    }


# -- the matrix --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_goes_on_or_is_left_out_and_said(name: str, layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    grouped, make = LAYOUTS[layout], OPTIMIZERS[name]
    old = Net()
    try:
        optimizer = grouped(make, served(name, old))
        for seed in range(2):
            step(name, optimizer, seed)
        if name == "SparseAdam" and layout in ("flattened", "distributed"):
            raise NotImplementedError("it makes state with dense gradients, which this one refuses")
        source = save(
            layout, tmp_path / "old.pth" if layout != "distributed" else tmp_path / "old", old, optimizer
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, ImportError) as error:
        pytest.skip(f"torch itself does not save it so: {error}")
    before = elementwise(old, optimizer)
    for recipe_name, (recipe, build, kept) in RECIPES.items():
        out = tmp_path / f"{recipe_name}{'' if layout == 'distributed' else '.pth'}"
        ckpt = open_checkpoint(source, "model")
        written = apply(ckpt, build(), recipe, out, optimizer=lambda named: grouped(make, pairs(named, name)))
        new = build()
        resumed = grouped(make, served(name, new))
        loaded = load(layout, out, new, resumed)
        step_of_new(name, resumed, before, elementwise(new, resumed), kept, written, loaded, recipe_name)


def pairs(named: Any, name: str) -> list[tuple[str, nn.Parameter]]:
    return [(key, each) for key, each in named if name != "Muon" or each.ndim == 2]


def step_of_new(
    name: str,
    resumed: Optimizer,
    before: dict[tuple[str, str], torch.Tensor],
    after: dict[tuple[str, str], torch.Tensor],
    kept: Kept,
    written: Written,
    loaded: bool,
    recipe: str,
) -> None:
    notes = "; ".join(written.notes)
    for (parameter, slot), value in before.items():
        if recipe == "drop" and parameter.startswith("aux"):
            continue
        if (parameter, slot) in after and loaded:
            assert torch.equal(kept(parameter, after[parameter, slot]), value), (
                f"{recipe}: {slot} of {parameter}"
            )
        else:
            told = re.search(rf"left out|{re.escape(parameter)}", notes)
            assert told, f"{recipe}: {slot} of {parameter} is gone, and apply says {notes!r}"
    assert loaded or "optim is left out" in notes, notes
    step(name, resumed, 5)


def test_the_matrix_has_every_optimizer_of_torch() -> None:
    names = {name.split()[0] for name in OPTIMIZERS} | {"Adam"}
    classes = {
        name
        for name in dir(optim)
        if isinstance(getattr(optim, name), type) and issubclass(getattr(optim, name), Optimizer)
    }
    assert classes - {"Optimizer"} <= names
