"""Operators that change keys alone, on random state dicts: no byte changes, and no two keys become one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import statuses
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators.rename import add_prefix, drop, rename, strip_prefix
from pytest_ckptcompat.recipes.operators.tie import tie

if TYPE_CHECKING:
    from pytest_ckptcompat.recipes.base import Operator

State = OrderedDict[str, Any]

names = st.text("ab.", min_size=1, max_size=6)
states = st.dictionaries(names, st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=6)
few = settings(deadline=None, max_examples=60)


def filled(shapes: dict[str, list[int]]) -> State:
    return OrderedDict((key, torch.randn(shape, dtype=torch.float64)) for key, shape in shapes.items())


def carried(operator: Operator, state: State, expected: dict[str, str]) -> None:
    """Demand that each new key has the very tensor of the old key that `expected` names, in that order."""
    before = {key: value.clone() for key, value in state.items()}
    new = operator.apply(state, {})
    assert list(new) == list(expected)
    for key, old in expected.items():
        assert new[key] is state[old]
        assert torch.equal(state[old], before[old])
    assert statuses(operator, state, new, {}) == ["kept"]
    for key in operator.keys if isinstance(operator, tie) else new:  # of others, a tie promises nothing
        if new[key].numel():
            assert statuses(operator, state, {**new, key: new[key] + 1e-9}, {}) == ["broken"]
        assert statuses(operator, state, {name: new[name] for name in new if name != key}, {}) == ["broken"]


@few
@given(states, names)
def test_add_prefix(shapes: dict[str, list[int]], prefix: str) -> None:
    carried(add_prefix(prefix), filled(shapes), {prefix + key: key for key in shapes})


@few
@given(states, st.sampled_from(["a", "b.", "ab"]))
def test_strip_prefix_as_torch_strips_it(shapes: dict[str, list[int]], prefix: str) -> None:
    """Of keys that lie under one module; of a prefix without its dot, the dot goes as well."""
    module = prefix.removesuffix(".") + "."
    state = filled({module + "x" + key: shape for key, shape in shapes.items()})
    expected: State = OrderedDict(state)
    nn.modules.utils.consume_prefix_in_state_dict_if_present(expected, module)
    carried(strip_prefix(prefix), state, dict(zip(expected, state, strict=True)))


@few
@given(states, st.sampled_from(["a", "b", "."]))
def test_drop(shapes: dict[str, list[int]], start: str) -> None:
    kept = {key: key for key in shapes if not key.startswith(start)}
    if len(kept) == len(shapes):
        with pytest.raises(RecipeError, match="matches nothing"):
            drop(f"{start}*").apply(filled(shapes), {})
    else:
        carried(drop(f"{start}*"), filled(shapes), kept)


@few
@given(states, st.sampled_from(["a", "b"]), st.sampled_from(["c", "a", "b"]))
def test_rename(shapes: dict[str, list[int]], start: str, to: str) -> None:
    new = [to + key[1:] if key.startswith(start) else key for key in shapes]
    operator, state = rename(f"{start}*", f"{to}*"), filled(shapes)
    if new == list(shapes):
        with pytest.raises(RecipeError, match=r"matches nothing|another name"):
            operator.apply(state, {})
    elif len(set(new)) < len(new):
        with pytest.raises(RecipeError, match=r"gives both .* the name"):
            operator.apply(state, {})
    else:
        carried(operator, state, dict(zip(new, shapes, strict=True)))


@few
@given(states, st.data())
def test_tie(shapes: dict[str, list[int]], data: st.DataObject) -> None:
    first, other = data.draw(st.permutations([*shapes, "x"]))[:2]
    if first == "x":
        first, other = other, first
    carried(
        tie([first, other]),
        filled(shapes),
        {key: first if key == other else key for key in _with(other, first, list(shapes))},
    )


def _with(key: str, after: str, keys: list[str]) -> list[str]:
    """The keys, and `key` behind `after` if it is not among them."""
    place = keys.index(after) + 1
    return keys if key in keys else [*keys[:place], key, *keys[place:]]


@pytest.mark.parametrize(
    ("prefix", "key", "name"),
    [
        ("module", "module.fc", "fc"),
        ("module.", "module.fc", "fc"),
        ("module", "modules.fc", "modules.fc"),
        ("net_", "net_fc", "fc"),
        ("a.b", "a.bc", "a.bc"),
    ],
)
def test_a_prefix_ends_with_a_part_of_the_key(prefix: str, key: str, name: str) -> None:
    state = {
        key: torch.ones(1),
        f"{prefix.rstrip('.')}.other" if prefix[-1] != "_" else "net_other": torch.ones(1),
    }
    assert strip_prefix(prefix).apply(state, {}).keys() == {name, "other"}
