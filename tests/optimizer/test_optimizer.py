from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Words, settle
from torch import nn
from trainings import FACTORIES, decay_by_rank, training

from pytest_ckptcompat import Recipe, append, open_checkpoint, rename, tile
from pytest_ckptcompat.core import memory
from pytest_ckptcompat.optimizer.faults import impossible
from pytest_ckptcompat.optimizer.stage import check_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_ckptcompat.core.findings import Finding, Promise

    Factory = Callable[[Any], torch.optim.Optimizer]
    Judged = Callable[..., tuple[list[Promise], list[Finding]]]

HEAD = {"out2.weight", "out2.bias"}
GROW = Recipe(tile("out2.*", dim=0))
KEPT = {"optimizer state": "kept", "optimizer step": "kept"}


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """The story's case: a head of 4 outputs grown to 14, and the optimizer state in the file with it."""

    def judge(
        factory: Factory,
        saved: dict[str, Any],
        recipe: Recipe = GROW,
        model: nn.Module | None = None,
        source: nn.Module | None = None,
    ) -> tuple[list[Promise], list[Finding]]:
        torch.save(saved, tmp_path / "net.pth")
        ckpt, model = open_checkpoint(tmp_path / "net.pth", "model"), model or Boxes(14)
        model.load_state_dict(recipe.apply(ckpt.stored(), model.state_dict()))
        before = copy.deepcopy(model.state_dict())
        result = check_optimizer(factory, ckpt, recipe, model, source)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        return result

    return judge


