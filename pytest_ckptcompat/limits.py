"""What fake tensors can't follow: values, data pointers, operations without a fake kernel, the driver."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from .blame import cause
from .card import Unrehearsable

if TYPE_CHECKING:
    from collections.abc import Iterator

_TYPES = {
    "DataDependentOutputException": "it depends on values",
    "DynamicOutputShapeException": "a shape depends on values",
    "GuardOnDataDependentSymNode": "it depends on values",
    "UnsupportedFakeTensorException": "an operation has no fake kernel",
    "UnsupportedOperatorException": "an operation has no fake kernel",
    "UnsupportedMutationAliasingException": "an operation has no fake kernel",
    "FakeTensorDeviceMismatchError": "an operation's fake kernel does not know which device it gives",
}
"""By name, since torch moves these types about."""

_TEXTS = {
    "fake impl": "an operation has no fake kernel",
    "'Meta' backend": "an operation has no fake kernel",
    "convert all Tensors to FakeTensors": "an operation has no fake kernel",
    "Couldn't swap": "a module that the model makes is moved",
    "data pointer": "code outside torch reads the values",
    "doesn't have storage": "code outside torch reads the values",
    ".numpy() is not supported": "NumPy reads the values",
    "Cannot copy out of meta tensor": "it depends on values",
    "cannot be called on meta tensors": "it depends on values",
    **dict.fromkeys(
        (
            *(
                "Found no NVIDIA driver",
                "not compiled with CUDA",
                "not linked with support for",
                "CUDA driver version",
            ),
            *(
                "without ATen_cuda",
                "CUDA error",
                "No CUDA GPUs",
                "no CUDA-capable device",
                "0 active drivers",
            ),
            *("hasPrimaryContext", "Cannot access accelerator device", "compiled without CUDA support"),
        ),
        "it asks the driver",
    ),
}

_MACHINERY = (
    "_subclasses",
    "_meta_registrations.py",
    "_refs",
    "_prims",
    "_prims_common",
    "_decomp",
    "_dispatch",
)
_SLIPS = (AssertionError, AttributeError, KeyError, NameError, NotImplementedError, RecursionError, TypeError)


def limit(error: BaseException) -> str:
    """Why an error says nothing against the model, or ``""`` if it does.

    The errors that led to it count too: code may have caught what a fake tensor raised.
    """
    for link in _chain(error):
        if isinstance(link, Unrehearsable):
            return str(link)
        for kind in type(link).__mro__:
            if kind.__name__ in _TYPES:
                return f"{_TYPES[kind.__name__]} ({_operation(link)})"
        text = str(link)
        for part, reason in _TEXTS.items():
            if part in text:
                return f"{reason} ({cause(link, limit=160)})"
        if isinstance(link, _SLIPS) and _in_machinery(link):
            return f"fake tensors failed ({cause(link, limit=160)})"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _operation(error: BaseException) -> str:
    """``aten.nonzero.default``: these exceptions carry the operation alone."""
    return cause(error, limit=160).removeprefix(f"{type(error).__name__}: ")


def _in_machinery(error: BaseException) -> bool:
    """Whether the innermost line is one of torch's kernels for fake tensors."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    parts = frames[-1].filename.replace("\\", "/").split("/")
    return "torch" in parts and not set(parts[parts.index("torch") :]).isdisjoint(_MACHINERY)
