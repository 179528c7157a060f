"""What ``torch.load(weights_only=True)`` of torch 2.14 allows in a pickle, without further imports."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape, listed

if TYPE_CHECKING:
    from .pickle_machine import Machine

_KINDS = "BFloat16|Bool|Byte|Char|Double|Float|Half|Int|Long|Short"
_SAFE = re.compile(
    rf"""
    _codecs\.encode | builtins\.(bytearray|complex|set) | collections\.(Counter|OrderedDict)
    | torch\.(Size|Tensor|device|nn\.parameter\.Parameter|serialization\._get_layout)
    | torch\.(_tensor\._rebuild_from_type_v2|storage\.(Typed|Untyped)Storage)
    | torch\._utils\._rebuild_(device_tensor_from_cpu_tensor|device_tensor_from_numpy|meta_tensor_no_storage
        |nested_tensor|parameter|parameter_with_state|qtensor|sparse_tensor|tensor|tensor_v2|tensor_v3
        |wrapper_subclass)
    | torch\.(cuda\.)?({_KINDS}|ComplexDouble|ComplexFloat)Storage | torch\.(cuda\.)?({_KINDS})Tensor
    | torch\.(QInt32|QInt8|QUInt2x4|QUInt4x2|QUInt8)Storage
    | torch\.(cuda\.)?sparse\.(BFloat16|Byte|Char|Double|Float|Half|Int|Long|Short)Tensor
    | torch\.(bool|u?int([1-8]|16|32|64)|b?float(16|32|64)|bfloat16|b?complex32|complex(64|128)
        |float8_(e4m3fn|e4m3fnuz|e5m2|e5m2fnuz|e8m0fnu)|float4_e2m1fn_x2|bits(8|16|1x8|2x4|4x2)
        |qint8|qint32|quint8|quint2x4|quint4x2)
    | torch\.per_(tensor_affine|tensor_symmetric|channel_affine|channel_symmetric
        |channel_affine_float_qparams)
    """,
    re.VERBOSE,
)
_SAFE_OPCODES = frozenset(b"NG]}aesuc\x80\x81\x87\x88\x8a\x8fbU")
"""The opcodes that torch allows, without those that the machine inlines, which are all allowed."""


def is_safe(name: str) -> bool:
    """Return whether the restricted unpickler allows a name."""
    return bool(_SAFE.fullmatch(name))


def refused(*machines: Machine) -> str:
    """Return why torch's restricted unpickler would refuse these pickles, or ``""``."""
    names = dict.fromkeys(name for machine in machines for name in machine.globals if not is_safe(name))
    if names:
        shown = listed([escape(name, 80) for name in names], 3)
        return f"torch.load(weights_only=True) refuses it: it names {shown}"
    protocols = {machine.protocol for machine in machines if machine.rare - _SAFE_OPCODES}
    if protocols:
        return f"torch.load(weights_only=True) refuses it: it is written in pickle protocol {max(protocols)}"
    return ""