def statuses(promises: list[Promise]) -> dict[str, str]:
    return {promise.name: promise.status for promise in promises}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_grown_state_takes_one_step(judged: Judged, factory: Factory) -> None:
    promises, findings = judged(factory, training(settle(Boxes()), factory), source=Boxes())
    kind = type(factory([nn.Parameter(torch.ones(1))])).__name__
    assert statuses(promises) == KEPT
    assert promises[0].detail == f"{kind}: 19 of 19 by name, old rows of 2 kept"
    assert promises[1].detail == f"one step of {kind}, all finite"
    assert findings == []


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
@pytest.mark.parametrize("source", [None, Boxes(), Boxes(14)], ids=["alone", "old", "new"])
def test_state_of_the_old_shape_is_reported_and_never_reaches_torch(
    judged: Judged, factory: Factory, source: nn.Module | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights were grown by hand and the state was left as it was: `fused` would write past its end."""
    monkeypatch.setattr(torch.optim.Optimizer, "load_state_dict", lambda *args: pytest.fail("loaded"))
    saved = training(settle(Boxes()), factory)
    saved["model"] = GROW.apply(saved["model"], Boxes(14).state_dict())
    promises, findings = judged(factory, saved, Recipe(), source=source)
    assert statuses(promises) == {"optimizer state": "broken"}
    assert {found.rule for found in findings} == {"optimizer-shape"}
    assert {found.key for found in findings} == HEAD
    [weight] = [found for found in findings if found.key == "out2.weight"][:1]
    assert weight.checkpoint.endswith(" (4, 8) f32")
    assert weight.model == "(14, 8) f32"


@dataclass(frozen=True, repr=False)
class tile_without_state_of_the_bias(tile):  # noqa: N801
    def plan(self, state: Any, target: Any) -> Any:
        plan = dict(super().plan(state, target))
        [write] = plan["out2.bias"]
        return plan | {"out2.bias": [replace(write, optimizer_transform=lambda squares, value: value)]}


def test_state_that_the_recipe_forgot_to_grow_is_caught_before_the_step(judged: Judged) -> None:
    saved = training(settle(Boxes()), FACTORIES["fused"])
    recipe = Recipe(tile_without_state_of_the_bias("out2.*", dim=0))
    promises, findings = judged(FACTORIES["fused"], saved, recipe)
    assert statuses(promises) == {"optimizer state": "broken"}
    assert {(found.rule, found.key) for found in findings} == {("optimizer-shape", "out2.bias")}
    assert promises[0].detail == "out2.bias: exp_avg (4,) f32 and 1 more"


def test_state_of_another_shape_than_the_old_weights_is_not_grown_into_the_right_one(judged: Judged) -> None:
    """Three rows repeated to fourteen would pass for a state of fourteen rows."""
    saved = training(settle(Boxes()), torch.optim.Adam)
    for slots in list(saved["optimizer"]["state"].values())[-2:]:
        slots["exp_avg"] = slots["exp_avg"][:3]
    [promise], findings = judged(torch.optim.Adam, saved)
    assert promise.status == "broken"
    assert [(found.key, found.checkpoint, found.model) for found in findings] == [
        ("out2.weight", "exp_avg (3, 8) f32", "(4, 8) f32"),
        ("out2.bias", "exp_avg (3,) f32", "(4,) f32"),
    ]


@pytest.mark.parametrize(
    ("slot", "value", "text"),
    [
        ("exp_avg", float("nan"), "exp_avg has 1 values that are NaN or infinite"),
        ("exp_avg_sq", float("inf"), "exp_avg_sq has 1 values that are NaN or infinite"),
        ("exp_avg_sq", -0.5, "exp_avg_sq is negative, down to -0.5"),
        ("step", -1.0, "step is negative, down to -1"),
        ("step", torch.ones(6), "step is (6,) f32, not a number"),
    ],
)
def test_values_that_no_training_leaves_are_caught(
    judged: Judged, slot: str, value: float | torch.Tensor, text: str
) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    number = 7
    if isinstance(value, torch.Tensor):
        saved["optimizer"]["state"][number][slot] = value
    else:
        saved["optimizer"]["state"][number][slot].view(-1)[0] = value
    promises, [found] = judged(torch.optim.Adam, saved)
    name = [name for name, _ in Boxes().named_parameters()][number]
    assert (found.rule, found.key, found.message) == ("optimizer-value", name, text)
    assert statuses(promises) == {"optimizer state": "broken"}


@pytest.mark.parametrize(
    "make",
    [
        torch.Tensor.to_sparse,
        lambda ones: torch.quantize_per_tensor(ones, 1.0, 0, torch.qint8),
        lambda ones: ones.to(torch.uint16),
    ],
    ids=["sparse", "quantized", "unsigned"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_values_whose_sign_torch_does_not_compare_are_no_fault(make: Any) -> None:
    assert impossible({"weight": {"exp_avg_sq": make(torch.ones(2))}}) == []


def test_no_state_is_a_warning(judged: Judged) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    del saved["optimizer"]
    [promise], [found] = judged(torch.optim.Adam, saved)
    assert (promise.name, promise.status) == ("optimizer state", "unchecked")
    assert (found.rule, found.severity) == ("optimizer-missing", "warn")


@pytest.mark.parametrize("source", [None, Boxes()], ids=["alone", "old"])
def test_groups_are_named_in_their_order(judged: Judged, source: nn.Module | None) -> None:
    """Numbers run through the groups, so position says nothing: 7 is another parameter in every grouping."""
    saved = training(settle(Boxes()), decay_by_rank)
    saved["optimizer"]["state"][0]["exp_avg"][0] = float("nan")
    last = max(saved["optimizer"]["state"])
    saved["optimizer"]["state"][last]["exp_avg_sq"][0, 0] = -1
    promises, findings = judged(decay_by_rank, saved, source=source)
    assert [found.key for found in findings] == ["conv1.0.bias", "out2.weight"]
    assert statuses(promises) == {"optimizer state": "broken"}


def test_frozen_parameters_have_no_number(judged: Judged) -> None:
    def head_alone(named: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam([each for name, each in named if name.startswith("out")])

    model = settle(Boxes())
    saved = training(model, lambda p: torch.optim.Adam(list(p)[-4:]))
    promises, findings = judged(head_alone, saved)
    assert statuses(promises) == KEPT
    assert promises[0].detail.endswith("4 of 4 by name, old rows of 2 kept")
    assert findings == []


def test_names_that_changed_are_followed(judged: Judged) -> None:
    class Renamed(Boxes):
        def __init__(self) -> None:
            super().__init__()
            self.landmarks = self.out2
            del self.out2

    saved = training(settle(Boxes()), torch.optim.Adam)
    recipe = Recipe(rename("out2.*", "landmarks.*"))
    promises, findings = judged(torch.optim.Adam, saved, recipe, Renamed())
    assert statuses(promises) == KEPT
    assert findings == []


@pytest.mark.parametrize("source", [None, Words()], ids=["alone", "old"])
@pytest.mark.parametrize(
    ("recipe", "words", "rows"),
    [(Recipe(), 11, ""), (Recipe(append("embed.weight", dim=0, init="mean")), 15, ", old rows of 1 kept")],
    ids=["as it is", "grown"],
)
def test_a_tied_parameter_has_one_state(
    judged: Judged, recipe: Recipe, words: int, rows: str, source: nn.Module | None
) -> None:
    saved = training(settle(Words()), torch.optim.AdamW)
    promises, findings = judged(torch.optim.AdamW, saved, recipe, Words(words), source)
    assert statuses(promises) == KEPT
    assert promises[0].detail == f"AdamW: 16 of 16 by name{rows}"
    assert findings == []


def test_what_the_file_names_itself_needs_no_source(judged: Judged) -> None:
    model = settle(Boxes())
    optimizer = torch.optim.Adam(list(model.named_parameters())[::-1])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    promises, findings = judged(torch.optim.Adam, saved)
    assert statuses(promises) == KEPT
    assert [(found.rule, found.severity) for found in findings] == [("optimizer-error", "warn")]
    assert "goes by position" in findings[0].message


def test_whose_state_it_is_must_be_told(judged: Judged) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    saved["optimizer"]["param_groups"][0]["params"].pop()
    [promise], [found] = judged(torch.optim.Adam, saved, source=Boxes())
    assert promise.status == "unchecked"
    assert found.rule == "optimizer-error"
    assert "optimizer has 18 parameters" in found.message
    assert "source_model gives 19" in found.message


def test_of_several_states_the_one_that_fits_is_taken(judged: Judged) -> None:
    """A generator and its discriminator, as Lightning keeps them."""
    other = training(nn.Linear(2, 3), torch.optim.Adam)["optimizer"]
    saved = training(settle(Boxes()), torch.optim.Adam)
    state = saved.pop("optimizer")
    for found in ({"optimizer_states": [other, state]}, {"optimizer": state, "ema_optimizer": state}):
        promises, _ = judged(torch.optim.Adam, {**saved, **found})
        assert statuses(promises) == KEPT
    [promise], [finding] = judged(torch.optim.Adam, {**saved, "optimizer_states": [state, state]})
    assert promise.detail == "which parameter each state belongs to can't be determined"
    assert finding.message.startswith("optimizer_states[0] and optimizer_states[1] both fit")
    assert finding.rule == "optimizer-error"


@pytest.mark.parametrize(
    ("then", "now", "reason"),
    [
        ("sgd", torch.optim.Adam, "momentum_buffer is not the state of Adam"),
        ("adam", torch.optim.SGD, "exp_avg, exp_avg_sq is not the state of SGD"),
        ("adam", torch.optim.RMSprop, "exp_avg, exp_avg_sq is not the state of RMSprop"),
    ],
)
def test_another_kind_of_optimizer_is_a_choice_and_said(
    judged: Judged, then: str, now: Any, reason: str
) -> None:
    saved = training(settle(Boxes()), FACTORIES[then])
    [promise], [found] = judged(now, saved)
    assert (promise.status, promise.detail) == ("unchecked", reason)
    assert (found.rule, found.severity) == ("optimizer-error", "warn")
    assert found.message.startswith(f"{reason}: start with new state,")


def test_state_that_lacks_a_part_for_one_parameter_is_caught(judged: Judged) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    del saved["optimizer"]["state"][3]["exp_avg_sq"]
    _, [found] = judged(torch.optim.Adam, saved)
    assert (found.rule, found.message) == ("optimizer-error", "its state lacks exp_avg_sq")


def test_weights_that_were_saved_as_integers_have_state_too(judged: Judged) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    saved["model"]["fc.0.weight"] = saved["model"]["fc.0.weight"].to(torch.int8)
    promises, findings = judged(torch.optim.Adam, saved, Recipe(), Boxes())
    assert statuses(promises) == KEPT
    assert findings == []


class Spectral(nn.Module):
    """Complex weights, and frozen ones of one byte."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 3, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.ones(outputs, 3).to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "rmsprop", "adagrad", "sgd"])
def test_complex_weights_have_state_in_two_parts(judged: Judged, name: str) -> None:
    torch.manual_seed(0)
    model = Spectral(4)
    optimizer = FACTORIES[name]([model.weight])
    for _ in range(2):
        model.weight.grad = torch.randn_like(model.weight)
        optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def trainable(named: Any) -> torch.optim.Optimizer:
        return FACTORIES[name]([each for _, each in named if each.requires_grad])

    promises, findings = judged(trainable, saved, Recipe(tile("*", dim=0)), Spectral(8))
    assert statuses(promises) == KEPT
    assert findings == []
    if name == "adam":
        saved["optimizer"]["state"][0]["exp_avg_sq"][1, 2] = complex(1, -0.5)
        _, [found] = judged(trainable, saved, Recipe(tile("*", dim=0)), Spectral(8))
        assert found.message == "exp_avg_sq is negative, down to -0.5"


def test_sgd_without_momentum_has_no_state_and_steps(judged: Judged) -> None:
    plain = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    promises, findings = judged(plain, training(settle(Boxes()), plain))
    assert statuses(promises) == KEPT
    assert findings == []


def test_an_optimizer_that_can_not_be_made_is_said(judged: Judged) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    promises, [found] = judged(lambda p: torch.optim.Adam(p, lr=-1.0), saved)
    assert statuses(promises) == {"optimizer step": "broken"}
    assert found.rule == "optimizer-error"
    assert "Invalid learning rate: -1.0" in found.message


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="this torch has no Adafactor")
def test_state_of_unknown_form_passes_where_nothing_grew_and_is_left_out_where_it_did(judged: Judged) -> None:
    saved = training(settle(Boxes()), torch.optim.Adafactor)
    promises, findings = judged(torch.optim.Adafactor, saved, Recipe(), Boxes())
    assert statuses(promises) == KEPT
    assert findings == []
    promises, [found] = judged(torch.optim.Adafactor, saved)
    assert statuses(promises) == KEPT
    assert promises[0].detail == "Adafactor: 18 of 19 by name, old rows of 1 kept, 1 left out"
    assert (found.rule, found.key, found.severity) == ("optimizer-missing", "out2.weight", "warn")


