from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Words, settle
from torch import nn

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.verification.load_listener import Loading, listen
from pytest_ckptcompat.verification.loaded import loaded_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ckptcompat.core.findings import Finding, Promise


def judged(make: Callable[[], nn.Module], state: dict[str, Any]) -> tuple[Promise, list[Finding]]:
    """Build, load and judge, as the check does."""

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    model = build(0)
    model.load_state_dict(state)
    return loaded_whole(model, state, listen(model, state), build)


def heard(model: nn.Module, state: dict[str, Any]) -> Loading:
    loading = listen(model, state)
    assert loading is not None
    return loading


class Own(nn.Module):
    """A module with parameters, and a function that loads them."""

    def __init__(self, load: Callable[[Any, dict[str, Any]], Any], **parameters: torch.Tensor) -> None:
        super().__init__()
        self.load = load
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.load(self, state_dict)


@pytest.mark.parametrize("make", [Boxes, Words])
def test_an_ordinary_load_is_whole(make: Callable[[], nn.Module]) -> None:
    state = settle(make()).state_dict()
    promise, findings = judged(make, state)
    assert (promise.status, findings) == ("kept", [])


def test_values_equal_to_the_constructor_s_are_loaded_all_the_same() -> None:
    """A checkpoint of the untrained model: every value is the one that the constructor gives."""
    torch.manual_seed(0)
    state = Boxes().state_dict()
    promise, findings = judged(Boxes, state)
    assert (promise.status, findings) == ("kept", [])


def test_nothing_is_built_and_nothing_changed_where_all_was_heard() -> None:
    model = settle(Boxes())
    before = copy.deepcopy(model.state_dict())
    promise, _ = loaded_whole(model, before, listen(model, before), lambda seed: pytest.fail("built"))
    assert (promise.status, promise.detail) == ("kept", "28 tensors")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_which_key_went_where() -> None:
    model = Words()
    loading = heard(model, model.state_dict())
    assert loading.sources["position"] == ("position",)
    assert (
        loading.sources["embed.weight"] == loading.sources["head.weight"] == ("embed.weight", "head.weight")
    )
    assert not loading.altered
    assert set(loading.names) == set(loading.written) == set(model.state_dict())


def test_a_load_that_raises_is_not_heard() -> None:
    assert listen(Boxes(14), Boxes().state_dict()) is None


def forgetful(name: str) -> nn.Module:
    """A model whose loader takes one key and forgets the other; torch then sees both as there."""

    def load(module: Any, state: dict[str, Any]) -> None:
        with torch.no_grad():
            module.get_parameter(name).copy_(state[name])

    return Own(load, weight=torch.randn(4, 3), scale=torch.ones(4))


def test_a_random_parameter_that_the_model_s_loader_forgot_is_found() -> None:
    state = {"weight": torch.zeros(4, 3), "scale": torch.ones(4)}
    promise, [found] = judged(lambda: forgetful("scale"), state)
    assert (promise.status, promise.detail) == ("broken", "not loaded: weight of 2")
    assert (found.rule, found.key) == ("unloaded-parameter", "weight")
    assert found.message.endswith("random ones")


def test_a_constant_parameter_that_was_forgotten_is_found_unless_the_checkpoint_has_the_same() -> None:
    promise, [found] = judged(
        lambda: forgetful("weight"), {"weight": torch.zeros(4, 3), "scale": torch.full((4,), 2.0)}
    )
    assert (promise.status, found.key) == ("broken", "scale")
    promise, findings = judged(
        lambda: forgetful("weight"), {"weight": torch.zeros(4, 3), "scale": torch.ones(4)}
    )
    assert (promise.status, findings) == ("kept", [])


@pytest.mark.parametrize(
    "write",
    [
        lambda module, value: module.weight.data.copy_(value),
        lambda module, value: module.weight.data.__setitem__(slice(0, 4), value),
        lambda module, value: setattr(module.weight, "data", value),
        lambda module, value: setattr(module, "weight", nn.Parameter(value)),
        lambda module, value: module.weight.data.add_(value),
    ],
)
def test_every_way_to_write_is_heard(write: Callable[[nn.Module, torch.Tensor], Any]) -> None:
    def make() -> nn.Module:
        return Own(lambda module, state: write(module, state["weight"]), weight=torch.zeros(4, 3))

    promise, findings = judged(make, {"weight": torch.zeros(4, 3)})
    assert (promise.status, findings) == ("kept", [])
    assert heard(make(), {"weight": torch.zeros(4, 3)}).written == {"weight"}


def test_a_transposed_square_is_not_copied_unchanged() -> None:
    model = Own(lambda module, state: module.weight.data.t().copy_(state["weight"]), weight=torch.zeros(3, 3))
    assert heard(model, {"weight": torch.randn(3, 3)}).sources == {}


def test_writes_that_can_not_be_heard_are_judged_by_their_values() -> None:
    """Through NumPy nothing is heard; and such a loader can't run without memory at all."""

    def load(module: Any, state: dict[str, Any]) -> None:
        module.weight.detach().numpy()[:] = state["weight"].numpy()

    def make() -> nn.Module:
        return Own(load, weight=torch.randn(4, 3))

    state = {"weight": torch.full((4, 3), 2.0)}
    assert listen(make(), state) is None
    assert judged(make, state)[0].status == "kept"


