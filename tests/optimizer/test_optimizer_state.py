from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Boxes, Words
from torch import nn

from pytest_ckptcompat.optimizer.naming import Evidence, naming
from pytest_ckptcompat.optimizer.slots import ELEMENTWISE, NONNEGATIVE
from pytest_ckptcompat.optimizer.state import Saved, misfits, saved_states


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def nameless(state: dict[str, Any]) -> dict[str, Any]:
    for group in state["param_groups"]:
        group.pop("param_names", None)
    return state


def one(state: dict[str, Any]) -> Saved:
    [saved] = saved_states({"optimizer": state})
    return saved


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        (lambda state: {"model": {}, "optimizer": state}, "optimizer"),
        (lambda state: {"epoch": 3, "optimizer_state_dict": state}, "optimizer_state_dict"),
        (lambda state: {"optimizer_states": [state], "lr_schedulers": [{}]}, "optimizer_states[0]"),
        (lambda state: {"optim": state}, "optim"),
        (lambda state: {"trainer": {"engines": [{"inner": state}]}}, "trainer.engines[0].inner"),
        (lambda state: state, ""),
    ],
)
def test_every_layout_is_found_by_its_form(layout: Any, path: str) -> None:
    model = Boxes()
    state = trained(model, torch.optim.Adam(model.parameters()))
    [saved] = saved_states(layout(state))
    assert saved.path == path
    assert saved.lengths == [len(names(model))]
    assert saved.state[0]["exp_avg"] is state["state"][0]["exp_avg"]
    assert saved.groups[0].options["betas"] == (0.9, 0.999)
    assert "params" not in saved.groups[0].options


def test_the_usual_place_comes_first() -> None:
    model = Boxes()
    state = trained(model, torch.optim.SGD(model.parameters(), lr=0.1))
    found = saved_states({"discriminator": {"optimizer": state}, "optim": state, "optimizer": state})
    assert [saved.path for saved in found] == ["optimizer", "optim", "discriminator.optimizer"]


@pytest.mark.parametrize(
    "wrapper",
    [
        {},
        None,
        {"optimizer": None},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"optimizer": {"state": [], "param_groups": [{"params": [0]}]}},
        {"optimizer": {"state": {}, "param_groups": [{"params": [[0]]}]}},
        {"scheduler": {"state": {"x": 1}, "last_epoch": 3}},
        {"a": {"b": {"c": {"d": {"e": {"state": {}, "param_groups": [{"params": [0]}]}}}}}},
    ],
)
def test_what_is_no_optimizer_state_is_left(wrapper: Any) -> None:
    assert saved_states(wrapper) == []


def test_deep_and_wide_wrappers_end() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"x": deep}
    assert saved_states({"deep": deep, "wide": [[]] * 1_000_000}) == []


def test_names_in_the_file_win() -> None:
    model = Boxes()
    state = trained(model, torch.optim.Adam(reversed(list(model.named_parameters()))))
    saved = one(state)
    assert list(saved.groups[0].names) == names(model)[::-1]
    found = naming(saved, Evidence({"source_model": [names(model)]}, shapes(model)))
    assert found == [names(model)[::-1]]
    assert not misfits(saved.named(found), shapes(model))


def test_ids_may_be_names() -> None:
    """As torch.distributed.checkpoint writes optimizer state."""
    state = {"state": {"a": {"step": 1}}, "param_groups": [{"params": ["a", "b"], "lr": 0.1}]}
    saved = one(state)
    assert naming(saved, Evidence({}, {"a": (1,), "b": (2,)})) == [["a", "b"]]
    assert saved.named([["a", "b"]]) == {"a": {"step": 1}}


def test_numbers_are_named_by_group() -> None:
    model = Boxes()
    weights = [name for name, each in model.named_parameters() if each.dim() > 1]
    others = [name for name, each in model.named_parameters() if each.dim() <= 1]
    parameters = dict(model.named_parameters())
    groups = [{"params": [parameters[name] for name in group]} for group in (others, weights)]
    saved = one(nameless(trained(model, torch.optim.AdamW(groups))))
    found = naming(saved, Evidence({"source_model": [others, weights]}, shapes(model)))
    state = saved.named(found)
    assert list(state) == [*others, *weights]
    assert all(state[name]["exp_avg"].shape == parameters[name].shape for name in state)


def test_of_two_candidates_the_one_whose_shapes_fit_is_taken() -> None:
    model = Boxes()
    order = names(model)
    saved = one(nameless(trained(model, torch.optim.Adam(list(model.parameters())[::-1]))))
    candidates = {"source_model": [order], "the new model": [order[::-1]]}
    assert naming(saved, Evidence(candidates, shapes(model))) == [order[::-1]]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_wrapper_s_prefix_is_no_obstacle(prefix: str) -> None:
    model = Words()
    wrapped = {prefix + key: shape for key, shape in shapes(model).items()}
    saved = one(nameless(trained(model, torch.optim.Adam(model.parameters()))))
    expected = [[prefix + name for name in names(model)]]
    assert naming(saved, Evidence({"source_model": [names(model)]}, wrapped)) == expected
    assert naming(saved, Evidence({"source_model": expected}, shapes(model))) == [names(model)]
    mixed = {"module." + key: shape for key, shape in shapes(model).items()}
    assert naming(saved, Evidence({"source_model": expected}, mixed)) == [
        ["module." + name for name in names(model)]
    ]


def test_what_can_not_be_told_says_what_to_do() -> None:
    model = Boxes()
    saved = one(nameless(trained(model, torch.optim.Adam(model.parameters()))))
    short = {"source_model": [["conv1.0.weight", "conv1.0.bias"], ["fc.0.weight"]]}
    text = r"optimizer has 19 parameters.*\(source_model gives 2 \+ 1\): give source_model="
    with pytest.raises(LookupError, match=text):
        naming(saved, Evidence(short, shapes(model)))
    with pytest.raises(LookupError, match="named_parameters"):
        naming(saved, Evidence({}, shapes(model), given=["optimizer", "source_model"]))
    other = {key: (7, *shape) for key, shape in shapes(model).items()}
    with pytest.raises(LookupError, match="can't be determined"):
        naming(saved, Evidence({"the new model": [names(model)]}, other))


def test_misfits_are_elementwise_slots_of_another_shape() -> None:
    state = {
        "a": {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(3)},
        "b": {"row_var": torch.zeros(3, 1), "momentum_buffer": None},
    }
    assert misfits(state, {"a": (4,), "b": (3, 2)}) == [("a", "exp_avg_sq")]


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.Adam(p, amsgrad=True),
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.ASGD,
    torch.optim.Rprop,
    lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_slots_of_torch_s_optimizers_are_known(make: Any) -> None:
    parameter = nn.Parameter(torch.randn(4, 3))
    optimizer = make([parameter])
    for _ in range(3):
        parameter.grad = torch.randn(4, 3)
        optimizer.step()
    for slot, value in optimizer.state_dict()["state"][0].items():
        assert (slot in ELEMENTWISE) == (value.shape == parameter.shape), slot
        if slot in NONNEGATIVE:
            assert (value >= 0).all()
