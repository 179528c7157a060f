"""Optimizers of others: what they keep is resumed and grown as torch would, or left out and said; never a false error."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_ckptcompat import MisfitError, Recipe, check, open_checkpoint, tile
from pytest_ckptcompat.checks.apply import apply

if TYPE_CHECKING:
    from pathlib import Path

Slots = dict[Any, Any]


class Net(nn.Module):
    def __init__(self, out: int = 5) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, out)


class Norm(enum.Enum):
    COLUMNS = 1


class Foreign(torch.optim.Optimizer):
    """Keeps something for a parameter, and looks at it in every step."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {"lr": 0.1, **options})

    def begin(self, parameter: torch.Tensor) -> Slots:
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        slots["momentum_buffer"].add_(parameter.grad)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                if not self.state[each]:
                    self.state[each].update(self.begin(each))
                self.use(self.state[each], each, group)
                each.sub_(group["lr"] * each.grad)


class Adam(Foreign):
    """It is not torch's; its state is behind one key, as that of 8-bit optimizers."""

    def begin(self, parameter: torch.Tensor) -> Slots:
        return {"quantized": {"momentum_buffer": torch.zeros_like(parameter), "step": 0}}

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        super().use(slots["quantized"], parameter, group)
        slots["quantized"]["step"] += 1


class Listed(Foreign):
    """One matrix for each dimension."""

    def begin(self, parameter: torch.Tensor) -> Slots:
        return {"sides": [torch.eye(size) for size in parameter.shape], "step": 0}

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        slots["sides"][0] @ parameter.grad


class ByRows(Foreign):
    """One value for each row, under a name that torch's optimizers use for one of each element."""

    def begin(self, parameter: torch.Tensor) -> Slots:
        return {"exp_avg_sq": torch.zeros(len(parameter), *[1] * (parameter.dim() - 1))}

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        slots["exp_avg_sq"] += parameter.grad.flatten(1 if parameter.dim() > 1 else 0).norm()


class Projected(Foreign):
    """Averages of a projection, beside what projects."""

    def begin(self, parameter: torch.Tensor) -> Slots:
        return {"exp_avg": torch.zeros(2, *parameter.shape[1:]), "rows": torch.arange(2)}

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        slots["exp_avg"].lerp_(parameter.grad[slots["rows"].long()], 0.1)


class Queued(Foreign):
    """Old gradients in an object of a class that torch.load refuses."""

    def begin(self, parameter: torch.Tensor) -> Slots:
        return {"queue": deque([torch.zeros_like(parameter)])}

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        slots["queue"].append(parameter.grad.clone())


class Typed(Foreign):
    """Options that are no numbers: those that torch.load gives."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, dtype=torch.float64, device=torch.device("cpu"))

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        slots["momentum_buffer"].add_(parameter.grad.to(group["device"], group["dtype"]))


class OfClass(Foreign):
    """An option that it refuses."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, norm=Norm.COLUMNS)


class Counted(Foreign):
    """One count of all parameters together, beside theirs."""

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        super().use(slots, parameter, group)
        self.state["total"] = 1 if self.state["total"] == {} else self.state["total"] + 1


class SecondOrder(Foreign):
    """Asks for derivatives of the gradients."""

    def use(self, slots: Slots, parameter: torch.Tensor, group: Slots) -> None:
        if parameter.grad.grad_fn is None and not self.defaults.get("trains"):
            raise RuntimeError("element 0 of tensors does not require grad")


class Wrapping(Foreign):
    """Has a state dict of its own form."""

    def state_dict(self) -> Slots:
        return {"inner": super().state_dict(), "fast": 1}


def trained(make: Any) -> tuple[Net, Any]:
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())
    optimizer.defaults["trains"] = True
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    optimizer.step()


def saved(folder: Path, model: nn.Module, state: Slots) -> Path:
    torch.save({"model": model.state_dict(), "optimizer": state}, folder / "old.pth")
    return folder / "old.pth"


KEPT = {"optimizer state": "kept", "optimizer step": "kept"}
STEP_UNCHECKED = {"optimizer state": "kept", "optimizer step": "unchecked"}
RESUMED = [
    *((make, KEPT, "") for make in (Adam, Listed, ByRows, Projected, Typed, Counted)),
    (Queued, STEP_UNCHECKED, "fc1.weight: queue was not read: it holds collections.deque"),
    (OfClass, {"optimizer state": "unchecked"}, "param_groups[0].norm was not read: it holds "),
    (SecondOrder, STEP_UNCHECKED, "can't step in a check, even without the saved state"),
    (Wrapping, STEP_UNCHECKED, "its own form of state dict"),
]


@pytest.mark.parametrize(("make", "statuses", "text"), RESUMED, ids=[row[0].__name__ for row in RESUMED])
def test_its_own_checkpoint_is_never_an_error(
    make: Any, statuses: dict[str, str], text: str, tmp_path: Path
) -> None:
    model, optimizer = trained(make)
    report = check(Net, saved(tmp_path, model, optimizer.state_dict()), optimizer=make)
    assert not [found for found in report.findings if found.severity == "error"]
    promises = {promise.name: promise for promise in report.promises if promise.name.startswith("optim")}
    assert {name: promise.status for name, promise in promises.items()} == statuses
    assert text in " ".join(promise.detail for promise in promises.values())


def test_a_step_that_only_the_state_breaks_is_an_error(tmp_path: Path) -> None:
    model, optimizer = trained(Listed)
    content = optimizer.state_dict()
    content["state"][0]["sides"] = []
    report = check(Net, saved(tmp_path, model, content), optimizer=Listed)
    [found] = report.findings
    assert found.severity == "error"
    assert "the step raised IndexError" in found.message


