from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Boxes
from torch import nn
from trainings import FACTORIES, decay_by_rank

from pytest_ckptcompat.optimizer.faults import restart
from pytest_ckptcompat.optimizer.trial import OptimizerError, ghosts, made, step


def parameters() -> dict[str, nn.Parameter]:
    return dict(Boxes().named_parameters())


def copied(ours: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(each.detach().clone()) for name, each in ours.items()}


def test_ghosts_have_shape_and_no_memory() -> None:
    real = {"w": torch.empty(100_000, 100_000, dtype=torch.bfloat16, device="meta"), "n": torch.zeros(3)}
    found = ghosts(real)
    assert found["w"].shape == (100_000, 100_000)
    assert found["w"].dtype == torch.bfloat16
    assert found["w"].untyped_storage().nbytes() == 2
    assert all(each.device.type == "cpu" and each.is_leaf for each in found.values())


def decay_by_name(named: Any) -> torch.optim.Optimizer:
    named = list(named)
    return torch.optim.AdamW([
        {"params": [each for name, each in named if name.endswith("bias")], "weight_decay": 0},
        {"params": [each for name, each in named if not name.endswith("bias")]},
    ])  # fmt: skip


def test_names_where_the_factory_takes_them_and_else_parameters() -> None:
    ours = ghosts(parameters())
    _, groups = made(decay_by_name, ours)
    assert groups[0] == [name for name in ours if name.endswith("bias")]
    _, groups = made(decay_by_rank, ours)
    assert groups == [
        [name for name, each in ours.items() if (each.ndim > 1) is large] for large in (False, True)
    ]
    optimizer, [group] = made(torch.optim.Adam, ours)
    assert group == list(ours)
    assert optimizer.param_groups[0]["param_names"] == list(ours)


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lambda p: torch.optim.Adam(p, lr=-1), "Invalid learning rate: -1"),
        (lambda p: torch.optim.SGD([each for each in p if each.ndim > 7]), "empty parameter list"),
        (lambda p: 1 / 0, "ZeroDivisionError"),
        (lambda p: None, "gave NoneType, not a torch.optim.Optimizer"),
        (lambda p: torch.optim.Adam([nn.Parameter(torch.zeros(3))]), "not the model's parameters"),
    ],
)
def test_factories_that_fail_say_why(factory: Any, text: str) -> None:
    with pytest.raises(OptimizerError, match=text):
        made(factory, ghosts(parameters()))


def trained(factory: Any, ours: dict[str, nn.Parameter]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three steps; the state by name, and the groups' options."""
    optimizer, groups = made(factory, ours)
    for seed in range(3):
        torch.manual_seed(seed)
        for each in ours.values():
            each.grad = torch.randn_like(each)
        optimizer.step()
    names = [name for group in groups for name in group]
    saved = optimizer.state_dict()
    beside = ("params", "param_names")
    options = [{k: v for k, v in group.items() if k not in beside} for group in saved["param_groups"]]
    return {names[number]: slots for number, slots in saved["state"].items()}, options


@pytest.mark.parametrize("factory", [*FACTORIES.values(), decay_by_name, decay_by_rank])
def test_a_state_that_fits_takes_its_step(factory: Any) -> None:
    ours = parameters()
    state, options = trained(factory, ours)
    before, copies = copied(ours), copied(ours)
    step(factory, copies, state, options)
    assert all(torch.equal(before[name], each) for name, each in ours.items())
    assert all(not torch.equal(before[name], each) for name, each in copies.items())


def test_the_state_goes_to_its_name_whatever_the_order() -> None:
    ours = parameters()
    state, options = trained(torch.optim.Adam, ours)
    copies = copied(ours)
    made_here = []

    def backwards(named: Any) -> torch.optim.Optimizer:
        made_here.append(torch.optim.Adam(list(named)[::-1]))
        return made_here[0]

    expected = {name: 0.9 * slots["exp_avg"] for name, slots in state.items()}
    step(backwards, copies, state, options)
    for name, each in copies.items():
        assert torch.allclose(made_here[0].state[each]["exp_avg"], expected[name] + 0.1 * each.grad)
        assert made_here[0].state[each]["step"] == 4


def test_saved_options_go_on_and_further_ones_are_the_new_optimizer_s() -> None:
    ours = parameters()
    state, [options] = trained(lambda p: torch.optim.Adam(p, lr=0.5, betas=(0.8, 0.9)), ours)
    for younger in ("fused", "decoupled_weight_decay"):
        options.pop(younger, None)  # as an older torch wrote them
    options["initial_lr"] = 0.25
    made_here = []

    def factory(named: Any) -> torch.optim.Optimizer:
        made_here.append(torch.optim.Adam(named, lr=0.1, fused=True))
        return made_here[0]

    step(factory, copied(ours), state, [options])
    [group] = made_here[0].param_groups
    assert (group["lr"], group["betas"], group["initial_lr"], group["fused"]) == (0.5, (0.8, 0.9), 0.25, True)


def test_a_step_that_raises_or_leaves_nan_is_an_error() -> None:
    ours = parameters()
    state, options = trained(torch.optim.Adam, ours)
    copies = copied(ours)
    del state["fc.0.weight"]["exp_avg_sq"]
    with pytest.raises(OptimizerError, match="the step raised KeyError: 'exp_avg_sq'"):
        step(lambda p: torch.optim.Adam(p, foreach=False), copies, state, options)
    ours = parameters()
    with pytest.raises(OptimizerError, match=r"the step leaves conv1\.0\.weight not finite"):
        step(lambda p: torch.optim.SGD(p, lr=float("inf")), ours, {}, [])


@pytest.mark.parametrize(("count", "largest"), [(0, 1.0), (1000, 5.2), (1e5, 6.57)])
def test_restart_is_what_adam_does(count: float, largest: float) -> None:
    """torch's own Adam with a constant gradient, moments zero and the step kept."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1.0, eps=1e-30)
    optimizer.state[weight] = {"step": torch.tensor(count), "exp_avg": torch.zeros_like(weight),
                               "exp_avg_sq": torch.zeros_like(weight)}  # fmt: skip
    moves = []
    for _ in range(30):
        before = weight.item()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        moves.append(abs(weight.item() - before))
    assert restart(count, (0.9, 0.999)) == pytest.approx(max(moves), rel=1e-3)
    assert max(moves) == pytest.approx(largest, rel=0.01)


def test_restart_of_betas_that_average_nothing() -> None:
    assert restart(1000, (0.0, 0.999)) == 1.0
