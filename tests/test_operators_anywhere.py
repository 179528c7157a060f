"""Every operator, on every kind of tensor: real, without memory, on a card; and what an optimizer keeps."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from pytest_ckptcompat.operators import (
    OPERATORS,
    Operator,
    add_prefix,
    append,
    cast,
    concat,
    custom,
    drop,
    inflate,
    insert_block,
    pad,
    permute,
    reduce,
    rename,
    repeat_channels,
    resample,
    scale,
    select,
    split,
    stack,
    strip_prefix,
    tie,
    tile,
    transpose,
    widen,
)
from pytest_ckptcompat.recipe import Recipe

HELLO = {"w.weight": (4, 6), "w.bias": (4,)}
KERNEL = {"w": (4, 3, 5, 5)}
LAYERS = {"layers.0.a": (3, 3), "layers.0.b": (3,), "layers.1.a": (3, 3), "layers.1.b": (3,)}
CASES: list[tuple[Operator, dict[str, tuple[int, ...]]]] = [
    (add_prefix("net."), HELLO),
    *((append("w.*", dim=0, n=3, init=init, value=0.5), HELLO) for init in ("zeros", "constant", "mean")),
    (append("w.weight", dim=0, n=3, init="normal", std=0.1), HELLO),
    (append("w.weight", dim=1, n=3, init="kaiming_uniform"), HELLO),
    (append("w.weight", dim=1, n=3, init="xavier_uniform"), HELLO),
    (append("w.weight", dim=0, n=3, init="multivariate_normal"), HELLO),
    (cast("*", "bfloat16"), HELLO),
    (concat(["w.weight", "v.weight"], "x.weight", dim=0), {**HELLO, "v.weight": (2, 6)}),
    (custom(lambda state: {**state, "w.bias": state["w.bias"] * 2}, touches=["w.bias"], optim="copy"), HELLO),
    (drop("w.bias"), HELLO),
    (inflate("w", time=3), KERNEL),
    (inflate("w", time=3, mode="centre", optim="copy"), KERNEL),
    (insert_block("layers.0", at=1, zero=["a"], optim="copy"), LAYERS),
    (pad("w", sizes=[1, 1, 2, 2]), KERNEL),
    (permute("w", dims=[2, 3, 1, 0]), KERNEL),
    (reduce("w.weight", dim=0, groups=2, optim="copy"), HELLO),
    (reduce("w.weight", dim=1, groups=3, op="sum"), HELLO),
    (rename("w.*", "v.*"), HELLO),
    (repeat_channels("w", to=7, optim="copy"), KERNEL),
    (resample("w", size=[4, 4], prefix_tokens=1, optim="copy"), {"w": (1, 10, 6)}),
    (resample("w", size=[7, 7], mode="pinv"), KERNEL),
    (scale("w.weight", [1, 2, 3, 4], dim=0, optim="copy"), HELLO),
    (select("w.*", dim=0, index=[3, 1, 1]), HELLO),
    (select("w.*", dim=0, old_names=list("abcd"), new_names=list("xda"), missing="mean"), HELLO),
    (split("w.weight", ["a", "b"], dim=0), HELLO),
    (stack("layers", times=2, optim="copy"), LAYERS),
    (strip_prefix("w."), HELLO),
    (tie(["w.weight", "v.weight"]), HELLO),
    (tile("w.*", dim=0, to=7, noise_std=0.1), HELLO),
    (transpose("w.weight"), HELLO),
    (widen("w", ["v"], to=7, split="unequal", noise_std=0.1), {**HELLO, "v.weight": (2, 4)}),
]
each = pytest.mark.parametrize(("operator", "shapes"), CASES, ids=[str(operator) for operator, _ in CASES])


def drawn(shapes: dict[str, tuple[int, ...]], device: str = "cpu") -> OrderedDict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return OrderedDict(
        (key, torch.rand(sizes, generator=generator).to(device)) for key, sizes in shapes.items()
    )


def kinds(state: Any) -> dict[str, Any]:
    return {key: (tuple(value.shape), value.dtype, value.stride()) for key, value in state.items()}


def test_no_operator_is_left_out() -> None:
    assert {type(operator).__name__ for operator, _ in CASES} == set(OPERATORS)


@each
def test_without_memory_it_gives_the_same_shapes_and_reads_nothing(operator: Operator, shapes: Any) -> None:
    real = operator.apply(drawn(shapes), {})
    meta = operator.apply(drawn(shapes, "meta"), {})
    assert all(value.is_meta for value in meta.values())
    assert kinds(meta) == kinds(real)


@each
def test_the_input_is_left_as_it_was_and_a_second_time_gives_the_same(
    operator: Operator, shapes: Any
) -> None:
    old, expected = drawn(shapes), drawn(shapes)
    new, again = operator.apply(old, {}), operator.apply(old, {})
    assert all(torch.equal(old[key], expected[key]) for key in expected)
    assert all(torch.equal(new[key], again[key]) for key in new)
    assert list(new) == list(again)


@each
def test_its_own_promises_hold(operator: Operator, shapes: Any) -> None:
    old = drawn(shapes)
    promises = operator.prove(old, operator.apply(old, {}), {})
    assert promises
    assert {promise.status for promise in promises} == (
        {"kept", "unchecked"} if isinstance(operator, custom) else {"kept"}
    )


@each
def test_what_an_optimizer_keeps_gets_the_new_shape_and_squares_stay_above_zero(
    operator: Operator, shapes: Any
) -> None:
    old = drawn(shapes)
    after = operator.edit(old, {})
    for writes in after.plan.values():
        for write in writes:
            if write.carry is not None:
                for squares in (False, True):
                    carried = write.carry(squares, *(old[source] for source in write.sources))
                    assert carried.shape == after.state[write.key].shape
                    assert float(carried.min()) >= 0


@each
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_it_gives_what_it_gives_on_the_cpu(operator: Operator, shapes: Any) -> None:
    expected, new = operator.apply(drawn(shapes), {}), operator.apply(drawn(shapes, "cuda"), {})
    for key, value in new.items():
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), expected[key])


@each
def test_text_forms_give_it_back(operator: Operator, shapes: Any) -> None:
    if not isinstance(operator, custom):
        assert eval(repr(operator), dict(OPERATORS)) == operator
        assert Recipe.from_toml(Recipe(operator).to_toml()) == Recipe(operator)
