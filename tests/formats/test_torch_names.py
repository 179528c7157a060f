"""What torch's functions of a pickle mean, and that arguments which they refuse are refused."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_zip import VALUES, Call, Ref, checkpoint, tensor

from pytest_ckptcompat import CheckpointError, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

HOOKS: Any = OrderedDict()
INTEGERS = Ref(kind=torch.IntStorage)
QUANTIZED = Ref(kind=torch.QInt8Storage, numel=24)

GOOD: dict[Any, tuple[Any, ...]] = {
    torch._utils._rebuild_tensor: (Ref(), 0, (2, 3), (3, 1)),
    torch._utils._rebuild_tensor_v2: (Ref(), 0, (2, 3), (3, 1), False, HOOKS),
    torch._utils._rebuild_tensor_v3: (Ref(), 0, (2, 3), (3, 1), False, HOOKS, torch.float32),
    torch._utils._rebuild_parameter: (tensor(), True, HOOKS),
    torch._utils._rebuild_parameter_with_state: (tensor(), True, HOOKS, {"label": "w"}),
    torch._utils._rebuild_qtensor: (
        *(QUANTIZED, 0, (2, 3), (3, 1)),
        (torch.per_tensor_affine, 0.5, 3),
        False,
        HOOKS,
    ),
    torch._utils._rebuild_meta_tensor_no_storage: (torch.float32, (2, 3), (3, 1), False),
    torch._utils._rebuild_device_tensor_from_cpu_tensor: (tensor(), torch.float32, "cpu", False),
    torch._tensor._rebuild_from_type_v2: (
        *(torch._utils._rebuild_tensor_v2, torch.Tensor),
        *((Ref(), 0, (2, 3), (3, 1), False, HOOKS), {}),
    ),
}
OBJECTS: dict[Any, tuple[Any, ...]] = {
    torch._utils._rebuild_wrapper_subclass: (
        *(torch.Tensor, torch.float32, (2, 3), (3, 1), 0),
        *(torch.strided, torch.device("cpu"), False),
    ),
    OrderedDict: ([("a", 1)],),
    torch.Size: ((1, 2),),
    torch.device: ("cuda", 0),
    torch.serialization._get_layout: ("torch.strided",),
    set: ([1, 2],),
    complex: (1.0, 2.0),
}
ODD = st.sampled_from([
    *(None, True, False, 0, 1, -1, 7, 2.0, "x", (), (2, 3), (6,), (1 << 62, 4, 0), (1 << 32, 1 << 31), (0, 0)),
    *([], {}, {"conj": True}, {"neg": False}, {5: 1}, {"x": "y"}, {"x": 2.0}, HOOKS, torch.float16, torch.int8, torch.nn.ReLU),
    *(torch.per_tensor_affine, torch.strided, torch.device("cpu"), torch.Tensor, ("a",), (2.0, 3), "cuda:0"),
    *(Ref(), INTEGERS, QUANTIZED, tensor(), tensor(INTEGERS), ({}, None), ({}, {}, {})),
    (torch.per_tensor_affine, "x", 3),
    (torch.per_channel_affine, [0.5, 0.5], [1, 1], 0),
    (torch.per_channel_affine, [0.5], [1, 1], 0),
    (torch.per_channel_affine, [0.5, 0.5], [1, 1], 2),
    (torch.per_tensor_symmetric, 0.5, 3),
])  # fmt: skip


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call as torch writes it, with an argument changed, taken away, or added."""
    function, given_args = draw(st.sampled_from([*GOOD.items(), *OBJECTS.items()]))
    args = list(given_args)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(args)))
        how = draw(st.sampled_from(["changed", "changed", "added", "taken"]))
        if how == "added":
            args.insert(at, draw(ODD))
        elif at < len(args) and how == "changed":
            args[at] = draw(ODD)
        elif at < len(args):
            del args[at]
    return Call(function, *args)


def says(path: Path) -> str:
    """What torch says against the file; nothing where it loads it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(path, weights_only=True)
    except Exception as error:
        return str(error)
    return ""


NO_CARD = re.compile("Cannot access accelerator|not compiled with CUDA|no NVIDIA driver|No CUDA GPUs")
"""A device that exists elsewhere."""


@given(call=calls())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_torch_refuses_is_refused(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "net.pth"
    tree = {"w": call, "fine": tensor(Ref("1"))}
    path.write_bytes(checkpoint(tree, storages=[("0", VALUES), ("1", VALUES)]).to_bytes())
    try:
        ckpt = open_checkpoint(path)
        ckpt.state_dict()
    except CheckpointError:
        return
    told = says(path)
    assert not told or ckpt.unsafe or NO_CARD.search(told), told


@pytest.mark.parametrize(
    "state", [None, {}, {"a": 1}, {1: 2}, 5, "x", (1, 2), ({"a": 1}, None), ({}, {"a": 1}), ({}, {}, {})]
)
@pytest.mark.parametrize("function", [torch._utils._rebuild_tensor_v2, OrderedDict])
def test_states_that_torch_refuses_are_refused(tmp_path: Path, function: Any, state: Any) -> None:
    path = tmp_path / "net.pth"
    made = Call(function, *GOOD.get(function, ()), state=state)
    path.write_bytes(checkpoint({"w": made, "fine": tensor()}).to_bytes())
    try:
        open_checkpoint(path)
    except CheckpointError:
        return
    assert not says(path) or open_checkpoint(path).unsafe


def test_a_layout_is_no_device(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    made = Call(
        torch._utils._rebuild_device_tensor_from_cpu_tensor, tensor(), torch.float32, torch.strided, False
    )
    path.write_bytes(checkpoint({"w": made, "fine": tensor()}).to_bytes())
    assert says(path)
    with pytest.raises(CheckpointError, match="a tensor of a device"):
        open_checkpoint(path)


@pytest.mark.parametrize("elements", [[{}], [[1]], ["a", bytearray(b"a")]])
def test_a_set_holds_what_has_a_hash(tmp_path: Path, elements: list[Any]) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(checkpoint({"w": tensor(), "odd": Call(set, elements)}).to_bytes())
    assert "unhashable" in says(path)
    with pytest.raises(CheckpointError, match="has no hash"):
        open_checkpoint(path)


@pytest.mark.parametrize("function", GOOD)
def test_what_torch_writes_is_read(tmp_path: Path, function: Any) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(checkpoint({"w": Call(function, *GOOD[function]), "fine": tensor()}).to_bytes())
    if function is torch._utils._rebuild_qtensor:
        data = {"w": Call(function, *GOOD[function])}
        path.write_bytes(checkpoint(data).to_bytes())
    assert not says(path)
    ckpt = open_checkpoint(path)
    assert ckpt["w"].shape == (2, 3)
    assert ckpt.meta()["w"].shape == (2, 3)
