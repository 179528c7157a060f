"""Check the arguments of the functions that rebuild torch's tensors. What torch refuses is refused.

Errors are `TypeError` and `ValueError`. The pickle machine adds where in the pickle they occurred.
"""

from __future__ import annotations

import re
from types import NoneType
from typing import Any

from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, CompositeSpec, LearnedSpec, TensorSpec

from .pickle_stubs import Global, Stub

QUANTIZED = {"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
"""The element size in bytes of the quantized dtypes, which are not in `ITEMSIZE`."""

PACKED = {"quint4x2": 2, "quint2x4": 4}
"""How many elements of a quantized dtype share a byte."""

_LARGEST_COUNT = (1 << 64) - 1
_FRACTIONAL = ("float", "bfloat", "complex", "bcomplex")
_PER_CHANNEL = ("per_channel_affine", "per_channel_affine_float_qparams")
_MOST_SEARCHED = 200
_MOST_STATES = 2


_MOST_DEVICES = 128
_DEVICE = re.compile(
    "(cpu|cuda|ipu|xpu|mkldnn|opengl|opencl|ideep|hip|ve|fpga|maia|xla|lazy|vulkan|mps|meta|hpu|mtia|npu|mlu"
    "|privateuseone)"
    r"(:(0|[1-9]\d{0,2}))?"
)
LAYOUT = "torch.serialization._get_layout"
_LAYOUTS = {
    *("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "_mkldnn", "jagged")
}


def check_grad(requires_grad: Any, dtype: str) -> None:
    """Check that a tensor of this dtype may have this ``requires_grad``."""
    if type(requires_grad) is not bool:
        raise TypeError("requires_grad of a tensor is neither true nor false")
    if requires_grad and not dtype.startswith(_FRACTIONAL):
        raise ValueError(f"a tensor of {dtype} that requires a gradient")


def learned(spec: TensorSpec, *, requires_grad: bool, parameter: bool = False) -> TensorSpec:
    """Return the tensor as a parameter, or requiring a gradient. One without a plain layout is unchanged."""
    if isinstance(spec, CompositeSpec):
        return spec
    about = (spec.dtype, spec.shape, spec.stride, spec.offset, spec.storage, spec.note)
    return LearnedSpec(*about, parameter, requires_grad)


def check_state(state: Any) -> None:
    """Check that the state of an object is a dict of attributes, or a pair of dicts (attributes, slots)."""
    pair = state if type(state) is tuple else (state,)
    known = all(not each or (isinstance(each, dict) and all(type(n) is str for n in each)) for each in pair)
    if len(pair) > _MOST_STATES or (type(state) is tuple and len(pair) < _MOST_STATES) or not known:
        raise TypeError("the state of a parameter is not what torch writes")


def conjugated(spec: TensorSpec, flags: Any) -> TensorSpec:
    """Apply a tensor's lazy conjugation and negation: ``{"conj": True}``, ``{"neg": True}``."""
    if not flags:
        return spec
    if not isinstance(flags, dict):
        raise TypeError("the metadata of a tensor is not a dict")
    if not all(isinstance(name, str) for name in flags):
        raise TypeError("the metadata of a tensor has a name that is not a string")
    if not all(isinstance(value, (bool, int, float, NoneType)) for value in flags.values()):
        raise TypeError("the metadata of a tensor has a value that is not a flag")
    conj, neg = (bool(flags.get(name)) for name in ("conj", "neg"))
    if "conj" in flags and not spec.dtype.startswith(("complex", "bcomplex")):
        raise ValueError(f"a conjugated tensor of {spec.dtype}")
    if not conj and not neg:
        return spec
    return composite(spec, "conjugated or negated", "conjugated", (spec, conj, neg))


def composite(spec: TensorSpec, note: str, kind: str, parts: tuple[object, ...]) -> CompositeSpec:
    """Return a tensor of the same place and shape, whose values are made from other parts."""
    return CompositeSpec(spec.dtype, spec.shape, spec.stride, spec.offset, spec.storage, note, kind, parts)


def quantizer_of(quantizer: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return ``(scheme, scale, zero point)``, or ``(scheme, scales, zero points, axis)`` per channel."""
    if type(quantizer) is not tuple or not quantizer:
        raise TypeError("a quantized tensor without its quantizer")
    scheme, *numbers = (name_of(quantizer[0]).removeprefix("torch."), *quantizer[1:])
    if (
        scheme == "per_tensor_affine"
        and len(numbers) == 2
        and not any(isinstance(n, TensorSpec) for n in numbers)
    ):
        return (scheme, float(numbers[0]), int(numbers[1]))
    if (
        scheme in _PER_CHANNEL
        and len(numbers) == 3
        and type(numbers[2]) is int
        and 0 <= numbers[2] < len(shape)
    ):
        scales, points, axis = numbers
        counts = {_count(each) for each in (scales, points)}
        if counts == {shape[axis]}:
            return (scheme, scales, points, axis)
    raise ValueError("a quantized tensor whose quantizer does not fit it")


def _count(numbers: Any) -> int:
    """Return the length of a list or tensor of numbers."""
    if isinstance(numbers, TensorSpec):
        return numbers.numel
    if type(numbers) is list and all(type(each) in (int, float) for each in numbers):
        return len(numbers)
    raise TypeError("a quantizer without its numbers")


def distributed(spec: TensorSpec, kind: str, state: Any) -> TensorSpec:
    """Return the spec for one rank's part of a distributed tensor."""
    world = _attribute(state, "_flatten_rank_map", "_flatten_mesh_list")
    numbers = (_attribute(state, "_rank"), world)
    name = kind.rpartition(".")[2]
    return CompositeSpec(
        spec.dtype, spec.shape, spec.stride, 0, "", f"a rank's part of a {name}", name, numbers
    )


def _attribute(state: Any, *names: str) -> int | None:
    """Return the first whole number, or length of a list, under one of these names in a state."""
    pending = [state]
    for _ in range(_MOST_SEARCHED):
        if not pending:
            break
        node = pending.pop()
        attributes = node.attributes if isinstance(node, Stub) else node if isinstance(node, dict) else {}
        for name, value in attributes.items():
            if name in names and type(value) is int:
                return value
            if name in names and isinstance(value, (list, tuple)):
                return len(value)
        inner = [*node] if isinstance(node, (list, tuple)) else [*attributes.values()]
        pending.extend(each for each in reversed(inner) if isinstance(each, (Stub, dict, list, tuple)))
    return None


class Value(Stub):
    """A ``torch.device`` or a ``torch.layout``: what torch makes from it is not a tensor."""

    __slots__ = ()


def device_of(args: tuple[Any, ...]) -> Value:
    """``device("cuda:0")``, ``device("cuda", 0)``, ``device(0)``."""
    match args:
        case (str(text),) if _DEVICE.fullmatch(text):
            pass
        case (str(text), None) if _DEVICE.fullmatch(text) and ":" not in text:
            pass
        case (str(text), index) if _DEVICE.fullmatch(text) and ":" not in text and _is_index(index):
            pass
        case (index,) if _is_index(index):
            pass
        case _:
            raise ValueError("a device that torch does not have")
    return Value(Global("torch.device"), args)


def _is_index(index: Any) -> bool:
    return type(index) is int and 0 <= index < _MOST_DEVICES


def layout_of(args: tuple[Any, ...]) -> Value:
    """``_get_layout("torch.sparse_coo")``."""
    match args:
        case (str(name),) if name.removeprefix("torch.") in _LAYOUTS and name.startswith("torch."):
            return Value(Global(LAYOUT), args)
    raise ValueError("a layout that torch does not have")


def overflows(shape: tuple[int, ...]) -> bool:
    """Return whether torch's element count (64 bits, from the left) overflows before a size of zero."""
    elements = 1
    for size in shape:
        elements *= size
        if elements > _LARGEST_COUNT:
            return True
    return False


def dtype_of(named: Any) -> str:
    """Return the name of a dtype without ``torch.``; raise TypeError or ValueError if it is not a dtype."""
    dtype = name_of(named).removeprefix("torch.")
    itemsize_of(dtype)
    return dtype


def is_value(named: Any) -> bool:
    """Return whether a name means a dtype or a quantization scheme instead of a class or a function."""
    name = named.name.removeprefix("torch.") if isinstance(named, Global) else ""
    return name in ITEMSIZE or name in QUANTIZED or name.startswith("per_")


def itemsize_of(dtype: str) -> int:
    """Return the size of one element in bytes; raise ValueError if there is no such dtype."""
    if dtype not in ITEMSIZE and dtype not in QUANTIZED:
        raise ValueError(f"dtype {dtype} is unknown")
    return ITEMSIZE.get(dtype) or QUANTIZED[dtype]


def name_of(named: Any) -> str:
    """Return the name of a class or function; raise TypeError if it is neither."""
    if not isinstance(named, Global):
        raise TypeError("a class or dtype is not given by its name")
    return named.name
