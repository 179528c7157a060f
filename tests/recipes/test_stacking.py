from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import statuses

from pytest_ckptcompat import Recipe, RecipeError, stack_tensors, unbind


def experts(count: int, layers: int = 2) -> OrderedDict[str, torch.Tensor]:
    names = sorted(f"layers.{layer}.experts.{i}.w1.weight" for layer in range(layers) for i in range(count))
    return OrderedDict((name, torch.randn(3, 5)) for name in names)


STACK = stack_tensors("layers.*.experts.*.w1.weight", "layers.*.experts.w1")
UNBIND = unbind("layers.*.experts.w1", "layers.*.experts.*.w1.weight")


def test_experts_are_fused_in_natural_order_and_taken_apart_again() -> None:
    state = experts(12)  # in the file, 10 stands before 2
    fused = STACK.apply(state, {})
    for layer in range(2):
        expected = torch.stack([state[f"layers.{layer}.experts.{i}.w1.weight"] for i in range(12)])
        assert torch.equal(fused[f"layers.{layer}.experts.w1"], expected)
    assert len(fused) == 2
    assert statuses(STACK, state, fused, {}) == ["kept"]
    back = UNBIND.apply(fused, {})
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    assert statuses(UNBIND, fused, back, {}) == ["kept"]


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_both_are_torch_s(data: Any) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), max_size=3))
    count, dim = data.draw(st.integers(1, 4)), data.draw(st.integers(-len(shape) - 1, len(shape)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]))
    state = {f"t.{i}": torch.randint(-9, 9, shape).to(dtype) for i in range(count)}
    operator = stack_tensors("t.*", "whole", dim=dim)
    made = operator.apply(state, {})
    expected = torch.stack([value.float() for value in state.values()], dim)
    assert torch.equal(made["whole"].float(), expected)
    assert statuses(operator, state, made, {}) == ["kept"]
    parts = unbind("whole", "t.*", dim=dim).apply(made, {})
    for part, wanted in zip(parts.values(), torch.unbind(expected, dim), strict=True):
        assert torch.equal(part.float(), wanted)
    named = unbind("whole", [f"n{i}" for i in range(count)], dim=dim)  # type: ignore[arg-type]
    assert list(named.apply(made, {})) == [f"n{i}" for i in range(count)]
    assert Recipe.from_toml(Recipe(operator, named).to_toml()) == Recipe(operator, named)


def test_another_order_is_caught() -> None:
    state = experts(3, layers=1)
    made = STACK.apply(state, {})
    made["layers.0.experts.w1"] = made["layers.0.experts.w1"].flip(0)
    assert statuses(STACK, state, made, {}) == ["broken"]
    parts = UNBIND.apply(STACK.apply(state, {}), {})
    parts["layers.0.experts.0.w1.weight"], parts["layers.0.experts.1.w1.weight"] = (
        parts["layers.0.experts.1.w1.weight"], parts["layers.0.experts.0.w1.weight"],
    )  # fmt: skip
    assert statuses(UNBIND, STACK.apply(state, {}), parts, {}) == ["broken"]


@pytest.mark.parametrize(
    ("operator", "state", "target", "text"),
    [
        (lambda: stack_tensors("a.*", "b.*"), {}, {}, "one star more"),
        (lambda: unbind("a.*", "b.*"), {}, {}, "one star more"),
        (lambda: stack_tensors("a.*", "b"), {"a.0": torch.ones(2), "a.1": torch.ones(3)}, {}, r'it is \(3\,\) and "a.0" is'),
        (lambda: stack_tensors("a.*", "b"), {"a.0": torch.ones(2), "a.1": torch.ones(2).half()}, {}, "another dtype"),
        (lambda: stack_tensors("a.*", "b"), {"a.0": torch.ones(2)}, {"b": torch.ones(8, 2)}, "and the model has"),
        (lambda: stack_tensors(["a", "b"], "c"), {"a": torch.ones(2)}, {}, 'no "b" beside it'),
        (lambda: stack_tensors("a.*", "b", dim=3), {"a.0": torch.ones(2)}, {}, "no dimension 3"),
        (lambda: unbind("a", ["x", "y"]), {"a": torch.ones(3, 2)}, {}, "dimension 0 has 3, and to has 2 names"),
        (lambda: unbind("a", "x*", dim=2), {"a": torch.ones(3, 2)}, {}, "no dimension 2"),
    ],
)  # fmt: skip
def test_mistakes_are_told(operator: Any, state: Any, target: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        operator().apply(state, target)
