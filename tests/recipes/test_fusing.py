"""Fusing and splitting tensors, along an old dimension and a new one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import statuses
from torch import nn

from pytest_ckptcompat import Recipe, RecipeError, concat, split, stack_tensors, unbind

FUSE = concat(["layers.*.q.*", "layers.*.k.*", "layers.*.v.*"], "layers.*.qkv.*", dim=0)
UNFUSE = split("layers.*.qkv.*", ["layers.*.q.*", "layers.*.k.*", "layers.*.v.*"], dim=0)


def heads(q: int = 8, kv: int = 4) -> OrderedDict[str, Any]:
    """Two layers, keys and values with fewer rows than queries."""
    modules = {"q": nn.Linear(6, q), "k": nn.Linear(6, kv), "v": nn.Linear(6, kv), "o": nn.Linear(q, 6)}
    return OrderedDict(
        (f"layers.{layer}.{name}.{leaf}", torch.randn_like(value))
        for layer in range(2)
        for name, module in modules.items()
        for leaf, value in module.state_dict().items()
    )


def test_fused_in_every_layer_weights_and_biases() -> None:
    old = heads()
    growth = Recipe(FUSE).run(old, {})
    new = growth.state_dict
    assert list(new)[:3] == ["layers.0.qkv.weight", "layers.0.qkv.bias", "layers.0.o.weight"]
    x = torch.randn(3, 6)
    for layer in range(2):
        parts = [(old[f"layers.{layer}.{name}.weight"], old[f"layers.{layer}.{name}.bias"]) for name in "qkv"]
        fused = nn.functional.linear(x, new[f"layers.{layer}.qkv.weight"], new[f"layers.{layer}.qkv.bias"])
        torch.testing.assert_close(fused, torch.cat([nn.functional.linear(x, *part) for part in parts], 1))
    assert statuses(FUSE, old, new, {}) == ["kept"]
    assert growth.origin["layers.0.qkv.bias"] is None
    assert growth.sources["layers.0.qkv.bias"] == ("layers.0.q.bias", "layers.0.k.bias", "layers.0.v.bias")
    assert new["layers.1.o.bias"] is old["layers.1.o.bias"]


def test_there_and_back() -> None:
    old = heads()
    new = Recipe(FUSE, UNFUSE).apply(old, old)
    assert set(new) == set(old)
    assert all(torch.equal(new[key], old[key]) for key in old)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.data(),
)
def test_concat_and_split_for_any_shape(sizes: list[int], parts: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float8_e5m2, torch.int64]))
    old = OrderedDict[str, torch.Tensor]()
    for number, size in enumerate(parts):
        each = list(sizes)
        each[dim] = size
        old[f"w{number}"] = (torch.rand(each) * 9).to(dtype)
    names = list(old)
    fuse, unfuse = concat(names, "w", dim=dim), split("w", names, dim=dim, sizes=parts)
    fused = fuse.apply(old, {})
    assert torch.equal(fused["w"].double(), torch.cat([each.double() for each in old.values()], dim))
    assert statuses(fuse, old, fused, {}) == ["kept"]
    again = unfuse.apply(fused, {})
    assert statuses(unfuse, fused, again, {}) == ["kept"]
    assert list(again) == names
    assert all(torch.equal(again[name].double(), old[name].double()) for name in names)


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (concat(["a", "z"], "w", dim=0), 'does not fit "a": there is no "z" beside it'),
        (concat(["a", "c"], "w", dim=0), '"a" is (2, 3)'),
        (concat(["a", "h"], "w", dim=0), 'it has another dtype than "a": cast one'),
        (concat(["a", "b"], "w", dim=2), "with no dimension 2"),
        (concat(["a", "b"], "c", dim=0), "the name c"),
        (concat(["q*", "k*"], "qk*", dim=0), "matches nothing"),
        (split("a", ["p", "q", "r"], dim=0), "dimension 0 has 2, which is not cut into [0, 0, 0]"),
        (split("a", ["p", "q"], dim=0, sizes=[1, 2]), "dimension 0 has 2, which is not cut into [1, 2]"),
        (split("a", ["p", "q"], dim=5), "with no dimension 5"),
    ],
)
def test_what_can_not_be_joined_or_cut(operator: Any, text: str) -> None:
    old = {"a": torch.rand(2, 3), "b": torch.rand(4, 3), "c": torch.rand(2, 4), "h": torch.rand(2, 3).half()}
    with pytest.raises(RecipeError) as caught:
        operator.apply(old, {})
    assert text in str(caught.value)


def test_stars_stand_for_the_same() -> None:
    with pytest.raises(RecipeError, match="have as many stars"):
        concat(["*.q", "k"], "*.qk", dim=0)


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


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_are_joined() -> None:
    one, other = (torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 3, torch.qint8) for _ in range(2))
    for operator, expected in (
        (concat(["a", "b"], "c", dim=0), torch.cat([one.int_repr(), other.int_repr()])),
        (stack_tensors(["a", "b"], "c"), torch.stack([one.int_repr(), other.int_repr()])),
    ):
        made = operator.apply({"a": one, "b": other}, {})
        assert torch.equal(made["c"].int_repr(), expected)
        assert made["c"].q_scale() == 0.1
        assert statuses(operator, {"a": one, "b": other}, made, {}) == ["kept"]