class Growing(Boxes):
    """Grows its head by itself while it loads an older checkpoint."""

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(GROW.apply(state_dict, self.state_dict()), *args, **kwargs)


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="this torch has no Adafactor")
def test_state_of_unknown_form_does_not_grow_with_a_model_that_grows_itself(judged: Judged) -> None:
    saved = training(settle(Boxes()), torch.optim.Adafactor)
    promises, findings = judged(torch.optim.Adafactor, saved, Recipe(), Growing(14))
    assert statuses(promises) == {"optimizer state": "broken"}
    assert [(found.key, found.checkpoint, found.model) for found in findings] == [
        ("out2.bias", "variance (4,) f32", "(14,) f32"),
        ("out2.weight", "row_var (4, 1) f32", "(14, 8) f32"),
        ("out2.weight", "col_var (1, 8) f32", "(14, 8) f32"),
    ]


def test_too_little_memory_is_said(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    monkeypatch.setattr(memory, "free", lambda: 100)
    [promise], findings = judged(torch.optim.Adam, saved)
    assert (promise.status, findings) == ("unchecked", [])
    assert promise.detail.endswith("100 B are free")


@pytest.mark.parametrize(("optim", "warned"), [("zeros", HEAD), ("copy", set()), ("reset", set())])
def test_zero_moments_beside_a_long_training_are_a_warning(
    judged: Judged, optim: Any, warned: set[str]
) -> None:
    saved = training(settle(Boxes()), torch.optim.Adam)
    for slots in saved["optimizer"]["state"].values():
        slots["step"].fill_(50_000)
    _, findings = judged(torch.optim.Adam, saved, Recipe(tile("out2.*", dim=0, optim=optim)))
    assert {found.key for found in findings} == warned
    assert {(found.rule, found.severity) for found in findings} <= {("optimizer-restart", "warn")}
    assert all("at step 50000: its first updates are up to 6.6×" in each.message for each in findings)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("recipe", "rows", "left"), [(Recipe(), 4, 0), (GROW, 14, 19)], ids=["as it is", "grown"]
)
def test_a_history_of_all_parameters_together_goes_with_the_first_that_changes(
    judged: Judged, recipe: Recipe, rows: int, left: int, steps: int
) -> None:
    """LBFGS files its state under one parameter, also before it has a second step to keep."""
    model = settle(Boxes())
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
    for seed in range(steps):
        for each in model.parameters():
            each.grad = torch.randn(each.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step(lambda: torch.tensor(1.0))
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    promises, findings = judged(torch.optim.LBFGS, saved, recipe, Boxes(rows))
    assert statuses(promises) == {"optimizer state": "kept", "optimizer step": "unchecked"}
    assert len(findings) == left
    assert all(found.message.endswith("one history shared by all parameters") for found in findings)