def test_a_key_renamed_on_the_way_is_altered_or_traced_to_its_source() -> None:
    def load(module: Any, state: dict[str, Any]) -> None:
        module.new.data.copy_(state["old"])
        module.halved.data.copy_(state["halved"] / 2)

    model = Own(load, new=torch.randn(4), halved=torch.randn(4))
    loading = heard(model, {"old": torch.ones(4), "halved": torch.ones(4)})
    assert loading.sources == {"new": ("old",)}
    assert loading.altered == {"halved"}
    assert loading.written == {"new", "halved"}


class Frozen(nn.Module):
    """Keeps its backbone out of the state dict, as adapters do."""

    def __init__(self, random: bool) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 2)
        if not random:
            nn.init.eye_(self.backbone.weight)
        self.register_state_dict_post_hook(
            lambda module, state, prefix, metadata: state.__delitem__(prefix + "backbone.weight")
        )
        self.register_load_state_dict_post_hook(lambda module, keys: keys.missing_keys.clear())


def test_what_a_model_keeps_out_of_its_state_dict_may_not_be_random() -> None:
    promise, findings = judged(lambda: Frozen(random=False), Frozen(random=False).state_dict())
    assert (promise.status, findings) == ("kept", [])
    promise, [found] = judged(lambda: Frozen(random=True), Frozen(random=True).state_dict())
    assert (promise.status, found.key) == ("broken", "backbone.weight")


def test_unsaved_buffers_are_the_constructor_s_business() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.register_buffer("table", torch.rand(5), persistent=False)

    promise, findings = judged(Rotary, Rotary().state_dict())
    assert (promise.status, findings) == ("kept", [])


def test_old_batchnorm_without_its_counter_is_whole() -> None:
    state = OrderedDict(
        (key, value) for key, value in Boxes().state_dict().items() if "num_batches" not in key
    )
    promise, findings = judged(Boxes, state)  # no _metadata: version 1, in which there was no counter
    assert (promise.status, findings) == ("kept", [])


def test_meta_tensors_after_the_load_are_found() -> None:
    state = Boxes().state_dict()
    with torch.device("meta"):
        model = Boxes()
    promise, findings = loaded_whole(model, state, listen(model, state), None)
    assert promise.status == "broken"
    assert {found.rule for found in findings} == {"unloaded-parameter"}
    assert len(findings) == len(state)
    model.load_state_dict(state, assign=True)
    assert loaded_whole(model, state, listen(model, state), None)[0].status == "kept"


def test_no_memory_for_a_second_model_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = forgetful("weight")
    state = {"weight": torch.zeros(4, 3), "scale": torch.zeros(4)}
    model.load_state_dict(state)
    monkeypatch.setattr(memory, "free", lambda: 10)
    promise, findings = loaded_whole(model, state, listen(model, state), lambda seed: pytest.fail("built"))
    assert (promise.status, findings) == ("unchecked", [])
    assert promise.detail == "two further models take 128 B, 10 B are free"


def test_loading_is_heard_without_touching_values() -> None:
    class Unreadable(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") not in {"__get__", "size", "stride", "element_size", "numel"}:
                raise AssertionError(f"{func} reads values")
            return super().__torch_function__(func, types, args, kwargs)

    state = {key: value.as_subclass(Unreadable) for key, value in Boxes().state_dict().items()}
    assert len(heard(Boxes(), state).written) == 28


def test_keys_that_torch_holds_to_be_missing_are_no_news() -> None:
    state = Boxes().state_dict()
    del state["fc.0.weight"]
    model = Boxes()
    model.load_state_dict(state, strict=False)
    loading = listen(model, state, ["fc.0.weight"])
    promise, findings = loaded_whole(model, state, loading, lambda seed: pytest.fail("built"))
    assert (promise.status, promise.detail, findings) == ("kept", "27 tensors", [])


def test_a_loader_that_assigns_is_traced_to_its_source() -> None:
    def load(module: Any, state: dict[str, Any]) -> None:
        module.weight = nn.Parameter(state["weight"])
        module.other = nn.Parameter(state["other"] + 1)

    model = Own(load, weight=torch.randn(4, 3), other=torch.randn(4, 3))
    loading = heard(model, {"weight": torch.zeros(4, 3), "other": torch.zeros(4, 3)})
    assert loading.sources == {"weight": ("weight",)}
    assert loading.altered == {"other"}
    assert loading.written == {"weight", "other"}


def test_an_earlier_load_that_assigned_leaves_no_trace() -> None:
    """torch writes ``assign`` into the ``_metadata`` of the state dict that it is given."""
    state = Boxes().state_dict()
    Boxes().load_state_dict(state, assign=True)
    assert state._metadata[""]["assign_to_params_buffers"] is True  # type: ignore[attr-defined]
    assert len(heard(Boxes(), state).sources) == 28
