from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import pytest
import torch

from pytest_ckptcompat.checkpoint.torch_zip_writer import write_torch_zip
from pytest_ckptcompat.checkpoint.written import Content
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Dict, Global, Set, Size, Stub


def content() -> Content:
    return Content(lambda spec: torch.ones(spec.shape))


def written(node: Any) -> Any:
    file = io.BytesIO()
    write_torch_zip(file, content().of(node), "x")
    file.seek(0)
    return torch.load(file, weights_only=True)


def inert(**entries: Any) -> Dict:
    made = Dict("collections.OrderedDict")
    made.update(entries)
    return made


def test_plain_values_come_back_as_they_were() -> None:
    node = {"a": [1, (2.5, None, True)], 3: b"x", "b": {"c": "ü", "d": 1j}, "e": ()}
    assert written(node) == node


def test_tensors_are_asked_for() -> None:
    loaded = written(
        {"a": TensorSpec("float32", (2, 3), storage="s"), "b": [TensorSpec("float32", (2, 3), storage="s")]}
    )
    assert torch.equal(loaded["a"], torch.ones(2, 3))
    assert loaded["a"].data_ptr() == loaded["b"][0].data_ptr()


def test_attributes_of_a_dict_are_kept() -> None:
    node = inert(a=1)
    node.attributes = {"_metadata": inert(x=2)}
    loaded = written(node)
    assert isinstance(loaded, OrderedDict)
    assert loaded._metadata == {"x": 2}  # type: ignore[attr-defined]


def test_dtypes_are_kept_and_other_names_are_left_out() -> None:
    node = {
        "a": Global("torch.bfloat16"),
        "b": Global("os.system"),
        "c": Global("torch.nn.Linear"),
        "d": Stub(Global("x.Y")),
    }
    made = content()
    assert made.of(node) == {"a": torch.bfloat16}
    assert made.left_out == [f"{name} is left out: an object of a class" for name in "bcd"]
    assert written(node) == {"a": torch.bfloat16}


def test_keys_that_are_no_plain_values_are_left_out() -> None:
    made = content()
    assert made.of({Stub(Global("x.Y")): 1, "a": 2}) == {"a": 2}
    assert made.left_out == ["(a key) is left out: an object of a class"]


def test_nested_keys_do_not_multiply() -> None:
    key: Any = 1
    for _ in range(40):
        key = (key,) * 15
    made = content()
    assert made.of({"a": {Stub(key): 1, Stub((1, (2, "x"))): 2}}) == {"a": {(1, (2, "x")): 2}}
    assert len(made.left_out) == 1


def test_containers_that_torch_allows_come_back_as_they_were() -> None:
    node = {"a": Set([1, "x"]), "b": {1, (2, "y")}, "c": Size([2, 3]), "d": bytearray(b"x"), "e": {(1, 2): 3}}
    loaded = written(node)
    assert loaded == {**node, "a": {1, "x"}, "c": torch.Size([2, 3])}
    assert isinstance(loaded["c"], torch.Size)
    assert type(loaded["a"]) is set


def test_a_set_is_written_in_the_same_order_in_every_process() -> None:
    names = [f"name{number}" for number in range(10, 30)]
    file = io.BytesIO()
    write_torch_zip(file, content().of({"a": Set(names[::-1])}), "x")
    places = [file.getvalue().index(name.encode()) for name in names]
    assert places == sorted(places)


def test_parts_that_are_shared_stay_shared_and_do_not_multiply() -> None:
    node: Any = ["x"]
    for _ in range(60):
        node = [node, node]
    made = content().of({"bomb": node})
    assert made["bomb"][0] is made["bomb"][1]


def test_a_list_that_holds_itself_ends() -> None:
    node: list[Any] = [1]
    node.append(node)
    made = content().of({"a": node})
    assert made["a"][1] is made["a"]


def test_what_is_nested_too_deeply_is_one_error() -> None:
    node: Any = {}
    for _ in range(20_000):
        node = {"x": node}
    with pytest.raises(ValueError, match="nested too deeply"):
        content().of(node)


def test_parts_may_be_replaced_or_left_out() -> None:
    inner, gone = {"a": 1}, {"b": 2}
    made = content()
    made.instead(inner, {"new": 3})
    made.leave_out(gone)
    assert made.of({"x": inner, "y": gone, "z": [inner]}) == {"x": {"new": 3}, "z": [{"new": 3}]}
    assert made.left_out == []
