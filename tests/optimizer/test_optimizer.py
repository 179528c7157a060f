from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Words, settle
from torch import nn
from trainings import FACTORIES, decay_by_rank, training

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.optimizer.growth import Grown
from pytest_ckptcompat.optimizer.resumption import Training
from pytest_ckptcompat.optimizer.stage import judged as judge_training

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.core.findings import Finding, Promise

    Factory = Callable[[Any], torch.optim.Optimizer]


def grown(
    state: Mapping[str, Any], keys: tuple[str, ...], rows: int, fill: Callable[..., torch.Tensor]
) -> dict[str, Any]:
    """The state dict with more rows of `keys`."""
    state = OrderedDict(state)
    for key in keys:
        more = fill(rows - state[key].shape[0], *state[key].shape[1:])
        state[key] = torch.cat([state[key], more])
    return state


def grow_moments(keys: tuple[str, ...], rows: int) -> Callable[[Any], Any]:
    def grow(state: Mapping[str, Mapping[str, Any]]) -> Any:
        return {
            name: {
                slot: torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])])
                if name in keys and isinstance(value, torch.Tensor) and value.dim()
                else value
                for slot, value in slots.items()
            }
            for name, slots in state.items()
        }

    return grow


HEAD = ("out2.weight", "out2.bias")


def judge(
    factory: Factory,
    wrapper: Any,
    materialise: Callable[[Any], torch.Tensor],
    grow: Callable[[Any], Any],
    origin: Mapping[str, str | None],
    **models: Any,
) -> tuple[list[Promise], list[Finding]]:
    sources = {key: (old,) for key, old in origin.items() if old is not None}
    training = Training(lambda state: Grown(grow(state)), origin, sources=sources, **models)
    return judge_training(factory, wrapper, materialise, training)


