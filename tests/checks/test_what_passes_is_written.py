"""What passes a check, `apply` writes with the same arguments: it loads strictly, resumes by name, computes the same."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn, optim

from pytest_ckptcompat import (
    Recipe,
    allow,
    append,
    check,
    drop,
    open_checkpoint,
    rename,
    scale,
    select,
    tile,
    widen,
)
from pytest_ckptcompat.checks.apply import apply_declared
from pytest_ckptcompat.checks.arguments import CheckArguments

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Two layers, perhaps another that is not used, perhaps a scale that older files lack."""

    def __init__(
        self, hidden: int = 3, out: int = 4, *, first: str = "a", aux: bool = False, gain: bool = False
    ) -> None:
        super().__init__()
        self.first = first
        self.add_module(first, nn.Linear(5, hidden))
        self.norm = nn.LayerNorm(5)
        self.b = nn.Linear(hidden, out)
        if aux:
            self.aux = nn.Linear(2, 2)
        if gain:
            self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.get_submodule(self.first)(self.norm(x)).relu())
        return y * self.gain if hasattr(self, "gain") else y


def by_rank(make: Any) -> Any:
    def grouped(parameters: Any) -> optim.Optimizer:
        plain = [each[1] if isinstance(each, tuple) else each for each in parameters]
        return make([
            {"params": [each for each in plain if each.ndim > 1]},
            {"params": [each for each in plain if each.ndim < 2], "lr": 0.5},
        ])  # fmt: skip

    return grouped


OPTIMIZERS: dict[str, Any] = {
    "AdamW": optim.AdamW,
    "amsgrad": lambda parameters: optim.Adam(parameters, amsgrad=True),
    "SGD": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Rprop": optim.Rprop,
    "Adagrad": optim.Adagrad,
}

STEPS = {
    "tile": lambda: (tile("b.*", dim=0), {"out": 9}),
    "append": lambda: (append("b.*", dim=0, init="mean"), {"out": 6}),
    "select": lambda: (select("b.*", dim=0, index=[3, 0]), {"out": 2}),
    "widen": lambda: (widen("a", ["b"]), {"hidden": 7}),
    "scale": lambda: (scale("norm.*", 0.5), {}),
    "rename": lambda: (rename("a.*", "c.*"), {"first": "c"}),
    "drop": lambda: (drop("aux.*"), {"aux": False}),
}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), unique=True, max_size=3),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    grouped=st.booleans(),
    waived=st.booleans(),
    source=st.booleans(),
    wrapped=st.sampled_from([("model", "optimizer"), ("state_dict", "optimizer_states"), ("net", "opt")]),
)
def test_what_passes_a_check_is_written(
    steps: list[str], optimizer: str, grouped: bool, waived: bool, source: bool, wrapped: tuple[str, str]
) -> None:
    torch.manual_seed(0)
    make = by_rank(OPTIMIZERS[optimizer]) if grouped else OPTIMIZERS[optimizer]
    sizes: dict[str, Any] = {"aux": True}
    operators = []
    for name in sorted(steps, key=["widen", "tile", "append", "select", "scale", "drop", "rename"].index):
        operator, change = STEPS[name]()
        operators.append(operator)
        sizes |= change
    if len({"tile", "append", "select"} & set(steps)) > 1:
        return  # each goes to a size of its own, and the model has one

    def new() -> Net:
        return Net(**sizes, gain=waived)

    old = Net(aux=True)
    trained = make(old.parameters())
    for seed in range(2):
        stepped(trained, seed)
    state = trained.state_dict()
    key, place = wrapped
    content = {key: old.state_dict(), place: [state] if place == "optimizer_states" else state}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "old.pth"), Path(folder, "new.pth")
        torch.save(content, path)
        arguments: dict[str, Any] = {
            "recipe": Recipe(*operators),
            "optimizer": make,
            "inputs": (3, 5),
            "source_model": (lambda: Net(aux=True)) if source else None,
            "allow": [allow("missing-key", "gain", reason="new")] if waived else (),
            "device": "cpu",
        }
        report = check(new, path, **arguments)
        event(f"check {'passes' if report.ok else 'fails'}")
        if not report.ok:
            return
        declared = CheckArguments.of(model=new, **arguments)
        apply_declared(declared, lambda key: open_checkpoint(path, key), str(out))
        written = torch.load(out, weights_only=True)
    model = new()
    missing, unexpected = model.load_state_dict(written[key], strict=not waived)
    assert (missing, unexpected) == (["gain"] if waived else [], [])
    same_outputs(model, Recipe(*operators), old, new)
    resumed = make(model.parameters())
    resumed.load_state_dict(written[place][0] if place == "optimizer_states" else written[place])
    moments_are_kept(model, resumed, old, trained, steps)
    stepped(resumed, 7)


def stepped(optimizer: optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for each in group["params"]:
            each.grad = torch.randn(each.shape, generator=generator)
    optimizer.step()


def same_outputs(model: Net, recipe: Recipe, old: Net, new: Any) -> None:
    expected = new()
    expected.load_state_dict(
        {**expected.state_dict(), **recipe.apply(copy.deepcopy(old.state_dict()), expected.state_dict())}
    )
    x = torch.randn(3, 5)
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))


def moments_are_kept(
    model: Net, resumed: optim.Optimizer, old: Net, trained: optim.Optimizer, steps: list[str]
) -> None:
    """What no step touches is as it was under its name; what grew has the old part first, unless units share work."""
    before = {name: trained.state[each] for name, each in old.named_parameters()}
    for name, each in model.named_parameters():
        came = name.replace("c.", "a.")
        state = resumed.state.get(each)
        if name == "gain" or ("scale" in steps and name.startswith("norm")):
            assert not state
            continue
        assert state, f"{name} has no state"
        if "widen" in steps and name.startswith(("a.", "b.weight", "c.")):
            continue
        for slot, value in before[came].items():
            if isinstance(value, torch.Tensor) and value.dim():
                rows = value[[3, 0]] if "select" in steps and name.startswith("b.") else value
                part = state[slot][tuple(slice(size) for size in rows.shape)]
                assert torch.equal(part, rows), (name, slot)