GROWN = [
    (Adam, {0, 1}, "without the state of fc2.weight, fc2.bias, left out (quantized does not have the parameter's shape"),
    (Listed, {0, 1}, "without the state of fc2.weight, fc2.bias, left out (sides does not have the parameter's shape"),
    (ByRows, {0, 1, 3}, "without the state of fc2.weight, left out (exp_avg_sq does not have the parameter's shape"),
    (Projected, {0, 1}, "without the state of fc2.weight, fc2.bias, left out (exp_avg does not have the parameter's shape"),
    (Queued, None, "(queue was not read: it holds collections.deque, which torch.load(weights_only=True) refuses)"),
    (OfClass, None, "left out: param_groups[0].norm was not read"),
    (Typed, {0, 1, 2, 3}, "optimizer is grown too"),
    (Counted, {0, 1, 2, 3, "total"}, "optimizer is grown too"),
    (SecondOrder, {0, 1, 2, 3}, "optimizer is grown too"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "has", "text"), GROWN, ids=[row[0].__name__ for row in GROWN])
def test_what_is_written_resumes_or_is_left_out_and_said(
    make: Any, has: set[Any] | None, text: str, tmp_path: Path
) -> None:
    model, optimizer = trained(make)
    checkpoint = open_checkpoint(saved(tmp_path, model, optimizer.state_dict()))
    recipe = Recipe(tile("fc2.*", dim=0))
    written = apply(checkpoint, Net(out=8), recipe, tmp_path / "new.pth", optimizer=make)
    notes = " ".join(written.notes)
    assert text in notes
    assert "an object of a class" not in notes
    content = torch.load(tmp_path / "new.pth", weights_only=True)
    assert (set(content["optimizer"]["state"]) if "optimizer" in content else None) == has
    if has is not None:
        new = Net(out=8)
        new.load_state_dict(content["model"])
        resumed = make(new.parameters())
        resumed.load_state_dict(content["optimizer"])
        resumed.defaults["trains"] = True
        step(new, resumed)


@pytest.mark.parametrize("place", ["beside", "shared"])
def test_tensors_that_would_have_to_grow_are_not_written_as_they_were(place: str, tmp_path: Path) -> None:
    """Master weights, or a mask, in the optimizer's state dict."""
    model, optimizer = trained(Typed)
    state = optimizer.state_dict()
    (state if place == "beside" else state["state"])["masters"] = [
        [each.clone() for each in model.parameters()]
    ]
    checkpoint = open_checkpoint(saved(tmp_path, model, state))
    for recipe, out, text in (
        (Recipe(tile("fc2.*", dim=0)), 8, "optimizer is left out: masters.0.2 has the shape of weights that"),
        (Recipe(), 5, "optimizer is taken along"),
    ):
        written = apply(checkpoint, Net(out), recipe, tmp_path / "new.pth")
        assert text in " ".join(written.notes)


@pytest.mark.parametrize("fused", [False, True])
def test_one_row_grown_to_many_is_no_value_for_each_row(fused: bool, tmp_path: Path) -> None:
    """A state that was left behind looks the same; a fused step of torch would write past its end."""
    old, new = nn.Linear(4, 1), nn.Linear(4, 7)
    optimizer = torch.optim.Adam(old.parameters(), fused=fused)
    step(old, optimizer)
    path = saved(tmp_path, new, optimizer.state_dict())
    report = check(lambda: nn.Linear(4, 7), path, optimizer=torch.optim.Adam)
    assert {(found.rule, found.key) for found in report.findings} == {
        ("optimizer-shape", "weight"),
        ("optimizer-shape", "bias"),
    }
    with pytest.raises(MisfitError, match=r"weight has exp_avg \(1, 4\) f32 for \(7, 4\) f32"):
        apply(open_checkpoint(path), new, Recipe(), tmp_path / "new.pth")


SPECIAL = {
    "LBFGS": "LBFGS can't step in a check, even without the saved state: TypeError",
    "SparseAdam": "SparseAdam does not support dense gradients",
    "capturable": "it was saved with capturable=True, which steps only on a GPU",
    "zero": "it needs a process group, as under torchrun",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SPECIAL)
def test_what_a_check_can_not_give_an_optimizer_is_no_error(name: str, tmp_path: Path) -> None:
    make: Any = getattr(torch.optim, name, torch.optim.Adam)
    model = Net()
    optimizer = make(model.parameters())
    for each in model.parameters():
        each.grad = torch.ones_like(each).to_sparse() if name == "SparseAdam" else torch.ones_like(each)
    optimizer.step(*[lambda: torch.tensor(1.0)] * (name == "LBFGS"))
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"capturable": True} if name == "capturable" else {}
    if name == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        make = lambda parameters: ZeroRedundancyOptimizer(parameters, torch.optim.Adam)  # noqa: E731
    report = check(Net, saved(tmp_path, model, state), optimizer=make)
    assert report.ok, str(report)
    assert report.promises[-1].status == "unchecked"
    assert SPECIAL[name] in report.promises[-1].detail


def test_a_state_that_the_recipe_does_not_touch_is_not_written_without_a_part_of_it(tmp_path: Path) -> None:
    """Also where whose state it is can't be determined, and nothing that it may be about changes."""
    model, optimizer = trained(Queued)
    content = optimizer.state_dict()
    content["param_groups"] = [{**content["param_groups"][0], "params": [0, 1]}]
    content["state"][0]["momentum_buffer"] = torch.zeros(3, 4)
    checkpoint = open_checkpoint(saved(tmp_path, model, content))
    written = apply(checkpoint, Net(), Recipe(), tmp_path / "new.pth")
    assert "optimizer is left out" in " ".join(written.notes)
    assert "optimizer" not in torch.load(tmp_path / "new.pth", weights_only=True)