def judged(
    factory: Factory,
    saved: dict[str, Any],
    *,
    rows: int = 14,
    grow: Callable[[Any], Any] | None = None,
    origin: Mapping[str, str | None] | None = None,
    source: nn.Module | None = None,
) -> tuple[list[Promise], list[Finding]]:
    """The story's case: a head of 4 outputs grown to 14, and its optimizer state with it."""
    state = (
        grown(saved["model"], HEAD, rows, torch.randn)
        if rows > saved["model"]["out2.bias"].shape[0]
        else saved["model"]
    )
    model = Boxes(rows)
    model.load_state_dict(state)
    before = copy.deepcopy(model.state_dict())
    result = judge(
        factory,
        wrapper=saved,
        materialise=torch.clone,
        old=saved["model"],
        grow=grow or grow_moments(HEAD, rows),
        origin=origin or {key: key for key in state},
        model=model,
        source=source,
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    return result


def statuses(promises: list[Promise]) -> dict[str, str]:
    return {promise.name: promise.status for promise in promises}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_grown_state_takes_one_step(factory: Factory) -> None:
    promises, findings = judged(factory, training(settle(Boxes()), factory), source=Boxes())
    assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "kept"}
    assert promises[0].detail.endswith(": 19 of 19 by name, old rows of 2 kept")
    assert findings == []


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
@pytest.mark.parametrize("source", [None, Boxes(), Boxes(14)], ids=["alone", "old", "new"])
def test_state_of_the_old_shape_is_reported_and_never_reaches_torch(
    factory: Factory, source: nn.Module | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights were grown by hand and the state was left as it was: `fused` would write past its end."""
    monkeypatch.setattr(torch.optim.Optimizer, "load_state_dict", lambda *args: pytest.fail("loaded"))
    saved = training(settle(Boxes()), factory)
    saved["model"] = grown(saved["model"], HEAD, 14, torch.randn)
    promises, findings = judged(factory, saved, grow=lambda state: state, source=source)
    assert statuses(promises) == {"optimizer state": "broken"}
    assert {found.rule for found in findings} == {"optimizer-shape"}
    assert {found.key for found in findings} == set(HEAD)
    [weight] = [found for found in findings if found.key == "out2.weight"][:1]
    assert weight.checkpoint.endswith(" (4, 8) f32")
    assert weight.model == "(14, 8) f32"


def test_state_that_the_recipe_forgot_to_grow_is_caught_before_the_step() -> None:
    saved = training(settle(Boxes()), FACTORIES["fused"])
    promises, findings = judged(FACTORIES["fused"], saved, grow=grow_moments(("out2.weight",), 14))
    assert statuses(promises) == {"optimizer state": "broken"}
    assert {(found.rule, found.key) for found in findings} == {("optimizer-shape", "out2.bias")}
    assert promises[0].detail == "out2.bias: exp_avg (4,) f32 and 1 more"


@pytest.mark.parametrize(
    ("slot", "value", "text"),
    [
        ("exp_avg", float("nan"), "exp_avg has 1 values that are NaN or infinite"),
        ("exp_avg_sq", float("inf"), "exp_avg_sq has 1 values that are NaN or infinite"),
        ("exp_avg_sq", -0.5, "exp_avg_sq is negative, down to -0.5"),
        ("step", -1.0, "step is negative, down to -1"),
    ],
)
def test_values_that_no_training_leaves_are_caught(slot: str, value: float, text: str) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    number = 7
    saved["optimizer"]["state"][number][slot].view(-1)[0] = value
    promises, [found] = judged(torch.optim.Adam, saved)
    name = [name for name, _ in Boxes().named_parameters()][number]
    assert (found.rule, found.key, found.message) == ("optimizer-value", name, text)
    assert statuses(promises) == {"optimizer state": "broken"}


def test_a_step_that_is_no_number_is_caught() -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    saved["optimizer"]["state"][0]["step"] = torch.ones(6)
    _, [found] = judged(torch.optim.Adam, saved)
    assert found.message == "step is (6,) f32, not a number"


def test_no_state_is_a_warning() -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    del saved["optimizer"]
    [promise], [found] = judged(torch.optim.Adam, saved)
    assert (promise.name, promise.status) == ("optimizer state", "unchecked")
    assert (found.rule, found.severity) == ("optimizer-missing", "warn")


@pytest.mark.parametrize("source", [None, Boxes()], ids=["alone", "old"])
def test_groups_are_named_in_their_order(source: nn.Module | None) -> None:
    """Numbers run through the groups, so position says nothing: 7 is another parameter in every grouping."""
    saved = training(settle(Boxes()), decay_by_rank)
    saved["optimizer"]["state"][0]["exp_avg"][0] = float("nan")
    last = max(saved["optimizer"]["state"])
    saved["optimizer"]["state"][last]["exp_avg_sq"][0, 0] = -1
    promises, findings = judged(decay_by_rank, saved, source=source)
    assert [found.key for found in findings] == ["conv1.0.bias", "out2.weight"]
    assert statuses(promises) == {"optimizer state": "broken"}


def test_frozen_parameters_have_no_number() -> None:
    def head_alone(named: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam([each for name, each in named if name.startswith("out")])

    model = settle(Boxes())
    saved = training(model, lambda p: torch.optim.Adam(list(p)[-4:]))
    promises, findings = judged(head_alone, saved)
    assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "kept"}
    assert promises[0].detail.endswith("4 of 4 by name, old rows of 2 kept")
    assert findings == []


def test_names_that_changed_are_followed() -> None:
    class Renamed(Boxes):
        def __init__(self) -> None:
            super().__init__()
            self.landmarks = self.out2
            del self.out2

    saved = training(settle(Boxes()), torch.optim.Adam)

    def new_name(key: str) -> str:
        return key.replace("out2", "landmarks")

    model = Renamed()
    model.load_state_dict({new_name(key): value for key, value in saved["model"].items()})
    promises, findings = judge(
        torch.optim.Adam,
        wrapper=saved,
        materialise=torch.clone,
        old=saved["model"],
        grow=lambda state: {new_name(name): slots for name, slots in state.items()},
        origin={new_name(key): key for key in saved["model"]},
        model=model,
    )
    assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "kept"}
    assert findings == []


def test_a_tied_parameter_has_one_state() -> None:
    saved = training(settle(Words()), torch.optim.AdamW)
    model = Words()
    model.load_state_dict(saved["model"])
    for source in (None, Words()):
        promises, findings = judge(
            torch.optim.AdamW, wrapper=saved, materialise=torch.clone, old=saved["model"],
            grow=lambda state: state, origin={key: key for key in saved["model"]}, model=model, source=source,
        )  # fmt: skip
        assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "kept"}
        assert findings == []


def test_what_the_file_names_itself_needs_no_source() -> None:
    model = settle(Boxes())
    optimizer = torch.optim.Adam(list(model.named_parameters())[::-1])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    promises, findings = judged(torch.optim.Adam, saved)
    assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "kept"}
    assert [(found.rule, found.severity) for found in findings] == [("optimizer-error", "warn")]
    assert "goes by position" in findings[0].message


def test_whose_state_it_is_must_be_told() -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    saved["optimizer"]["param_groups"][0]["params"].pop()
    [promise], [found] = judged(torch.optim.Adam, saved, source=Boxes())
    assert promise.status == "unchecked"
    assert found.rule == "optimizer-error"
    assert "optimizer has 18 parameters" in found.message
    assert "source_model gives 19" in found.message


def test_of_several_states_the_one_that_fits_is_taken() -> None:
    """A generator and its discriminator, as Lightning keeps them."""
    other = training(nn.Linear(2, 3), torch.optim.Adam)["optimizer"]
    saved = training(settle(Boxes()), torch.optim.Adam)
    state = saved.pop("optimizer")
    assert (
        statuses(judged(torch.optim.Adam, {**saved, "optimizer_states": [other, state]})[0])["optimizer step"]
        == "kept"
    )
    [promise], [found] = judged(torch.optim.Adam, {**saved, "optimizer_states": [state, state]})
    assert promise.detail == "which parameter each state belongs to can't be determined"
    assert found.message.startswith("optimizer_states[0] and optimizer_states[1] both fit")
    assert found.rule == "optimizer-error"
    assert (
        statuses(judged(torch.optim.Adam, {**saved, "optimizer": state, "ema_optimizer": state})[0])[
            "optimizer step"
        ]
        == "kept"
    )


@pytest.mark.parametrize(
    ("then", "now", "reason"),
    [
        ("sgd", torch.optim.Adam, "momentum_buffer is not the state of Adam"),
        ("adam", torch.optim.SGD, "exp_avg, exp_avg_sq is not the state of SGD"),
        ("adam", torch.optim.RMSprop, "exp_avg, exp_avg_sq is not the state of RMSprop"),
    ],
)
def test_another_kind_of_optimizer_is_a_choice_and_said(then: str, now: Any, reason: str) -> None:
    saved = training(settle(Boxes()), FACTORIES[then])
    [promise], [found] = judged(now, saved)
    assert (promise.status, promise.detail) == ("unchecked", reason)
    assert (found.rule, found.severity) == ("optimizer-error", "warn")
    assert found.message.startswith(f"{reason}: start it anew;")


def test_state_that_lacks_a_part_for_one_parameter_is_caught() -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    del saved["optimizer"]["state"][3]["exp_avg_sq"]
    _, [found] = judged(torch.optim.Adam, saved)
    assert (found.rule, found.message) == ("optimizer-error", "its state lacks exp_avg_sq")


def test_sgd_without_momentum_has_no_state_and_steps() -> None:
    plain = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    promises, findings = judged(plain, training(settle(Boxes()), plain))
    assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "kept"}
    assert findings == []


def test_an_optimizer_that_can_not_be_made_is_said() -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    promises, [found] = judged(lambda p: torch.optim.Adam(p, lr=-1.0), saved)
    assert statuses(promises) == {"optimizer step": "broken"}
    assert found.rule == "optimizer-error"
    assert "Invalid learning rate: -1.0" in found.message


def test_state_of_unknown_form_passes_where_nothing_grew_and_is_caught_where_it_did() -> None:
    if not hasattr(torch.optim, "Adafactor"):
        pytest.skip("this torch has no Adafactor")
    saved = training(settle(Boxes()), torch.optim.Adafactor)
    promises, findings = judged(torch.optim.Adafactor, saved, rows=4, grow=lambda state: state)
    assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "kept"}
    assert findings == []
    promises, findings = judged(torch.optim.Adafactor, saved, grow=lambda state: state)
    assert statuses(promises) == {"optimizer state": "broken"}
    assert {found.key for found in findings} == set(HEAD)


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    monkeypatch.setattr(memory, "free", lambda: 100)
    [promise], findings = judged(torch.optim.Adam, saved)
    assert (promise.status, findings) == ("unchecked", [])
    assert promise.detail.endswith("100 B are free")
